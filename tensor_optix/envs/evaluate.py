"""Scores by acting only: N environments side by side, one episode each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.envs.vector import VectorEnv

# Tags of the draws that one evaluation's key is used for.
_RESET, _ACT, _STEP = 0, 1, 2


@struct.dataclass
class EpisodeStats:
    """N episodes, each from its reset to its end or to `max_steps`."""

    returns: jax.Array  # [N] float32, sums of raw rewards
    lengths: jax.Array  # [N] int32, steps taken
    completed: jax.Array  # [N] bool, the episode ended by itself; otherwise it was cut at `max_steps`


def evaluate(
    env: VectorEnv,
    act: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    n_episodes: int,
    max_steps: int,
) -> EpisodeStats:
    """Run the first episode of `n_episodes` fresh environments with `act(obs [N, ...], key) -> action [N, ...]`.

    Stops when all have ended, at the latest after `max_steps`. Every environment's first episode counts and no other:
    taking the first N episodes to finish would favour short ones. Random numbers are drawn only where policy or
    environment use their key.
    """
    stats, _ = evaluate_with_carry(env, lambda obs, carry, key: (act(obs, key), carry), (), key, n_episodes, max_steps)
    return stats


def evaluate_with_carry(
    env: VectorEnv,
    act: Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]],
    carry: Any,
    key: jax.Array,
    n_episodes: int,
    max_steps: int,
) -> tuple[EpisodeStats, Any]:
    """`evaluate` for a policy with memory: `act(obs [N, ...], carry, key) -> action [N, ...], carry`.

    carry: what the memory of one policy carries at the start of an episode, without a batch axis; every episode begins
    with it. `act` takes and returns it with a leading axis [N], and so is it returned, as it was when the last episode
    ended. A policy without memory has the carry ().
    """
    if n_episodes < 1 or max_steps < 1:
        raise ValueError(f"n_episodes and max_steps must be at least 1, got {n_episodes} and {max_steps}")
    state, obs = env.reset(jax.random.fold_in(key, _RESET), n_episodes)
    key_act, key_step = jax.random.fold_in(key, _ACT), jax.random.fold_in(key, _STEP)

    def running(loop: Any) -> jax.Array:
        t, *_, alive, _, _ = loop
        return (t < max_steps) & alive.any()

    def one_step(loop: Any) -> Any:
        t, env_state, obs, carry, alive, returns, lengths = loop
        action, carry = act(obs, carry, jax.random.fold_in(key_act, t))
        env_state, out = env.step_once(jax.random.fold_in(key_step, t), env_state, action)
        returns = returns + jnp.where(alive, out.reward, jnp.float32(0.0))
        lengths = lengths + alive.astype(jnp.int32)
        return t + jnp.int32(1), env_state, out.obs, carry, alive & ~out.done, returns, lengths

    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (n_episodes, *jnp.shape(x))), carry)
    zeros, counts = jnp.zeros(n_episodes, jnp.float32), jnp.zeros(n_episodes, jnp.int32)
    loop = (jnp.int32(0), state.env, obs, carry, jnp.ones(n_episodes, bool), zeros, counts)
    *_, carry, alive, returns, lengths = jax.lax.while_loop(running, one_step, loop)
    return EpisodeStats(returns, lengths, ~alive), carry
