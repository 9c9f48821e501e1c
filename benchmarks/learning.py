"""What the compiled algorithms learn: score after a fixed number of environment steps, 10 seeds, with its interval.

Deterministic policy, 100 fresh episodes, interquartile mean over seeds with a 95 % bootstrap interval. The policy is
the one that the run hands back (its best by its own evaluations); steps are training steps, evaluations come on top.
The reference of the classic tasks is RL Zoo's tuned single run (SB3) at the same number of steps; MinAtar has none and
its curve is the result. `--out DIR` saves one PNG of curves per environment.

    python -m benchmarks.learning --env CartPole-v1 --out curves --json
    python -m benchmarks.learning --algorithm sac
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._report import Row, arguments, emit, parse


class Task(NamedTuple):
    """Environment steps per seed and the score to reach (None where no figure is known)."""

    steps: int
    reference: float | None


MINATAR = {"Breakout-MinAtar": Task(1_000_000, None), "SpaceInvaders-MinAtar": Task(1_000_000, None)}
TASKS: dict[str, dict[str, Task]] = {
    "ppo": {
        "CartPole-v1": Task(100_000, 500.0),
        "Acrobot-v1": Task(1_000_000, -73.5),
        "MountainCar-v0": Task(1_000_000, -110.0),
        "MountainCarContinuous-v0": Task(20_000, 88.0),
        "Pendulum-v1": Task(100_000, -172.0),
    },
    "dqn": {
        "CartPole-v1": Task(50_000, 500.0),
        "Acrobot-v1": Task(100_000, -76.6),
        "MountainCar-v0": Task(120_000, -101.0),
        "BitFlip": Task(40_000, None),
    },
    "sac": {
        "Pendulum-v1": Task(20_000, -157.0),
        "MountainCarContinuous-v0": Task(50_000, 94.7),
        "PointReach": Task(20_000, None),
    },
    "td3": {
        "Pendulum-v1": Task(20_000, -152.0),
        "MountainCarContinuous-v0": Task(300_000, 93.5),
        "PointReach": Task(20_000, None),
    },
    "rainbow": {"CartPole-v1": Task(50_000, None)},
    "recurrent_ppo": {"MaskedCartPole-v1": Task(300_000, None), "MemoryChain-bsuite": Task(60_000, None)},
}


def plot_curves(curves: list[tuple[np.ndarray, np.ndarray]], title: str, reference: float | None, path: Path) -> None:
    """Each seed thin, the interquartile mean thick; x: environment steps, y: score of the evaluation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    grid = np.linspace(0.0, max(steps[-1] for steps, _ in curves), 200)
    resampled = np.array([np.interp(grid, steps, score, left=np.nan) for steps, score in curves])
    for steps, score in curves:
        axes.plot(steps, score, color="tab:blue", alpha=0.25, linewidth=0.8)
    known = ~np.isnan(resampled).any(axis=0)
    axes.plot(grid[known], interquartile_mean(resampled[:, known]), color="tab:blue", linewidth=2.2, label="IQM")
    if reference is not None:
        axes.axhline(reference, color="0.4", linestyle="--", linewidth=1.0, label="reference")
    axes.set(title=title, xlabel="environment steps", ylabel="score")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half over the first axis (Agarwal et al. 2021); scores [S, ...] -> [...]."""
    cut = len(scores) // 4
    return np.sort(scores, axis=0)[cut : len(scores) - cut].mean(axis=0)


def learn(
    env: str,
    algorithm: str,
    steps: int,
    seeds: int,
    eval_every: int | None = None,
    config: dict[str, Any] | None = None,
) -> Any:
    """One run in which every seed spends its steps."""
    from benchmarks import _ours

    return _ours.run(env, algorithm, seeds, steps, stop=False, eval_every=eval_every, config=config)


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--env", nargs="+", default=None, help="default: all that the algorithm has a row for")
    parser.add_argument("--algorithm", default="ppo", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--steps", type=int, default=None, help="environment steps per seed; default: by environment")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--eval-every", type=int, default=None, help="steps between evaluations; default: the preset's")
    parser.add_argument("--config", type=json.loads, default={}, help='JSON over the preset, as {"hindsight": "off"}')
    parser.add_argument("--out", type=Path, default=None, help="directory for a PNG of curves per environment")
    args = parse(parser)

    from benchmarks import _ours

    rows, notes = [], []
    tasks = TASKS[args.algorithm]
    for env in args.env or tasks:
        task = {**MINATAR, **tasks}.get(env, Task(200_000, None))
        steps = args.steps or task.steps
        reference = task.reference if steps == task.steps else None
        result = learn(env, args.algorithm, steps, args.seeds, args.eval_every, args.config)
        figures = _ours.summary(result)
        how = "".join(f", {name}={value}" for name, value in args.config.items())
        rows.append(Row(f"{env}, {args.algorithm}{how}, {steps:,} steps, IQM", figures["iqm"], "return", reference))
        low, high = figures["iqm_interval"]
        notes.append(
            f"{env}: IQM {figures['iqm']:.1f}, 95 % interval {low:.1f} to {high:.1f}; "
            f"seeds {min(figures['scores']):.1f} to {max(figures['scores']):.1f}; {figures['run_s']:.0f} s"
        )
        curves = [curve for curve in _ours.curves(result) if len(curve[0])]
        if args.out is not None and curves:
            path = args.out / f"{args.algorithm}_{env}.png"
            plot_curves(curves, f"{args.algorithm} on {env}, {args.seeds} seeds", reference, path)
            notes.append(f"curves: {path}")
    emit("learning", rows, args.json, notes)


if __name__ == "__main__":
    main()
