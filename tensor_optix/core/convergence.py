"""Is a stream of scores still rising, and how noisy is it?

`rank_trend` sees a trend through the ranks of the scores within a window. Its verdict is therefore exactly the same for
score -> a*score + b with a > 0 (for any increasing map, in fact), nothing can overflow, and one freak score moves it by
no more than its rank. On Gaussian noise that costs 1.5 % of efficiency against the least squares slope (Stuart 1954:
(3/pi)^(1/3) for rank tests of trend); on heavy tails it gains. On the newest n scores:

1. midranks R_i, ties sharing their mean, centred (rank transform, Conover & Iman 1981);
2. least squares slope of R on time, residuals e;
3. lag-1 autocorrelation r of e and the effective sample size n(1-r)/(1+r), kept in [2, n] (Bayley & Hammersley 1946);
4. t = slope * sd(time) * sqrt(n_eff) / sd(e), turned into the normal deviate z of the same tail probability
   (Wallace 1959), so that one normal quantile serves every n and r.

Significance is half of the question: with little noise any creep is significant. `gain` is the other half, the rise of
the fitted line over the window in score units, to be compared with what the learner has gained so far.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

MIN_TREND = 4  # fewer scores say nothing: a line through 3 points leaves one residual

WANDER_LAG = 4  # evaluations over which slow, autocorrelated noise has moved most of its way


class Trend(struct.PyTreeNode):
    """What the scores of one window say. Scalars; add a member axis with vmap."""

    z: jax.Array  # [] float32, normal deviate of the trend; 0 when there is nothing to say
    gain: jax.Array  # [] float32, rise of the fitted line over the window, score units
    autocorrelation: jax.Array  # [] float32, lag 1, of the rank residuals, in [0, 1)
    effective_n: jax.Array  # [] float32, in [2, n]


def push(window: jax.Array, score: jax.Array) -> jax.Array:
    """Append `score` [] to `window` [W], dropping the oldest: the newest is always last."""
    return jnp.concatenate([window[1:], jnp.reshape(score, (1,))])


def newest(size: int, count: jax.Array) -> jax.Array:
    """[size] bool mask of the newest `count` [] entries of a window."""
    return jnp.arange(size, dtype=jnp.int32) >= size - count


def midranks(scores: jax.Array, valid: jax.Array) -> jax.Array:
    """Centred midranks [n] of the `valid` [n] entries of `scores` [n], -(m-1)/2 for the least of m; 0 elsewhere."""
    difference = jnp.sign(scores[:, None] - scores[None, :])
    wins = jnp.where(valid[None, :], difference, jnp.float32(0.0)).sum(axis=1)
    return jnp.where(valid, jnp.float32(0.5) * wins, jnp.float32(0.0))


def median_of_newest(scores: jax.Array, count: jax.Array) -> jax.Array:
    """Median [] of the newest three of `scores` [n >= 3]; the newest alone while `count` [] is below 3.

    Made of comparisons only, so it commutes exactly with any increasing map.
    """
    a, b, c = scores[-3], scores[-2], scores[-1]
    median = jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))
    return jnp.where(count >= 3, median, c)


def rank_trend(scores: jax.Array, count: jax.Array) -> Trend:
    """Test whether the newest min(`count`, n) of `scores` rise.

    Args:
        scores: [n] float32, finite, oldest first; the newest is `scores[-1]`.
        count: [] int32, how many of them are real.

    Returns:
        A `Trend`. Identical scores, and fewer than `MIN_TREND`, give z = 0 and gain = 0: never NaN.
    """
    valid = newest(scores.shape[0], count)
    n, time, spread = _clock(valid)
    ranks = midranks(scores, valid)
    slope = jnp.sum(ranks * time) / spread
    residual = jnp.where(valid, ranks - slope * time, jnp.float32(0.0))
    power = jnp.sum(residual * residual)
    r = jnp.sum(residual[1:] * residual[:-1]) / jnp.maximum(power, jnp.float32(1e-6))
    r = jnp.clip(r, 0.0, 0.99)
    effective_n = jnp.clip(n * (1 - r) / (1 + r), 2.0, n)
    # Scores in perfect order leave no residual; the resolution of a rank (variance 1/12 each) keeps t finite.
    variance = (power + n / 12) / jnp.maximum(n - 2, jnp.float32(1.0))
    t = slope * jnp.sqrt(spread / n * effective_n / variance)
    known = count >= MIN_TREND
    z = _normal_deviate(t, jnp.maximum(effective_n - 2, jnp.float32(1.0)))
    return Trend(
        z=jnp.where(known, z, jnp.float32(0.0)),
        gain=jnp.where(known, n * _slope(_medians(scores, valid), valid, time, spread), jnp.float32(0.0)),
        autocorrelation=r,
        effective_n=effective_n,
    )


def noise_scale(scores: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Standard deviation of one score around its trend, in score units; 0 while unknown or if nothing varies.

    From absolute differences of successive scores (von Neumann 1941, in L1 form), less their linear trend: a step or a
    freak score enters twice instead of inflating every residual, and nothing is squared.

    Args:
        scores: [n] float32, oldest first, right-aligned.
        count: [] int32, how many of them are real.

    Returns:
        `(noise, wander)`, both [] float32: the short-term noise, which is what a comparison of neighbouring scores
        sees, and the whole noise noise / sqrt(1 - r), which is how far a score strays from its mean. r is the lag-1
        autocorrelation of the ranks, its small-sample bias removed (Kendall 1954: r + (1 + 4r)/n).
    """
    valid = newest(scores.shape[0], count)
    _, time, spread = _clock(valid)
    slope = _slope(scores, valid, time, spread)
    noise = _mean_step(scores, valid, slope, 1)
    wander = jnp.maximum(noise, _mean_step(scores, valid, slope, WANDER_LAG))
    known = count >= MIN_TREND
    return jnp.where(known, noise, jnp.float32(0.0)), jnp.where(known, wander, jnp.float32(0.0))


def _mean_step(scores: jax.Array, valid: jax.Array, slope: jax.Array, lag: int) -> jax.Array:
    """Standard deviation [] of Gaussian noise with this mean absolute difference over `lag` evaluations."""
    step = jnp.abs(scores[lag:] - scores[:-lag] - lag * slope)
    pairs = valid[:-lag]
    n_pairs = jnp.maximum(jnp.sum(pairs.astype(jnp.float32)), jnp.float32(1.0))
    return jnp.float32(math.sqrt(math.pi) / 2) * jnp.sum(jnp.where(pairs, step, jnp.float32(0.0))) / n_pairs


def _clock(valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Number of valid entries n [], their times [n] centred on 0 (0 where invalid), sum of squared times [] > 0."""
    size = valid.shape[0]
    n = jnp.maximum(jnp.sum(valid.astype(jnp.float32)), jnp.float32(1.0))
    middle = jnp.float32(size - 1) - (n - 1) / 2
    time = jnp.where(valid, jnp.arange(size, dtype=jnp.float32) - middle, jnp.float32(0.0))
    return n, time, jnp.maximum(jnp.sum(time * time), jnp.float32(0.5))


def _medians(scores: jax.Array, valid: jax.Array) -> jax.Array:
    """Running medians of three [n], less the newest score: one freak score cannot hide or fake a rise.

    The last is the median of the score, its neighbour's median and the line through the two before (Tukey 1977,
    "Exploratory data analysis", chapter 7); the first stays as it is.
    """
    x = scores - scores[-1]
    left = jnp.concatenate([x[:1], x[:-1]])
    left = jnp.where(jnp.concatenate([valid[:1], valid[:-1]]), left, x)  # the first real score has no left neighbour
    inner = _median_of_three(left, x, jnp.concatenate([x[1:], x[-1:]]))
    last = _median_of_three(x[-1], inner[-2], 3 * inner[-2] - 2 * inner[-3])
    return inner.at[-1].set(last)


def _median_of_three(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


def _slope(scores: jax.Array, valid: jax.Array, time: jax.Array, spread: jax.Array) -> jax.Array:
    """Least squares slope [], score units per evaluation; centred on the newest score before anything is summed."""
    centred = jnp.where(valid, scores - scores[-1], jnp.float32(0.0))
    return jnp.sum(centred * time / spread)


def _normal_deviate(t: jax.Array, freedom: jax.Array) -> jax.Array:
    """Normal deviate with the tail probability of Student's `t` [] at `freedom` [] (Wallace 1959)."""
    shrink = (8 * freedom + 1) / (8 * freedom + 3)
    return jnp.sign(t) * shrink * jnp.sqrt(freedom * jnp.log1p(t * t / freedom))
