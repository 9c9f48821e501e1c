"""Which step's achieved goal becomes the goal of a relabelled transition.

Andrychowicz et al. 2017, "Hindsight experience replay", sections 3.3 and 4.5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

STRATEGIES = ("future", "final", "episode")


def check_strategy(strategy: str) -> None:
    """ValueError unless `strategy` is one of STRATEGIES."""
    if strategy not in STRATEGIES:
        raise ValueError(f"Unknown HER strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")


def goal_index(key: jax.Array, strategy: str, t: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """For transitions `t` [B] of episodes over [start, end) the steps [B] whose achieved goals become their goals.

    All int32, start <= t < end; `start` and `end` [B] or []. The achieved goal of step i is that of the state after it,
    so step t itself is a future of t. In a ring, give positions counted on past its end and take the remainder after.

    strategy: static. "future": uniform over [t, end). "final": end - 1. "episode": uniform over [start, end).
        ValueError for others. The draws of a batch are independent.
    """
    check_strategy(strategy)
    start, end = jnp.broadcast_to(start, t.shape), jnp.broadcast_to(end, t.shape)
    if strategy == "final":
        return end - 1
    return jax.random.randint(key, t.shape, t if strategy == "future" else start, end, jnp.int32)
