"""One hyperparameter after the other, each with a running mean of its slope: for scores that change smoothly.

A cycle of four periods (`optimizers.probes`) moves one coordinate, in turn. Its contrast in standard deviations, over
the width that the pair truly had, goes into moments of that coordinate as in Adam (Kingma & Ba 2015), with two changes
for few and noisy slopes. The second moment starts at 1, the variance of a scaled contrast without signal, and the first
at 0 without bias correction, so that early steps are small; and steps with little evidence are damped.
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


class MomentumState(ScaledProbeState):
    """State of `Momentum`; D is the number of tuned hyperparameters."""

    slope: jax.Array  # [D] float32, running mean of the scaled slope
    square: jax.Array  # [D] float32, running mean of its square


@dataclass(frozen=True)
class Momentum(probes.ProbeTuner[MomentumState]):
    """One coordinate at a time, in the direction of its averaged slope; a `core.base_optimizer.Tuner`.

    Lengths are in units of a hyperparameter's range. Defaults are measured by `benchmarks/tuning.py`. One step costs
    four evaluations and moves one coordinate: with D of them `SPSA` moves each D times as often.

    Args:
      c: half width of the probe pairs, in (0, 0.5].
      alpha: step for a slope that is as large as its own root mean square, in (0, 1].
      beta: decay of the running mean of the slope.
      beta_square: decay of the running mean of its square.
      caution: damping of steps with little evidence, t their statistic: factor t / (t + caution).
      scale_decay: decay of the running scale of the contrast.

    Raises:
      TypeError: if a knob is of another kind, for example a fraction where a whole number belongs.
      ValueError: if a knob is out of its range.
    """

    c: float = 0.2
    alpha: float = 0.05
    beta: float = 0.8
    beta_square: float = 0.99
    caution: float = 2.0
    scale_decay: float = 0.95

    def __post_init__(self) -> None:
        probes.check_knobs(self)
        if not 0 < self.c <= 0.5:
            raise ValueError(f"c must be in (0, 0.5], got {self.c}")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1], got {self.alpha}")
        for name in ("beta", "beta_square", "scale_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.caution < 0:
            raise ValueError(f"caution must not be negative, got {self.caution}")

    @property
    def cycle_length(self) -> int:
        """Evaluations for one step of one coordinate."""
        return probes.PROBES

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> MomentumState:
        """A state centred on `x0`, float32 [D] in the unit cube. Nothing is random: `key` is not looked at."""
        zeros = jnp.zeros((space.dim,), jnp.float32)
        return MomentumState(**probes.initial(space, x0), **probes.no_scale(), slope=zeros, square=jnp.ones_like(zeros))

    def suggest(self, state: MomentumState) -> tuple[MomentumState, jax.Array]:
        """The probe, float32 [D]; asking again gives it again."""
        return state, probes.one_at_a_time(state, self.c)

    def is_probing(self, state: MomentumState) -> jax.Array:
        """bool []: always, unless there is nothing to tune."""
        return jnp.bool_(state.centre.size > 0)

    def recentre(self, state: MomentumState, x: jax.Array) -> MomentumState:
        """Begins a new cycle around `x`, float32 [D]. Scales are kept, the mean slopes are not."""
        return self.take_over(state.replace(slope=jnp.zeros_like(state.slope)), x)

    def hear(
        self,
        state: MomentumState,
        x: jax.Array,
        score: jax.Array,
        noise: jax.Array,
        valid: jax.Array,
        mine: jax.Array | bool,
    ) -> MomentumState:
        """`observe` where `mine`; else somebody else's `x` acted, and only the scale of contrasts is learned."""
        noise = noise.astype(jnp.float32)
        return probes.hear(
            state,
            score,
            valid,
            mine,
            lambda told: self._step(told, noise),
            lambda told: probes.learn_scale(told, noise, self.scale_decay),
        )

    def _step(self, state: MomentumState, noise: jax.Array) -> MomentumState:
        """A step of the cycle's coordinate, from a finished cycle; and the next cycle."""
        contrasts, size, weight = probes.scaled(
            state, state.contrast[None], jnp.ones((1,), bool), noise, self.scale_decay
        )
        on, sign = probes.coordinate(state)
        c = np.float32(self.c) * state.shrink
        _, width = probes.pair(state, c)
        slope = contrasts[0] * sign * (c / width)
        beta, beta_square = np.float32(self.beta), np.float32(self.beta_square)
        mean = beta * state.slope + (_ONE - beta) * slope
        square = beta_square * state.square + (_ONE - beta_square) * jnp.square(slope)
        ratio = mean / jnp.sqrt(square)
        # the mean of white slopes has variance (1 - beta) / (1 + beta): t is about |N(0, 1)| when there is no slope
        t = jnp.abs(ratio) * np.float32(math.sqrt((1 + self.beta) / (1 - self.beta)))
        damping = t / (t + np.float32(self.caution)) if self.caution else _ONE
        moved = jnp.clip(state.centre + np.float32(self.alpha) * ratio * damping, _ZERO, _ONE)
        return probes.next_cycle(
            state.replace(
                centre=jnp.where(on, moved, state.centre),
                slope=jnp.where(on, mean, state.slope),
                square=jnp.where(on, square, state.square),
                size=size,
                weight=weight,
                shrink=probes.widen(state),
            )
        )


class MomentumOptimizer(TunerOptimizer):
    """`Momentum` for the host loop; arguments as of `TunerOptimizer`, knobs as of `Momentum`."""

    pure = Momentum
