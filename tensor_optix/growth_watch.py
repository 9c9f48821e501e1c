"""Looks at the graphs of a compiled run between its chunks, and keeps what it saw with the checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from tensor_optix.growth import MOST_FRAMES, Growth
from tensor_optix.loop.session import Session

_FILE = "growth.npz"


class GrowthWatch:
    """Of a run whose algorithm grows graphs."""

    def __init__(self, algorithm: Any, n_members: int) -> None:
        self._algorithm = algorithm
        self.growth = Growth(algorithm.capacity, n_members)

    @staticmethod
    def chunk_windows(max_windows: int) -> int:
        """Windows between two looks at most, so that a short run is seen to grow as well."""
        return max(1, max_windows // MOST_FRAMES)

    def look(self, session: Session, members: np.ndarray, *, last: bool = False) -> None:
        """Keep the graphs of these members that have changed, or, at the `last` look, all of them as they are now."""
        steps = session.windows * self._algorithm.steps_per_window
        learners = session.learners()
        for member in members.tolist():
            params, topology = jax.tree.map(lambda x, i=member: x[i], (learners.params, learners.topology))
            graph = self._algorithm.graph_of(params, topology)
            self.growth.observe(member, int(steps[member]), graph, last=last)

    def save(self, folder: Path) -> None:
        """Into the directory of a checkpoint's own files."""
        with open(folder / _FILE, "wb") as file:
            np.savez(file, allow_pickle=False, **self.growth.to_arrays())

    def load(self, folder: Path) -> None:
        """What `save` wrote; nothing if it is not there."""
        if (folder / _FILE).is_file():
            with np.load(folder / _FILE, allow_pickle=False) as arrays:
                self.growth = Growth.from_arrays(arrays) or self.growth
