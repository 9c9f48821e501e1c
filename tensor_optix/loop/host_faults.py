"""Exceptions of environments that a run survived: the pipelines count them, its result tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FaultCount:
    """Faults of the pipelines within one run, over all its resumes. Pipelines that count none tell of none."""

    def __init__(self, pipeline: Any, val_pipeline: Any) -> None:
        self._sources = {"environment": pipeline, "validation environment": val_pipeline}
        self._before = dict.fromkeys(self._sources, 0)  # counted when this part of the run began
        self._earlier: dict[str, tuple[int, str]] = {}  # count and newest fault of the run's earlier parts

    def begin(self) -> None:
        """From here on they are this run's."""
        self._before = {name: int(getattr(source, "n_faults", 0)) for name, source in self._sources.items()}

    def state_dict(self) -> dict[str, Any]:
        """Count and newest fault of each pipeline."""
        return {name: list(self._of(name)) for name in self._sources}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state_dict`."""
        self._earlier = {name: (int(count), str(newest)) for name, (count, newest) in state.items()}
        self.begin()

    def notes(self) -> list[str]:
        """A sentence for each pipeline that had one."""
        sentences = []
        for name in self._sources:
            count, newest = self._of(name)
            if count:
                times = "once" if count == 1 else f"{count} times"
                lost = "that transition was" if count == 1 else "those transitions were"
                episodes = "the episode" if count == 1 else "the episodes"
                sentences.append(f"the {name} raised {times}, last: {newest}; {lost} dropped and {episodes} cut")
        return sentences

    def _of(self, name: str) -> tuple[int, str]:
        source = self._sources[name]
        earlier, newest = self._earlier.get(name, (0, ""))
        here = max(0, int(getattr(source, "n_faults", 0)) - self._before[name])
        faults = getattr(source, "faults", None) if here else None
        return earlier + here, str(faults[-1]) if faults else newest
