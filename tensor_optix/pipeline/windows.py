"""What every pipeline over Gymnasium environments shares: an agent, a window's size, windows without end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.types import EpisodeData
from tensor_optix.pipeline.acting import Choose, Memory
from tensor_optix.pipeline.conversion import check_action, tell_action_bounds
from tensor_optix.pipeline.rows import positive


class WindowPipeline(BasePipeline):
    """Subclasses say how to set up (and set `_is_set_up`), to tear down, and to collect one window."""

    def __init__(self, agent: BaseAgent | None, window_size: int, seed: int | None, deterministic: bool) -> None:
        self._agent = agent
        self._window_size = positive("window_size", window_size)
        self._seed = None if seed is None else int(seed)  # for the first reset; None from then on
        self._deterministic = deterministic
        self._episode_id = 0  # windows so far
        self._is_set_up = False
        self._told: BaseAgent | None = None  # the agent that knows the bounds of actions
        self._acted: BaseAgent | None = None  # the agent whose first actions were looked at
        self._memory = Memory()

    @property
    def window_size(self) -> int:
        """Steps of each environment in a window."""
        return self._window_size

    @property
    def n_steps(self) -> int:
        """Another name of `window_size`."""
        return self._window_size

    def set_agent(self, agent: BaseAgent) -> None:
        """Let `agent` act from the next step on."""
        self._agent = agent

    def reset(self) -> None:
        """Begin fresh episodes with the next window: what the environments hold may be poisoned."""
        self._is_set_up = False

    def episodes(self) -> Iterator[EpisodeData]:
        """Windows without end; calls `setup` if nobody has. ValueError without an agent."""
        if self._agent is None:
            raise ValueError(f"{type(self).__name__} has no agent: give one as agent= or with set_agent()")
        return self._windows()

    def _windows(self) -> Iterator[EpisodeData]:
        while True:
            if not self._is_set_up:
                self.setup()
            if self._agent is not self._told:
                tell_action_bounds(self._agent, self.spaces[1])
                self._told = self._agent
            window = self._window()
            self._episode_id += 1
            yield window

    @property
    def spaces(self) -> tuple[Any, Any]:
        """(observation space, action space) of one environment; None for what it does not tell."""
        observation, action = (
            getattr(self.env, f"single_{name}", None) or getattr(self.env, name, None)
            for name in ("observation_space", "action_space")
        )
        return observation, action

    def _checking(self, choose: Choose) -> Choose:
        """`choose`, whose first actions are looked at where the agent has not acted here yet; not those after them."""
        if self._acted is self._agent:
            return choose
        self._acted = self._agent
        space, ahead = self.spaces[1], [True]

        def checked(obs: Sequence[np.ndarray], live: Sequence[int], begins: Sequence[bool]) -> list[tuple[Any, Any]]:
            chosen = choose(obs, live, begins)
            if ahead:
                ahead.clear()
                for _, sent in chosen:
                    check_action(space, sent)
            return chosen

        return checked

    @property
    @abstractmethod
    def env(self) -> Any:
        """The environment or vector."""

    @abstractmethod
    def _window(self) -> EpisodeData:
        """The next window, number `_episode_id`."""
