"""Environments that step side by side and fail one by one: an exception is an outcome like any other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tensor_optix.pipeline.worker import begin, describe, dtype_of, spaces_of, take_step

Transition = tuple[np.ndarray, float, bool, bool, dict[str, Any]]  # what a step led to
Beginning = tuple[np.ndarray, dict[str, Any]]  # a reset's observation, the generators as they were before it


@dataclass(frozen=True)
class Failure:
    """Instead of a transition or a beginning."""

    text: str  # "ValueError: ..."
    error: Exception | None = None  # None: it happened in another process
    own: bool = True  # False: the environment did nothing wrong, but shared a process with one that did


class Crew(Protocol):
    """`step` and `reset` take requests for some of the environments, by number, and give an outcome for each."""

    num_envs: int
    single_observation_space: Any  # None if the environments do not tell
    single_action_space: Any
    replaced: list[int]  # environments that were replaced by fresh ones; whoever handles that empties the list

    def step(self, requests: Sequence[tuple[int, Any]]) -> list[Transition | Failure]:
        """Requests are (environment, action)."""

    def reset(self, requests: Sequence[tuple[int, int | None, dict[str, Any] | None]]) -> list[Beginning | Failure]:
        """Requests are (environment, seed, generators to put back before)."""

    def close(self) -> None:
        """Close the environments that were made here; may be called again."""


class LocalCrew:
    """Environments in this process, one after the other. `owned` ones are closed by `close`."""

    def __init__(self, env_fns: Sequence[Callable[[], Any]], owned: bool = True) -> None:
        self.envs: list[Any] = []
        self.closed = False
        self.replaced: list[int] = []
        self._owned = owned
        try:
            for fn in env_fns:
                self.envs.append(fn())
            self.single_observation_space, self.single_action_space = alike([spaces_of(env) for env in self.envs])
        except BaseException:
            with contextlib.suppress(Exception):
                self.close()
            raise
        self.num_envs = len(self.envs)
        self._dtypes = [dtype_of(env) for env in self.envs]

    def step(self, requests: Sequence[tuple[int, Any]]) -> list[Transition | Failure]:
        """Requests are (environment, action)."""
        outcomes: list[Transition | Failure] = []
        for i, action in requests:
            try:
                outcomes.append(take_step(self.envs[i], action, self._dtypes[i]))
            except Exception as error:
                outcomes.append(Failure(describe(error), error))
        return outcomes

    def reset(self, requests: Sequence[tuple[int, int | None, dict[str, Any] | None]]) -> list[Beginning | Failure]:
        """Requests are (environment, seed, generators to put back before)."""
        outcomes: list[Beginning | Failure] = []
        for i, seed, generators in requests:
            try:
                outcomes.append(begin(self.envs[i], seed, generators, self._dtypes[i]))
            except Exception as error:
                outcomes.append(Failure(describe(error), error))
        return outcomes

    def close(self) -> None:
        """Close owned environments, all of them even if one fails to; may be called again."""
        was_closed, self.closed = self.closed, True
        if self._owned and not was_closed:
            with contextlib.ExitStack() as stack:
                for env in self.envs:
                    stack.callback(env.close)


def alike(spaces: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """The (observation space, action space) of all environments; ValueError if rows of some would not fit others'."""
    first = spaces[0]
    for i, (observation, action) in enumerate(spaces):
        for what, own, other in (("observations", observation, first[0]), ("actions", action, first[1])):
            fits = own == other if what == "actions" else _shape(own) == _shape(other)
            if not fits:
                raise ValueError(
                    f"environment {i} has {what} of {own}, but environment 0 of {other}: "
                    "environments of one vector must be alike"
                )
    return first


def _shape(space: Any) -> tuple[Any, Any]:
    return getattr(space, "shape", None), getattr(space, "dtype", None)
