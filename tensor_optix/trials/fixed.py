"""What a trial searches stays as it was proposed: tuners for trials leave it alone."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.search_space import SearchSpace
from tensor_optix.core.types import EvalMetrics, HyperparamSet


class Fixed(BaseOptimizer):
    """Tunes nothing."""

    def suggest(self, current: HyperparamSet, history: Sequence[EvalMetrics]) -> HyperparamSet:
        return current.copy()


class Guarded(BaseOptimizer):
    """A tuner of which only its suggestions are known.

    Raises:
      ValueError: it suggests another value for one of `names`.
    """

    def __init__(self, tuner: BaseOptimizer, names: Collection[str]) -> None:
        self.tuned_by, self.names = tuner, list(names)

    def suggest(self, current: HyperparamSet, history: Sequence[EvalMetrics]) -> HyperparamSet:
        before = dict(current.params)
        suggested = self.tuned_by.suggest(current, history)
        for name in self.names:
            if name in before and suggested.params.get(name) != before[name]:
                raise ValueError(
                    f"{type(self.tuned_by).__name__} tunes {name!r}, which the trials search: let it leave that alone, "
                    "or take it out of param_space"
                )
        return suggested

    def on_improvement(self, metrics: EvalMetrics) -> None:
        self.tuned_by.on_improvement(metrics)

    def on_plateau(self, history: Sequence[EvalMetrics]) -> None:
        self.tuned_by.on_plateau(history)

    @property
    def is_probing(self) -> bool:
        return self.tuned_by.is_probing


def tells_its_space(tuner: Any) -> bool:
    """Whether it can be kept from tuning single names."""
    return isinstance(getattr(tuner, "space", None), SearchSpace)


def without(tuner: Any, names: Collection[str]) -> BaseOptimizer:
    """A copy of `tuner` that does not tune `names`; None tunes nothing.

    One that does not tell its space (a `SearchSpace`) is trusted, and raises when it changes one of the names.
    """
    if tuner is None:
        return Fixed()
    own = copy.deepcopy(tuner)
    if not tells_its_space(own):
        return Guarded(own, names)
    own.space = SearchSpace(tuple(entry for entry in own.space.entries if entry[0] not in names))
    return own if own.space.dim else Fixed()
