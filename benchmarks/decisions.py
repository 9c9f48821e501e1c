"""How often is "learning has stopped" wrong, and how late is it right?

    python -m benchmarks.decisions [--json] [--seeds N] [--quick]

Runs the scheduler over the curves of `benchmarks.curves`, all streams under one jitted vmap(scan). What counts as a
false stop and as a plateau found is defined there, and was before any default was chosen. Rates come with Wilson 95 %
intervals. Defaults were chosen on the tuning set; the rows report the held-out set: other seeds for all families, and
four families that were never looked at.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import os
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import curves as C
from tensor_optix.core import backoff_scheduler
from tensor_optix.core.backoff_scheduler import BackoffConfig
from tensor_optix.core.types import LoopState

Row = dict[str, Any]

SENSITIVITY: dict[str, tuple[Any, ...]] = {
    "dormant_threshold": (16, 20, 24, 26, 32, 40),
    "confidence": (0.5, 0.7, 0.9, 0.95, 0.99),
    "material_gain": (0.0, 0.05, 0.15, 0.2),
    "trend_window": (6, 12, 16),
    "trend_confidence": (0.9, 0.99),
    "patience_before_first_improvement": (1.25, 1.5, 2.0),
    "patience_after_fall": (8, 20, 28),
    "saturation_threshold": (0, 8, 16),
    "fall_k": (2.0, 4.0, 6.0),
    "degradation_k": (4.0, 6.0),
    "degradation_share": (0.1, 0.4),
    "score_window": (12, 28),
    "plateau_threshold": (3, 8),
    "max_interval": (1, 4, 8),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What the scheduler did on S streams of T windows."""

    stop: np.ndarray  # [S] int, window of DORMANT, T if never
    evaluations: np.ndarray  # [S, T] int, evaluations up to and including a window
    degraded: np.ndarray  # [S, T] bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of the stops of S streams."""

    false: np.ndarray  # [S] bool, stopped with improvement ahead
    found: np.ndarray  # [S] bool, stopped rightly and in time
    stopped: np.ndarray  # [S] bool
    can_be_false: np.ndarray  # [S] bool, a stop would be false at some time
    delay: np.ndarray  # [S] int, evaluations from the start of the plateau to the stop


def simulate(config: BackoffConfig, scores: np.ndarray, every_window: bool = True) -> Run:
    """Run the scheduler on `scores` [S, T]; `every_window` evaluates each window, else as the interval says."""

    def one(stream: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def window(carry: Any, score: jax.Array) -> tuple[Any, Any]:
            state, wait = carry
            due = jnp.bool_(every_window) | (wait <= 1)
            state, verdict = backoff_scheduler.observe(config, state, score, due)
            wait = jnp.where(due, verdict.interval, wait - 1)
            return (state, wait), (verdict.code, state.evaluations, verdict.degraded)

        start = (backoff_scheduler.init(config), jnp.int32(config.base_interval))
        return jax.lax.scan(window, start, stream)[1]

    code, evaluations, degraded = jax.jit(jax.vmap(one))(jnp.asarray(scores))
    return Run(first(np.asarray(code) == LoopState.DORMANT), np.asarray(evaluations), np.asarray(degraded))


def first(hit: np.ndarray) -> np.ndarray:
    """Index [S] of the first True of each row of `hit` [S, T]; T if there is none."""
    return np.where(hit.any(1), hit.argmax(1), hit.shape[1])


def judge(data: C.Curves, stop: np.ndarray, evaluations: np.ndarray | None = None) -> Outcome:
    """Apply the definitions of `benchmarks.curves` to `stop` [S] (a window; T: never)."""
    rows, length = np.arange(len(data)), data.scores.shape[1]
    stopped, at = stop < length, np.minimum(stop, length - 1)
    false = stopped & data.false_until[rows, at]
    if evaluations is None:
        delay = at - data.plateau_start
    else:
        delay = evaluations[rows, at] - evaluations[rows, np.minimum(data.plateau_start, length - 1)]
    found = stopped & ~false & (delay <= C.PATIENCE)
    return Outcome(false, found, stopped, data.false_until.any(1), delay)


# --- the two rules of thumb that this is compared with ----------------------------------------------------------------
def misses_in_a_row(improved: np.ndarray, limit: int, warm_up: int = 0) -> np.ndarray:
    """Window [S] of the first `limit` False in a row of `improved` [S, T], not before `warm_up` windows."""
    index = np.arange(improved.shape[1])[None, :]
    last = np.maximum.accumulate(np.where(improved, index, -1), axis=1)
    return first((index - last >= limit) & (index + 1 >= warm_up))


def no_new_best(scores: np.ndarray) -> np.ndarray:
    """Stop after 20 evaluations without a new best."""
    best_before = np.maximum.accumulate(scores, axis=1)[:, :-1]
    improved = np.concatenate([np.ones((len(scores), 1), bool), scores[:, 1:] > best_before], axis=1)
    return misses_in_a_row(improved, 20)


def slope_test(scores: np.ndarray) -> np.ndarray:
    """Stop after 20 misses in a row of a 95 % t test of the slope of the last 20 scores."""
    size, quantile = 20, 1.734  # Student's 95 % quantile at 18 degrees of freedom
    values = scores.astype(np.float64)
    values = (values - values.mean(1, keepdims=True)) / np.maximum(values.std(1, keepdims=True), 1e-300)
    windows = np.lib.stride_tricks.sliding_window_view(values, size, axis=1)
    time = np.arange(size) - (size - 1) / 2
    windows = windows - windows.mean(-1, keepdims=True)
    slope = windows @ time / (time @ time)
    residual = windows - slope[..., None] * time
    error = np.sqrt((residual**2).sum(-1) / (size - 2) / (time @ time))
    improved = np.zeros(scores.shape, bool)
    improved[:, size - 1 :] = slope > quantile * error + 1e-12
    return misses_in_a_row(improved, 20, warm_up=size)


# --- rows -------------------------------------------------------------------------------------------------------------
def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.96, hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def share(name: str, hit: np.ndarray, reference: float | None = None) -> Row:
    """One row: the share of True in `hit`."""
    n, hits = len(hit), int(hit.sum())
    low, high = wilson(hits, n)
    value = hits / n if n else 0.0
    ratio = value / reference if reference else None
    return _row(name, value, "share", reference, ratio, n, low, high)


def _row(name: str, value: float, unit: str, reference: Any = None, ratio: Any = None, n: Any = None,
         low: Any = None, high: Any = None) -> Row:  # fmt: skip
    keys = ("name", "value", "unit", "reference", "ratio", "n", "low", "high")
    return dict(zip(keys, (name, value, unit, reference, ratio, n, low, high), strict=True))


def rate_rows(label: str, data: C.Curves, outcome: Outcome) -> list[Row]:
    """The two rates; false stops among the curves on which one is possible."""
    return [
        share(f"{label}: false stops", outcome.false[outcome.can_be_false], 0.05),
        share(f"{label}: plateau found within {C.PATIENCE}", outcome.found, 0.90),
    ]


def main_rows(data: C.Curves, label: str) -> list[Row]:
    """Rates, delays, families and baselines on one set."""
    run = simulate(BackoffConfig(), data.scores)
    outcome = judge(data, run.stop)
    rows = rate_rows(label, data, outcome)
    delay = outcome.delay[outcome.stopped & ~outcome.false]
    rows += [
        _row(f"{label}: median delay", float(np.median(delay)), "evaluations", n=len(delay)),
        _row(f"{label}: 90 % delay", float(np.percentile(delay, 90)), "evaluations", n=len(delay)),
    ]
    before = np.arange(data.scores.shape[1])[None, :] <= run.stop[:, None]
    for family in dict.fromkeys(data.family):
        mine = data.family == family
        if outcome.can_be_false[mine].any():
            rows.append(share(f"{label}, {family}: false stops", outcome.false[mine & outcome.can_be_false]))
        rows.append(share(f"{label}, {family}: plateau found", outcome.found[mine]))
    steady = ~np.isin(data.family, ("collapse", "collapse_recover"))
    alarms = (run.degraded & before).any(1)
    rows.append(share(f"{label}: degradation reported though nothing fell", alarms[steady]))
    rows.append(share(f"{label}, collapse: degradation reported", run.degraded[data.family == "collapse"].any(1)))
    for name, rule in (("20 without a new best", no_new_best), ("slope t-test, 20 misses", slope_test)):
        rows += rate_rows(f"{label}, baseline {name}", data, judge(data, rule(data.scores)))
    return rows


def invariance_rows(data: C.Curves) -> list[Row]:
    """Decisions on a*score + b against those on score: exact maps first (powers of two), then ill-conditioned ones."""
    grid = np.round(data.scores / np.abs(data.scores).max(1, keepdims=True) * 2.0**12).astype(np.float32)
    reference = simulate(BackoffConfig(), grid)
    rows = []
    for a in (2.0**-20, 2.0**-3, 2.0**20):
        for b in (0.0, -(2.0**11), 2.0**11):
            other = simulate(BackoffConfig(), (np.float32(a) * (grid + np.float32(b))).astype(np.float32))
            same = (other.stop == reference.stop) & (other.degraded == reference.degraded).all(1)
            rows.append(share(f"invariance a = {a:g}, b = {a * b:g}: violations", ~same))
    return rows


def sensitivity_rows(data: C.Curves) -> list[Row]:
    """One knob at a time, on the tuning set: that is where the defaults were chosen."""
    rows = rate_rows("defaults", data, judge(data, simulate(BackoffConfig(), data.scores).stop))
    for knob, values in SENSITIVITY.items():
        by_interval = knob == "max_interval"
        for value in values:
            config = dataclasses.replace(BackoffConfig(), **{knob: value})
            run = simulate(config, data.scores, every_window=not by_interval)
            outcome = judge(data, run.stop, run.evaluations if by_interval else None)
            rows += rate_rows(f"{knob} = {value}", data, outcome)
            if by_interval:
                right = outcome.stopped & ~outcome.false
                spent = float(np.median((run.stop - data.plateau_start)[right]))
                rows.append(_row(f"{knob} = {value}: median delay", spent, "windows", n=int(right.sum())))
    return rows


def tuning_rows(seeds: int) -> tuple[list[Row], str | None]:
    """The rows of `benchmarks.tuning`, and a note where there are none."""
    try:
        return importlib.import_module("benchmarks.tuning").rows(seeds), None
    except (ImportError, AttributeError) as error:
        return [], f"benchmarks.tuning is not there: {error}"


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "jax": jax.__version__,
            "backend": jax.default_backend()}  # fmt: skip


def _print(rows: list[Row]) -> None:
    for row in rows:
        interval = "" if row.get("low") is None else f"  [{row['low']:.3f}, {row['high']:.3f}]"
        wanted = "" if row.get("reference") is None else f"  against {row['reference']:g}"
        count = "" if row.get("n") is None else f"  n = {row['n']}"
        print(f"{row['name']:<72} {row['value']:>8.3f} {row['unit']:<12}{interval}{count}{wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="curves per family")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--quick", action="store_true", help="no sensitivity table, no tuning rows")
    arguments = parser.parse_args()
    held_out = C.dataset(arguments.seeds, held_out=True)
    tuning = C.dataset(arguments.seeds, held_out=False)
    rows = main_rows(held_out, "held-out")
    rows += rate_rows("tuning set", tuning, judge(tuning, simulate(BackoffConfig(), tuning.scores).stop))
    rows += invariance_rows(held_out)
    note = None
    if not arguments.quick:
        rows += sensitivity_rows(tuning)
        more, note = tuning_rows(arguments.seeds)
        rows += more
    _print(rows)
    if note:
        print(note)
    if arguments.json:
        print(json.dumps({"benchmark": "decisions", "machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
