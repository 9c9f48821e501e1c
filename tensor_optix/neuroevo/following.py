"""Those who keep something beside a graph's arrays or memories, and those who want to know of its steps."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from tensor_optix.neuroevo.graph.arrays import Capacity, Graph, Memory, Weights
from tensor_optix.neuroevo.graph.capacity import relocated_memory
from tensor_optix.neuroevo.graph.edits import Edited, carried

T = TypeVar("T")


class Companion(Protocol):
    """What stands beside a graph's arrays, slot by slot, and has to follow when neurons and edges come and go."""

    def moved(self, source: np.ndarray, target: np.ndarray, capacity: Capacity) -> None:
        """What was in the slots `source` [n] is in the slots `target` of another capacity; the rest is gone."""

    def edited(
        self, pure: Callable[..., Edited] | None, slots: tuple[float, ...], before: Graph, after: Edited
    ) -> None:
        """A function of `edits` was applied at `slots`; None: an edge was removed. What was empty holds nothing."""

    def replaced(self, source: np.ndarray, target: np.ndarray) -> None:
        """The graph is another one; neurons that both have were in the slots `source` [n] and are in `target`."""


class Rememberer(Protocol):
    """What keeps memories of episodes that run on."""

    def carried(self, follow: Callable[[Memory], Memory]) -> None:
        """A memory [*batch, ...] from before goes on as `follow(memory)`."""

    def replaced(self) -> None:
        """The graph is another one."""


class Listener(Protocol):
    """What wants to know of steps."""

    def record(self) -> None:
        """The graph's `last_step` is new."""


class _Weakly(weakref.WeakSet[T]):
    """Held weakly; a copy holds the copies."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Weakly[T]:
        return type(self)(copy.deepcopy(list(self), memo))


class Followed:
    """A graph that tells of its edits and steps; whoever is told is held weakly.

    Attributes:
        gradient: of the weights, as a learner has set it; None if the structure has changed since.
        last_step: values [*batch, N] by slot in the last step, and the memory [*batch, ...] before it; None if the
            structure has changed since.
    """

    def __init__(self) -> None:
        self.last_step: tuple[Any, Memory] | None = None
        self.gradient: Weights | None = None
        self._values: Any = None
        self._companions: _Weakly[Companion] = _Weakly()
        self._rememberers: _Weakly[Rememberer] = _Weakly()
        self._listeners: _Weakly[Listener] = _Weakly()

    @property
    def values(self) -> np.ndarray | None:
        """float32 [N] by slot, of all neurons in the last step (of the first of several environments); None before it.

        0 of neurons that were not there.
        """
        if self._values is not None and not isinstance(self._values, np.ndarray):
            values = np.asarray(self._values)
            self._values = values.reshape(-1, values.shape[-1])[0]
        return self._values

    def saw(self, values: Any, before: Memory) -> None:
        """Whoever has made a step tells of it: values [*batch, N] of all neurons, the memory before it."""
        self._values, self.last_step = values, (values, before)
        for listener in self._listeners:
            listener.record()

    def saw_all(self, parts: Sequence[tuple[Any, Memory]]) -> None:
        """The same for a graph that is all there is: one part."""
        self.saw(*parts[0])

    def accompany(self, companion: Companion) -> None:
        """`companion` is told from now on of what changes slots."""
        self._companions.add(companion)

    def remember(self, rememberer: Rememberer) -> Any:
        """`rememberer` is told of what changes memories, for as long as it and what comes back are kept."""
        self._rememberers.add(rememberer)

    def subscribe(self, listener: Listener) -> None:
        """`listener` is told of steps from now on."""
        self._listeners.add(listener)

    def unsubscribe(self, listener: Listener) -> None:
        """`listener` is told no more."""
        self._listeners.discard(listener)

    def _moved(self, source: np.ndarray, target: np.ndarray, capacity: Capacity) -> None:
        for companion in self._companions:
            companion.moved(source, target, capacity)
        self._carried(lambda memory: relocated_memory(memory, source, target, capacity))

    def _edited(
        self, pure: Callable[..., Edited] | None, slots: tuple[float, ...], before: Graph, after: Edited
    ) -> None:
        for companion in self._companions:
            companion.edited(pure, slots, before, after)
        self._carried(partial(carried, after))

    def _carried(self, follow: Callable[[Memory], Memory]) -> None:
        self.last_step = self.gradient = None
        for rememberer in self._rememberers:
            rememberer.carried(follow)

    def _replaced(self, source: np.ndarray, target: np.ndarray) -> None:
        self.last_step = self.gradient = self._values = None
        for companion in self._companions:
            companion.replaced(source, target)
        for rememberer in self._rememberers:
            rememberer.replaced()
