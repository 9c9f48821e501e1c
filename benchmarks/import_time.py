"""What `import tensor_optix` costs over `import jax`, in whole processes, and that it loads no other framework.

Target: at most 0.3 s more than `import jax`, and none of torch, tensorflow, gymnasium, optuna, matplotlib loaded.

    python -m benchmarks.import_time --json
"""

from __future__ import annotations

import statistics
import sys
from functools import partial

from benchmarks._report import Row, arguments, emit, median_ratio, parse, run_python

FORBIDDEN = ("torch", "tensorflow", "gymnasium", "optuna", "matplotlib")
TARGET_S = 0.3


# The package resolves its names on first use, so the second statement is what a training script really waits for.
STATEMENTS = ("import tensor_optix", "from tensor_optix import train")


def import_seconds(statement: str) -> float:
    """Wall time of a process that executes `statement` and exits, interpreter start included."""
    return run_python(["-c", statement], timeout_s=120.0).wall_s


def loaded_frameworks(statement: str) -> list[str]:
    """Those of FORBIDDEN that are loaded after `statement`."""
    code = f"import json, sys; {statement}; print(json.dumps({{'modules': list(sys.modules)}}))"
    modules = run_python(["-c", code], timeout_s=120.0).json()["modules"]
    return [name for name in FORBIDDEN if name in modules]


def main() -> None:
    parser = arguments(__doc__ or "", timeout_s=600.0)
    parser.add_argument("--rounds", type=int, default=7, help="processes per side, in turns")
    args = parse(parser)

    rows, notes, loaded = [], [], []
    for statement in STATEMENTS:
        import_seconds(statement)  # the first run writes byte code and fills the page cache
        pair = median_ratio(partial(import_seconds, statement), partial(import_seconds, "import jax"), args.rounds)
        over_s = statistics.median(pair.b * (ratio - 1.0) for ratio in pair.ratios)
        frameworks = loaded_frameworks(statement)
        loaded += frameworks
        rows.append(Row(f"{statement!r}, against 'import jax'", pair.a, "s", pair.b, pair.ratio))
        verdict = "met" if over_s <= TARGET_S else "missed"
        notes.append(f"{statement!r}: {over_s:+.2f} s over 'import jax', target at most {TARGET_S} s: {verdict}")
        notes.append(f"{statement!r}: other frameworks loaded: {', '.join(frameworks) or 'none'}")
    emit("import_time", rows, args.json, notes)
    sys.exit(1 if loaded else 0)


if __name__ == "__main__":
    main()
