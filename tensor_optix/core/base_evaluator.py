"""How a window becomes the one number that decisions are made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tensor_optix.core.types import EpisodeData, EvalMetrics


class BaseEvaluator(ABC):
    """Scores windows. Only `score` is required."""

    @abstractmethod
    def score(self, episode_data: EpisodeData, train_diagnostics: dict[str, Any]) -> EvalMetrics | None:
        """The score of one window; higher is better. None: it tells nothing yet, ask again after the next window."""

    def observe(self, episode_data: EpisodeData) -> None:  # noqa: B027 - an optional hook
        """Every window that was learned from, also those between evaluations; called before `score`. Optional."""

    def score_validation(self, episode_data: EpisodeData) -> EvalMetrics | None:
        """The score of a window that was not learned from."""
        return self.score(episode_data, {})

    def combine(self, train: EvalMetrics, val: EvalMetrics) -> EvalMetrics:
        """Validation decides; both sides stay readable as train_* and val_* metrics."""
        metrics = {f"train_{k}": v for k, v in train.metrics.items()}
        metrics |= {f"val_{k}": v for k, v in val.metrics.items()}
        metrics["train_score"] = train.primary_score
        metrics["val_score"] = val.primary_score
        metrics["generalization_gap"] = train.primary_score - val.primary_score
        return EvalMetrics(val.primary_score, metrics, train.episode_id, train.timestamp)

    def compare(self, candidate: EvalMetrics, baseline: EvalMetrics) -> bool:
        """True if `candidate` is the better one."""
        return candidate.beats(baseline)
