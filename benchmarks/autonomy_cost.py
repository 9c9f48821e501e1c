"""What the brain costs: a window with scheduler, tuner and best-of against the bare window of the algorithm.

One member, plain_ppo.py's PPO settings, one process, the two sides in turns, compilation before, both with the same
compiler options. The run with the brain is the whole compiled driver with its reports to the host, and it decides every
fourth window as by default; but an evaluation is a single step, since evaluating is a choice of the user and not
a cost of deciding. Target: at most 3 % more.

    python -m benchmarks.autonomy_cost --json
"""

from __future__ import annotations

import tempfile

from benchmarks._report import Row, arguments, emit, median_ratio, parse

TARGET = 1.03


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=1200.0)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--windows", type=int, default=600, help="windows per measurement")
    parser.add_argument("--rounds", type=int, default=7)
    args = parse(parser)

    from benchmarks import _ours

    steps = args.windows * _ours.PLAIN_CONFIG["n_envs"] * _ours.PLAIN_CONFIG["n_steps"]

    def with_brain() -> float:
        result = _ours.run(args.env, "ppo", 1, steps, stop=False, plain=True, evaluations=False)
        return 1e6 * result.run_s / args.windows

    with tempfile.TemporaryDirectory() as cache_dir:  # every run compiles anew; the cache makes that short
        _ours.start(cache_dir)
        bare = _ours.bare_window(args.env, args.windows)
        with_brain()
        pair = median_ratio(with_brain, lambda: 1e6 * bare(), args.rounds)
    rows = [Row("window with the brain, against the bare window", pair.a, "us", pair.b, pair.ratio)]
    verdict = "met" if pair.ratio <= TARGET else "missed"
    emit("autonomy_cost", rows, args.json, [f"target at most {100 * (TARGET - 1):.0f} % more: {verdict}"])


if __name__ == "__main__":
    main()
