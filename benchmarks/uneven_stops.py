"""Seeds that stop at different times: does the run's cost follow the work that is left?

64 seeds run until each has stopped by itself. Ideal work = the sum of all seeds' windows x the cost of one seed's
window while all 64 run, measured in a run without early stops. The ratio is measured time over ideal time; both sides
use the same devices, so their number cancels. Target: at most 1.25.

    python -m benchmarks.uneven_stops --json
"""

from __future__ import annotations

import statistics

from benchmarks._ours import child_args
from benchmarks._report import Row, arguments, emit, parse, run_python

TARGET = 1.25


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=3600.0)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50_000, help="steps per seed of the run in which all stay")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs, in turns")
    args = parse(parser)

    ratios, measured, ideal, windows = [], [], [], []
    for _ in range(args.rounds):
        whole = run_python(child_args(args.env, "ppo", args.seeds, args.steps, stop=False), args.timeout).json()
        uneven = run_python(child_args(args.env, "ppo", args.seeds), args.timeout).json()
        window_s = whole["run_s"] / sum(whole["windows"])
        windows = uneven["windows"]
        measured.append(uneven["run_s"])
        ideal.append(window_s * sum(windows))
        ratios.append(measured[-1] / ideal[-1])
    ratio = statistics.median(ratios)
    rows = [
        Row(
            f"{args.seeds} seeds, time over the sum of windows",
            statistics.median(measured),
            "s",
            statistics.median(ideal),
            ratio,
        ),
        Row("windows of the first seed to stop", float(min(windows)), "windows"),
        Row("windows of the last seed to stop", float(max(windows)), "windows"),
        Row("windows if none could leave early", float(max(windows) * len(windows)), "windows", float(sum(windows))),
    ]
    emit("uneven_stops", rows, args.json, [f"target at most {TARGET}: {'met' if ratio <= TARGET else 'missed'}"])


if __name__ == "__main__":
    main()
