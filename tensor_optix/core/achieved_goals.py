"""What was achieved at each row of a replay, and where the row's episode begins and ends: what hindsight needs.

Rows are those of `core.replay`: a ring of C rows of N environments.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.core.hindsight import goal_index
from tensor_optix.core.replay import Replay, Transitions


class AchievedGoals(struct.PyTreeNode):
    """The achieved goals of C rows of N environments."""

    achieved: jax.Array  # [C, N, G] float32, after the row's step
    episode: jax.Array  # [C, N] int32, number of the row's episode
    last: jax.Array  # [C, N] int32, at place (number % C): the last row of the episode of that number
    n_episodes: jax.Array  # [N] int32, episodes that have ended so far


def init(rows: int, achieved: jax.Array) -> AchievedGoals:
    """Nothing achieved yet. `rows` is C; `achieved` [N, G], any: its shape and dtype count."""
    n_envs = achieved.shape[0]
    counts = jnp.zeros((rows, n_envs), jnp.int32)
    return AchievedGoals(
        achieved=jnp.zeros((rows, *achieved.shape), achieved.dtype),
        episode=counts,
        last=counts,
        n_episodes=jnp.zeros(n_envs, jnp.int32),
    )


def restart(goals: AchievedGoals) -> AchievedGoals:
    """Forget everything; the arrays are kept."""
    return goals.replace(n_episodes=jnp.zeros_like(goals.n_episodes))


def add(goals: AchievedGoals, row: jax.Array, achieved: jax.Array, done: jax.Array) -> AchievedGoals:
    """One step of every environment, at row [] int32: what it achieved [N, G], and whether it ended its episode [N]."""
    rows, n_envs = goals.episode.shape
    number = goals.n_episodes
    # Out of range where nothing is to be written, and dropped.
    slot = jnp.where(done, jax.lax.rem(number, jnp.int32(rows)), jnp.int32(rows))
    envs = jnp.arange(n_envs, dtype=jnp.int32)
    return goals.replace(
        achieved=jax.lax.dynamic_update_index_in_dim(goals.achieved, achieved, row, 0),
        episode=jax.lax.dynamic_update_index_in_dim(goals.episode, number, row, 0),
        last=goals.last.at[slot, envs].set(row, mode="drop"),
        n_episodes=number + done.astype(jnp.int32),
    )


def at(goals: AchievedGoals, place: jax.Array) -> jax.Array:
    """[B, G]: what the transitions at `place` [B] int32 achieved."""
    flat = goals.achieved.reshape(-1, goals.achieved.shape[-1])
    return flat.at[place].get(mode="promise_in_bounds")


def draw(goals: AchievedGoals, stored: Replay, key: jax.Array, strategy: str, place: jax.Array) -> jax.Array:
    """Places [B] int32 of the steps whose achieved goals become those of the transitions at `place` [B] int32.

    strategy: as in `core.hindsight`. Of an episode that goes on, or has lost its beginning, what is there counts.
    """
    rows, n_envs = goals.episode.shape
    env, row = jax.lax.rem(place, jnp.int32(n_envs)), place // n_envs

    def of(leaf: jax.Array, row: jax.Array) -> jax.Array:
        return leaf.reshape(-1).at[row * n_envs + env].get(mode="promise_in_bounds")

    def between(earlier: jax.Array, later: jax.Array) -> jax.Array:
        """Rows from one to the other, 0 to C - 1."""
        return jax.lax.rem(later - earlier + jnp.int32(rows), jnp.int32(rows))

    number = of(goals.episode, row)
    goes_on = number == goals.n_episodes.at[env].get(mode="promise_in_bounds")
    newest = jnp.broadcast_to(stored.cursor - 1, row.shape)
    ended = of(goals.last, jax.lax.rem(number, jnp.int32(rows)))
    ahead = between(row, jnp.where(goes_on, newest, ended))
    oldest = jax.lax.rem(stored.cursor - stored.size + jnp.int32(rows), jnp.int32(rows))
    oldest = jnp.broadcast_to(oldest, row.shape)
    before = of(goals.last, jax.lax.rem(number + jnp.int32(rows - 1), jnp.int32(rows)))  # last of the episode before
    reaches_back = of(goals.episode, oldest) == number  # what was before it is overwritten
    behind = between(jnp.where(reaches_back, oldest, before + 1), row)
    position = row + jnp.int32(rows)  # counted on, so that an episode before the ring's first row is not below 0
    chosen = goal_index(key, strategy, position, position - behind, position + ahead + 1)
    return jax.lax.rem(chosen, jnp.int32(rows)) * n_envs + env


def relabel(
    goals: AchievedGoals,
    stored: Replay,
    batch: Transitions,
    place: jax.Array,
    key: jax.Array,
    strategy: str,
    share: jax.Array,
    wanting: Callable[[jax.Array, jax.Array], jax.Array],
    worth: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
) -> Transitions:
    """A share of single steps as if their goals had been some that were achieved.

    Andrychowicz et al. 2017, Algorithm 1. Where an episode ended, nothing follows under another goal either: what would
    have followed was never seen.

    Args:
        batch: what was read at `place` [B] int32, with n_step 1.
        share: [] float32, probability that a step is relabelled.
        wanting: observations [B, W] and goals [B, G] -> observations in which these are desired.
        worth: achieved goals [B, G] and goals [B, G] -> rewards [B] float32, whether the task ended [B] bool.
    """
    key_share, key_goal = jax.random.split(key)
    chosen = jax.random.uniform(key_share, place.shape, jnp.float32) < share
    goal = at(goals, draw(goals, stored, key_goal, strategy, place))
    reward, ended = worth(at(goals, place), goal)

    def told(obs: jax.Array) -> jax.Array:
        return jnp.where(chosen[:, None], wanting(obs, goal), obs)

    return batch.replace(
        obs=told(batch.obs),
        next_obs=told(batch.next_obs),
        reward=jnp.where(chosen, reward, batch.reward),
        discount=jnp.where(chosen & ended, jnp.float32(0.0), batch.discount),
    )
