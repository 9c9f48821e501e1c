"""From a cold shell to a solved CartPole: wall time of `tensor-optix train CartPole-v1 --seeds 8 --json`.

The whole process counts: interpreter, imports, compilation, training, the final evaluation of 100 fresh episodes. Once
with an empty compilation cache, then warm. Every seed must have stopped by itself ("converged") at 475 or more.
Targets: 15 s cold, 8 s warm.

    python -m benchmarks.cold_start --json
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from typing import Any

from benchmarks._report import Finished, Row, arguments, emit, parse, run_python

COMMAND = ["-m", "tensor_optix", "train", "CartPole-v1", "--json"]
COLD_TARGET_S, WARM_TARGET_S = 15.0, 8.0
SOLVED = 475.0


def shell_run(seeds: int, cache_dir: str, timeout_s: float) -> Finished:
    """The command line as a person types it, with its compilation cache in `cache_dir`."""
    env = {"JAX_COMPILATION_CACHE_DIR": cache_dir, "XDG_CACHE_HOME": cache_dir}
    return run_python([*COMMAND, "--seeds", str(seeds)], timeout_s, env)


def complaints(result: dict[str, Any]) -> list[str]:
    """One sentence for each seed that is below the threshold or did not stop by itself."""
    return [
        f"seed {seed['seed']}: {seed['score']:.1f}, {seed['stop_reason']}, wanted {SOLVED:.0f} and converged"
        for seed in result["seeds"]
        if seed["score"] < SOLVED or seed["stop_reason"] != "converged"
    ]


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=1200.0)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of one cold and one warm run")
    args = parse(parser)

    cold: list[float] = []
    warm: list[float] = []
    found: list[str] = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache_dir:
            for times in (cold, warm):
                done = shell_run(args.seeds, cache_dir, args.timeout)
                times.append(done.wall_s)
                found += complaints(done.json())
    cold_s, warm_s = statistics.median(cold), statistics.median(warm)
    rows = [
        Row("empty compilation cache", cold_s, "s", COLD_TARGET_S, cold_s / COLD_TARGET_S),
        Row("warm compilation cache", warm_s, "s", WARM_TARGET_S, warm_s / WARM_TARGET_S),
        Row("seeds that failed", float(len(found)), f"of {2 * args.rounds * args.seeds}"),
    ]
    emit("cold_start", rows, args.json, sorted(set(found)))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
