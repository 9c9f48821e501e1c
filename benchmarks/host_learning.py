"""What the host driver's agents learn on Gymnasium environments: score after a fixed number of steps, 10 seeds.

Torch, TensorFlow and Flax agents through `RLOptimizer` (tuner and diagnostics as they are by default). Deterministic
policy, 100 fresh episodes, interquartile mean over seeds with a 95 % bootstrap interval; the policy is the one that the
run puts back at its end. The reference is RL Zoo's tuned single run (SB3) at the same number of steps. Each seed is a
process of its own, `--jobs` at a time.

    python -m benchmarks.host_learning --json
    python -m benchmarks.host_learning --rows LunarLander-v3:TorchPPOAgent --seeds 10
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from benchmarks._host_agents import SETTINGS
from benchmarks._report import Row, arguments, emit, parse, run_python

ROWS = (
    "CartPole-v1:TorchPPOAgent",
    "CartPole-v1:TFPPOAgent",
    "CartPole-v1:FlaxPPOAgent",
    "Pendulum-v1:TorchGaussianPPOAgent",
    "Pendulum-v1:TFGaussianPPOAgent",
    "Pendulum-v1:FlaxGaussianPPOAgent",
    "LunarLander-v3:TorchPPOAgent",
)

CHILD = """
import sys, json, tempfile
from benchmarks._host_agents import score_of, setting
name, agent_name, extra = sys.argv[1], sys.argv[2], json.loads(sys.argv[5])
seed, steps = int(sys.argv[3]), int(sys.argv[4])
task = setting(name, agent_name, seed)
tune = extra.pop("tune", True)
if not tune:
    type(task.agent).default_tuned = ()
elif tune == "all":
    type(task.agent).default_tuned = tuple(task.agent.default_param_bounds)
with tempfile.TemporaryDirectory() as directory:
    optimizer = task.optimizer(directory, max_episodes=steps // task.rows, **extra)
    result = optimizer.run()
fired = 0 if optimizer.diagnostics is None else len(optimizer.diagnostics.firings)
print(json.dumps({"score": score_of(task, episodes=100), "seconds": result.seconds["total"], "fired": fired,
                  "best": result.best_snapshot.eval_metrics.primary_score, "notes": result.notes}))
"""


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=7200.0)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="SETTING:AGENT")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=None, help="environment steps per seed; default: the setting's")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--settings", default="{}", help='JSON: keywords of RLOptimizer, and "tune": false or "all"')
    args = parse(parser)

    from tensor_optix.statistics import bootstrap_interval, interquartile_mean

    rows, notes = [], []
    for name in args.rows:
        env, agent = name.split(":")
        steps = args.steps or SETTINGS[env].steps
        one = partial(_run, env, agent, steps, args.settings, args.timeout)
        with ThreadPoolExecutor(args.jobs) as pool:
            runs = list(pool.map(one, range(args.seeds)))
        scores = np.array([run["score"] for run in runs])
        low, high = bootstrap_interval(scores)
        reference = SETTINGS[env].reference if steps == SETTINGS[env].steps else None
        rows.append(
            Row(f"{agent}, {env}, {steps:,} steps, IQM", float(interquartile_mean(scores)), "return", reference)
        )
        seconds, fired = (np.median([run[key] for run in runs]) for key in ("seconds", "fired"))
        notes.append(
            f"{name}: 95 % interval {low:.1f} to {high:.1f}; seeds {scores.min():.1f} to {scores.max():.1f}; "
            f"median {seconds:.0f} s with {args.jobs} side by side, {fired:.0f} diagnostic firings"
        )
        print(notes[-1], flush=True)
    emit("host_learning", rows, args.json, notes)


def _run(env: str, agent: str, steps: int, settings: str, timeout_s: float, seed: int) -> dict:
    return run_python(["-c", CHILD, env, agent, str(seed), str(steps), settings], timeout_s).json()


if __name__ == "__main__":
    main()
