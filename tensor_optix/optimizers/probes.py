"""A cycle of four periods that compares two settings: its order, its contrast with a scale, and the pair at a bound.

The probes of a pair act in the order + - - + and the contrast of their scores is C = s1 - s2 - s3 + s4. With f+ and f-
the effects of the two probes, the two kinds of objective that occur both give it the sign of f+ - f-:

    level  s_t = f(x_t) + a + b t     C = 2 (f+ - f-)   the hyperparameters set the score itself (a controller's gain)
    rate   s_t = s_{t-1} + f(x_t)     C = f+ - f-       they set how fast it rises (a learning rate)

A linear drift cancels within the cycle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.core.search_space import SearchSpace

PROBES = 4  # periods of a cycle
SIGNS = np.array([1.0, -1.0, -1.0, 1.0, 0.0], np.float32)  # of the probe in each period; 0 acts at the centre
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SMALLEST_SHRINK = np.float32(2.0**-10)
_EDGE = np.float32(0.5)  # a pair at a bound keeps at least this share of its width
_LARGEST_SCALED = np.float32(2.0)  # in standard deviations of the contrast
_OUTLIER = np.float32(3.0)  # a contrast counts in the scale as at most this many times the scale
_GAUSSIAN = np.float32(math.sqrt(math.pi / 2))  # standard deviation over mean absolute value
_PRIOR_CYCLES = np.float32(2.0)  # the scheduler's noise weighs as much as this many contrasts
_LARGEST_DIFFERENCE = np.float32(1e36)  # sums of some hundred of them are finite


class ProbeState(struct.PyTreeNode):
    """What tuners that compare two settings have in common; D is the number of tuned hyperparameters."""

    centre: jax.Array  # [D] float32, best known setting, in the unit cube
    min_width: jax.Array  # [D] float32, half width that tells two integers apart; 0 where continuous
    shrink: jax.Array  # [] float32 in (0, 1], factor on the probe width, lowered by invalid periods
    contrast: jax.Array  # [] float32, signed sum of this cycle's scores so far, each less `reference`
    reference: jax.Array  # [] float32, first score of this cycle: sums of differences lose no bits to a large offset
    cycle: jax.Array  # [] int32, cycles begun before this one
    phase: jax.Array  # [] int32, period within the cycle


class ScaledProbeState(ProbeState):
    """Of those that measure contrasts in standard deviations."""

    size: jax.Array  # [] float32, discounted sum of absolute contrasts, score units
    weight: jax.Array  # [] float32, discounted number of contrasts in `size`


State = TypeVar("State", bound=ProbeState)
ScaledState = TypeVar("ScaledState", bound=ScaledProbeState)


class ProbeTuner(Generic[State]):
    """What the tuners that compare two settings do alike; the rest of a `Tuner` is each one's own."""

    def hear(
        self, state: State, x: jax.Array, score: jax.Array, noise: jax.Array, valid: jax.Array, mine: jax.Array | bool
    ) -> State:
        """`observe` where `mine`; else somebody else's `x` acted, and only the scale of contrasts is learned."""
        raise NotImplementedError

    def centre(self, state: State) -> jax.Array:
        """float32 [D]: the best known setting, which probes surround."""
        return state.centre

    def take_over(self, state: State, x: jax.Array) -> State:
        """`recentre` where nothing was rolled back, and another tuner had acted: all that was learned is kept."""
        return next_cycle(state.replace(centre=jnp.clip(x.astype(jnp.float32), _ZERO, _ONE)))

    def observe(self, state: State, score: jax.Array, noise: jax.Array, valid: jax.Array) -> State:
        """Credits the score of the period that has just ended to the probe that acted in it; see `Tuner.observe`."""
        return self.hear(state, state.centre, score, noise, valid, True)


def initial(space: SearchSpace, x0: jax.Array) -> dict[str, jax.Array]:
    """The fields of a `ProbeState` centred on `x0`, float32 [D] in the unit cube.

    Raises:
      ValueError: `x0` has another shape.
    """
    check_start(space, x0)
    # a shade over half the gap, so that a pair never rounds to one integer
    half_gap = np.array([0.501 * p.resolution for _, p in space.entries], np.float32).reshape(space.dim)
    return {
        "centre": jnp.clip(x0.astype(jnp.float32), _ZERO, _ONE),
        "min_width": jnp.asarray(np.minimum(half_gap, np.float32(0.5))),
        "shrink": jnp.float32(1.0),
        "contrast": jnp.float32(0.0),
        "reference": jnp.float32(0.0),
        "cycle": jnp.int32(0),
        "phase": jnp.int32(0),
    }


def no_scale() -> dict[str, jax.Array]:
    """The further fields of a `ScaledProbeState` that has no contrast yet."""
    return {"size": jnp.float32(0.0), "weight": jnp.float32(0.0)}


def check_start(space: SearchSpace, x0: jax.Array) -> None:
    """ValueError unless `x0` has one entry for each hyperparameter of `space`."""
    if x0.shape != (space.dim,):
        raise ValueError(f"x0 must have shape ({space.dim},), one entry for each of {space.names}, got {x0.shape}")


def check_knobs(config: Any) -> None:
    """One sentence about a field of a frozen dataclass whose value is no value of that field's kind, its default's.

    Raises:
      TypeError: it is of another kind, for example a fraction where a whole number belongs.
      ValueError: it is NaN or infinite.
    """
    for knob in fields(config):
        value = getattr(config, knob.name)
        default = knob.default if knob.default_factory is MISSING else knob.default_factory()
        kind, what = _kind(default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{knob.name} must be {what}, got {value!r}")
        if isinstance(value, int | float | np.number) and not math.isfinite(value):
            raise ValueError(f"{knob.name} must be finite, got {value}")


def _kind(default: Any) -> tuple[Any, str]:
    """What values of a field with this default are instances of, and what that is called."""
    if isinstance(default, bool):
        return bool, "True or False"
    if isinstance(default, int):
        return (int, np.integer), "a whole number"
    if isinstance(default, float):
        return (int, float, np.integer, np.floating), "a number"
    if isinstance(default, str):
        return str, f"a name such as {default!r}"
    name = type(default).__name__
    return type(default), f"of type {name}, for example {name}()"


def pair(state: ProbeState, c: jax.Array | np.float32) -> tuple[jax.Array, jax.Array]:
    """Middle and half width, float32 [D] each, of a probe pair; middle +- width lies in the cube.

    Where centre +- c would leave the cube the pair shrinks, down to c / 2, and then shifts inwards: both probes are
    real, distinct and equally far from their own middle, so a bound is no trap. c: half width, `shrink` included.
    """
    room = jnp.minimum(state.centre, _ONE - state.centre)
    width = jnp.maximum(jnp.clip(room, c * _EDGE, c), state.min_width)
    return jnp.clip(state.centre, width, _ONE - width), width


def hear(
    state: State,
    score: jax.Array,
    valid: jax.Array,
    mine: jax.Array | bool,
    step: Callable[[State], State],
    overhear: Callable[[State], State],
    periods: int = PROBES,
) -> State:
    """The state after a period; at the end of a cycle of `periods`, `step` takes it into the next cycle.

    An invalid period starts the cycle anew with narrower probes: if one of them is what breaks the learner, repeating
    it would break it for ever.

    Args:
      state: before the period.
      score: float32 [], as of `Tuner.observe`.
      valid: bool [], as of `Tuner.observe`.
      mine: bool []. False: somebody else's suggestion acted, so that no setting is credited with the scores; `overhear`
        takes the cycle's contrast instead of `step`.
      step: from a finished cycle to the beginning of the next.
      overhear: what a finished cycle tells when others acted.
      periods: of a cycle.
    """
    score = jnp.where(valid, score.astype(jnp.float32), state.reference)
    first = state.phase == 0
    reference = jnp.where(first, score, state.reference)
    difference = jnp.clip(score - reference, -_LARGEST_DIFFERENCE, _LARGEST_DIFFERENCE)
    contrast = jnp.where(first, _ZERO, state.contrast) + jnp.asarray(SIGNS)[state.phase] * difference
    told = state.replace(contrast=contrast, reference=reference, phase=state.phase + jnp.int32(1))
    after, narrower = step(told), jnp.maximum(state.shrink * np.float32(0.5), _SMALLEST_SHRINK)
    if mine is not True:
        after = select(jnp.asarray(mine), after, next_cycle(overhear(told)))
        narrower = jnp.where(mine, narrower, state.shrink)
    told = select(told.phase == periods, after, told)
    return select(valid, told, next_cycle(state.replace(shrink=narrower)))


def scaled(
    state: ScaledProbeState,
    contrasts: jax.Array,
    valid: jax.Array,
    noise: jax.Array | np.float32,
    scale_decay: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The contrasts [P] in standard deviations, clipped, 0 where not `valid` [P]; and the new `size` and `weight`.

    The contrast of four scores with noise sd each has standard deviation 2 sd, which stands in for the running
    scale until there are contrasts enough.
    """
    prior = jnp.where(noise > 0, _PRIOR_CYCLES, _ZERO)
    prior_size = prior * np.float32(2.0) * noise / _GAUSSIAN
    absolute = jnp.where(valid, jnp.abs(contrasts), _ZERO).sum() / jnp.maximum(valid.sum().astype(jnp.float32), _ONE)
    before = state.weight + prior
    cap = _OUTLIER * (state.size + prior_size) / jnp.maximum(before, _ONE)
    # a scale of 0 is no scale: the first difference after a dead start counts in full
    size = jnp.where(cap > 0, jnp.minimum(absolute, cap), absolute) + np.float32(scale_decay) * state.size
    weight = np.float32(scale_decay) * state.weight + _ONE
    scale = _GAUSSIAN * (size + prior_size) / (weight + prior)
    ratios = jnp.where(valid & (scale > 0), contrasts / jnp.where(scale > 0, scale, _ONE), _ZERO)
    return jnp.clip(ratios, -_LARGEST_SCALED, _LARGEST_SCALED), size, weight


def learn_scale(state: ScaledState, noise: jax.Array, scale_decay: float) -> ScaledState:
    """The state with this cycle's contrast in its scale."""
    _, size, weight = scaled(state, state.contrast[None], jnp.ones((1,), bool), noise, scale_decay)
    return state.replace(size=size, weight=weight)


def widen(state: State) -> jax.Array:
    """`shrink` after a cycle without an invalid period."""
    return jnp.minimum(state.shrink * np.float32(1.5), _ONE)


def next_cycle(state: State) -> State:
    """The state at the beginning of the next cycle."""
    return state.replace(phase=jnp.zeros_like(state.phase), cycle=state.cycle + jnp.int32(1))


def select(condition: jax.Array, yes: Any, no: Any) -> Any:
    """Leafwise where; leaves that are one and the same pass through."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), yes, no)


def coordinate(state: ProbeState) -> tuple[jax.Array, jax.Array]:
    """Which coordinate this cycle probes, bool [D], and the sign of its first probe, float32 [].

    Round robin. The sign alternates between visits, so that the bias of a curved drift, which is the same at each
    visit, takes turns.
    """
    d = max(state.centre.size, 1)
    visit = state.cycle // d
    sign = _ONE - np.float32(2.0) * (visit % 2).astype(jnp.float32)
    return jnp.arange(state.centre.size, dtype=jnp.int32) == state.cycle % d, sign


def one_at_a_time(state: ProbeState, c: float) -> jax.Array:
    """The probe in force, float32 [D]: the centre but for the cycle's coordinate."""
    on, sign = coordinate(state)
    middle, width = pair(state, np.float32(c) * state.shrink)
    probe = jnp.clip(middle + jnp.asarray(SIGNS)[state.phase] * sign * width, _ZERO, _ONE)
    return jnp.where(on, probe, state.centre)
