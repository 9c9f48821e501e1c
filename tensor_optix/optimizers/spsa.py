"""SPSA while learning goes on: all hyperparameters at once, four evaluations a step.

Simultaneous perturbation (Spall 1992) moves every coordinate by +-c in one random direction d and reads the slope along
d from the scores. Here the scores come from one learner that keeps learning, so four things differ from the textbook.

*Order.* The probes of a cycle act in the order + - - + and its contrast is C = s1 - s2 - s3 + s4. With f+ and f- the
effects of the two probes, the two kinds of objective that occur both give it the sign of f+ - f-:

    level  s_t = f(x_t) + a + b t     C = 2 (f+ - f-)   the hyperparameters set the score itself (a controller's gain)
    rate   s_t = s_{t-1} + f(x_t)     C = f+ - f-       they set how fast it rises (a learning rate)

A linear drift cancels within the cycle. Directions are rows of a Walsh matrix without its constant column, so over a
block of cycles a quadratic drift (a saturating learning curve) cancels too, and so does the crosstalk of coordinates.

*Scale.* C is divided by its own running scale, taken from mean absolute values, and clipped: the step depends on signal
to noise, not on the unit of the score, and one collapse moves nothing far.

*Gain.* Each coordinate has its own. Successive gradients that agree raise it, gradients that disagree lower it (Kesten
1958; the multiplicative form is that of incremental delta-bar-delta, Sutton 1992). On a flat objective they disagree as
often as not and a small constant drain makes the gain sink; after an optimum has moved they agree and it rises.

*Bounds.* Where centre +- c would leave the cube the pair shrinks, down to c / 2, and then shifts inwards: both probes
are real, distinct and equally far from their own centre, so a bound is no trap.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.search_space import SearchSpace, from_unit, search_space, to_unit, with_integers
from tensor_optix.core.types import EvalMetrics, HyperparamSet

_log = logging.getLogger(__name__)

_PROBES = 4
_SIGNS = np.array([1.0, -1.0, -1.0, 1.0, 0.0], np.float32)  # sign of the probe in each period; 0 is the commit
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SMALLEST_SHRINK = np.float32(2.0**-10)
_EDGE = np.float32(0.5)  # a pair at a bound keeps at least this share of its width
_MAX_GRADIENT = np.float32(2.0)  # in standard deviations of the contrast
_OUTLIER = np.float32(3.0)  # a contrast counts in the scale as at most this many times the scale
_GAUSSIAN = np.float32(math.sqrt(math.pi / 2))  # standard deviation over mean absolute value
_PRIOR_CYCLES = np.float32(2.0)  # the scheduler's noise weighs as much as this many contrasts


class SPSAState(struct.PyTreeNode):
    """State of `SPSA`; D is the number of tuned hyperparameters."""

    centre: jax.Array  # [D] float32, best known setting, in the unit cube
    momentum: jax.Array  # [D] float32, running mean of the scaled gradient
    log_gain: jax.Array  # [D] float32, log of the step size of each coordinate
    min_width: jax.Array  # [D] float32, half width that tells two integers apart; 0 where continuous
    size: jax.Array  # [] float32, discounted sum of absolute contrasts, score units
    weight: jax.Array  # [] float32, discounted number of contrasts in `size`
    shrink: jax.Array  # [] float32 in (0, 1], factor on the probe width, lowered by invalid periods
    contrast: jax.Array  # [] float32, signed sum of this cycle's scores so far, each less `reference`
    reference: jax.Array  # [] float32, first score of this cycle: sums of differences lose no bits to a large offset
    cycle: jax.Array  # [] int32, cycles begun before this one; numbers the directions
    phase: jax.Array  # [] int32, period within the cycle
    seed: jax.Array  # [] uint32, of the directions


@dataclass(frozen=True)
class SPSA:
    """Simultaneous perturbation stochastic approximation for a drifting, noisy score; a `core.base_optimizer.Tuner`.

    Lengths are in units of a hyperparameter's range. Defaults are measured by `benchmarks/tuning.py`.

    Args:
      c: half width of the first probe pairs, in (0, 0.5].
      c_min: the width falls as c cycle^-c_decay down to this. At c or above it is constant, which finds more optima
        than any fall: what a pair tells grows with the square of its width. Lower it where probes are dear.
      c_decay: exponent of that fall; 0.101 is Spall's (1998).
      alpha: first gain: the step for a contrast of one standard deviation.
      alpha_min: smallest gain.
      alpha_max: largest gain.
      adapt: rate at which agreement between gradients moves the log of the gain.
      drain: constant fall of the log of the gain per cycle.
      beta: decay of the running mean of the gradient.
      caution: damping of steps with little evidence, t their statistic: factor t / (t + caution).
      scale_decay: decay of the running scale of the contrast.
      commit: spend a fifth period of each cycle on the centre itself. It costs a fifth of the evaluations and buys
        scores that carry no probe.

    Raises:
      ValueError: if a knob is out of its range.
    """

    c: float = 0.2
    c_min: float = 0.2
    c_decay: float = 0.101
    alpha: float = 0.01
    alpha_min: float = 0.002
    alpha_max: float = 0.1
    adapt: float = 0.33
    drain: float = 0.01
    beta: float = 0.8
    caution: float = 3.0
    scale_decay: float = 0.95
    commit: bool = False

    def __post_init__(self) -> None:
        for knob in fields(self):
            if not math.isfinite(getattr(self, knob.name)):
                raise ValueError(f"{knob.name} must be finite, got {getattr(self, knob.name)}")
        for name in ("c", "c_min"):
            if not 0 < getattr(self, name) <= 0.5:
                raise ValueError(f"{name} must be in (0, 0.5], got {getattr(self, name)}")
        if not 0 < self.alpha_min <= self.alpha <= self.alpha_max <= 1:
            raise ValueError(
                "gains must satisfy 0 < alpha_min <= alpha <= alpha_max <= 1, "
                f"got {self.alpha_min}, {self.alpha}, {self.alpha_max}"
            )
        for name in ("beta", "scale_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.caution > 0:
            raise ValueError(f"caution must be positive, got {self.caution}")
        for name in ("c_decay", "adapt", "drain"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def cycle_length(self) -> int:
        """Evaluations for one step."""
        return _PROBES + self.commit

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> SPSAState:
        """A state centred on `x0`, float32 [D] in the unit cube; consumes `key`."""
        d = space.dim
        if x0.shape != (d,):
            raise ValueError(f"x0 must have shape ({d},), one entry for each of {space.names}, got {x0.shape}")
        # a shade over half the gap, so that a pair never rounds to one integer
        half_gap = np.array([0.501 * p.resolution for _, p in space.entries], np.float32).reshape(d)
        return SPSAState(
            centre=jnp.clip(x0.astype(jnp.float32), _ZERO, _ONE),
            momentum=jnp.zeros((d,), jnp.float32),
            log_gain=jnp.full((d,), math.log(self.alpha), jnp.float32),
            min_width=jnp.asarray(np.minimum(half_gap, np.float32(0.5))),
            size=jnp.float32(0.0),
            weight=jnp.float32(0.0),
            shrink=jnp.float32(1.0),
            contrast=jnp.float32(0.0),
            reference=jnp.float32(0.0),
            cycle=jnp.int32(0),
            phase=jnp.int32(0),
            seed=jax.random.bits(key, dtype=jnp.uint32),
        )

    def suggest(self, state: SPSAState) -> tuple[SPSAState, jax.Array]:
        """The probe, or in a commit period the centre, float32 [D]; asking again gives it again."""
        sign = jnp.asarray(_SIGNS)[state.phase]
        middle, width = self._pair(state)
        probe = jnp.clip(middle + sign * width * _direction(state), _ZERO, _ONE)
        return state, jnp.where(sign == 0, state.centre, probe)

    def is_probing(self, state: SPSAState) -> jax.Array:
        """bool []: a probe is in force; without `commit` always, unless there is nothing to tune."""
        return (state.phase < _PROBES) & (state.centre.size > 0)

    def centre(self, state: SPSAState) -> jax.Array:
        return state.centre

    def recentre(self, state: SPSAState, x: jax.Array) -> SPSAState:
        """Begins a new cycle around `x`, float32 [D]. Scales and gains are kept, the gradient's memory is not."""
        return _next_cycle(
            state.replace(centre=jnp.clip(x.astype(jnp.float32), _ZERO, _ONE), momentum=jnp.zeros_like(state.momentum))
        )

    def observe(self, state: SPSAState, score: jax.Array, noise: jax.Array, valid: jax.Array) -> SPSAState:
        """Credits the score of the period that has just ended to the probe that acted in it; see `Tuner.observe`.

        An invalid period starts the cycle anew with narrower probes: if one of the probes is what breaks the
        learner, repeating it would break it for ever.
        """
        score = jnp.where(valid, score.astype(jnp.float32), state.reference)
        first = state.phase == 0
        reference = jnp.where(first, score, state.reference)
        contrast = jnp.where(first, _ZERO, state.contrast) + jnp.asarray(_SIGNS)[state.phase] * (score - reference)
        told = state.replace(contrast=contrast, reference=reference, phase=state.phase + jnp.int32(1))
        told = _select(told.phase == self.cycle_length, self._step(told, noise.astype(jnp.float32)), told)
        narrower = jnp.maximum(state.shrink * np.float32(0.5), _SMALLEST_SHRINK)
        return _select(valid, told, _next_cycle(state.replace(shrink=narrower)))

    def _pair(self, state: SPSAState) -> tuple[jax.Array, jax.Array]:
        """Middle and half width, float32 [D] each, of this cycle's probe pair; middle +- width lies in the cube."""
        age = state.cycle.astype(jnp.float32) + _ONE
        floor = np.float32(min(self.c_min, self.c))
        c = jnp.maximum(np.float32(self.c) * age ** np.float32(-self.c_decay), floor) * state.shrink
        room = jnp.minimum(state.centre, _ONE - state.centre)
        width = jnp.maximum(jnp.clip(room, c * _EDGE, c), state.min_width)
        return jnp.clip(state.centre, width, _ONE - width), width

    def _step(self, state: SPSAState, noise: jax.Array) -> SPSAState:
        """One step up the gradient, from a finished cycle."""
        contrast, size, weight = self._scaled_contrast(state, noise)
        # Not divided by each coordinate's width: a narrower pair says less, and E[g] is already the width's share.
        gradient = contrast * _direction(state)
        log_gain = state.log_gain + np.float32(self.adapt) * gradient * state.momentum - np.float32(self.drain)
        log_gain = jnp.clip(log_gain, np.float32(math.log(self.alpha_min)), np.float32(math.log(self.alpha_max)))
        beta = np.float32(self.beta)
        momentum = beta * state.momentum + (_ONE - beta) * gradient
        # the mean of white gradients has variance (1 - beta) / (1 + beta): t is about |N(0, 1)| when there is no slope
        t = jnp.abs(momentum) * np.float32(math.sqrt((1 + self.beta) / (1 - self.beta)))
        move = jnp.exp(log_gain) * momentum * (t / (t + np.float32(self.caution)))
        return _next_cycle(
            state.replace(
                centre=jnp.clip(state.centre + move, _ZERO, _ONE),
                momentum=momentum,
                log_gain=log_gain,
                size=size,
                weight=weight,
                shrink=jnp.minimum(state.shrink * np.float32(1.5), _ONE),
            )
        )

    def _scaled_contrast(self, state: SPSAState, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """This cycle's contrast in standard deviations, clipped; and the new `size` and `weight`.

        The contrast of four scores with noise sd each has standard deviation 2 sd, which stands in for the running
        scale until there are contrasts enough.
        """
        prior = jnp.where(noise > 0, _PRIOR_CYCLES, _ZERO)
        prior_size = prior * np.float32(2.0) * noise / _GAUSSIAN
        absolute = jnp.abs(state.contrast)
        before = state.weight + prior
        cap = _OUTLIER * (state.size + prior_size) / jnp.maximum(before, _ONE)
        # a scale of 0 is no scale: the first difference after a dead start counts in full
        size = jnp.where(cap > 0, jnp.minimum(absolute, cap), absolute) + np.float32(self.scale_decay) * state.size
        weight = np.float32(self.scale_decay) * state.weight + _ONE
        scale = _GAUSSIAN * (size + prior_size) / (weight + prior)
        scaled = jnp.where(scale > 0, state.contrast / jnp.where(scale > 0, scale, _ONE), _ZERO)
        return jnp.clip(scaled, -_MAX_GRADIENT, _MAX_GRADIENT), size, weight


def _next_cycle(state: SPSAState) -> SPSAState:
    return state.replace(phase=jnp.zeros_like(state.phase), cycle=state.cycle + jnp.int32(1))


def _select(condition: jax.Array, yes: SPSAState, no: SPSAState) -> SPSAState:
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(condition, a, b), yes, no)


def _direction(state: SPSAState) -> jax.Array:
    """Probe signs, -1 or 1, float32 [D], of the state's cycle.

    Cycle k of a block of n = 2^m > D cycles takes row k of the n x n Walsh matrix, entry (-1)^popcount(k & i), in
    columns i = 1..D: balanced and mutually orthogonal over the block. Each block flips the sign of each column at
    random, by an integer hash (the finaliser of Steele, Lea & Flood 2014 with other constants): a few operations.
    """
    d = state.centre.size
    block = 1 << d.bit_length()
    column = np.arange(1, d + 1, dtype=np.uint32)
    cycle = state.cycle.astype(jnp.uint32)
    walsh = jax.lax.population_count((cycle % np.uint32(block)) & column)
    bits = state.seed + (cycle // np.uint32(block)) * np.uint32(0x9E3779B9) + column * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x846CA68B)
    odd = (walsh ^ (bits >> np.uint32(31))) & np.uint32(1)
    return _ONE - np.float32(2.0) * odd.astype(jnp.float32)


class SPSAOptimizer(BaseOptimizer):
    """`SPSA` for the host loop: `suggest(current, history)` after each evaluation.

    Args:
      param_bounds: for each tuned hyperparameter (low, high) or (scale, low, high); see `search_space`. A whole-number
        hyperparameter with whole bounds stays a Python int.
      log_params: names tuned on a log scale.
      seed: of the probe directions.
      **knobs: fields of `SPSA`, for example c=0.1.

    Raises:
      TypeError, ValueError: for bad bounds or knobs.
    """

    def __init__(
        self,
        param_bounds: Mapping[str, Any] | None = None,
        log_params: Iterable[str] | None = None,
        *,
        seed: int = 0,
        **knobs: Any,
    ) -> None:
        known = [knob.name for knob in fields(SPSA)]
        for name in knobs:
            if name not in known:
                raise TypeError(f"SPSAOptimizer has no knob {name!r}; known: {', '.join(known)}")
        self.tuner = SPSA(**knobs)
        self.space = search_space(param_bounds or {}, log_params or ())
        self._key = jax.random.key(seed)
        self._state: SPSAState | None = None
        self._suggested: dict[str, Any] = {}
        if self.space.dim == 0:
            _log.warning("SPSAOptimizer has no bounds, so no hyperparameter is tuned; pass param_bounds")

    def suggest(self, current: HyperparamSet, history: Sequence[EvalMetrics]) -> HyperparamSet:
        """The next probe. The newest score of `history` is credited to `current` if that is what was suggested last.

        If it is not, the loop put other hyperparameters in force (a roll-back): the cycle restarts around them.
        """
        if self.space.dim == 0:
            return current.copy()
        if self._state is None:
            self.space = with_integers(self.space, current.params)
            self._state = self.tuner.init(self.space, to_unit(self.space, current.params), self._key)
        elif self._changed(current.params):
            self._state = self.tuner.recentre(self._state, to_unit(self.space, current.params))
        elif history:
            score = np.float32(history[-1].primary_score)
            self._state = _observe(self.tuner, self._state, score, np.float32(0.0), np.isfinite(score))
        self._state, x = _suggest(self.tuner, self._state)
        values = from_unit(self.space, x, {})
        self._suggested = {
            name: round(float(values[name])) if parameter.integer else float(values[name])
            for name, parameter in self.space.entries
        }
        return HyperparamSet({**current.params, **self._suggested}, current.episode_id)

    @property
    def is_probing(self) -> bool:
        """True while a probe is in force."""
        return self._state is not None and bool(self.tuner.is_probing(self._state))

    def _changed(self, params: Mapping[str, Any]) -> bool:
        return any(not math.isclose(float(params[n]), v, rel_tol=1e-5) for n, v in self._suggested.items())


_observe = jax.jit(lambda tuner, state, *told: tuner.observe(state, *map(jnp.asarray, told)), static_argnums=0)
_suggest = jax.jit(lambda tuner, state: tuner.suggest(state), static_argnums=0)
