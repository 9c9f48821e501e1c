"""What every benchmark shares: the machine, the table, the JSON line, paired measurement and hard timeouts.

Nothing here imports JAX, so that a benchmark can choose the backend's environment variables first.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure: `value` in `unit`, what it is compared with (same unit), and value / reference."""

    name: str
    value: float | str
    unit: str
    reference: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Paired:
    """Two quantities measured in turns; `ratio` is the median of the ratios of neighbours, not of the medians."""

    a: float
    b: float
    ratio: float
    ratios: list[float] = field(repr=False)


def machine() -> dict[str, Any]:
    """What a reader needs to place a figure: CPU model, cores, interpreter and library versions."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "jax": _version("jax"),
        "jaxlib": _version("jaxlib"),
    }


def emit(benchmark: str, rows: Sequence[Row], as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print the rows as an aligned table, then the notes; with `as_json`, one JSON line comes last."""
    described = machine()
    print(f"{benchmark}  ({', '.join(f'{key} {value}' for key, value in described.items())})")
    cells = [("", "value", "unit", "reference", "ratio")]
    cells += [(row.name, _number(row.value), row.unit, _number(row.reference), _number(row.ratio)) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    alignments = "<><>>"
    for line in cells:
        padded = (f"{cell:{side}{width}}" for cell, side, width in zip(line, alignments, widths, strict=True))
        print(f"  {'  '.join(padded)}".rstrip())
    for note in notes:
        print(f"  {note}")
    if as_json:
        payload = {"benchmark": benchmark, "machine": described, "rows": [asdict(row) for row in rows]}
        print(json.dumps(payload), flush=True)


def median_ratio(a: Callable[[], float], b: Callable[[], float], rounds: int = 5) -> Paired:
    """Call `a` and `b` in turns (a b a b ...) and compare neighbours, so that a drifting machine cancels out.

    Each call returns one positive figure; whatever must not be measured (compilation) belongs before the call.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    pairs = [(a(), b()) for _ in range(rounds)]
    ratios = [value_a / value_b for value_a, value_b in pairs]
    value_a, value_b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Paired(a=value_a, b=value_b, ratio=statistics.median(ratios), ratios=ratios)


def arguments(description: str, timeout_s: float) -> argparse.ArgumentParser:
    """The options of every benchmark: `--json` and `--timeout`. Add more, then call `parse`."""
    parser = argparse.ArgumentParser(description=description.strip().split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON line at the end")
    parser.add_argument("--timeout", type=float, default=timeout_s, help="kill the benchmark after this many seconds")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line and arm the timeout."""
    args = parser.parse_args(argv)
    hard_timeout(args.timeout)
    return args


def hard_timeout(seconds: float) -> None:
    """End this process with a traceback of every thread after `seconds`, even when it hangs inside XLA."""
    faulthandler.dump_traceback_later(seconds, exit=True)


@dataclass(frozen=True)
class Finished:
    """A child process that ended well: its wall time from start to exit, in seconds, and what it printed."""

    wall_s: float
    stdout: str

    def json(self) -> dict[str, Any]:
        """The JSON object on the last line of standard output."""
        lines = self.stdout.strip().splitlines()
        if not lines:
            raise RuntimeError("the child process printed nothing; expected a JSON object on its last line")
        return json.loads(lines[-1])


def run_python(
    args: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None, python: str = ""
) -> Finished:
    """Run `python ARGS` in a process of its own from the root of the repository and wait for it.

    A child that fails or outlives `timeout_s` raises RuntimeError with the end of what it wrote to stderr.
    """
    command = [python or sys.executable, *args]
    shown = " ".join(args).strip().split("\n")[0]
    root = Path(__file__).resolve().parent.parent
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=root, env=_environment(env), capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"`{shown}` did not end within {timeout_s:.0f} s") from error
    wall_s = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"`{shown}` failed with code {done.returncode}:\n{done.stderr[-2000:]}")
    return Finished(wall_s=wall_s, stdout=done.stdout)


def _environment(changes: Mapping[str, str] | None) -> dict[str, str]:
    # XLA's CPU client can hang when its thread pool has as few as two threads; NPROC sizes the pool.
    return {"NPROC": "8", **os.environ, **(changes or {})}


def _number(value: float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
