"""Transitions gathered one after another, and the window they make up."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensor_optix.core.types import EpisodeData


class Rows:
    """One environment's transitions in one window, in the order in which they happened."""

    def __init__(self) -> None:
        self.observations: list[np.ndarray] = []
        self.actions: list[Any] = []
        self.rewards: list[float] = []
        self.terminated: list[bool] = []
        self.truncated: list[bool] = []
        self.infos: list[Mapping[str, Any]] = []
        self.starts: list[int] = []  # rows at which an episode begins
        self.final_observations: dict[int, np.ndarray] = {}  # by row that ended an episode
        self.cuts: list[int] = []  # rows after which a fault, not the environment, ended the episode
        self.tails: list[int] = []  # rows with which an episode goes on whose beginning was lost
        self.next_obs: Any = None  # true next observation of the newest row

    def __len__(self) -> int:
        return len(self.rewards)

    def add(
        self,
        obs: np.ndarray,
        action: Any,
        reward: float,
        terminated: bool,
        truncated: bool,
        info: Mapping[str, Any],
        next_obs: np.ndarray,
        begins: bool,
    ) -> None:
        """Append one transition; `next_obs` is what the step led to, never what a reset gave."""
        row = len(self)
        if begins:
            self.starts.append(row)
        self.observations.append(obs)
        self.actions.append(action)
        self.rewards.append(reward)
        self.terminated.append(terminated)
        self.truncated.append(truncated)
        self.infos.append(info)
        self.next_obs = next_obs
        if terminated or truncated:
            self.final_observations[row] = np.array(next_obs)

    def cut(self) -> None:
        """Mark the newest row as truncated, unless there is none or its episode is over."""
        if self.rewards and not (self.terminated[-1] or self.truncated[-1]):
            self.truncated[-1] = True
            self.cuts.append(len(self) - 1)
            self.final_observations[len(self) - 1] = np.array(self.next_obs)


def window_of(
    blocks: Sequence[Rows], episode_id: int, final_obs: Any, metadata: dict[str, Any], hidden_states: Any = None
) -> EpisodeData:
    """The blocks one below the other; row numbers count through the whole window."""
    offsets = segment_starts(blocks)
    placed = list(zip(offsets, blocks, strict=True))
    tails = [offset + row for offset, block in placed for row in block.tails]
    finals = {offset + row: obs for offset, block in placed for row, obs in block.final_observations.items()}
    return EpisodeData(
        observations=np.stack([obs for block in blocks for obs in block.observations]),
        actions=_stacked([action for block in blocks for action in block.actions]),
        rewards=[reward for block in blocks for reward in block.rewards],
        terminated=[flag for block in blocks for flag in block.terminated],
        truncated=[flag for block in blocks for flag in block.truncated],
        infos=[info for block in blocks for info in block.infos],
        episode_id=episode_id,
        episode_starts=[offset + row for offset, block in placed for row in block.starts],
        final_obs=final_obs,
        metadata={"final_observations": finals, **({"tails": tails} if tails else {}), **metadata},
        hidden_states=hidden_states,
    )


def segment_starts(blocks: Sequence[Rows]) -> list[int]:
    """The first row of each block."""
    return [sum(len(block) for block in blocks[:i]) for i in range(len(blocks))]


def _stacked(actions: list[Any]) -> Any:
    """[T, ...]; actions of composite spaces (dicts, tuples) stay a list."""
    if isinstance(actions[0], Mapping | tuple):
        return actions
    return np.stack([np.asarray(action) for action in actions])


def positive(name: str, value: Any) -> int:
    """`value` as an int; TypeError if it is not a whole number, ValueError if below 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def positive_seconds(name: str, value: Any) -> float:
    """`value` as a float; ValueError if it is not a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a number of seconds above 0, got {value!r}")
    return float(value)
