"""From a window to the number that the brain is told: training score, validation, a score from outside, smoothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_evaluator import BaseEvaluator
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.types import EpisodeData, EvalMetrics
from tensor_optix.loop.episode_returns import EpisodeEvaluator


class Judge:
    """Judges windows. `checkpoint_score_fn` decides where it is given, else `val_pipeline`, else the training score."""

    def __init__(
        self,
        agent: BaseAgent,
        evaluator: BaseEvaluator,
        val_pipeline: BasePipeline | None,
        checkpoint_score_fn: Callable[[Any], float] | None,
    ) -> None:
        self._agent, self._evaluator = agent, evaluator
        self._val_pipeline, self._score_fn = val_pipeline, checkpoint_score_fn
        self._val_windows: Any = None

    def metrics(self, data: EpisodeData, diagnostics: dict[str, Any], window: int, patient: bool) -> EvalMetrics | None:
        """What a window that was learned from is worth; None: nothing can be said yet.

        patient: the training score may ask to wait for more episodes, where it decides.
        """
        alone = self._val_pipeline is None and self._score_fn is None
        if isinstance(self._evaluator, EpisodeEvaluator):
            self._evaluator.patient = patient and alone
        metrics = self._evaluator.score(data, diagnostics)
        if self._val_pipeline is not None and metrics is not None:
            validation = self._validation(self._val_pipeline)
            metrics = None if validation is None else self._evaluator.combine(metrics, validation)
        if self._score_fn is not None:
            score = float(self._score_fn(self._agent))
            metrics = EvalMetrics(score, {**(metrics.metrics if metrics else {}), "checkpoint_score": score}, window)
        reset_cache = None if alone else getattr(self._agent, "reset_cache", None)
        if reset_cache is not None:
            reset_cache()  # acting there must not look like experience
        if metrics is not None:
            metrics.primary_score = float(metrics.primary_score)
        return metrics

    def _validation(self, pipeline: BasePipeline) -> EvalMetrics | None:
        if self._val_windows is None:
            self._val_windows = iter(pipeline.episodes())
        window = next(self._val_windows, None)
        return None if window is None else self._evaluator.score_validation(window)


def smoothed(history: Sequence[EvalMetrics], count: int) -> float:
    """Mean of the newest `count` finite scores; the newest itself where that is not finite: a fault now, none later."""
    newest = [metrics.primary_score for metrics in history[-count:]]
    if not math.isfinite(newest[-1]):
        return newest[-1]
    return float(np.mean([score for score in newest if math.isfinite(score)]))
