"""Which side is better, one hyperparameter after the other: only the sign of a difference counts.

A cycle of four periods (`optimizers.probes`) plays two settings of one coordinate against each other and the centre
steps towards the better. Nothing is divided by anything, so the size of scores, outliers included, does not matter. The
step of a coordinate grows while the better side stays the same and shrinks when it changes, as in Rprop (Riedmiller &
Braun 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.core.search_space import SearchSpace
from tensor_optix.optimizers import probes
from tensor_optix.optimizers.probes import ProbeState
from tensor_optix.optimizers.shell import TunerOptimizer

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


class BackoffState(ProbeState):
    """State of `Backoff`; D is the number of tuned hyperparameters."""

    step: jax.Array  # [D] float32, next step of each coordinate
    side: jax.Array  # [D] float32 in {-1, 0, 1}, the better side at the last visit; 0: none yet


@dataclass(frozen=True)
class Backoff(probes.ProbeTuner[BackoffState]):
    """Sign-only steps of one coordinate at a time; a `core.base_optimizer.Tuner`.

    Lengths are in units of a hyperparameter's range. Defaults are measured by `benchmarks/tuning.py`. A visit is a
    success if the better side is that of the visit before: going there had been right.

    Args:
      c: half width of the probe pairs, in (0, 0.5].
      step: first step.
      step_min: smallest step.
      step_max: largest step.
      grow: factor of a longer step, at least 1.
      shrink: factor of a shorter step, in (0, 1].
      shrink_on_improvement: True: a success shortens the step and a failure lengthens it, as release 0.8 did.

    Raises:
      TypeError: if a knob is of another kind, for example a fraction where a whole number belongs.
      ValueError: if a knob is out of its range.
    """

    c: float = 0.2
    step: float = 0.02
    step_min: float = 0.005
    step_max: float = 0.1
    grow: float = 1.2
    shrink: float = 0.7
    shrink_on_improvement: bool = False

    def __post_init__(self) -> None:
        probes.check_knobs(self)
        if not 0 < self.c <= 0.5:
            raise ValueError(f"c must be in (0, 0.5], got {self.c}")
        if not 0 < self.step_min <= self.step <= self.step_max <= 1:
            raise ValueError(
                "steps must satisfy 0 < step_min <= step <= step_max <= 1, "
                f"got {self.step_min}, {self.step}, {self.step_max}"
            )
        if self.grow < 1:
            raise ValueError(f"grow must be at least 1, got {self.grow}")
        if not 0 < self.shrink <= 1:
            raise ValueError(f"shrink must be in (0, 1], got {self.shrink}")

    @property
    def cycle_length(self) -> int:
        """Evaluations for one step of one coordinate."""
        return probes.PROBES

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> BackoffState:
        """A state centred on `x0`, float32 [D] in the unit cube. Nothing is random: `key` is not looked at."""
        step = jnp.full((space.dim,), self.step, jnp.float32)
        return BackoffState(**probes.initial(space, x0), step=step, side=jnp.zeros_like(step))

    def suggest(self, state: BackoffState) -> tuple[BackoffState, jax.Array]:
        """The probe, float32 [D]; asking again gives it again."""
        return state, probes.one_at_a_time(state, self.c)

    def is_probing(self, state: BackoffState) -> jax.Array:
        """bool []: always, unless there is nothing to tune."""
        return jnp.bool_(state.centre.size > 0)

    def recentre(self, state: BackoffState, x: jax.Array) -> BackoffState:
        """Begins a new cycle around `x`, float32 [D]. Steps are kept, the better sides are not."""
        return self.take_over(state.replace(side=jnp.zeros_like(state.side)), x)

    def hear(
        self,
        state: BackoffState,
        x: jax.Array,
        score: jax.Array,
        noise: jax.Array,
        valid: jax.Array,
        mine: jax.Array | bool,
    ) -> BackoffState:
        """`observe` where `mine`; else somebody else's `x` acted, which tells nothing about this one's probes."""
        return probes.hear(state, score, valid, mine, self._step, lambda told: told)

    def _step(self, state: BackoffState) -> BackoffState:
        """A step of the cycle's coordinate, from a finished cycle; and the next cycle."""
        on, sign = probes.coordinate(state)
        side = jnp.sign(state.contrast) * sign
        agreement = side * state.side * np.float32(-1.0 if self.shrink_on_improvement else 1.0)
        factor = jnp.where(
            agreement > 0, np.float32(self.grow), jnp.where(agreement < 0, np.float32(self.shrink), _ONE)
        )
        step = jnp.clip(state.step * factor, np.float32(self.step_min), np.float32(self.step_max))
        moved = jnp.clip(state.centre + side * step, _ZERO, _ONE)
        return probes.next_cycle(
            state.replace(
                centre=jnp.where(on, moved, state.centre),
                step=jnp.where(on, step, state.step),
                side=jnp.where(on & (side != 0), side, state.side),
                shrink=probes.widen(state),
            )
        )


class BackoffOptimizer(TunerOptimizer):
    """`Backoff` for the host loop; arguments as of `TunerOptimizer`, knobs as of `Backoff`."""

    pure = Backoff
