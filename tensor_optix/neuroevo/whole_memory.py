"""Memories of a whole brain that others keep, while its regions are edited."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

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
        self._parts = [_Part(self, i) for i in range(len(brain.regions))]
        for part, region in zip(self._parts, brain.regions.values(), strict=True):
            region.remember(part)

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

    def __init__(self, whole: WholeMemory, region: int) -> None:
        self._whole, self._region = whole, region

    def carried(self, follow: Callable[[Memory], Memory]) -> None:
        self._whole.carried(self._region, follow)

    def replaced(self) -> None:
        self._whole.replaced()


def _carried(before: Layout, after: Layout, region: int, follow: Callable[[Memory], Memory], memory: Memory) -> Memory:
    parts = list(divided(before, memory))
    parts[region] = follow(parts[region])
    return joined(after, parts)
