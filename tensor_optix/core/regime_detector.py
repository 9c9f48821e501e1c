"""Trending, ranging or volatile: what the newest scores look like.

Dividing by the mean score would fail where it vanishes or changes sign. Both quantities are relative to the spread of
the scores instead, so the answer is the same for score -> a*score + b, a > 0.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from numbers import Integral, Real

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.core.convergence import noise_scale, rank_trend
from tensor_optix.core.types import EvalMetrics

MIN_SCORES = 4  # fewer say nothing: ranging
SIGNIFICANT = 1.645  # normal deviate of a rise that is not chance: one-sided 95 %


class Regime(enum.IntEnum):
    """The integer is what compiled code carries."""

    RANGING = 0  # neither of the others; a decline that is not noisy is ranging too: nothing is being gained
    TRENDING = 1  # rising
    VOLATILE = 2  # the noise dominates

    @property
    def label(self) -> str:
        """ "ranging", "trending" or "volatile"."""
        return self.name.lower()


@dataclasses.dataclass(frozen=True)
class RegimeConfig:
    """Static thresholds.

    Raises:
        ValueError: a threshold is no number or negative, or the window no whole number of at least `MIN_SCORES`.
    """

    volatility_threshold: float = 0.15  # noise of one score, as a share of the spread so far
    trend_threshold: float = 0.05  # gain per evaluation, as a share of the spread of the window
    window: int = 10  # evaluations

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, Integral) or self.window < MIN_SCORES:
            raise ValueError(f"window is {self.window!r}: give a whole number of at least {MIN_SCORES} evaluations")
        for name in ("volatility_threshold", "trend_threshold"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not value >= 0:
                raise ValueError(f"{name} is {value!r}: give a share of at least 0")


def detect(scores: jax.Array, count: jax.Array, config: RegimeConfig) -> jax.Array:
    """The `Regime` of a stream of scores.

    Args:
        scores: [W] float32, finite, oldest first and right-aligned, W >= `config.window`. The newest `config.window`
            give the trend and the noise; all of them give the scale, so that a calm level after a long rise is calm.
        count: [] int32, how many of them are real.
        config: static.

    Returns:
        [] int32. `TRENDING` is asked first: a steep rise is not called noise.
    """
    real = jnp.arange(scores.shape[0], dtype=jnp.int32) >= scores.shape[0] - count
    centred = jnp.where(real, scores - scores[-1], jnp.float32(0.0))
    whole = jnp.max(centred) - jnp.min(centred)
    recent = scores[-config.window :]
    in_window = real[-config.window :]
    n = jnp.maximum(jnp.sum(in_window.astype(jnp.float32)), jnp.float32(1.0))
    local = jnp.max(centred[-config.window :]) - jnp.min(centred[-config.window :])
    trend = rank_trend(recent, count)
    noise, _ = noise_scale(recent, count)
    rising = (trend.gain > config.trend_threshold * n * local) & (trend.z > SIGNIFICANT)
    noisy = noise > config.volatility_threshold * whole
    regime = jnp.where(rising, int(Regime.TRENDING), jnp.where(noisy, int(Regime.VOLATILE), int(Regime.RANGING)))
    return jnp.where(count >= MIN_SCORES, regime, int(Regime.RANGING)).astype(jnp.int32)


class RegimeDetector:
    """Names the regime of a history of evaluations; see `detect`.

    Args:
        volatility_threshold: noise of one score, as a share of the spread of the history.
        trend_threshold: gain per evaluation, as a share of the spread of the window.
        window: newest evaluations that are looked at.
    """

    MEMORY = 64  # newest evaluations that give the scale; fixed, so that this compiles once

    def __init__(self, volatility_threshold: float = 0.15, trend_threshold: float = 0.05, window: int = 10) -> None:
        self.config = RegimeConfig(volatility_threshold, trend_threshold, window)

    def detect(self, history: Sequence[EvalMetrics]) -> str:
        """ "trending", "ranging" or "volatile". Scores that are not finite are left out."""
        size = max(self.MEMORY, self.config.window)
        finite = [m.primary_score for m in history if np.isfinite(m.primary_score)][-size:]
        scores = np.zeros(size, np.float32)
        scores[size - len(finite) :] = finite
        return Regime(int(_detect(scores, np.int32(len(finite)), self.config))).label


_detect = jax.jit(detect, static_argnums=2)
