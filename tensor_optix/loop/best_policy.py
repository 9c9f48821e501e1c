"""The policies that a host run may go back to: its best, and how it began; saved, put back, and known by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EvalMetrics, HyperparamSet, PolicySnapshot
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import RunDirError


class BestPolicy:
    """Snapshots of `agent` in `registry`. What goes wrong with one is told to `note` and never ends the run."""

    def __init__(self, agent: BaseAgent, registry: CheckpointRegistry, note: Callable[[str], None]) -> None:
        self._agent, self._registry, self._note = agent, registry, note
        self.best: PolicySnapshot | None = None  # of this run
        self._beginning: PolicySnapshot | None = None  # what a fault before the first best goes back to
        self._ties = 0  # evaluations equal to the best since it was reached

    @property
    def in_use(self) -> set[str]:
        """Ids of the snapshots that this run may go back to."""
        return {snapshot.snapshot_id for snapshot in (self.best, self._beginning) if snapshot is not None}

    def begin(self) -> None:
        """Save how the run begins. Raises RunDirError: a run that cannot save at its start does not start."""
        # Never the best: a score of minus infinity is below every other, and it goes when there is something better.
        self._beginning = self._registry.save(self._agent, EvalMetrics(-math.inf, {}, 0), self._hyperparams(0))

    def keep(self, metrics: EvalMetrics, window: int, is_tie: bool) -> None:
        """The present policy is the best, or one of equals (`is_tie`), of which the newest is kept.

        A run that stays at a capped score would save after each window: it saves when the count of ties is a power of
        two, so what is kept is from the newer half of them.
        """
        self._ties = self._ties + 1 if is_tie else 0
        if self._ties & (self._ties - 1):
            return
        try:
            self.best = self._registry.save(self._agent, metrics, self._hyperparams(window))
        except RunDirError as error:  # a full disk costs this snapshot, not the run
            self._note(f"window {window} was the best so far and is lost: {error}")

    def put_back(self) -> None:
        """The best policy, or the beginning, into the agent; where it is damaged the best one that is left."""
        snapshot = self.best or self._beginning
        if snapshot is None:
            return
        try:
            self._registry.load(self._agent, snapshot.snapshot_id)
        except (RunDirError, ValueError) as error:
            other = self._registry.load_best(self._agent)
            instead = "nothing is left" if other is None else f"snapshot {other.snapshot_id} is in its place"
            self._note(f"{error} Of the others {instead}.")

    def find(self, snapshot_id: str | None) -> None:
        """The best policy is the snapshot of this id, if it is there."""
        self.best = next((s for s in self._registry.snapshots if s.snapshot_id == snapshot_id), None)

    def state_dict(self) -> dict[str, Any]:
        """Names and counts; the snapshots themselves are in the registry."""
        return {
            "best": None if self.best is None else self.best.snapshot_id,
            "beginning": None if self._beginning is None else self._beginning.snapshot_id,
            "ties": self._ties,
            "sequence": self._registry.sequence,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`; what was saved after it is removed."""
        self._registry.drop_after(state["sequence"])
        snapshots = {snapshot.snapshot_id: snapshot for snapshot in self._registry.snapshots}
        self.best, self._beginning = snapshots.get(state["best"]), snapshots.get(state["beginning"])
        self._ties = int(state["ties"])

    def _hyperparams(self, window: int) -> HyperparamSet:
        return HyperparamSet(dict(self._agent.get_hyperparams().params), window)
