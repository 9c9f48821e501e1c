"""The default score of a host loop: the mean return of the episodes that ended, whole, since the last evaluation.

An episode may begin in one window and end in another, so returns are carried across windows; a window that cuts an
episode makes no small score of the piece. Where nothing ever ends (a live stream), the score is the mean reward of a
step. The unit is chosen once and kept: a return and a reward are never compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensor_optix.core.base_evaluator import BaseEvaluator
from tensor_optix.core.types import EpisodeData, EvalMetrics

PATIENCE = 10  # windows without the end of an episode, from the start, after which the source counts as a stream


class EpisodeReturns:
    """Adds rewards up to returns of whole episodes, for several environments apart."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[float, int]] = {}  # environment -> return and length so far

    def update(self, data: EpisodeData) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes that ended in this window."""
        returns: list[float] = []
        lengths: list[int] = []
        starts = {int(i) for i in (data.episode_starts if data.episode_starts is not None else ())}
        segments = [int(i) for i in data.metadata.get("segment_starts", [0])]
        rewards = np.asarray(data.rewards, np.float64)
        ends = data.dones
        cut = set(data.metadata.get("cut", ()))  # rows after which a fault, not the environment, ended the episode
        for environment, begin in enumerate(segments):
            end = segments[environment + 1] if environment + 1 < len(segments) else len(rewards)
            total, length = self._running.get(environment, (0.0, 0))
            for t in range(begin, end):
                if t in starts and length:  # the episode in progress was dropped
                    total, length = 0.0, 0
                total, length = total + float(rewards[t]), length + 1
                if ends[t]:
                    if t not in cut:
                        returns.append(total)
                        lengths.append(length)
                    total, length = 0.0, 0
            self._running[environment] = (total, length)
        return returns, lengths


class EpisodeEvaluator(BaseEvaluator):
    """Scores by `EpisodeReturns`.

    Args:
        primary_score_fn: EpisodeData -> float, a score of the caller's own instead. Optional.
    """

    def __init__(self, primary_score_fn: Any = None) -> None:
        self.primary_score_fn = primary_score_fn
        self._train, self._validation = EpisodeReturns(), EpisodeReturns()
        self._returns: list[float] = []  # since the last score
        self._lengths: list[int] = []
        self._windows = 0
        self._observed: EpisodeData | None = None
        self.unit: str | None = None  # "episode return" or "reward per step", from the first score on

    def observe(self, episode_data: EpisodeData) -> None:
        returns, lengths = self._train.update(episode_data)
        self._returns += returns
        self._lengths += lengths
        self._windows += 1
        self._observed = episode_data

    def score(self, episode_data: EpisodeData, train_diagnostics: dict[str, Any]) -> EvalMetrics | None:
        if episode_data is not self._observed:  # a caller that does not know the hook
            self.observe(episode_data)
        metrics = self._metrics(episode_data, self._returns, self._lengths)
        if metrics is None:
            return None
        self._returns, self._lengths = [], []
        numbers = {k: float(v) for k, v in train_diagnostics.items() if isinstance(v, int | float | np.number)}
        return EvalMetrics(metrics["primary_score"], {**numbers, **metrics}, episode_data.episode_id)

    def score_validation(self, episode_data: EpisodeData) -> EvalMetrics | None:
        metrics = self._metrics(episode_data, *self._validation.update(episode_data))
        if metrics is None:
            return None
        return EvalMetrics(metrics["primary_score"], metrics, episode_data.episode_id)

    def _metrics(self, data: EpisodeData, returns: list[float], lengths: list[int]) -> dict[str, Any] | None:
        rewards = np.asarray(data.rewards, np.float64)
        facts: dict[str, Any] = {
            "total_reward": float(rewards.sum()),
            "mean_reward": float(rewards.mean()) if len(rewards) else 0.0,
            "reward_std": float(rewards.std()) if len(rewards) else 0.0,
            "episodes": len(returns),
        }
        if self.primary_score_fn is not None:
            return {**facts, "primary_score": float(self.primary_score_fn(data)), "unit": "primary_score_fn"}
        if returns and self.unit != "reward per step":
            self.unit = "episode return"
            return {
                **facts,
                "primary_score": float(np.mean(returns)),
                "episode_length": float(np.mean(lengths)),
                "unit": self.unit,
            }
        if self.unit is None and self._windows >= PATIENCE:
            self.unit = "reward per step"
        if self.unit == "reward per step" and len(rewards):
            return {**facts, "primary_score": facts["mean_reward"], "unit": self.unit}
        return None
