"""CartPole steps per second under a random policy: our reset-where-needed against gymnax's own auto-reset.

Both step N environments in one compiled scan; they take turns in one process and compilation is apart.

    python -m benchmarks.env_steps --json
"""

from __future__ import annotations

import os

os.environ.setdefault("NPROC", "8")  # XLA's CPU client can hang when its thread pool has two threads

import time
from collections.abc import Callable
from typing import Any

import gymnax
import jax
import jax.numpy as jnp

from benchmarks._report import Row, arguments, emit, median_ratio, parse
from tensor_optix import envs

ENV = "CartPole-v1"


def ours(n: int, steps: int) -> Callable[[jax.Array], jax.Array]:
    env = envs.make(ENV)

    def one(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        key_action, key_step = jax.random.split(key)
        state, out = env.step(key_step, state, env.sample_action(key_action, n))
        return state, out.reward.sum() + out.obs.sum()

    def run(key: jax.Array) -> jax.Array:
        key_reset, key_steps = jax.random.split(key)
        state, _ = env.reset(key_reset, n)
        return jax.lax.scan(one, state, jax.random.split(key_steps, steps))[1].sum()

    return run


def theirs(n: int, steps: int) -> Callable[[jax.Array], jax.Array]:
    env, params = gymnax.make(ENV)

    def one(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        key_action, key_step = jax.random.split(key)
        action = jax.random.randint(key_action, (n,), 0, 2, jnp.int32)
        step = jax.vmap(env.step, in_axes=(0, 0, 0, None))
        obs, state, reward, *_ = step(jax.random.split(key_step, n), state, action, params)
        return state, reward.sum() + obs.sum()

    def run(key: jax.Array) -> jax.Array:
        key_reset, key_steps = jax.random.split(key)
        _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key_reset, n), params)
        return jax.lax.scan(one, state, jax.random.split(key_steps, steps))[1].sum()

    return run


def meter(run: Callable[[jax.Array], jax.Array], transitions: int) -> Callable[[], float]:
    """Million environment steps per second of one call; compiled before it is returned."""
    compiled, key = jax.jit(run), jax.random.key(0)
    jax.block_until_ready(compiled(key))

    def measure() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(key))
        return transitions / (time.perf_counter() - start) / 1e6

    return measure


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=300.0)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of measurements")
    parser.add_argument("--transitions", type=int, default=2_000_000, help="environment steps per measurement")
    args = parse(parser)

    rows = []
    for n in (4, 64, 2048):
        steps = max(1, args.transitions // n // (8 if n < 64 else 1))
        pair = median_ratio(meter(ours(n, steps), n * steps), meter(theirs(n, steps), n * steps), args.rounds)
        rows.append(Row(f"{ENV}, {n} environments", pair.a, "M steps/s", pair.b, pair.ratio))
    emit("env_steps", rows, args.json, ["ratio: ours over gymnax's auto-reset; above 1 is faster"])


if __name__ == "__main__":
    main()
