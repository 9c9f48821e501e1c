"""The default score of a host loop: the mean return of the episodes that ended, whole, since the last evaluation.

An episode may begin in one window and end in another, so returns are carried across windows; a window that cuts an
episode makes no small score of the piece. Where nothing ever ends (a live stream), the score is the mean reward of a
step. The unit is chosen once and kept: a return and a reward are never compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tensor_optix.core.base_evaluator import BaseEvaluator
from tensor_optix.core.types import EpisodeData, EvalMetrics

PER_RETURN, PER_STEP = "episode return", "reward per step"  # units of a score
PATIENCE = 10  # windows without the end of an episode, from the start, after which the source counts as a stream


def task_rewards(data: EpisodeData) -> np.ndarray:
    """float64 [T], what the task gave: without a bonus that the agent learns from (`metadata["extrinsic_rewards"]`)."""
    return np.asarray(data.metadata.get("extrinsic_rewards", data.rewards), np.float64)


class EpisodeReturns:
    """Adds rewards up to returns of whole episodes, for several environments apart."""

    def __init__(self) -> None:
        # environment -> return and length of its present episode so far, and whether its beginning was seen
        self._running: dict[int, tuple[float, int, bool]] = {}

    def update(self, data: EpisodeData) -> tuple[list[float], list[int]]:
        """Returns and lengths of the episodes that ended in this window."""
        returns: list[float] = []
        lengths: list[int] = []
        starts = {int(i) for i in (data.episode_starts if data.episode_starts is not None else ())}
        segments = [int(i) for i in data.metadata.get("segment_starts", [0])]
        rewards = task_rewards(data)
        ends = data.dones
        cut = set(data.metadata.get("cut", ()))  # rows after which a fault, not the environment, ended the episode
        tails = set(data.metadata.get("tails", ()))  # rows with which an episode goes on whose beginning was lost
        for environment, begin in enumerate(segments):
            end = segments[environment + 1] if environment + 1 < len(segments) else len(rewards)
            total, length, whole = self._running.get(environment, (0.0, 0, True))
            for t in range(begin, end):
                if t in starts or t in tails:  # the episode in progress, if there is one, was dropped
                    total, length, whole = 0.0, 0, t not in tails
                total, length = total + float(rewards[t]), length + 1
                if ends[t]:
                    if t not in cut and whole:
                        returns.append(total)
                        lengths.append(length)
                    total, length, whole = 0.0, 0, True
            self._running[environment] = (total, length, whole)
        return returns, lengths

    def forget(self) -> None:
        """Episodes in progress were of another policy: they get no return."""
        self._running = dict.fromkeys(self._running, (0.0, 0, False))

    def state_dict(self) -> dict[str, Any]:
        return {str(environment): list(running) for environment, running in self._running.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._running = {int(k): (float(r[0]), int(r[1]), bool(r[2])) for k, r in state.items()}


class EpisodeEvaluator(BaseEvaluator):
    """Scores by `EpisodeReturns`.

    A mean of one or two returns says little, and what it says is biased: a short window holds the ends of short
    episodes rather than long ones. So in a loop a score waits for `min_episodes` of them, for at most ten windows.

    Args:
        primary_score_fn: EpisodeData -> float, a score of the caller's own instead. Optional.
        min_episodes: whole episodes behind a score of training windows.
    """

    def __init__(self, primary_score_fn: Any = None, min_episodes: int = 10) -> None:
        if min_episodes < 1:
            raise ValueError(f"min_episodes must be at least 1, got {min_episodes}")
        self.primary_score_fn, self.min_episodes = primary_score_fn, min_episodes
        self.patient = False  # True: wait for `min_episodes`; a loop says so where this score decides
        self._waited = 0  # windows since the last score
        self._train, self._validation = EpisodeReturns(), EpisodeReturns()
        self._returns: list[float] = []  # since the last score
        self._lengths: list[int] = []
        self._windows = 0
        self._observed: EpisodeData | None = None
        self.unit: str | None = None  # PER_RETURN or PER_STEP, from the first score on

    def observe(self, episode_data: EpisodeData) -> None:
        returns, lengths = self._train.update(episode_data)
        self._returns += returns
        self._lengths += lengths
        self._windows += 1
        self._waited += 1
        self._observed = episode_data

    def score(self, episode_data: EpisodeData, train_diagnostics: dict[str, Any]) -> EvalMetrics | None:
        if episode_data is not self._observed:  # a caller that does not know the hook
            self.observe(episode_data)
        few = 0 < len(self._returns) < self.min_episodes and self.primary_score_fn is None
        if few and self.patient and self._waited < PATIENCE:
            return None
        metrics = self._metrics(episode_data, self._returns, self._lengths)
        if metrics is None:
            return None
        self._returns, self._lengths, self._waited = [], [], 0
        numbers = {k: float(v) for k, v in train_diagnostics.items() if isinstance(v, int | float | np.number)}
        return EvalMetrics(metrics["primary_score"], {**numbers, **metrics}, episode_data.episode_id)

    def score_validation(self, episode_data: EpisodeData) -> EvalMetrics | None:
        metrics = self._metrics(episode_data, *self._validation.update(episode_data))
        if metrics is None:
            return None
        return EvalMetrics(metrics["primary_score"], metrics, episode_data.episode_id)

    def forget(self) -> None:
        """Another policy acts from now on (a roll-back): what was gathered since the last score is dropped."""
        self._train.forget()
        self._returns, self._lengths, self._waited = [], [], 0

    def state_dict(self) -> dict[str, Any]:
        """What it remembers between windows, as plain values."""
        return {
            "train": self._train.state_dict(),
            "validation": self._validation.state_dict(),
            "returns": self._returns,
            "lengths": self._lengths,
            "windows": self._windows,
            "waited": self._waited,
            "unit": self.unit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`."""
        self._train.load_state_dict(state["train"])
        self._validation.load_state_dict(state["validation"])
        self._returns, self._lengths = list(state["returns"]), list(state["lengths"])
        self._windows, self._waited, self.unit = int(state["windows"]), int(state["waited"]), state["unit"]

    def _metrics(self, data: EpisodeData, returns: list[float], lengths: list[int]) -> dict[str, Any] | None:
        rewards = task_rewards(data)
        facts: dict[str, Any] = {
            "total_reward": float(rewards.sum()),
            "mean_reward": float(rewards.mean()) if len(rewards) else 0.0,
            "reward_std": float(rewards.std()) if len(rewards) else 0.0,
            "episodes": len(returns),
        }
        if self.primary_score_fn is not None:
            bare = "extrinsic_rewards" not in data.metadata
            scored = data if bare else dataclasses.replace(data, rewards=rewards.tolist())
            return {**facts, "primary_score": float(self.primary_score_fn(scored)), "unit": "primary_score_fn"}
        if returns and self.unit != PER_STEP:
            self.unit = PER_RETURN
            return {
                **facts,
                "primary_score": float(np.mean(returns)),
                "episode_length": float(np.mean(lengths)),
                "unit": self.unit,
            }
        if self.unit is None and self._windows >= PATIENCE:
            self.unit = PER_STEP
        if self.unit == PER_STEP and len(rewards):
            return {**facts, "primary_score": facts["mean_reward"], "unit": self.unit}
        return None
