"""When to evaluate next, and when learning has stopped: ACTIVE, COOLING, DORMANT, WATCHDOG.

Pure functions over `SchedulerState`, one score stream each (add a member axis with vmap); `BackoffScheduler` is the
stateful shell around them. Two horizons answer two questions:

* Is it improving now? The newest `trend_window` evaluations. Yes: ACTIVE, evaluate at the base interval. No: the
  interval grows, and after `plateau_threshold` such answers in a row the state is COOLING.
* Is it over? The newest `dormant_threshold` evaluations, *taken together*, hold no improvement: DORMANT. Testing the
  stretch as a whole, instead of asking for that many failures of a short test in a row, sees slow rises that no short
  window can see, and a single false alarm of the short test does not start the count again.

An improvement is a rise that is significant (`rank_trend` at `confidence`) and material (more than `material_gain`
of all that the learner has gained so far). Both are unchanged by score -> a*score + b, a > 0.

Defaults are measured, not guessed: `python -m benchmarks.decisions` prints what each knob does to the two error rates.
"""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.core.convergence import median_of_newest, noise_scale, push, rank_trend
from tensor_optix.core.types import LoopState


@dataclasses.dataclass(frozen=True)
class BackoffConfig:
    """Knobs of the scheduler; static and hashable. "evaluations" and "windows" are counts of those."""

    base_interval: int = 1  # windows from one evaluation to the next while improving
    backoff_factor: float = 2.0  # the interval grows by this at an evaluation without improvement
    max_interval: int = 2  # windows
    backoff_after: int = 1  # evaluations without improvement, in a row, before the interval grows
    plateau_threshold: int = 5  # evaluations in a row without improvement: COOLING
    dormant_threshold: int = 25  # evaluations that, taken together, hold no improvement: DORMANT
    min_evaluations_before_dormant: int = 0  # evaluations
    patience_before_first_improvement: float = 1.0  # dormant_threshold times this, until something has improved
    saturation_threshold: int = 12  # identical scores in a row at the best ever seen: DORMANT; 0: never
    confidence: float = 0.8  # one-sided, of the test over dormant_threshold evaluations
    trend_window: int = 8  # evaluations
    trend_confidence: float = 0.95  # one-sided, of the test over trend_window evaluations
    material_gain: float = 0.05  # share of the whole rise so far; a smaller gain over the window counts as none
    score_window: int = 20  # evaluations from which the noise is estimated
    noise_k: float = 2.0  # noise scales; the margin that callers put on a new best
    hold_k: float = 2.0  # noise scales below the best: not over, for as long as dormant_threshold evaluations
    detect_degradation: bool = True
    degradation_k: float = 4.0  # noise scales below the best
    degradation_share: float = 0.2  # and this share of the whole rise so far
    min_consecutive_degradations: int = 3  # evaluations in a row
    min_evaluations_before_degradation: int = 5  # evaluations

    @property
    def patience(self) -> int:
        """Evaluations before DORMANT while nothing has ever improved."""
        return math.ceil(self.dormant_threshold * self.patience_before_first_improvement)

    @property
    def capacity(self) -> int:
        """Scores that have to be remembered."""
        return max(self.score_window, self.patience, self.dormant_threshold, self.trend_window, 3)


@struct.dataclass
class SchedulerState:
    """What the scheduler remembers of one stream. Scalars but for `scores`."""

    scores: jax.Array  # [capacity] float32, newest last
    count: jax.Array  # [] int32, how many of them belong to the present regime (since the start, restart or collapse)
    evaluations: jax.Array  # [] int32, all valid evaluations
    misses: jax.Array  # [] int32, evaluations in a row without improvement
    improved: jax.Array  # [] bool, there has been an improvement
    best: jax.Array  # [] float32, highest smoothed score; -inf before the first
    worst: jax.Array  # [] float32, lowest smoothed score; +inf before the first
    below: jax.Array  # [] int32, evaluations in a row visibly below the best
    low: jax.Array  # [] int32, evaluations in a row far below the best
    interval: jax.Array  # [] int32, windows until the next evaluation
    noise: jax.Array  # [] float32, standard deviation of one score, score units; 0 while unknown
    wander: jax.Array  # [] float32, the same with the slow part of autocorrelated noise
    code: jax.Array  # [] int32, a `LoopState`


@struct.dataclass
class Verdict:
    """What one evaluation means. Scalars."""

    improving: jax.Array  # [] bool, the score is rising
    degraded: jax.Array  # [] bool, the score has fallen far below its best and stayed there: once per fall
    plateau_entered: jax.Array  # [] bool, COOLING begins
    dormant_entered: jax.Array  # [] bool, DORMANT begins
    interval: jax.Array  # [] int32, windows until the next evaluation
    noise: jax.Array  # [] float32, standard deviation of one score, score units; 0 while unknown
    code: jax.Array  # [] int32, a `LoopState`


def init(config: BackoffConfig) -> SchedulerState:
    """The state that has seen nothing."""
    zero = jnp.int32(0)
    return SchedulerState(
        scores=jnp.zeros((config.capacity,), jnp.float32),
        count=zero,
        evaluations=zero,
        misses=zero,
        improved=jnp.bool_(False),
        best=jnp.float32(-jnp.inf),
        worst=jnp.float32(jnp.inf),
        below=zero,
        low=zero,
        interval=jnp.int32(config.base_interval),
        noise=jnp.float32(0.0),
        wander=jnp.float32(0.0),
        code=jnp.int32(LoopState.ACTIVE),
    )


def restart(config: BackoffConfig, state: SchedulerState) -> SchedulerState:
    """A handled DORMANT resumes: ACTIVE, base interval, all counts at 0. What has been reached is remembered."""
    return state.replace(
        count=jnp.zeros_like(state.count),
        misses=jnp.zeros_like(state.misses),
        below=jnp.zeros_like(state.below),
        low=jnp.zeros_like(state.low),
        interval=jnp.full_like(state.interval, config.base_interval),
        code=jnp.full_like(state.code, LoopState.ACTIVE),
    )


def enter_watchdog(config: BackoffConfig, state: SchedulerState) -> SchedulerState:
    """Converged and deployed: from here on only degradation is looked for, at the widest interval, until `restart`."""
    return state.replace(
        below=jnp.zeros_like(state.below),
        low=jnp.zeros_like(state.low),
        interval=jnp.full_like(state.interval, config.max_interval),
        code=jnp.full_like(state.code, LoopState.WATCHDOG),
    )


def observe(
    config: BackoffConfig, state: SchedulerState, score: jax.Array, valid: jax.Array
) -> tuple[SchedulerState, Verdict]:
    """Take one evaluation into account.

    Args:
        config: static.
        state: as `init`, `observe`, `restart` or `enter_watchdog` left it.
        score: [] float32, higher is better.
        valid: [] bool. False, or a score that is not finite, leaves the state unchanged and no flag raised.

    Returns:
        The next state and the `Verdict` on this evaluation.
    """
    valid = valid & jnp.isfinite(score)
    seen = _remember(config, state, jnp.where(valid, score, jnp.float32(0.0)))
    degraded = (seen.low == config.min_consecutive_degradations) & config.detect_degradation
    improving = ~degraded & _improving(config, seen, config.trend_window, config.trend_confidence)
    over = ~degraded & ~improving & _is_over(config, seen)

    misses = jnp.where(improving | degraded, jnp.int32(0), seen.misses + 1)
    code = _next_code(config, seen.code, misses, over)
    new = seen.replace(
        count=jnp.where(degraded, jnp.int32(0), seen.count),
        misses=misses,
        improved=seen.improved | improving,
        interval=_next_interval(config, seen.interval, misses, code),
        code=code,
    )
    new = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, state)
    verdict = Verdict(
        improving=improving & valid,
        degraded=degraded & valid,
        plateau_entered=(new.code == LoopState.COOLING) & (state.code != LoopState.COOLING),
        dormant_entered=(new.code == LoopState.DORMANT) & (state.code != LoopState.DORMANT),
        interval=new.interval,
        noise=new.noise,
        code=new.code,
    )
    return new, verdict


def _remember(config: BackoffConfig, state: SchedulerState, score: jax.Array) -> SchedulerState:
    """The state with `score` [] in its window, its extremes, its noise and its count of low scores."""
    scores = push(state.scores, score)
    count = jnp.minimum(state.count + 1, config.capacity)
    smoothed = median_of_newest(scores, count)
    best, worst = jnp.maximum(state.best, smoothed), jnp.minimum(state.worst, smoothed)
    share = config.degradation_share * (best - worst)
    fall = jnp.maximum(config.degradation_k * state.wander, share)
    is_below = best - smoothed > jnp.maximum(config.hold_k * state.wander, share)
    is_low = (best - smoothed > fall) & (state.evaluations >= config.min_evaluations_before_degradation)
    # A fall that was reported is over only when half of it has been made good: one report per fall.
    still = (state.low >= config.min_consecutive_degradations) & (best - smoothed > fall / 2)
    low = jnp.where(is_low | still, state.low + 1, 0)
    # While a fall is being judged, and too early in a new regime, the noise is what it was before.
    keep = ((low > 0) & (low <= config.min_consecutive_degradations)) | ((count < 8) & (state.noise > 0))
    noise, wander = noise_scale(scores[-config.score_window :], count)
    return state.replace(
        scores=scores,
        count=count,
        evaluations=state.evaluations + 1,
        best=best,
        worst=worst,
        below=jnp.where(is_below, state.below + 1, 0),
        low=low,
        noise=jnp.where(keep, state.noise, noise),
        wander=jnp.where(keep, state.wander, wander),
    )


def _improving(config: BackoffConfig, state: SchedulerState, window: int, confidence: float) -> jax.Array:
    """[] bool: the newest `window` evaluations rise, significantly and materially."""
    trend = rank_trend(state.scores[-window:], state.count)
    material = trend.gain > config.material_gain * (state.best - state.worst)
    return (trend.z > NormalDist().inv_cdf(confidence)) & material


def _is_over(config: BackoffConfig, state: SchedulerState) -> jax.Array:
    """[] bool: enough has been seen, and nothing in it improves."""
    needed = jnp.where(state.improved, config.dormant_threshold, config.patience)
    quiet = (state.count >= needed) & ~_improving(config, state, config.dormant_threshold, config.confidence)
    held = (state.below > 0) & (state.below < config.dormant_threshold)
    over = (quiet & ~held) | (state.improved & _is_saturated(config, state))
    return over & (state.evaluations >= config.min_evaluations_before_dormant)


def _is_saturated(config: BackoffConfig, state: SchedulerState) -> jax.Array:
    """[] bool: the newest scores are all the same and the best ever: a task's cap, where the noise vanishes too."""
    size = config.saturation_threshold
    if not 0 < size <= config.capacity:
        return jnp.bool_(False)
    recent = state.scores[-size:]
    same = (jnp.max(recent) == jnp.min(recent)) & (recent[-1] >= state.best)
    return same & (state.count >= size)


def _next_code(config: BackoffConfig, code: jax.Array, misses: jax.Array, over: jax.Array) -> jax.Array:
    """[] int32: the state after an evaluation. WATCHDOG is left by `restart` only, DORMANT also by an improvement."""
    quiet = jnp.where(misses >= config.plateau_threshold, int(LoopState.COOLING), int(LoopState.ACTIVE))
    stay = (code == LoopState.WATCHDOG) | ((code == LoopState.DORMANT) & (misses > 0))
    return jnp.where(stay, code, jnp.where(over, int(LoopState.DORMANT), quiet)).astype(jnp.int32)


def _next_interval(config: BackoffConfig, interval: jax.Array, misses: jax.Array, code: jax.Array) -> jax.Array:
    """[] int32 windows: back to the base after an improvement, else growing up to the cap."""
    grown = jnp.floor(interval.astype(jnp.float32) * config.backoff_factor).astype(jnp.int32)
    grown = jnp.clip(grown, config.base_interval, max(config.max_interval, config.base_interval))
    grown = jnp.where(misses >= config.backoff_after, grown, interval)
    calm = jnp.where(misses == 0, config.base_interval, grown)
    return jnp.where(code == LoopState.WATCHDOG, interval, calm).astype(jnp.int32)
