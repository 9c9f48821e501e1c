"""The one place where benchmarks touch the library's public call; also a child process that runs it once.

    python -m benchmarks._ours --env CartPole-v1 --algorithm ppo --seeds 4 --steps 100000

prints one JSON line: what `summary` returns. `tensor_optix` is imported inside the functions, so that importing this
module starts no backend.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks._report import hard_timeout

# What plain_ppo.py runs, so that a comparison compares implementations and not settings. (Its annealing is left out: it
# costs nothing, and an autonomous run does not know its end.)
PLAIN_CONFIG: dict[str, Any] = {"n_envs": 4, "n_steps": 128, "n_epochs": 4, "n_minibatches": 4, "clip_value": True}
PLAIN_HYPERPARAMS = {
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "entropy_coef": 0.01,
}

# One environment that each algorithm can learn, for benchmarks that only ask how long things take.
ALGORITHM_ENVS = {
    "ppo": "CartPole-v1",
    "recurrent_ppo": "CartPole-v1",
    "dqn": "CartPole-v1",
    "rainbow": "CartPole-v1",
    "sac": "Pendulum-v1",
    "td3": "Pendulum-v1",
}


def start(cache_dir: str | None = None) -> None:
    """Start the backend as the library does (devices, thread pool), before a benchmark's own first computation."""
    from tensor_optix import start_runtime

    start_runtime(cache_dir)


def run(
    env: str,
    algorithm: str,
    seeds: int,
    total_steps: int | None = None,
    *,
    stop: bool = True,
    plain: bool = False,
    evaluations: bool = True,
    eval_every: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> Any:
    """One `train` call -> TrainResult.

    `stop=False` spends `total_steps` on every seed. `plain` uses plain_ppo.py's settings. `evaluations=False` makes
    each evaluation one step of one episode: the brain decides as often as ever, and only its own cost is left.
    """
    from tensor_optix import train

    return train(
        env,
        algorithm,
        seeds=seeds,
        total_steps=total_steps,
        progress=False,
        run_dir=None,
        config={**(PLAIN_CONFIG if plain else {}), **(config or {})},
        hyperparams=dict(PLAIN_HYPERPARAMS) if plain else None,
        eval_every=eval_every,
        eval_episodes=None if evaluations else 1,
        eval_max_steps=None if evaluations else 1,
        stop=stop,
    )


def bare_window(env: str, n_windows: int, seed: int = 0) -> Callable[[], float]:
    """A measurement of PPO with nothing around it: one member, one jitted scan of `window`, plain_ppo.py's settings.

    Compiles here; each call of the result runs `n_windows` windows and returns seconds per window.
    """
    import jax
    import jax.numpy as jnp

    from tensor_optix import envs
    from tensor_optix.algorithms.ppo import PPO, PPOConfig
    from tensor_optix.loop.runtime import compile_program

    algorithm = PPO(env=envs.make(env), config=PPOConfig(**PLAIN_CONFIG))
    hyper = {name: jnp.float32(value) for name, value in (algorithm.hyperparams() | PLAIN_HYPERPARAMS).items()}

    @jax.jit
    def windows(learner: Any, keys: jax.Array) -> Any:
        return jax.lax.scan(lambda carry, key: (algorithm.window(carry, hyper, key)[0], None), learner, keys)[0]

    key_init, key_windows = jax.random.split(jax.random.key(seed))
    learner, keys = jax.jit(algorithm.init)(key_init, hyper), jax.random.split(key_windows, n_windows)
    compiled = compile_program(windows.lower(learner, keys), jax.default_backend())

    def measure() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(learner, keys))
        return (time.perf_counter() - start) / n_windows

    return measure


def curves(result: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per member: environment steps and scores of its evaluations."""
    return [(np.asarray(member.curve.env_steps), np.asarray(member.curve.score)) for member in result.members]


def summary(result: Any) -> dict[str, Any]:
    """The figures of a TrainResult that benchmarks use, JSON-safe."""
    return {
        "env_steps": int(result.env_steps),
        "env_steps_per_s": float(result.env_steps_per_s),
        "compile_s": float(result.compile_s),
        "run_s": float(result.run_s),
        "wall_s": float(result.wall_s),
        "iqm": float(result.iqm),
        "iqm_interval": [float(bound) for bound in result.iqm_interval],
        "scores": [float(member.score) for member in result.members],
        "windows": [int(member.windows) for member in result.members],
        "stop_reasons": [member.stop_reason.label for member in result.members],
    }


def child_args(
    env: str,
    algorithm: str,
    seeds: int,
    total_steps: int | None = None,
    *,
    stop: bool = True,
    plain: bool = False,
    evaluations: bool = True,
) -> list[str]:
    """The command line of a child process that makes the same call as `run`; for `_report.run_python`."""
    args = ["-m", "benchmarks._ours", "--env", env, "--algorithm", algorithm, "--seeds", str(seeds)]
    args += [] if total_steps is None else ["--steps", str(total_steps)]
    flags = {"--fixed": not stop, "--plain": plain, "--no-evaluations": not evaluations}
    return args + [flag for flag, on in flags.items() if on]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the library once and print its figures as JSON.")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--algorithm", default="ppo")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--fixed", action="store_true", help="no early stop: every seed spends its steps")
    parser.add_argument("--plain", action="store_true", help="plain_ppo.py's settings")
    parser.add_argument("--no-evaluations", action="store_true")
    parser.add_argument("--timeout", type=float, default=900.0)
    args = parser.parse_args()
    hard_timeout(args.timeout)
    result = run(
        args.env,
        args.algorithm,
        args.seeds,
        args.steps,
        stop=not args.fixed,
        plain=args.plain,
        evaluations=not args.no_evaluations,
    )
    print(json.dumps(summary(result)))


if __name__ == "__main__":
    main()
