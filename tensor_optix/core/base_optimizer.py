"""The contract of a hyperparameter tuner: a pure face for the brain, a stateful one for the host loop.

Both faces keep one rule. **A probe is credited to the period it acted in, never the next**: the score handed to
`observe` is that of the evaluation which ends the period during which the newest suggestion was in force.

    state = tuner.init(space, x0, key)
    state, x = tuner.suggest(state)                      # in force for the first period
    loop: learn under x for a period, evaluate, then
        state = tuner.observe(state, score, noise, valid)
        state, x = tuner.suggest(state)                  # in force for the next period
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from tensor_optix.core.search_space import SearchSpace
from tensor_optix.core.types import EvalMetrics, HyperparamSet


@runtime_checkable
class Tuner(Protocol):
    """A tuner as a frozen, hashable config with pure methods, each safe under jit and vmap.

    A state is a pytree of arrays whose shapes depend on D = `space.dim` alone. D = 0 is legal: every method is then a
    no-op and the suggestion an empty vector. Suggestions must not change under score -> a * score + b, a > 0, with
    the noise scaled by a.
    """

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> Any:
        """A state centred on `x0`, float32 [D] in the unit cube; consumes `key`."""
        ...

    def observe(self, state: Any, score: jax.Array, noise: jax.Array, valid: jax.Array) -> Any:
        """Takes in the evaluation that ends the period in which the newest suggestion acted.

        Args:
          state: the tuner's state.
          score: float32 [], higher is better. Ignored unless `valid`.
          noise: float32 [] >= 0, standard deviation of the noise of one score, in score units; 0 when unknown.
          valid: bool []. False says that the period tells nothing about the suggestion (its score was not finite,
            the learner was rolled back): what was gathered since the cycle began is dropped.
        """
        ...

    def suggest(self, state: Any) -> tuple[Any, jax.Array]:
        """The vector float32 [D] in force for the next period. Asking twice without `observe` gives it again."""
        ...

    def is_probing(self, state: Any) -> jax.Array:
        """bool []: the suggestion in force is a probe rather than the best known setting."""
        ...

    def centre(self, state: Any) -> jax.Array:
        """float32 [D]: the best known setting, which probes surround."""
        ...

    def recentre(self, state: Any, x: jax.Array) -> Any:
        """The learner was rolled back: `x`, float32 [D], the hyperparameters of the best policy, is the new centre.

        The cycle begins again there. A driver calls it instead of `observe` for the period that ended in the roll-back.
        """
        ...


class BaseOptimizer(abc.ABC):
    """A tuner for the host loop, with state of its own.

    `suggest` is called once after every evaluation. The newest entry of `history` is the score of the period in which
    `current`, the previous suggestion, was in force; it must be credited to that one.
    """

    @abc.abstractmethod
    def suggest(self, current: HyperparamSet, history: Sequence[EvalMetrics]) -> HyperparamSet:
        """The hyperparameters for the next period; entries that are not tuned are returned as they came."""

    def on_improvement(self, metrics: EvalMetrics) -> None:  # noqa: B027 - an optional hook
        """The newest evaluation improved on the best. Optional."""

    def on_plateau(self, history: Sequence[EvalMetrics]) -> None:  # noqa: B027 - an optional hook
        """The loop is in COOLING or DORMANT; called at each evaluation there. Optional."""

    @property
    def is_probing(self) -> bool:
        """True while the hyperparameters in force are a probe, so that a lower score is no sign of degradation."""
        return False
