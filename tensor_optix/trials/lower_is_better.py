"""A score that is to be minimised, turned round for a loop that knows better as higher."""

from __future__ import annotations

import dataclasses
from typing import Any

from tensor_optix.core.base_evaluator import BaseEvaluator
from tensor_optix.core.types import EpisodeData, EvalMetrics


class LowerIsBetter(BaseEvaluator):
    """What `evaluator` says, with the sign of the score changed."""

    def __init__(self, evaluator: BaseEvaluator) -> None:
        self.evaluator = evaluator

    def observe(self, episode_data: EpisodeData) -> None:
        self.evaluator.observe(episode_data)

    def score(self, episode_data: EpisodeData, train_diagnostics: dict[str, Any]) -> EvalMetrics | None:
        return _negated(self.evaluator.score(episode_data, train_diagnostics))

    def score_validation(self, episode_data: EpisodeData) -> EvalMetrics | None:
        return _negated(self.evaluator.score_validation(episode_data))

    def forget(self) -> None:
        """As of the evaluator, if it has that."""
        forget = getattr(self.evaluator, "forget", None)
        if forget is not None:
            forget()


def _negated(metrics: EvalMetrics | None) -> EvalMetrics | None:
    return None if metrics is None else dataclasses.replace(metrics, primary_score=-metrics.primary_score)
