"""A score that is to be minimised, turned round for a loop that knows better as higher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tensor_optix.core.base_evaluator import BaseEvaluator
from tensor_optix.core.types import EpisodeData, EvalMetrics
from tensor_optix.loop.episode_returns import EpisodeEvaluator

_SIGNED = ("train_score", "val_score", "generalization_gap")  # metrics of `combine` that the loop reads as scores


class LowerIsBetter(BaseEvaluator):
    """What `evaluator` says, with the sign of the score changed. The evaluator itself never sees a changed one."""

    def __init__(self, evaluator: BaseEvaluator) -> None:
        self.evaluator = evaluator

    def observe(self, episode_data: EpisodeData) -> None:
        self.evaluator.observe(episode_data)

    def score(self, episode_data: EpisodeData, train_diagnostics: dict[str, Any]) -> EvalMetrics | None:
        return _negated(self.evaluator.score(episode_data, train_diagnostics))

    def score_validation(self, episode_data: EpisodeData) -> EvalMetrics | None:
        return _negated(self.evaluator.score_validation(episode_data))

    def combine(self, train: EvalMetrics, val: EvalMetrics) -> EvalMetrics:
        both = self.evaluator.combine(_turned(train), _turned(val))
        signed = {name: -both.metrics[name] for name in _SIGNED if both.metrics.get(name) is not None}
        return dataclasses.replace(both, primary_score=-both.primary_score, metrics={**both.metrics, **signed})

    def compare(self, candidate: EvalMetrics, baseline: EvalMetrics) -> bool:
        """As the evaluator compares; where it does not say, the lower score is the better one."""
        if getattr(type(self.evaluator), "compare", BaseEvaluator.compare) is BaseEvaluator.compare:
            return candidate.beats(baseline)
        return self.evaluator.compare(_turned(candidate), _turned(baseline))

    def forget(self) -> None:
        """As of the evaluator, if it has that."""
        forget = getattr(self.evaluator, "forget", None)
        if forget is not None:
            forget()


class _LowerReturns(LowerIsBetter, EpisodeEvaluator):
    """Of episodes: the loop says how patient to be."""

    evaluator: EpisodeEvaluator

    @property
    def patient(self) -> bool:
        return self.evaluator.patient

    @patient.setter
    def patient(self, patient: bool) -> None:
        self.evaluator.patient = patient

    def state_dict(self) -> dict[str, Any]:
        return self.evaluator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.evaluator.load_state_dict(state)


def lower_is_better(evaluator: BaseEvaluator) -> LowerIsBetter:
    """`evaluator` turned round."""
    return _LowerReturns(evaluator) if isinstance(evaluator, EpisodeEvaluator) else LowerIsBetter(evaluator)


def _turned(metrics: EvalMetrics) -> EvalMetrics:
    return dataclasses.replace(metrics, primary_score=-metrics.primary_score)


def _negated(metrics: EvalMetrics | None) -> EvalMetrics | None:
    return None if metrics is None else _turned(metrics)
