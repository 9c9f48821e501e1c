"""Interquartile mean and bootstrap intervals: oracles, limiting cases, coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import trim_mean

from tensor_optix import statistics
from tensor_optix.statistics import bootstrap_interval, interquartile_mean, mean


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 20])
def test_interquartile_mean_is_the_trimmed_mean(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(5, n))
    assert np.allclose(interquartile_mean(values), trim_mean(values, 0.25, axis=-1))
    assert np.allclose(interquartile_mean(values.T, axis=0), interquartile_mean(values))


def test_interquartile_mean_forgets_the_tails() -> None:
    assert interquartile_mean(np.array([-1e9, 1.0, 2.0, 1e9])) == 1.5
    assert interquartile_mean(np.array([4.0])) == 4.0
    assert np.isnan(interquartile_mean(np.zeros(0)))
    assert np.isnan(mean(np.zeros(0)))


def test_intervals_of_little_data() -> None:
    assert bootstrap_interval(np.array([3.0])) == (3.0, 3.0)
    assert np.isnan(bootstrap_interval(np.zeros(0))).all()
    assert bootstrap_interval(np.full(10, 2.0)) == (2.0, 2.0)


def test_same_values_same_interval_and_the_seed_matters() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_shift_and_scale_carry_over() -> None:
    values = np.random.default_rng(1).normal(size=30)
    low, high = bootstrap_interval(values, interquartile_mean)
    assert bootstrap_interval(3 * values - 7, interquartile_mean) == pytest.approx((3 * low - 7, 3 * high - 7))


def test_strata_are_resampled_within_themselves() -> None:
    values, strata = np.array([1.0, 1.0, 1.0, 9.0, 9.0, 9.0]), np.array([0, 0, 0, 1, 1, 1])
    assert bootstrap_interval(values, mean, strata) == (5.0, 5.0)
    low, high = bootstrap_interval(values)
    assert low < 4.0 < 6.0 < high


def test_blocks_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(statistics, "_BLOCK", 170)
    widths: list[int] = []

    def watched(drawn: np.ndarray) -> np.ndarray:
        widths.append(len(drawn))
        return drawn.mean(axis=-1)

    assert bootstrap_interval(values, watched) == pytest.approx(whole, abs=0.05)
    assert max(widths) == 3
    assert sum(widths) == 2000


def test_coverage_is_near_its_name() -> None:
    """400 samples of 30 normal values. The percentile interval covers about 93.5 %: below 90 % has odds of 0.004."""
    draws = np.random.default_rng(3).normal(size=(400, 30))
    intervals = np.array([bootstrap_interval(draw, resamples=500) for draw in draws])
    covered = np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0))
    assert 0.90 <= covered <= 0.98
