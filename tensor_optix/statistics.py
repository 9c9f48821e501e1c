"""How scores of a few runs are summed up: the interquartile mean and bootstrap intervals.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BLOCK = 1 << 22  # resampled values held at a time


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half along `axis`: floor(n / 4) values are dropped at either end.

    Fewer than four values: their mean. No value: NaN.
    """
    ordered = np.sort(np.moveaxis(np.asarray(values, np.float64), axis, -1), axis=-1)
    n = ordered.shape[-1]
    if n == 0:
        return np.full(ordered.shape[:-1], np.nan)
    return ordered[..., n // 4 : n - n // 4].mean(axis=-1)


def mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Arithmetic mean in float64; NaN for no value."""
    values = np.asarray(values, np.float64)
    return values.mean(axis=axis) if values.shape[axis] else np.full(np.delete(values.shape, axis), np.nan)


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = mean,
    strata: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` over `values` ([n]).

    `statistic` works on the last axis. With `strata` ([n] labels) each stratum is resampled within itself. The same
    values and seed give the same interval. One value gives an interval of no width; no value gives NaN.
    """
    values = np.asarray(values, np.float64).ravel()
    if values.size == 0:
        return float("nan"), float("nan")
    labels = np.zeros(values.size) if strata is None else np.asarray(strata).ravel()
    groups = [values[labels == label] for label in np.unique(labels)]
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // values.size)
    drawn = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        picks = [group[rng.integers(0, group.size, (rows, group.size))] for group in groups]
        drawn.append(statistic(np.concatenate(picks, axis=-1)))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(drawn), [tail, 1.0 - tail])
    return float(low), float(high)
