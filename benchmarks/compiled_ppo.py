"""Compiled PPO with the autonomous loop on, against plain_ppo.py: environment steps per second at 1 to 64 seeds.

Each run has a process of its own (device count and thread pool are fixed per process) and the two sides take turns.
Both use the same PPO settings and spend the same steps; ours also evaluates, schedules, tunes and keeps the best
policy, and its time includes all of that. Compilation is left out on both sides. Targets: 1.2x for one seed, 2x for 16
and 64.

    python -m benchmarks.compiled_ppo --json
    python -m benchmarks.compiled_ppo --peers --peer-python /path/to/python-with-rejax-and-sb3
"""

from __future__ import annotations

from functools import partial

from benchmarks._ours import child_args
from benchmarks._report import Row, arguments, emit, median_ratio, parse, run_python

# Seeds -> steps per seed: long enough to time, short enough that the whole table takes minutes.
STEPS = {1: 1_000_000, 4: 250_000, 16: 100_000, 64: 50_000}
TARGETS = {1: 1.2, 16: 2.0, 64: 2.0}

# Run by another interpreter that has rejax; the same settings as plain_ppo.py, no evaluation inside the run.
REJAX = """
import sys, time
import jax
from rejax import PPO
seeds, steps = int(sys.argv[1]), int(sys.argv[2])
algorithm = PPO.create(
    env="CartPole-v1", num_envs=4, num_steps=128, num_epochs=4, num_minibatches=4, learning_rate=2.5e-4, gamma=0.99,
    gae_lambda=0.95, clip_eps=0.2, ent_coef=0.01, vf_coef=0.5, max_grad_norm=0.5, total_timesteps=steps,
    eval_freq=steps, skip_initial_evaluation=True,
)
algorithm = algorithm.replace(eval_callback=lambda algorithm, train_state, key: ())
train = jax.jit(jax.vmap(algorithm.train))
keys = jax.random.split(jax.random.PRNGKey(0), seeds)
compiled = train.lower(keys).compile()
start = time.perf_counter()
jax.block_until_ready(compiled(keys))
print('{"speed": %f}' % (seeds * steps / (time.perf_counter() - start)))
"""

# The same for Stable-Baselines3: its usual eight environments, the same number of updates a step, one Torch thread.
SB3 = """
import sys, time
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
torch.set_num_threads(1)
steps = int(sys.argv[1])
model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=0), n_steps=64, batch_size=128, n_epochs=4,
            learning_rate=2.5e-4, gamma=0.99, gae_lambda=0.95, clip_range=0.2, ent_coef=0.01, device="cpu", seed=0)
model.learn(1024)
start = time.perf_counter()
model.learn(steps)
print('{"speed": %f}' % (steps / (time.perf_counter() - start)))
"""
SB3_STEPS = 20_480


def ours_speed(seeds: int, steps: int, timeout_s: float) -> float:
    """Environment steps per second of the library, all seeds together."""
    args = child_args("CartPole-v1", "ppo", seeds, steps, stop=False, plain=True)
    return run_python(args, timeout_s).json()["env_steps_per_s"]


def plain_speed(seeds: int, steps: int, timeout_s: float) -> float:
    """Environment steps per second of plain_ppo.py, all seeds together."""
    args = ["-m", "benchmarks.plain_ppo", "--seeds", str(seeds), "--steps", str(steps), "--json"]
    return run_python(args, timeout_s).json()["rows"][0]["value"]


def rejax_speed(python: str, seeds: int, steps: int, timeout_s: float) -> float:
    """Environment steps per second of rejax in the interpreter `python`."""
    return run_python(["-c", REJAX, str(seeds), str(steps)], timeout_s, python=python).json()["speed"]


def sb3_speed(python: str, timeout_s: float) -> float:
    """Environment steps per second of Stable-Baselines3, one seed, in the interpreter `python`."""
    return run_python(["-c", SB3, str(SB3_STEPS)], timeout_s, python=python).json()["speed"]


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(STEPS), help="seed counts to measure")
    parser.add_argument("--steps", type=int, default=None, help="steps per seed; default: by seed count")
    parser.add_argument("--rounds", type=int, default=3, help="turns each side takes")
    parser.add_argument("--peers", action="store_true", help="measure rejax and Stable-Baselines3 too")
    parser.add_argument("--peer-python", default="", help="interpreter in which both are installed")
    args = parse(parser)
    if args.peers and not args.peer_python:
        parser.error(
            "--peers needs --peer-python: the path of an interpreter in which rejax and stable-baselines3 are installed"
        )

    rows, notes = [], []
    for seeds in args.seeds:
        steps = args.steps or STEPS.get(seeds, 100_000)
        ours = partial(ours_speed, seeds, steps, args.timeout)
        pair = median_ratio(ours, partial(plain_speed, seeds, steps, args.timeout), args.rounds)
        rows.append(Row(f"{seeds} seeds, against plain PPO", pair.a, "steps/s", pair.b, pair.ratio))
        if seeds in TARGETS:
            met = "met" if pair.ratio >= TARGETS[seeds] else "missed"
            notes.append(f"{seeds} seeds: target {TARGETS[seeds]}x {met} at {pair.ratio:.2f}x")
        if args.peers:
            pair = median_ratio(ours, partial(rejax_speed, args.peer_python, seeds, steps, args.timeout), args.rounds)
            rows.append(Row(f"{seeds} seeds, against rejax", pair.a, "steps/s", pair.b, pair.ratio))
        if args.peers and seeds == 1:
            pair = median_ratio(ours, partial(sb3_speed, args.peer_python, args.timeout), args.rounds)
            rows.append(Row("1 seed, against Stable-Baselines3", pair.a, "steps/s", pair.b, pair.ratio))
    emit("compiled_ppo", rows, args.json, notes)


if __name__ == "__main__":
    main()
