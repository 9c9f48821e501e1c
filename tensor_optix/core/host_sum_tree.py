"""The sum tree of `core.sum_tree` on the host: NumPy, float64, sums made when they are asked for."""

from __future__ import annotations

import numpy as np

_WIDTH = 32  # children of a node: a million leaves are four levels of a few NumPy calls each


class HostSumTree:
    """Partial sums over `capacity` non-negative leaves, all 0 at first.

    A write only marks the sums above it. They are made anew from their children before the next draw, in one fixed
    order: no drift, and a tree with the same leaves is the same to the bit.
    """

    def __init__(self, capacity: int) -> None:
        rows = -(-capacity // _WIDTH)
        self._levels = [np.zeros((rows, _WIDTH))]
        while rows > 1:
            rows = -(-rows // _WIDTH)
            self._levels.append(np.zeros((rows, _WIDTH)))
        self.leaves = self._levels[0].reshape(-1)[:capacity]  # a view: read it, and write through the methods
        self._stale: set[int] = set()  # rows of leaves whose sums are out of date

    def set_one(self, index: int, value: float) -> None:
        """Set one leaf."""
        self.leaves[index] = value
        self._stale.add(index // _WIDTH)

    def set(self, index: np.ndarray, value: np.ndarray) -> None:
        """Set the leaves `index` [B], each of which comes once, to `value` [B]."""
        self.leaves[index] = value
        self._stale.update((index // _WIDTH).tolist())

    def total(self) -> float:
        """Sum of all leaves."""
        self._refresh()
        return float(np.cumsum(self._levels[-1][0])[-1])

    def find(self, mass: np.ndarray) -> np.ndarray:
        """The leaves [B] int64 whose half-open intervals of cumulative sums hold `mass` [B], from 0 to the total.

        Never a leaf of 0, whatever the rounding; all 0 in an empty tree.
        """
        self._refresh()
        node = np.zeros(len(mass), np.int64)
        mass = np.array(mass, np.float64)
        lanes = np.arange(len(mass))
        for level in reversed(self._levels):
            upto = np.cumsum(level[node], axis=1)
            # The first condition alone may pass the last child above 0, where rounding has put mass on the row's sum.
            child = ((upto <= mass[:, None]) & (upto < upto[:, -1:])).sum(axis=1)
            mass -= np.where(child > 0, upto[lanes, child - 1], 0.0)
            node = node * _WIDTH + child
        return node

    def is_valid(self) -> bool:
        """Whether every sum is bit for bit that of its children."""
        self._refresh()
        below_above = zip(self._levels[:-1], self._levels[1:], strict=True)
        return all(
            np.array_equal(np.cumsum(below, axis=1)[:, -1], above.reshape(-1)[: len(below)])
            for below, above in below_above
        )

    def _refresh(self) -> None:
        if not self._stale:
            return
        rows = np.array(sorted(self._stale), np.int64)
        self._stale.clear()
        for below, above in zip(self._levels[:-1], self._levels[1:], strict=True):
            above.reshape(-1)[rows] = np.cumsum(below[rows], axis=1)[:, -1]
            rows = np.unique(rows // _WIDTH)
