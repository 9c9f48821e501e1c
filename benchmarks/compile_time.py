"""First compile of each algorithm: seconds of compilation in a fresh process with an empty cache.

Target: at most 6 s for every algorithm.

    python -m benchmarks.compile_time --json
"""

from __future__ import annotations

import statistics
import tempfile

from benchmarks._ours import ALGORITHM_ENVS, child_args
from benchmarks._report import Row, arguments, emit, parse, run_python

TARGET_S = 6.0


def compile_seconds(algorithm: str, seeds: int, timeout_s: float) -> float:
    """What `TrainResult.compile_s` says of a short run in a new process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache_dir:
        env = {"JAX_COMPILATION_CACHE_DIR": cache_dir, "XDG_CACHE_HOME": cache_dir}
        args = child_args(ALGORITHM_ENVS[algorithm], algorithm, seeds, 10_000, stop=False)
        return run_python(args, timeout_s, env).json()["compile_s"]


def main() -> None:
    from tensor_optix.algorithms import registry

    parser = arguments(__doc__ or "", timeout_s=3600.0)
    known = [name for name in ALGORITHM_ENVS if name in registry.names()]
    parser.add_argument("--algorithms", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parse(parser)

    rows = []
    for algorithm in args.algorithms:
        times = [compile_seconds(algorithm, args.seeds, args.timeout) for _ in range(args.rounds)]
        seconds = statistics.median(times)
        rows.append(Row(f"{algorithm} on {ALGORITHM_ENVS[algorithm]}", seconds, "s", TARGET_S, seconds / TARGET_S))
    missed = [row.name for row in rows if row.ratio is not None and row.ratio > 1.0]
    emit("compile_time", rows, args.json, [f"above {TARGET_S:.0f} s: {', '.join(missed) or 'none'}"])


if __name__ == "__main__":
    main()
