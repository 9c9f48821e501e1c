"""SPSA while learning goes on: all hyperparameters at once, four evaluations a step.

Simultaneous perturbation (Spall 1992) moves every coordinate by +-c in one random direction d and reads the slope along
d from the scores. Here the scores come from one learner that keeps learning, so four things differ from the textbook.

*Order.* The probes of a cycle act in the order + - - + (`optimizers.probes`), so a linear drift cancels within it.
Directions are rows of a Walsh matrix without its constant column, so over a block of cycles a quadratic drift (a
saturating learning curve) cancels too, and so does the crosstalk of coordinates.

*Scale.* C is divided by its own running scale, taken from mean absolute values, and clipped: the step depends on signal
to noise, not on the unit of the score, and one collapse moves nothing far.

*Gain.* Each coordinate has its own. Successive gradients that agree raise it, gradients that disagree lower it (Kesten
1958; the multiplicative form is that of incremental delta-bar-delta, Sutton 1992). On a flat objective they disagree as
often as not and a small constant drain makes the gain sink; after an optimum has moved they agree and it rises.

*Bounds.* At a bound both probes are real, distinct and equally far from their own middle, so it is no trap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.core.search_space import SearchSpace
from tensor_optix.optimizers import probes
from tensor_optix.optimizers.probes import ScaledProbeState
from tensor_optix.optimizers.shell import TunerOptimizer

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


class SPSAState(ScaledProbeState):
    """State of `SPSA`; D is the number of tuned hyperparameters. `cycle` numbers the directions."""

    momentum: jax.Array  # [D] float32, running mean of the scaled gradient
    log_gain: jax.Array  # [D] float32, log of the step size of each coordinate
    seed: jax.Array  # [] uint32, of the directions


@dataclass(frozen=True)
class SPSA(probes.ProbeTuner[SPSAState]):
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
      TypeError: if a knob is of another kind, for example a fraction where a whole number belongs.
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
        probes.check_knobs(self)
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
        return probes.PROBES + self.commit

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> SPSAState:
        """A state centred on `x0`, float32 [D] in the unit cube; consumes `key`."""
        return SPSAState(
            **probes.initial(space, x0),
            **probes.no_scale(),
            momentum=jnp.zeros((space.dim,), jnp.float32),
            log_gain=jnp.full((space.dim,), math.log(self.alpha), jnp.float32),
            seed=jax.random.bits(key, dtype=jnp.uint32),
        )

    def suggest(self, state: SPSAState) -> tuple[SPSAState, jax.Array]:
        """The probe, or in a commit period the centre, float32 [D]; asking again gives it again."""
        sign = jnp.asarray(probes.SIGNS)[state.phase]
        middle, width = self.pair(state)
        probe = jnp.clip(middle + sign * width * _direction(state), _ZERO, _ONE)
        return state, jnp.where(sign == 0, state.centre, probe)

    def is_probing(self, state: SPSAState) -> jax.Array:
        """bool []: a probe is in force; without `commit` always, unless there is nothing to tune."""
        return (state.phase < probes.PROBES) & (state.centre.size > 0)

    def recentre(self, state: SPSAState, x: jax.Array) -> SPSAState:
        """Begins a new cycle around `x`, float32 [D]. Scales and gains are kept, the gradient's memory is not."""
        return self.take_over(state.replace(momentum=jnp.zeros_like(state.momentum)), x)

    def hear(
        self,
        state: SPSAState,
        x: jax.Array,
        score: jax.Array,
        noise: jax.Array,
        valid: jax.Array,
        mine: jax.Array | bool,
    ) -> SPSAState:
        """`observe` where `mine`; else somebody else's `x` acted, and only the scale of contrasts is learned."""
        noise = noise.astype(jnp.float32)
        return probes.hear(
            state,
            score,
            valid,
            mine,
            lambda told: climb(self, told, told.contrast[None], jnp.ones((1,), bool), _direction(told)[None], noise),
            lambda told: probes.learn_scale(told, noise, self.scale_decay),
            self.cycle_length,
        )

    def pair(self, state: SPSAState) -> tuple[jax.Array, jax.Array]:
        """Middle and half width, float32 [D] each, of this cycle's probe pair; middle +- width lies in the cube."""
        age = state.cycle.astype(jnp.float32) + _ONE
        floor = np.float32(min(self.c_min, self.c))
        return probes.pair(
            state, jnp.maximum(np.float32(self.c) * age ** np.float32(-self.c_decay), floor) * state.shrink
        )


def climb(
    tuner: SPSA,
    state: SPSAState,
    contrasts: jax.Array,
    valid: jax.Array,
    directions: jax.Array,
    noise: jax.Array | np.float32 = _ZERO,
) -> SPSAState:
    """One step up the gradient that P contrasts tell of, and the next cycle; no step where none is valid.

    contrasts: [P] float32, score units, each of its direction [P, D]. valid: [P] bool. noise: [] standard deviation of
    one score, 0 where unknown. The mean over contrasts is scaled by sqrt(P): one step rule serves any number of them.
    """
    count = valid.sum().astype(jnp.float32)
    scaled, size, weight = probes.scaled(state, contrasts, valid, noise, tuner.scale_decay)
    # Not divided by each coordinate's width: a narrower pair says less, and E[g] is already the width's share.
    gradient = (scaled[:, None] * directions).sum(axis=0) / jnp.sqrt(jnp.maximum(count, _ONE))
    log_gain = state.log_gain + np.float32(tuner.adapt) * gradient * state.momentum - np.float32(tuner.drain)
    log_gain = jnp.clip(log_gain, np.float32(math.log(tuner.alpha_min)), np.float32(math.log(tuner.alpha_max)))
    beta = np.float32(tuner.beta)
    momentum = beta * state.momentum + (_ONE - beta) * gradient
    # the mean of white gradients has variance (1 - beta) / (1 + beta): t is about |N(0, 1)| when there is no slope
    t = jnp.abs(momentum) * np.float32(math.sqrt((1 + tuner.beta) / (1 - tuner.beta)))
    move = jnp.exp(log_gain) * momentum * (t / (t + np.float32(tuner.caution)))
    moved = state.replace(
        centre=jnp.clip(state.centre + move, _ZERO, _ONE),
        momentum=momentum,
        log_gain=log_gain,
        size=size,
        weight=weight,
        shrink=probes.widen(state),
    )
    return probes.next_cycle(probes.select(count > 0, moved, state))


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


class SPSAOptimizer(TunerOptimizer):
    """`SPSA` for the host loop; arguments as of `TunerOptimizer`, knobs as of `SPSA`, for example c=0.1."""

    pure = SPSA
