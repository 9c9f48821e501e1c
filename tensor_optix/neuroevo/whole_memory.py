"""Memories of a whole brain that others keep, while its regions are edited."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tensor_optix.neuroevo.following import Rememberer
from tensor_optix.neuroevo.graph.arrays import Memory
from tensor_optix.neuroevo.graph.brain import Layout, divided, joined

if TYPE_CHECKING:
    from tensor_optix.neuroevo.brain_network import BrainNetwork


class WholeMemory:
    """Tells `rememberer` of what happens to the memory of the whole when a region's changes."""

    def __init__(self, brain: BrainNetwork, rememberer: Rememberer) -> None:
        self._brain, self._rememberer = brain, rememberer
        self._layout = brain.layout
        self._follow()

    def _follow(self) -> None:
        self._parts = [_Part(self, i) for i in range(len(self._brain.regions))]
        for part, region in zip(self._parts, self._brain.regions.values(), strict=True):
            region.remember(part)

    def __deepcopy__(self, memo: dict[int, Any]) -> WholeMemory:
        """That of the copied brain, for the copied rememberer."""
        new = memo[id(self)] = object.__new__(type(self))
        new._brain, new._rememberer = copy.deepcopy(self._brain, memo), copy.deepcopy(self._rememberer, memo)
        new._layout = self._layout
        new._follow()
        return new

    def carried(self, region: int, follow: Callable[[Memory], Memory]) -> None:
        """Of the region at that place."""
        before, after = self._layout, self._brain.layout
        self._layout = after
        self._rememberer.carried(partial(_carried, before, after, region, follow))

    def replaced(self) -> None:
        """A region is another one."""
        self._layout = self._brain.layout
        self._rememberer.replaced()


class _Part:
    """One region's."""

    def __init__(self, whole: WholeMemory | None, region: int) -> None:
        self._whole, self._region = whole, region

    def carried(self, follow: Callable[[Memory], Memory]) -> None:
        if self._whole is not None:
            self._whole.carried(self._region, follow)

    def replaced(self) -> None:
        if self._whole is not None:
            self._whole.replaced()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Part:
        """A copy of a region alone belongs to no brain; a copy of the whole makes parts of its own."""
        return _Part(None, self._region)


def _carried(before: Layout, after: Layout, region: int, follow: Callable[[Memory], Memory], memory: Memory) -> Memory:
    parts = list(divided(before, memory))
    parts[region] = follow(parts[region])
    return joined(after, parts)
