"""Compiled DQN, SAC and TD3 against rejax at rejax's own defaults: one environment, one update a step, batch 256.

Ours with the autonomous loop on (tuner, best-of, two evaluations of 24 episodes in a run) against rejax without any
evaluation, in turns; environment steps per second of all seeds together, compile time apart. Both learn after 256
steps instead of rejax's 2048, so that short runs are mostly updates. A cache of compiled programs, empty at the start,
is shared by the turns of each side. Several seeds are rejax under vmap; one is not. Target: 2x for 1 seed, 4x for 16.

The table is printed anew after every case: an interrupted benchmark keeps what it has. About 12 minutes on two cores;
one case alone:

    python -m benchmarks.off_policy --peer-python /path/to/python-with-rejax --json
    python -m benchmarks.off_policy --peer-python /path/to/python-with-rejax --only sac --seeds 16
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial

from benchmarks._report import Row, arguments, emit, median_ratio, parse, run_python

ENVS = {"dqn": "CartPole-v1", "sac": "Pendulum-v1", "td3": "Pendulum-v1"}
STEPS = {1: 4096, 16: 1536}  # of each seed
TARGETS = {1: 2.0, 16: 4.0}

# rejax: two hidden layers of 64 with swish, replay 131072, targets follow with 0.99.
OURS = """
import sys, json
from tensor_optix import train
algorithm, env, seeds, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = {"n_envs": 1, "n_steps": 256, "train_every": 1, "updates": 1, "batch_size": 256, "hidden_sizes": [64, 64],
          "activation": "silu", "replay_size": 131072, "warmup_steps": 256}
if algorithm == "dqn":
    config |= {"target_period": 0, "double": True}
hyperparams = {"learning_rate": 3e-4, "gamma": 0.99, "tau": 0.01}
result = train(env, algorithm, seeds=seeds, total_steps=steps, stop=False, progress=False, config=config,
               hyperparams=hyperparams, eval_every=steps // 2, eval_episodes=24, final_episodes=1)
assert result.env_steps == seeds * steps, result.env_steps
print(json.dumps({"speed": result.env_steps_per_s, "compile_s": result.compile_s}))
"""

REJAX = """
import sys, time
import jax
import rejax
name, env, seeds, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
algorithm = getattr(rejax, name.upper()).create(
    env=env, num_envs=1, total_timesteps=steps, eval_freq=steps, skip_initial_evaluation=True, learning_rate=3e-4,
    fill_buffer=256,
)
algorithm = algorithm.replace(eval_callback=lambda algorithm, train_state, key: ())
keys = jax.random.split(jax.random.PRNGKey(0), seeds)
train, keys = (algorithm.train, keys[0]) if seeds == 1 else (jax.vmap(algorithm.train), keys)
start = time.perf_counter()
compiled = jax.jit(train).lower(keys).compile()
compile_s = time.perf_counter() - start
start = time.perf_counter()
state, _ = jax.block_until_ready(compiled(keys))
speed = seeds * steps / (time.perf_counter() - start)
assert (state.global_step == steps).all(), state.global_step
print('{"speed": %f, "compile_s": %f}' % (speed, compile_s))
"""


def speed(code: str, python: str, cache_dir: str, timeout_s: float, algorithm: str, seeds: int, steps: int) -> float:
    """Environment steps per second of all seeds together, in a process of its own."""
    env = {"JAX_COMPILATION_CACHE_DIR": cache_dir, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    args = ["-c", code, algorithm, ENVS[algorithm], str(seeds), str(steps)]
    return run_python(args, timeout_s, env, python=python).json()["speed"]


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--only", nargs="+", choices=list(ENVS), default=list(ENVS), help="algorithms to measure")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(STEPS), help="seed counts to measure")
    parser.add_argument("--steps", type=int, default=None, help="steps per seed, a multiple of 512; default: by seeds")
    parser.add_argument("--rounds", type=int, default=3, help="turns each side takes")
    parser.add_argument("--case-timeout", type=float, default=600.0, help="seconds that one run may take")
    parser.add_argument("--peer-python", required=True, help="interpreter in which rejax is installed")
    args = parse(parser)
    if args.steps is not None and args.steps % 512:
        parser.error(f"--steps must be a multiple of 512 (two windows), got {args.steps}")
    rows: list[Row] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as cache_dir:
        for seeds in args.seeds:
            for algorithm in args.only:
                title, steps = f"{algorithm}, {seeds} seeds, against rejax", args.steps or STEPS.get(seeds, 1536)
                case = (cache_dir, args.case_timeout, algorithm, seeds, steps)
                ours, theirs = partial(speed, OURS, "", *case), partial(speed, REJAX, args.peer_python, *case)
                try:
                    pair = median_ratio(ours, theirs, args.rounds)
                except RuntimeError as error:
                    notes.append(f"{title}: failed, {error}")
                else:
                    rows.append(Row(title, pair.a, "steps/s", pair.b, pair.ratio))
                    spread = f"{pair.ratio:.2f}x, {min(pair.ratios):.2f} to {max(pair.ratios):.2f}"
                    target = TARGETS.get(seeds, 0.0)
                    judged = f"; target {target:g}x {'met' if pair.ratio >= target else 'missed'}" if target else ""
                    notes.append(f"{title}: {spread}{judged}")
                emit("off_policy", rows, args.json, notes)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
