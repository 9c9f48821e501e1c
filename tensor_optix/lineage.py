"""Who descends from whom in a run of populations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class _Copies(Protocol):
    @property
    def window(self) -> int: ...
    @property
    def parents(self) -> np.ndarray: ...


@dataclass(eq=False)
class Lineage:
    """Every exchange of a run at which somebody copied somebody, in order."""

    window: np.ndarray  # [E] int64, windows that each member had run
    parents: np.ndarray  # [E, M] int64, whose learner each member went on with; its own index: with its own

    def __len__(self) -> int:
        return len(self.window)

    @classmethod
    def of(cls, copies: Sequence[_Copies], n_members: int) -> Lineage:
        """The lineage that a list of exchanges makes."""
        parents = [np.asarray(c.parents, np.int64) for c in copies]
        window = np.asarray([c.window for c in copies], np.int64)
        return cls(window, np.stack(parents) if parents else np.zeros((0, n_members), np.int64))

    @property
    def copies(self) -> np.ndarray:
        """[M] int64: how often each member went on as a copy of another."""
        return (self.parents != np.arange(self.parents.shape[1])).sum(axis=0)

    def ancestry(self, member: int) -> np.ndarray:
        """[E + 1] int64: the member whose place this one's learner had before each exchange, and after the last."""
        line = np.empty(len(self) + 1, np.int64)
        line[-1] = member
        for i in range(len(self) - 1, -1, -1):
            line[i] = self.parents[i, line[i + 1]]
        return line

    def founders(self) -> np.ndarray:
        """[M] int64: the member that each one's learner began as."""
        now = np.arange(self.parents.shape[1])
        for row in self.parents:
            now = now[row]
        return now
