"""Synthetic learning curves whose true mean is known, so that "learning has stopped" has a right answer.

One curve is `score_t = a * (mean_t + noise_t) + b` over `LENGTH` evaluations. Fixed before any tuning:

* noise level: the standard deviation of one score as a share of the rise, log-uniform in 1 %..40 %;
* resolution `delta`: the larger of 10 % of the range of the mean and two standard deviations of a score smoothed over
  `SMOOTHING` evaluations (with the noise's own autocorrelation). Less than that nobody could see;
* *remaining improvement* at t: the highest mean within the next `HORIZON` evaluations, minus the mean at t;
* a stop at t is *false* if the remaining improvement is above `delta`;
* the *plateau starts* at the first t from which on the mean stays within `delta` of its last value;
* the plateau is *found* if the stop is not false and comes at most `PATIENCE` evaluations after that start.

Every family is generated for the tuning set (chosen from) and, with other seeds, for the held-out set (reported). The
families in `HELD_OUT_ONLY` were never looked at while defaults were chosen.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np

LENGTH = 240  # evaluations in a curve
HORIZON = 50  # evaluations in which a missed improvement counts against a stop
PATIENCE = 30  # evaluations after its start in which a plateau must be found
SMOOTHING = 8  # evaluations
HELD_OUT_ONLY = ("power_law", "two_rises", "skewed_noise", "shrinking_noise")

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Curves:
    """S curves of one or several families."""

    family: Array  # [S] str
    scores: Array  # [S, T] float32
    mean: Array  # [S, T] float64, on the unit scale
    delta: Array  # [S] float64, resolution on the unit scale
    plateau_start: Array  # [S] int, first t from which on nothing is left to gain or to lose
    false_until: Array  # [S, T] bool, a stop at t would be false

    def __len__(self) -> int:
        return len(self.family)


@dataclasses.dataclass(frozen=True)
class _Draw:
    """What a family draws: a mean, its noise, and the resolution the noise allows."""

    mean: Array  # [S, T]
    noise: Array  # [S, T]
    smoothed_sd: Array  # [S] standard deviation of a score smoothed over SMOOTHING evaluations


def _uniform(rng: np.random.Generator, low: float, high: float, seeds: int) -> Array:
    return rng.uniform(low, high, (seeds, 1))


def _level(rng: np.random.Generator, seeds: int) -> Array:
    return np.exp(rng.uniform(np.log(0.01), np.log(0.4), (seeds, 1)))


def _time() -> Array:
    return np.arange(LENGTH, dtype=np.float64)[None, :]


def _gaussian(rng: np.random.Generator, mean: Array, level: Array) -> _Draw:
    noise = level * rng.standard_normal(mean.shape)
    return _Draw(mean, noise, level[:, 0] / np.sqrt(SMOOTHING))


def _autoregressive(rng: np.random.Generator, mean: Array, level: Array) -> _Draw:
    """AR(1) noise with phi in 0.3..0.8 and stationary standard deviation `level`."""
    phi = rng.uniform(0.3, 0.8, len(mean))
    shocks = rng.standard_normal(mean.shape)
    noise = np.empty_like(mean)
    noise[:, 0] = shocks[:, 0]
    for t in range(1, LENGTH):
        noise[:, t] = phi * noise[:, t - 1] + np.sqrt(1 - phi**2) * shocks[:, t]
    lag = np.abs(np.subtract.outer(np.arange(SMOOTHING), np.arange(SMOOTHING)))
    inflation = np.array([np.sqrt((p**lag).mean()) for p in phi])
    return _Draw(mean, level * noise, level[:, 0] * inflation)


def _heavy(rng: np.random.Generator, mean: Array, level: Array) -> _Draw:
    """Student noise with 2 or 3 degrees of freedom; `level` is its interquartile range / 1.349."""
    freedom = rng.integers(2, 4, (len(mean), 1))
    quartile = np.where(freedom == 2, 0.8165, 0.7649)
    noise = level * rng.standard_t(np.broadcast_to(freedom, mean.shape)) * 0.6745 / quartile
    return _Draw(mean, noise, level[:, 0] / np.sqrt(SMOOTHING))


def _skewed(rng: np.random.Generator, mean: Array, level: Array) -> _Draw:
    """Centred exponential noise, leaning up or down."""
    sign = rng.choice([-1.0, 1.0], (len(mean), 1))
    noise = level * sign * (rng.exponential(1.0, mean.shape) - 1.0)
    return _Draw(mean, noise, level[:, 0] / np.sqrt(SMOOTHING))


# --- means: functions of (rng, seeds) -> [S, T] in 0..1 -------------------------------------------------------------
def _flat(rng: np.random.Generator, seeds: int) -> Array:
    return np.zeros((seeds, LENGTH))


def _exponential(low: float, high: float) -> Callable[[np.random.Generator, int], Array]:
    return lambda rng, seeds: 1 - np.exp(-_time() / _uniform(rng, low, high, seeds))


def _linear(rng: np.random.Generator, seeds: int) -> Array:
    return np.minimum(_time() / _uniform(rng, 40, 160, seeds), 1.0)


def _step(rng: np.random.Generator, seeds: int) -> Array:
    return (_time() >= rng.integers(2, 9, (seeds, 1))).astype(np.float64)


def _late_jump(rng: np.random.Generator, seeds: int) -> Array:
    return (_time() >= rng.integers(9, 21, (seeds, 1))).astype(np.float64)


def _staircase(rng: np.random.Generator, seeds: int) -> Array:
    stairs = rng.integers(2, 6, (seeds, 1))
    tread = rng.integers(5, 16, (seeds, 1))
    return np.minimum(np.floor(_time() / tread), stairs) / stairs


def _s_curve(rng: np.random.Generator, seeds: int) -> Array:
    width = _uniform(rng, 2, 8, seeds)
    centre = width * _uniform(rng, 2.5, 4, seeds)
    return 1 / (1 + np.exp(-(_time() - centre) / width))


def _collapse(rng: np.random.Generator, seeds: int) -> Array:
    """Rises, holds for 5..20 evaluations, and falls for good by 30..100 % of what it had gained."""
    rise = 1 - np.exp(-_time() / _uniform(rng, 3, 12, seeds))
    fall = rng.integers(30, 50, (seeds, 1))
    return np.where(_time() < fall, rise, rise * (1 - _uniform(rng, 0.3, 1.0, seeds)))


def _collapse_and_recover(rng: np.random.Generator, seeds: int) -> Array:
    """Rises to 60..100 %, falls after 12..22 evaluations to 0..40 %, stays there for 4..12, recovers to 1."""
    rise = _uniform(rng, 0.6, 1.0, seeds) * (1 - np.exp(-_time() / _uniform(rng, 3, 8, seeds)))
    fall = rng.integers(12, 23, (seeds, 1))
    back = fall + rng.integers(4, 13, (seeds, 1))
    low = _uniform(rng, 0.0, 0.4, seeds)
    recovery = low + (1 - low) * (1 - np.exp(-np.maximum(_time() - back, 0.0) / _uniform(rng, 3, 10, seeds)))
    return np.where(_time() < fall, rise, recovery)


def _power_law(rng: np.random.Generator, seeds: int) -> Array:
    return 1 - (1 + _time() / _uniform(rng, 4, 15, seeds)) ** -_uniform(rng, 1.0, 2.0, seeds)


def _two_rises(rng: np.random.Generator, seeds: int) -> Array:
    """Two S-curves with a pause between them."""
    width = _uniform(rng, 1, 3, seeds)
    first, pause = 4 * width, _uniform(rng, 6, 18, seeds)
    share = _uniform(rng, 0.3, 0.7, seeds)
    second = first + 6 * width + pause
    return share / (1 + np.exp(-(_time() - first) / width)) + (1 - share) / (1 + np.exp(-(_time() - second) / width))


# --- families with noise of their own -------------------------------------------------------------------------------
def _bounded(rng: np.random.Generator, seeds: int) -> _Draw:
    """A latent S-curve plus noise, cut at the task's cap: the noise vanishes at the top (CartPole at 500)."""
    level = _level(rng, seeds)
    top = 1 + 4 * level
    latent = -0.2 + (top + 0.2) * _s_curve(rng, seeds)
    scores = np.minimum(latent + level * rng.standard_normal(latent.shape), 1.0)
    d = (latent - 1) / level
    mean = latent - (latent - 1) * _normal_cdf(d) - level * np.exp(-0.5 * d**2) / np.sqrt(2 * np.pi)
    return _Draw(mean, scores - mean, level[:, 0] / np.sqrt(SMOOTHING))


def _normal_cdf(x: Array) -> Array:
    """Abramowitz & Stegun 26.2.17, |error| < 7.5e-8."""
    t = 1 / (1 + 0.2316419 * np.abs(x))
    poly = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    upper = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi) * poly
    return np.where(x >= 0, 1 - upper, upper)


def _stuck_then_rises(rng: np.random.Generator, seeds: int) -> _Draw:
    """Exactly constant (MountainCar at -200) for 5..20 evaluations, then an exponential rise with noise."""
    start = rng.integers(5, 21, (seeds, 1))
    mean = 1 - np.exp(-np.maximum(_time() - start, 0.0) / _uniform(rng, 3, 20, seeds))
    level = _level(rng, seeds)
    noise = np.where(_time() <= start, 0.0, level * rng.standard_normal(mean.shape))
    return _Draw(mean, noise, level[:, 0] / np.sqrt(SMOOTHING))


def _shrinking(rng: np.random.Generator, seeds: int) -> _Draw:
    """The noise shrinks to a quarter as the learner improves."""
    mean = _exponential(5, 20)(rng, seeds)
    level = _level(rng, seeds)
    noise = level * (1 - 0.75 * mean) * rng.standard_normal(mean.shape)
    return _Draw(mean, noise, level[:, 0] / np.sqrt(SMOOTHING))


def _with(mean: Callable, noise: Callable) -> Callable[[np.random.Generator, int], _Draw]:
    return lambda rng, seeds: noise(rng, mean(rng, seeds), _level(rng, seeds))


FAMILIES: dict[str, Callable[[np.random.Generator, int], _Draw]] = {
    "flat": _with(_flat, _gaussian),
    "flat_ar1": _with(_flat, _autoregressive),
    "flat_heavy": _with(_flat, _heavy),
    "exp_fast": _with(_exponential(2, 10), _gaussian),
    "exp_slow": _with(_exponential(10, 30), _gaussian),
    "exp_ar1": _with(_exponential(3, 25), _autoregressive),
    "exp_heavy": _with(_exponential(3, 25), _heavy),
    "linear_slow": _with(_linear, _gaussian),
    "step": _with(_step, _gaussian),
    "late_jump": _with(_late_jump, _gaussian),
    "late_jump_ar1": _with(_late_jump, _autoregressive),
    "stuck_then_rises": _stuck_then_rises,
    "staircase": _with(_staircase, _gaussian),
    "s_curve": _with(_s_curve, _gaussian),
    "bounded": _bounded,
    "collapse": _with(_collapse, _gaussian),
    "collapse_recover": _with(_collapse_and_recover, _gaussian),
    "power_law": _with(_power_law, _gaussian),
    "two_rises": _with(_two_rises, _gaussian),
    "skewed_noise": _with(_exponential(3, 25), _skewed),
    "shrinking_noise": _shrinking,
}


def truth(mean: Array, delta: Array) -> tuple[Array, Array]:
    """`plateau_start` [S] and `false_until` [S, T] of means [S, T] at resolutions [S], by the definitions above."""
    ahead = mean.copy()
    for lag in range(1, HORIZON + 1):
        ahead[:, :-lag] = np.maximum(ahead[:, :-lag], mean[:, lag:])
    is_false = ahead - mean > delta[:, None]
    away = np.abs(mean - mean[:, -1:]) > delta[:, None]
    last_away = np.where(away.any(1), mean.shape[1] - 1 - away[:, ::-1].argmax(1), -1)
    return last_away + 1, is_false


# Raised whenever the rule has changed after a look at the held-out set, so that what is reported is of fresh curves.
HELD_OUT_DRAW = 2


def generate(family: str, seeds: int, held_out: bool) -> Curves:
    """`seeds` curves of one family, from the tuning or the held-out stream of seeds, at random scales and offsets."""
    rng = np.random.default_rng([zlib.crc32(family.encode()), HELD_OUT_DRAW if held_out else 0])
    draw = FAMILIES[family](rng, seeds)
    delta = np.maximum(2 * draw.smoothed_sd, 0.1 * np.ptp(draw.mean, axis=1))
    start, is_false = truth(draw.mean, delta)
    scale = 10.0 ** rng.uniform(-6, 6, (seeds, 1))
    offset = rng.choice([-1.0, 0.0, 1.0], (seeds, 1)) * rng.uniform(0, 20, (seeds, 1))
    scores = (scale * (draw.mean + draw.noise + offset)).astype(np.float32)
    return Curves(np.full(seeds, family), scores, draw.mean, delta, start, is_false)


def dataset(seeds: int, held_out: bool) -> Curves:
    """All families of the tuning or the held-out set, `seeds` curves each."""
    names = [name for name in FAMILIES if held_out or name not in HELD_OUT_ONLY]
    parts = [generate(name, seeds, held_out) for name in names]
    columns = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Curves)}
    return Curves(**columns)
