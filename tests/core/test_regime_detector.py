"""Regimes of known streams, and their invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core.regime_detector import Regime, RegimeConfig, RegimeDetector, detect
from tensor_optix.core.types import EvalMetrics


def history(values):
    return [EvalMetrics(float(v), {}, i) for i, v in enumerate(values)]


RNG = np.random.default_rng(0)
STREAMS = {
    "rise": (np.arange(12.0), "trending"),
    "noisy rise": (np.arange(12.0) + 0.5 * RNG.normal(size=12), "trending"),
    "noise": (np.tile([1.0, -1.2, 0.3, -0.4], 3), "volatile"),
    "constant": (np.full(12, 5.0), "ranging"),
    "decline": (-np.arange(12.0), "ranging"),
    "calm after a rise": (np.r_[np.arange(40.0), 40 + 0.3 * RNG.permutation(np.linspace(-1, 1, 12))], "ranging"),
    "too short": (np.arange(3.0), "ranging"),
    "empty": (np.zeros(0), "ranging"),
}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (1.0, -5.0), (1e-6, 0.0), (1e6, -1e6), (1.0, -2000.0)])
def test_known_regimes_at_any_scale_and_offset(name, a, b):
    values, expected = STREAMS[name]
    assert RegimeDetector().detect(history(a * values + b)) == expected


def test_scores_that_are_not_finite_are_left_out():
    values = np.insert(np.arange(12.0), [3, 6, 9], [np.nan, np.inf, -np.inf])
    assert RegimeDetector().detect(history(values)) == "trending"


def test_only_the_newest_matter_for_the_trend():
    assert RegimeDetector().detect(history(np.r_[np.zeros(100), np.arange(10.0)])) == "trending"
    assert RegimeDetector().detect(history(np.r_[np.arange(30.0), np.full(10, 29.0)])) == "ranging"


def test_thresholds_are_used():
    values = STREAMS["noise"][0]
    assert RegimeDetector(volatility_threshold=10.0).detect(history(values)) == "ranging"
    assert RegimeDetector(trend_threshold=10.0).detect(history(np.arange(12.0))) != "trending"


@pytest.mark.parametrize("bad", [{"window": 3}, {"volatility_threshold": -1.0}, {"trend_threshold": float("nan")}])
def test_bad_knobs_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RegimeDetector(**bad)


def test_lanes():
    config = RegimeConfig()
    streams = jnp.asarray(np.stack([np.arange(20.0), np.tile([1.0, -1.2, 0.3, -0.4], 5), np.zeros(20)]), jnp.float32)
    counts = jnp.full(3, 20, jnp.int32)
    got = jax.vmap(lambda s, c: detect(s, c, config))(streams, counts)
    assert got.tolist() == [Regime.TRENDING, Regime.VOLATILE, Regime.RANGING]
    assert Regime(int(got[1])).label == "volatile"
