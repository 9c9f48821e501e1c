"""Our replay and flashbax's behind the same pure functions, fed with the same made-up steps of 64 environments.

Everything is imported inside functions: the one side's interpreter need not have the other's libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

N_ENVS, BATCH, CLASSES = 64, 256, 4
GAMMA, ALPHA, BETA, EPS = 0.99, 0.6, 0.4, 1e-6
PERIOD, TIME_LIMIT = 400, 200  # steps between two terminations of an environment; half-way it is truncated


class Batch(NamedTuple):
    """What a draw returns; leading axis [256]."""

    obs: Any
    action: Any
    reward: Any
    discount: Any
    next_obs: Any
    weight: Any
    index: Any  # for `Side.update`


@dataclass(frozen=True)
class Side:
    """One replay."""

    init: Callable[[], Any]
    add: Callable[[Any, Any], Any]  # (state, i): the i-th step of every environment
    random: Callable[[Any, int], Any]  # (key, rounds): random numbers for each round's draw
    sample: Callable[[Any, Any], Batch]
    update: Callable[[Any, Any, Any], Any] | None  # (state, index, errors); None: uniform
    classes: Callable[[Any], Any]  # the class, 0 to 3, of the transition that an index stands for
    n_indices: int
    keeps_final_obs: bool = True
    drawable: Callable[[Any, Any], Any] = lambda state, index: index  # indices that may be given a priority


def step(i: Any) -> dict[str, Any]:
    """The i-th step of all environments [64]."""
    import jax.numpy as jnp

    env = jnp.arange(N_ENVS, dtype=jnp.int32)
    return step_of(jnp.broadcast_to(i, env.shape), env)


def step_of(i: Any, env: Any) -> dict[str, Any]:
    """Step `i` of environment `env`, both int32 [B]: all follows from them, so that what is drawn can be checked."""
    import jax.numpy as jnp

    def seen(i: Any, ended: Any) -> Any:
        columns = (i, env, ended, jnp.zeros_like(i))
        return jnp.stack([column.astype(jnp.float32) for column in columns], axis=-1)

    phase = (i + env) % PERIOD
    terminated, truncated = phase == 0, phase == TIME_LIMIT
    never = jnp.zeros_like(terminated)
    return {
        "obs": seen(i, never),
        "action": env % CLASSES,
        # Below 1, the first priority: flashbax rounds the priority of what is added to a whole number.
        "reward": ((i * 37 + env * 11) % 101).astype(jnp.float32) / 101.0,
        "terminated": terminated,
        "truncated": truncated,
        "next": seen(i + 1, never),  # acted on next
        "final": seen(i + 1, terminated | truncated),  # what the step led to
    }


def sides(name: str, capacity: int) -> dict[str, Side]:
    """By "layout kind"; ours has one layout. `capacity` is a multiple of 64."""
    kinds = {"uniform": False, "prioritised": True}
    if name == "ours":
        return {f"ours {kind}": ours(prioritised, capacity) for kind, prioritised in kinds.items()}
    return {
        f"{layout} {kind}": flashbax(layout, prioritised, capacity)
        for kind, prioritised in kinds.items()
        for layout in ("item", "trajectory", "flat")
    }


def ours(prioritised: bool, capacity: int) -> Side:
    import jax
    import jax.numpy as jnp

    from tensor_optix.core import prioritized, replay

    n_places = replay.rows_for(capacity, N_ENVS) * N_ENVS
    alpha, beta, eps = jnp.float32(ALPHA), jnp.float32(BETA), jnp.float32(EPS)

    def init() -> Any:
        first = step(jnp.int32(0))
        stored = replay.init(capacity, first["obs"], first["action"], max_episode_steps=TIME_LIMIT)
        return stored, prioritized.init(n_places) if prioritised else ()

    def add(state: Any, i: Any) -> Any:
        stored, priorities = state
        new = step(i)
        stored = replay.add(
            stored, new["action"], new["reward"], new["terminated"], new["truncated"], new["next"], new["final"]
        )
        if prioritised:
            priorities = prioritized.remove(priorities, replay.current(stored))
            priorities = prioritized.insert(priorities, replay.newest_ready(stored, 1), alpha)
        return stored, priorities

    def random(key: Any, rounds: int) -> Any:
        if prioritised:
            return prioritized.draws(key, (rounds,), BATCH)
        return jax.random.bits(key, (rounds, BATCH), jnp.uint32)

    def sample(state: Any, random: Any) -> Batch:
        stored, priorities = state
        if prioritised:
            place, weight = prioritized.sample_at(priorities, random, stored.size * N_ENVS, beta)
        else:
            place, weight = replay.draw(stored, random, 1), jnp.ones(BATCH, jnp.float32)
        read = replay.read(stored, place, 1, jnp.float32(GAMMA))
        weight = weight * read.weight
        return Batch(read.obs, read.action, read.reward, read.discount, read.next_obs, weight, place)

    def update(state: Any, index: Any, error: Any) -> Any:
        return state[0], prioritized.update(state[1], index, error, alpha, eps)

    return Side(
        init=init,
        add=add,
        random=random,
        sample=sample,
        update=update if prioritised else None,
        classes=lambda index: index % N_ENVS % CLASSES,
        n_indices=n_places,
    )


def flashbax(layout: str, prioritised: bool, capacity: int) -> Side:
    """`layout`: "item", "trajectory" or "flat"."""
    import flashbax as fbx  # type: ignore[import-not-found, unused-ignore]
    import jax
    import jax.numpy as jnp

    rows = capacity // N_ENVS
    options: dict[str, Any] = {}
    if prioritised:
        options = {"priority_exponent": ALPHA, "device": jax.default_backend()}
    if layout == "item":
        make = fbx.make_prioritised_item_buffer if prioritised else fbx.make_item_buffer
        buffer = make(capacity, BATCH, BATCH, add_batches=True, **options)
    elif layout == "flat":
        make = fbx.make_prioritised_flat_buffer if prioritised else fbx.make_flat_buffer
        buffer = make(capacity, BATCH, BATCH, add_batch_size=N_ENVS, **options)
    else:
        make = fbx.make_prioritised_trajectory_buffer if prioritised else fbx.make_trajectory_buffer
        buffer = make(N_ENVS, BATCH, 1, 1, BATCH // N_ENVS, max_length_time_axis=rows, **options)
    pairs, in_time = layout == "flat", layout == "trajectory"

    def stored(i: Any) -> dict[str, Any]:
        new = step(i)
        kept = {name: new[name] for name in ("obs", "action", "reward")}
        kept["discount"] = jnp.where(new["terminated"], jnp.float32(0.0), jnp.float32(1.0))
        return kept if pairs else {**kept, "next_obs": new["final"]}

    def init() -> Any:
        return buffer.init(jax.tree.map(lambda x: x[0], stored(jnp.int32(0))))

    def add(state: Any, i: Any) -> Any:
        new = stored(i)
        return buffer.add(state, jax.tree.map(lambda x: x[:, None], new) if in_time else new)

    def sample(state: Any, key: Any) -> Batch:
        drawn = buffer.sample(state, key)
        if pairs:
            read = {**drawn.experience.first, "next_obs": drawn.experience.second["obs"]}
        else:
            read = jax.tree.map(lambda x: x[:, 0], drawn.experience) if in_time else drawn.experience
        if prioritised:
            weight, index = (1.0 / drawn.probabilities) ** jnp.float32(BETA), drawn.indices
            weight = weight / jnp.max(weight)
        else:
            weight, index = jnp.ones(BATCH, jnp.float32), jnp.zeros(BATCH, jnp.int32)
        discount = jnp.float32(GAMMA) * read["discount"]
        return Batch(read["obs"], read["action"], read["reward"], discount, read["next_obs"], weight, index)

    def update(state: Any, index: Any, error: Any) -> Any:
        return buffer.set_priorities(state, index, jnp.abs(error) + jnp.float32(EPS))

    def before_newest(state: Any, index: Any) -> Any:
        """The newest step of an environment has no neighbour yet: the one before it instead."""
        newest = (state.current_index - 1) % rows
        return jnp.where(index % rows == newest, index - index % rows + (newest - 1) % rows, index)

    return Side(
        init=init,
        add=add,
        random=jax.random.split,
        sample=sample,
        update=update if prioritised else None,
        classes=lambda index: (index if layout == "item" else index // rows) % N_ENVS % CLASSES,
        n_indices=capacity,
        keeps_final_obs=not pairs,
        drawable=before_newest if pairs else lambda state, index: index,
    )
