"""A ring of transitions of N environments, as a pytree: written row by row, read at random, in place under donation.

An observation is stored once: what a step led to is the next row's observation. Only where an episode was cut by a
time limit is there something else to bootstrap from, the final observation; those are kept in a small ring beside.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

GOES_ON, TERMINATED, TRUNCATED = 0, 1, 2  # how a step ended


class Replay(struct.PyTreeNode):
    """C rows of N environments. Row `cursor` holds the observations that are acted on next, and nothing else yet."""

    obs: jax.Array  # [C, N, *obs], the environment's dtype
    action: jax.Array  # [C, N] int32 or [C, N, D] float32
    reward: jax.Array  # [C, N] float32
    end: jax.Array  # [C, N] uint8: GOES_ON, TERMINATED or TRUNCATED
    cuts: jax.Array  # [C, N] int32, truncations of this environment before this row
    final_obs: jax.Array  # [F, N, *obs], of the newest F truncations of each environment
    n_cuts: jax.Array  # [N] int32, truncations of each environment so far
    cursor: jax.Array  # [] int32, the row that the next transition goes to
    size: jax.Array  # [] int32, rows of transitions, at most C - 1


class Transitions(struct.PyTreeNode):
    """What an update reads; B rows."""

    obs: jax.Array  # [B, *obs]
    action: jax.Array  # [B] or [B, D]
    reward: jax.Array  # [B] float32, discounted sum over up to n steps
    discount: jax.Array  # [B] float32, gamma^k of the k steps summed; 0 where the task ended
    next_obs: jax.Array  # [B, *obs], what the last of them led to
    weight: jax.Array  # [B] float32, 1; 0 for a row that must not count


def rows_for(capacity: int, n_envs: int) -> int:
    """C for at least `capacity` transitions."""
    return -(-capacity // n_envs) + 1


def init(capacity: int, obs: jax.Array, action: jax.Array, max_episode_steps: int | None = None) -> Replay:
    """An empty replay of at least `capacity` transitions.

    Args:
        obs: [N, *obs], what is acted on first.
        action: [N] or [N, D], any actions: their shape and dtype count.
        max_episode_steps: the time limit, where truncation means that it was reached. None: an episode may be cut at
            any step, and as many final observations are kept as there are rows.
    """
    n_envs = obs.shape[0]
    rows = rows_for(capacity, n_envs)
    finals = rows if max_episode_steps is None else min(rows, rows // max_episode_steps + 2)

    def zeros(count: int, like: jax.Array) -> jax.Array:
        return jnp.zeros((count, *like.shape), like.dtype)

    scalar, counts = jnp.zeros(n_envs, jnp.float32), jnp.zeros(n_envs, jnp.int32)
    replay = Replay(
        obs=zeros(rows, obs),
        action=zeros(rows, action),
        reward=zeros(rows, scalar),
        end=zeros(rows, counts.astype(jnp.uint8)),
        cuts=zeros(rows, counts),
        final_obs=zeros(finals, obs),
        n_cuts=counts,
        cursor=jnp.int32(0),
        size=jnp.int32(0),
    )
    return replay.replace(obs=_put(replay.obs, obs, replay.cursor))


def restart(replay: Replay, obs: jax.Array) -> Replay:
    """Forget everything; `obs` [N, *obs] is acted on next. The arrays are kept, so nothing is allocated."""
    cursor, size, n_cuts = (jnp.zeros_like(x) for x in (replay.cursor, replay.size, replay.n_cuts))
    return replay.replace(obs=_put(replay.obs, obs, cursor), n_cuts=n_cuts, cursor=cursor, size=size)


def add(
    replay: Replay,
    action: jax.Array,
    reward: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    obs: jax.Array,
    final_obs: jax.Array,
) -> Replay:
    """One step of every environment.

    Args:
        action, reward, terminated, truncated: [N] each ([N, D] for vectors); never both flags.
        obs: [N, *obs], what is acted on next: of a new episode where one ended.
        final_obs: [N, *obs], what the step led to.
    """
    row = replay.cursor
    after = _wrapped(row + 1, replay.obs.shape[0])
    end = jnp.where(terminated, jnp.uint8(TERMINATED), jnp.where(truncated, jnp.uint8(TRUNCATED), jnp.uint8(GOES_ON)))
    finals, n_envs = replay.final_obs.shape[:2]
    # Out of range where nothing is to be written, and dropped.
    slot = jnp.where(truncated, jax.lax.rem(replay.n_cuts, jnp.int32(finals)), jnp.int32(finals))
    envs = jnp.arange(n_envs, dtype=jnp.int32)
    return replay.replace(
        obs=_put(replay.obs, obs, after),
        action=_put(replay.action, action, row),
        reward=_put(replay.reward, reward, row),
        end=_put(replay.end, end, row),
        cuts=_put(replay.cuts, replay.n_cuts, row),
        final_obs=replay.final_obs.at[slot, envs].set(final_obs.astype(replay.final_obs.dtype), mode="drop"),
        n_cuts=replay.n_cuts + truncated.astype(jnp.int32),
        cursor=after,
        size=jnp.minimum(replay.size + 1, replay.obs.shape[0] - 1),
    )


def draw(replay: Replay, bits: jax.Array, n_step: int) -> jax.Array:
    """Uniform places int32 [B] from random bits uint32 [B]: those of all transitions whose n next rows are there.

    At least `n_step` rows must have been added. A place is row * N + environment. The remainder's bias is below
    transitions / 2^32.
    """
    rows, n_envs = replay.end.shape
    ready = jnp.maximum(replay.size - (n_step - 1), 1).astype(jnp.uint32)
    chosen = jax.lax.rem(bits, ready * jnp.uint32(n_envs)).astype(jnp.int32)
    age = chosen // n_envs + n_step
    return _wrapped(replay.cursor - age, rows) * n_envs + chosen % n_envs


def newest_ready(replay: Replay, n_step: int) -> jax.Array:
    """Places int32 [N] of the newest row that `draw` may return; -1 before there is one."""
    n_envs = replay.end.shape[1]
    row = _wrapped(replay.cursor - n_step, replay.end.shape[0])
    places = row * n_envs + jnp.arange(n_envs, dtype=jnp.int32)
    return jnp.where(replay.size >= n_step, places, jnp.int32(-1))


def current(replay: Replay) -> jax.Array:
    """Places int32 [N] of the row that holds no transition: what was there is lost."""
    n_envs = replay.end.shape[1]
    return replay.cursor * n_envs + jnp.arange(n_envs, dtype=jnp.int32)


def read(replay: Replay, place: jax.Array, n_step: int, gamma: jax.Array) -> Transitions:
    """The transitions at `place` int32 [B], summed over up to `n_step` steps (Sutton & Barto 2018, section 7.1).

    A sum ends with its episode. Where a time limit ended it, the final observation follows and is bootstrapped from; if
    that is not kept any more, the row's weight is 0.
    """
    rows, n_envs = replay.end.shape
    env = jax.lax.rem(place, jnp.int32(n_envs))
    row = place // n_envs

    def at(leaf: jax.Array, row: jax.Array) -> jax.Array:
        flat = leaf.reshape(-1, *leaf.shape[2:])
        return flat.at[row * n_envs + env].get(mode="promise_in_bounds")

    reward, discount = jnp.zeros(place.shape, jnp.float32), jnp.ones(place.shape, jnp.float32)
    going, last = jnp.ones(place.shape, bool), row
    for k in range(n_step):
        step = _wrapped(row + k, rows)
        reward = reward + jnp.where(going, discount * at(replay.reward, step), jnp.float32(0.0))
        discount = jnp.where(going, discount * gamma, discount)
        last = jnp.where(going, step, last)
        going = going & (at(replay.end, step) == GOES_ON)
    end, cut = at(replay.end, last), at(replay.cuts, last)
    truncated = end == TRUNCATED
    finals = replay.final_obs.shape[0]
    kept = replay.n_cuts.at[env].get(mode="promise_in_bounds") - cut <= finals
    final = at(replay.final_obs, jax.lax.rem(cut, jnp.int32(finals)))
    following = at(replay.obs, _wrapped(last + 1, rows))
    return Transitions(
        obs=at(replay.obs, row),
        action=at(replay.action, row),
        reward=reward,
        discount=jnp.where(end == TERMINATED, jnp.float32(0.0), discount),
        next_obs=jnp.where(truncated.reshape(-1, *(1,) * (final.ndim - 1)), final, following),
        weight=jnp.where(truncated & ~kept, jnp.float32(0.0), jnp.float32(1.0)),
    )


def n_bytes(replay: Any) -> int:
    """Memory of a replay, or of its shapes as `jax.eval_shape` gives them."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(replay))


def _put(buffer: jax.Array, row: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(buffer, row.astype(buffer.dtype), index, 0)


def _wrapped(row: jax.Array, rows: int) -> jax.Array:
    """Rows from -rows to 2 * rows - 1, as rows of the ring."""
    row = jnp.where(row < 0, row + rows, row)
    return jnp.where(row >= rows, row - rows, row)
