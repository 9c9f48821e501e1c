"""First compile of each algorithm: seconds of compilation in a fresh process with an empty cache.

What a user waits for: the member's start and a driver's chunk, and of the final evaluation what is not done in the
background by the time it is needed. Target: at most 6 s for every algorithm.

    python -m benchmarks.compile_time --json
"""

from __future__ import annotations

import statistics
import sys
import tempfile

from benchmarks._ours import ALGORITHM_ENVS, child_args
from benchmarks._report import Row, arguments, emit, parse, run_python

TARGET_S = 6.0
ENVS = ALGORITHM_ENVS | {"recurrent_ppo": "MaskedCartPole-v1"}
STEPS = {"sac": 2_000, "td3": 2_000}  # an update a step: long enough for what compiles in the background
DEFAULT_STEPS = 10_000


def compile_seconds(algorithm: str, seeds: int, timeout_s: float) -> float:
    """What `TrainResult.compile_s` says of a short run in a new process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache_dir:
        env = {"JAX_COMPILATION_CACHE_DIR": cache_dir, "XDG_CACHE_HOME": cache_dir}
        args = child_args(ENVS[algorithm], algorithm, seeds, STEPS.get(algorithm, DEFAULT_STEPS), stop=False)
        return run_python(args, timeout_s, env).json()["compile_s"]


def main() -> None:
    from tensor_optix.algorithms import registry

    parser = arguments(__doc__ or "", timeout_s=3600.0)
    known = [name for name in registry.names() if name in ENVS]
    parser.add_argument("--algorithms", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parse(parser)

    times: dict[str, list[float]] = {name: [] for name in args.algorithms}
    for _ in range(args.rounds):
        for algorithm, measured in times.items():
            measured.append(compile_seconds(algorithm, args.seeds, args.timeout))
            print(f"{algorithm} {measured[-1]:.2f} s", file=sys.stderr, flush=True)

    rows = []
    for algorithm, measured in times.items():
        seconds = statistics.median(measured)
        rows.append(Row(f"{algorithm} on {ENVS[algorithm]}", seconds, "s", TARGET_S, seconds / TARGET_S))
    missed = [row.name for row in rows if row.ratio is not None and row.ratio > 1.0]
    notes = [f"above {TARGET_S:.0f} s: {', '.join(missed) or 'none'}"]
    notes += [f"{name}: {min(measured):.1f} to {max(measured):.1f} s" for name, measured in times.items()]
    unknown = [name for name in registry.names() if name not in ENVS]
    notes += [f"no environment named for {', '.join(unknown)}: not measured"] if unknown else []
    emit("compile_time", rows, args.json, notes)


if __name__ == "__main__":
    main()
