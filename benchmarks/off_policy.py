"""Compiled DQN, SAC and TD3 against rejax at rejax's own defaults: one environment, one update a step, batch 256.

Ours with the autonomous loop on (tuner, best-of, an evaluation every 4096 steps) against rejax without any evaluation,
in turns, compile time apart; environment steps per second of all seeds together. Target: 2x for 1 seed, 4x for 16.

    python -m benchmarks.off_policy --peer-python /path/to/python-with-rejax --json
"""

from __future__ import annotations

from functools import partial

from benchmarks._report import Row, arguments, emit, median_ratio, parse, run_python

ENVS = {"dqn": "CartPole-v1", "sac": "Pendulum-v1", "td3": "Pendulum-v1"}
STEPS = {1: 20_000, 16: 5_000}
TARGETS = {1: 2.0, 16: 4.0}

# rejax: two hidden layers of 64 with swish, replay 131072, 2048 random steps, targets follow with 0.99.
OURS = """
import sys, json
from tensor_optix import train
algorithm, env, seeds, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = {"n_envs": 1, "n_steps": 256, "train_every": 1, "updates": 1, "batch_size": 256, "hidden_sizes": [64, 64],
          "activation": "silu", "replay_size": 131072, "warmup_steps": 2048}
if algorithm == "dqn":
    config |= {"target_period": 0, "double": True}
hyperparams = {"learning_rate": 3e-4, "gamma": 0.99, "tau": 0.01}
result = train(env, algorithm, seeds=seeds, total_steps=steps, stop=False, progress=False, config=config,
               hyperparams=hyperparams, eval_every=4096, final_episodes=1)
print(json.dumps({"speed": result.env_steps_per_s, "compile_s": result.compile_s}))
"""

REJAX = """
import sys, time
import jax
import rejax
name, env, seeds, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
algorithm = getattr(rejax, name.upper()).create(
    env=env, num_envs=1, total_timesteps=steps, eval_freq=steps, skip_initial_evaluation=True, learning_rate=3e-4,
)
algorithm = algorithm.replace(eval_callback=lambda algorithm, train_state, key: ())
train = jax.jit(jax.vmap(algorithm.train))
keys = jax.random.split(jax.random.PRNGKey(0), seeds)
start = time.perf_counter()
compiled = train.lower(keys).compile()
compile_s = time.perf_counter() - start
start = time.perf_counter()
jax.block_until_ready(compiled(keys))
print('{"speed": %f, "compile_s": %f}' % (seeds * steps / (time.perf_counter() - start), compile_s))
"""


def speed(code: str, python: str | None, algorithm: str, seeds: int, steps: int, timeout_s: float) -> float:
    """Environment steps per second of all seeds together."""
    args = ["-c", code, algorithm, ENVS[algorithm], str(seeds), str(steps)]
    return run_python(args, timeout_s, **({} if python is None else {"python": python})).json()["speed"]


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--algorithms", nargs="+", default=list(ENVS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(STEPS), help="seed counts to measure")
    parser.add_argument("--steps", type=int, default=None, help="steps per seed; default: by seed count")
    parser.add_argument("--rounds", type=int, default=3, help="turns each side takes")
    parser.add_argument("--peer-python", required=True, help="interpreter in which rejax is installed")
    args = parse(parser)
    rows, notes = [], []
    for algorithm in args.algorithms:
        for seeds in args.seeds:
            steps = args.steps or STEPS.get(seeds, 5_000)
            ours = partial(speed, OURS, None, algorithm, seeds, steps, args.timeout)
            theirs = partial(speed, REJAX, args.peer_python, algorithm, seeds, steps, args.timeout)
            pair = median_ratio(ours, theirs, args.rounds)
            rows.append(Row(f"{algorithm}, {seeds} seeds, against rejax", pair.a, "steps/s", pair.b, pair.ratio))
            if seeds in TARGETS:
                met = "met" if pair.ratio >= TARGETS[seeds] else "missed"
                notes.append(f"{algorithm}, {seeds} seeds: target {TARGETS[seeds]:g}x {met} at {pair.ratio:.2f}x")
    emit("off_policy", rows, args.json, notes)


if __name__ == "__main__":
    main()
