"""The mathematics of evolving policies: what to do about a plateau, how far a variant goes, what a member weighs.

Pure functions of fixed shapes, safe under jit and vmap, for both drivers. Everything is the same for scores a * score,
a > 0. Where a threshold is a share, it is of `scale`: the mean of the newest scores, or their range over all that is
remembered where that is larger. A score near zero is thus no small denominator once scores have varied.
"""

from __future__ import annotations

import dataclasses
import enum
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.core.convergence import newest
from tensor_optix.core.search_space import SearchSpace, from_unit, to_unit

MEMORY = 64  # newest evaluations that give the scale
MIN_SCORES = 3  # fewer say nothing
SIGNIFICANT = 2.0  # standard errors that make a rising gap more than noise
MAX_SLOPE = 0.05  # rise per evaluation, as a share of the scale, at which a variant stays closest
CREDIBLE = 20.0  # a gap of more than so many times the scale says that the scale is at fault, not the policy
WEIGHT_NOISE = (0.005, 0.1)  # least and most noise on a variant's weights


class MetaAction(enum.IntEnum):
    """What to do about a DORMANT. The integer is what compiled code carries."""

    NO_OP = 0  # go on learning
    SPAWN = 1  # a plateau: try a variant
    PRUNE = 2  # overfitting: drop the weakest of the ensemble
    STOP = 3  # the budget of spawns is spent


class Evaluations(struct.PyTreeNode):
    """What the evaluations so far scored: finite, oldest first, right-aligned; W >= every window that is asked for."""

    scores: jax.Array  # [W] float32, what decides
    count: jax.Array  # [] int32, how many of them are real
    train: jax.Array  # [W] float32, of those evaluations that have a training and a validation score
    val: jax.Array  # [W] float32, beside `train`
    pairs: jax.Array  # [] int32, how many of those are real


@dataclasses.dataclass(frozen=True)
class MetaConfig:
    """Static thresholds, as shares of the scale.

    Raises:
        ValueError: a threshold is no number or negative, or the window no whole number of at least `MIN_SCORES`.
    """

    gap_threshold: float = 0.2  # training less validation score
    gap_slope_threshold: float = 0.02  # its rise per evaluation
    improvement_threshold: float = 0.01  # rise of the score per evaluation; less is a plateau
    window: int = 10  # evaluations

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, Integral) or self.window < MIN_SCORES:
            raise ValueError(f"window is {self.window!r}: give a whole number of at least {MIN_SCORES} evaluations")
        for name in ("gap_threshold", "gap_slope_threshold", "improvement_threshold"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not value >= 0:
                raise ValueError(f"{name} is {value!r}: give a share of at least 0")


def decide(config: MetaConfig, evaluations: Evaluations, budget_left: jax.Array) -> jax.Array:
    """The `MetaAction` after a plateau, [] int32.

    STOP without budget; NO_OP while there are fewer than `MIN_SCORES` evaluations; PRUNE where the mean gap, or its
    slope, is above its threshold; SPAWN where the score rises by less than its threshold; NO_OP otherwise.

    Args:
        config: static.
        evaluations: what was scored.
        budget_left: [] bool, a spawn may still be made.

    A slope counts where it is `SIGNIFICANT` times its standard error. A gap beyond `CREDIBLE` scales is no evidence:
    scores that lie at zero and never varied have no scale.
    """
    slope, _ = _slope(evaluations.scores[-config.window :], evaluations.count)
    rise = _share(slope, scale(evaluations.scores, evaluations.count, config.window))
    gaps = (evaluations.train - evaluations.val)[-config.window :]
    unit = gap_scale(evaluations, config.window)
    gap = _mean(gaps, evaluations.pairs)
    gap_slope, error = _slope(gaps, evaluations.pairs)
    wide = (gap > config.gap_threshold * unit) & (gap <= CREDIBLE * unit)
    widening = (gap > 0) & (gap_slope > config.gap_slope_threshold * unit) & (gap_slope > SIGNIFICANT * error)
    overfitted = wide | (widening & (evaluations.pairs >= MIN_SCORES) & (gap <= CREDIBLE * unit))
    action = jnp.where(rise < config.improvement_threshold, int(MetaAction.SPAWN), int(MetaAction.NO_OP))
    action = jnp.where(overfitted, int(MetaAction.PRUNE), action)
    action = jnp.where(evaluations.count >= MIN_SCORES, action, int(MetaAction.NO_OP))
    return jnp.where(budget_left, action, int(MetaAction.STOP)).astype(jnp.int32)


def spawn_noise(evaluations: Evaluations, least: jax.Array, most: jax.Array, window: int) -> jax.Array:
    """How far a variant's hyperparameters go, [] float32 from `least` to `most`, both [] float32.

    Three signals of the newest `window` (static) evaluations:
        t            clip(slope of the score / scale / `MAX_SLOPE`, 0, 1): stay close while it rises
        gap_penalty  clip(mean of training less validation / scale, 0, 1)
        corr_penalty clip(1 - Pearson's correlation of training and validation, 0, 1)
        effective_t  t (1 - gap_penalty / 2) (1 - corr_penalty / 2)
        noise        most - effective_t (most - least)
    Without validation scores the last two are 0; with fewer than `MIN_SCORES` evaluations the noise is `most`.
    """
    slope, _ = _slope(evaluations.scores[-window:], evaluations.count)
    t = jnp.clip(_share(slope, scale(evaluations.scores, evaluations.count, window)) / MAX_SLOPE, 0.0, 1.0)
    train, val = evaluations.train[-window:], evaluations.val[-window:]
    gap_penalty = jnp.clip(_share(_mean(train - val, evaluations.pairs), gap_scale(evaluations, window)), 0.0, 1.0)
    corr_penalty = jnp.clip(1.0 - _correlation(train, val, evaluations.pairs), 0.0, 1.0)
    corr_penalty = jnp.where(evaluations.pairs >= MIN_SCORES, corr_penalty, jnp.float32(0.0))
    effective = t * (1.0 - 0.5 * gap_penalty) * (1.0 - 0.5 * corr_penalty)
    effective = jnp.where(evaluations.count >= MIN_SCORES, effective, jnp.float32(0.0))
    return most - effective * (most - least)


def weight_noise(evaluations: Evaluations, base: jax.Array, window: int) -> jax.Array:
    """Noise on a variant's weights, [] float32: base / (1 + improvement), within `WEIGHT_NOISE`.

    The improvement is the rise over the newest `window` evaluations as a share of the scale, at least 0.
    """
    slope, _ = _slope(evaluations.scores[-window:], evaluations.count)
    steps = (jnp.clip(evaluations.count, 1, window) - 1).astype(jnp.float32)
    rise = _share(slope * steps, scale(evaluations.scores, evaluations.count, window))
    return jnp.clip(base / (1.0 + jnp.maximum(rise, 0.0)), *WEIGHT_NOISE)


def ensemble_weights(scores: jax.Array, counts: jax.Array, present: jax.Array) -> jax.Array:
    """What the members of an ensemble weigh, float32 [N], from their recent scores.

    exp((mean score - best mean) / s), s the standard deviation of all scores about their common mean, then scaled to
    mean 1: the same for scores a * score + b, a > 0. Members that differ by less than their scores vary weigh nearly
    the same; equal ones exactly. A member without scores keeps what it weighs at present.

    Args:
        scores: [N, W] float32, right-aligned, finite.
        counts: [N] int32, how many of each row are real.
        present: [N] float32.
    """
    valid = jnp.arange(scores.shape[1], dtype=jnp.int32)[None, :] >= scores.shape[1] - counts[:, None]
    known = counts > 0
    top = jnp.max(jnp.where(valid, scores, -jnp.inf))
    bottom = jnp.min(jnp.where(valid, scores, jnp.inf))
    width = top / 2 - bottom / 2  # halves: the difference of two finite numbers may not be finite
    # In shares of the range, so that no square overflows.
    shares = jnp.where(valid & (width > 0), (scores / 2 - top / 2) / jnp.where(width > 0, width, 1.0), 0.0)
    total = jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)
    spread = jnp.sqrt(jnp.sum(jnp.where(valid, (shares - jnp.sum(shares) / total) ** 2, 0.0)) / total)
    means = jnp.sum(shares, axis=1) / jnp.maximum(counts, 1).astype(jnp.float32)
    best = jnp.max(jnp.where(known, means, -jnp.inf))
    raw = jnp.where(known, jnp.exp((means - best) / jnp.where(spread > 0, spread, 1.0)), 0.0)
    mean = jnp.sum(raw) / jnp.maximum(jnp.sum(known.astype(jnp.float32)), 1.0)
    return jnp.where(known, raw / jnp.where(mean > 0, mean, 1.0), present)


def spawn(key: jax.Array, space: SearchSpace, params: dict[str, Any], noise: jax.Array) -> dict[str, Any]:
    """`params` with the names of `space` moved by normal noise in the unit cube, reflected at its faces.

    Args:
        key: consumed.
        space: static; its bounds hold for the result.
        params: name -> [] float32.
        noise: [] float32, standard deviation as a share of each range.
    """
    x = to_unit(space, params)
    moved = jnp.mod(x + noise * jax.random.normal(key, x.shape, jnp.float32), 2.0)  # reflections have period 2
    return from_unit(space, jnp.minimum(moved, 2.0 - moved), params)


def spawn_free(key: jax.Array, values: jax.Array, noise: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Values without a range of their own, [K] float32, multiplied by exp(noise * N(0, 1)), kept in [low, high].

    Of a value strictly between 0 and 1 the odds are multiplied instead, so a discount or a probability stays one; signs
    stay, and so does 0. low, high: [K] float32, infinite where nothing is known.
    """
    factor = jnp.exp(noise * jax.random.normal(key, values.shape, jnp.float32))
    share = (values > 0) & (values < 1)
    inside = jnp.where(share, values, 0.5)
    moved = jnp.where(share, inside * factor / (1.0 + inside * (factor - 1.0)), values * factor)
    largest = jnp.where(share, jnp.nextafter(jnp.float32(1.0), jnp.float32(0.0)), jnp.inf)
    return jnp.clip(moved, low, jnp.minimum(high, largest))


def scale(scores: jax.Array, count: jax.Array, window: int) -> jax.Array:
    """[] float32: |mean| of the newest `window` of `scores` [W], or the range of all, whichever is larger."""
    return jnp.maximum(jnp.abs(_mean(scores[-window:], count)), _range(scores, count))


def gap_scale(evaluations: Evaluations, window: int) -> jax.Array:
    """`scale` of the validation scores, [] float32; the range of the training scores counts as well."""
    own = scale(evaluations.val, evaluations.pairs, window)
    return jnp.maximum(own, _range(evaluations.train, evaluations.pairs))


def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)


def _mean(values: jax.Array, count: jax.Array) -> jax.Array:
    valid = newest(values.shape[0], count)
    total = jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)
    return jnp.sum(jnp.where(valid, values / total, 0.0))


def _range(values: jax.Array, count: jax.Array) -> jax.Array:
    centred = jnp.where(newest(values.shape[0], count), values - values[-1], 0.0)
    return jnp.max(centred) - jnp.min(centred)


def _slope(values: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least squares slope [] of the newest `count` of `values` [n], per step, and its standard error []."""
    valid = newest(values.shape[0], count)
    n = jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)
    middle = jnp.float32(values.shape[0] - 1) - (n - 1) / 2
    time = jnp.where(valid, jnp.arange(values.shape[0], dtype=jnp.float32) - middle, 0.0)
    spread = jnp.maximum(jnp.sum(time * time), 0.5)
    centred = jnp.where(valid, values - values[-1], 0.0)
    centred = jnp.where(valid, centred - jnp.sum(centred) / n, 0.0)
    slope = jnp.sum(time * centred) / spread
    residual = centred - slope * time
    error = jnp.sqrt(jnp.sum(residual * residual) / jnp.maximum(n - 2, 1.0) / spread)
    return slope, error


def _correlation(a: jax.Array, b: jax.Array, count: jax.Array) -> jax.Array:
    """Pearson's correlation [] of the newest `count` of two series [n]; 0 where one does not vary."""
    valid = newest(a.shape[0], count)

    def unit(values: jax.Array) -> jax.Array:
        width = _range(values, count)
        shares = jnp.where(valid, _share(values - values[-1], width), 0.0)
        centred = jnp.where(valid, shares - _mean(shares, count), 0.0)
        return _share(centred, jnp.sqrt(jnp.sum(centred * centred)))

    return jnp.sum(unit(a) * unit(b))
