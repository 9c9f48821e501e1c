"""When to evaluate next, and when learning has stopped: ACTIVE, COOLING, DORMANT, WATCHDOG.

Pure functions over `SchedulerState`, one score stream each (add a member axis with vmap); `backoff_shell.py` has the
stateful class around them. Two horizons answer two questions:

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

from tensor_optix.core.convergence import MIN_TREND, median_of_newest, noise_scale, push, rank_trend
from tensor_optix.core.types import LoopState

FALL_LENGTH = 2  # evaluations in a row below the best that make a fall
STEADY = 0.5  # of the average gain per evaluation so far: a rise at this rate has not levelled off
NOISE_SAMPLE = 8  # scores from which a noise estimate is better than that of the regime before


@dataclasses.dataclass(frozen=True)
class BackoffConfig:
    """Knobs of the scheduler; static and hashable. Counts are in evaluations unless they say windows.

    Raises:
        ValueError: a knob is outside its range.
    """

    base_interval: int = 1  # windows from one evaluation to the next while improving
    backoff_factor: float = 2.0  # the interval grows by this at an evaluation without improvement
    max_interval: int = 2  # windows
    plateau_threshold: int = 5  # without improvement in a row: COOLING
    dormant_threshold: int = 28  # without improvement, taken together: DORMANT
    confidence: float = 0.8  # one-sided, of that test: low, because stopping too early is the worse error
    material_gain: float = 0.1  # share of the whole rise so far; a smaller gain over a window counts as none
    trend_window: int = 8  # newest evaluations that say whether it improves now
    trend_confidence: float = 0.95  # one-sided, of that test
    min_evaluations_before_dormant: int = 0
    patience_before_first_improvement: float = 1.0  # times dormant_threshold, until something has improved
    patience_after_fall: int = 15  # that must follow a collapse before DORMANT
    saturation_threshold: int = 12  # identical scores in a row, at the best ever: DORMANT; 0 turns this off
    score_window: int = 20  # newest evaluations from which the noise is estimated
    noise_k: float = 2.0  # noise scales that count as visible: `margin`
    detect_degradation: bool = True
    degradation_k: float = 5.0  # noise scales below the best that count as degraded,
    min_consecutive_degradations: int = 3  # so many times in a row
    degradation_share: float = 0.2  # share of the whole rise so far that must be lost, too, in any fall
    min_degradation_drop: float = 0.0  # score units that must be lost, too, in any fall
    fall_k: float = 3.0  # noise scales below the best, twice in a row: the stop test forgets what came before
    min_evaluations_before_degradation: int = 5

    def __post_init__(self) -> None:
        growth = ("backoff_factor", "patience_before_first_improvement")
        least = {
            1: ("base_interval", "max_interval", "plateau_threshold", "min_consecutive_degradations", *growth),
            MIN_TREND: ("dormant_threshold", "trend_window", "score_window", "patience_after_fall"),
            0: (
                *("material_gain", "saturation_threshold", "noise_k", "degradation_k", "fall_k", "degradation_share"),
                "min_degradation_drop",
            ),
        }
        for at_least, names in least.items():
            for name in names:
                _check(self, name, at_least)
        for name in ("confidence", "trend_confidence"):
            if not 0.5 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}: give a one-sided confidence in [0.5, 1), as 0.95")

    @property
    def patience(self) -> int:
        """Evaluations before DORMANT while nothing has ever improved."""
        return math.ceil(self.dormant_threshold * self.patience_before_first_improvement)

    @property
    def capacity(self) -> int:
        """Scores that have to be remembered."""
        longest = max(self.patience, self.patience_after_fall, self.saturation_threshold)
        return max(longest, self.score_window, self.trend_window)


def _check(config: BackoffConfig, name: str, at_least: float) -> None:
    value = getattr(config, name)
    if not value >= at_least:
        raise ValueError(f"{name} is {value!r}: give a number of at least {at_least}")


class SchedulerState(struct.PyTreeNode):
    """What the scheduler remembers of one stream. Scalars but for `scores`."""

    scores: jax.Array  # [capacity] float32, newest last
    count: jax.Array  # [] int32, how many of them belong to the present regime (since the start, restart or collapse)
    evaluations: jax.Array  # [] int32, all valid evaluations
    misses: jax.Array  # [] int32, evaluations in a row without improvement
    improved: jax.Array  # [] bool, there has been an improvement
    best: jax.Array  # [] float32, highest smoothed score; -inf before the first
    worst: jax.Array  # [] float32, lowest smoothed score; +inf before the first
    fallen: jax.Array  # [] bool, the present regime began with a fall
    below: jax.Array  # [] int32, evaluations in a row clearly below the best
    low: jax.Array  # [] int32, evaluations in a row far below the best
    interval: jax.Array  # [] int32, windows until the next evaluation
    noise: jax.Array  # [] float32, standard deviation of one score, score units; 0 while unknown
    wander: jax.Array  # [] float32, the same with the slow part of autocorrelated noise
    code: jax.Array  # [] int32, a `LoopState`


class Verdict(struct.PyTreeNode):
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
        fallen=jnp.bool_(False),
        below=zero,
        low=zero,
        interval=jnp.int32(config.base_interval),
        noise=jnp.float32(0.0),
        wander=jnp.float32(0.0),
        code=jnp.int32(LoopState.ACTIVE),
    )


def restart(config: BackoffConfig, state: SchedulerState, keep: float = 0.0) -> SchedulerState:
    """A handled DORMANT resumes: ACTIVE, all counts at 0. What has been reached is remembered.

    keep: share of the interval that stays; never less than the base interval.
    """
    interval = (state.interval.astype(jnp.float32) * keep).astype(jnp.int32)
    return dataclasses.replace(
        state,
        count=jnp.zeros_like(state.count),
        misses=jnp.zeros_like(state.misses),
        fallen=jnp.zeros_like(state.fallen),
        below=jnp.zeros_like(state.below),
        low=jnp.zeros_like(state.low),
        interval=jnp.maximum(interval, config.base_interval),
        code=jnp.full_like(state.code, LoopState.ACTIVE),
    )


def margin(config: BackoffConfig, state: SchedulerState) -> jax.Array:
    """[] float32: `noise_k` noise scales, score units; a difference below it is not visible in one evaluation."""
    return config.noise_k * state.noise


def enter_watchdog(config: BackoffConfig, state: SchedulerState) -> SchedulerState:
    """Converged and deployed: from here on only degradation is looked for, at the widest interval, until `restart`."""
    return dataclasses.replace(
        state,
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
    seen = remember(config, state, jnp.where(valid, score, jnp.float32(0.0)))
    degraded = (seen.low == config.min_consecutive_degradations) & config.detect_degradation
    # What has never risen cannot have collapsed: slow noise looks like that.
    fell = (seen.below == FALL_LENGTH) & state.improved
    broken = fell | degraded
    improving = ~broken & improving_now(config, seen, config.trend_window, config.trend_confidence)
    over = ~broken & ~improving & _is_over(config, seen)

    misses = jnp.where(improving | broken, jnp.int32(0), seen.misses + 1)
    code = next_code(config, seen.code, misses, over)
    new = dataclasses.replace(
        seen,
        count=jnp.where(fell, jnp.int32(0), seen.count),
        misses=misses,
        fallen=seen.fallen | fell,
        improved=seen.improved | improving,
        interval=next_interval(config, seen.interval, misses, code),
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


def remember(config: BackoffConfig, state: SchedulerState, score: jax.Array) -> SchedulerState:
    """The state with `score` [] in its window, its extremes, its noise and its count of low scores."""
    scores = push(state.scores, score)
    count = jnp.minimum(state.count + 1, config.capacity)
    smoothed = median_of_newest(scores, count)
    best, worst = jnp.maximum(state.best, smoothed), jnp.minimum(state.worst, smoothed)
    enough = state.evaluations >= config.min_evaluations_before_degradation
    least = config.degradation_share * (best - worst)
    if config.min_degradation_drop:
        least = jnp.maximum(least, jnp.float32(config.min_degradation_drop))
    fall = jnp.maximum(config.fall_k * state.wander, least)
    deep = jnp.maximum(config.degradation_k * state.wander, least)
    below = _count_below(state.below, FALL_LENGTH, enough, best - smoothed, fall)
    low = _count_below(state.low, config.min_consecutive_degradations, enough, best - smoothed, deep)
    # While a fall is being judged, and too early in a new regime, the noise is what it was before.
    judging = (below > 0) & (below <= FALL_LENGTH) | (low > 0) & (low <= config.min_consecutive_degradations)
    keep = judging | ((count < NOISE_SAMPLE) & (state.noise > 0))
    noise, wander = noise_scale(scores[-config.score_window :], count)
    return dataclasses.replace(
        state,
        scores=scores,
        count=count,
        evaluations=state.evaluations + 1,
        best=best,
        worst=worst,
        below=below,
        low=low,
        noise=jnp.where(keep, state.noise, noise),
        wander=jnp.where(keep, state.wander, wander),
    )


def _count_below(streak: jax.Array, length: int, enough: jax.Array, drop: jax.Array, limit: jax.Array) -> jax.Array:
    """[] int32: evaluations in a row with `drop` above `limit`. Once `length` of them have made it a fall, it lasts
    until half of `limit` is made good: one fall, one report.
    """
    is_below = (drop > limit) & enough
    lasts = (streak >= length) & (drop > limit / 2)
    return jnp.where(is_below | lasts, streak + 1, 0)


def improving_now(config: BackoffConfig, state: SchedulerState, window: int, confidence: float) -> jax.Array:
    """[] bool: the newest `window` evaluations rise, significantly and materially."""
    trend = rank_trend(state.scores[-window:], state.count)
    # A rise as steady as over the whole life so far is material however long that life has been.
    steady = STEADY * window / jnp.maximum(state.evaluations, 1).astype(jnp.float32)
    least = jnp.minimum(jnp.float32(config.material_gain), steady) * (state.best - state.worst)
    material = trend.gain > least
    return (trend.z > NormalDist().inv_cdf(confidence)) & material


def _is_over(config: BackoffConfig, state: SchedulerState) -> jax.Array:
    """[] bool: enough has been seen, and nothing in it improves."""
    needed = jnp.where(state.improved, config.dormant_threshold, config.patience)
    needed = jnp.where(state.fallen, config.patience_after_fall, needed)
    quiet = (state.count >= needed) & ~improving_now(config, state, config.dormant_threshold, config.confidence)
    judging = (state.below > 0) & (state.below < FALL_LENGTH) & state.improved  # what looks like a fall is seen through
    over = (quiet & ~judging) | (state.improved & _is_saturated(config, state))
    return over & (state.evaluations >= config.min_evaluations_before_dormant)


def _is_saturated(config: BackoffConfig, state: SchedulerState) -> jax.Array:
    """[] bool: the newest scores are all the same and the best ever: a task's cap, where the noise vanishes too."""
    size = config.saturation_threshold
    if size == 0:
        return jnp.bool_(False)
    recent = state.scores[-size:]
    same = (jnp.max(recent) == jnp.min(recent)) & (recent[-1] >= state.best)
    return same & (state.count >= size)


def next_code(config: BackoffConfig, code: jax.Array, misses: jax.Array, over: jax.Array) -> jax.Array:
    """[] int32: the state after an evaluation. WATCHDOG is left by `restart` only, DORMANT also by an improvement."""
    quiet = jnp.where(misses >= config.plateau_threshold, int(LoopState.COOLING), int(LoopState.ACTIVE))
    stay = (code == LoopState.WATCHDOG) | ((code == LoopState.DORMANT) & (misses > 0))
    return jnp.where(stay, code, jnp.where(over, int(LoopState.DORMANT), quiet)).astype(jnp.int32)


def next_interval(config: BackoffConfig, interval: jax.Array, misses: jax.Array, code: jax.Array) -> jax.Array:
    """[] int32 windows: back to the base after an improvement, else growing up to the cap."""
    grown = jnp.floor(interval.astype(jnp.float32) * config.backoff_factor).astype(jnp.int32)
    grown = jnp.clip(grown, config.base_interval, max(config.max_interval, config.base_interval))
    calm = jnp.where(misses == 0, config.base_interval, grown)
    return jnp.where(code == LoopState.WATCHDOG, interval, calm).astype(jnp.int32)
