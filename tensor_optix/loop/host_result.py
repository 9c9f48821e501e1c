"""What a host run came to, in data and in a sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tensor_optix.core.types import EvalMetrics, PolicySnapshot, StopReason
from tensor_optix.loop.events import CallbackFailure


@dataclasses.dataclass
class HostResult:
    """What a host run came to."""

    stop_reason: StopReason
    windows: int
    history: list[EvalMetrics]  # every evaluation, oldest first
    best_snapshot: PolicySnapshot | None
    callback_failures: list[CallbackFailure] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)  # what went wrong without ending the run
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # collect, learn, evaluate; total holds all

    def __str__(self) -> str:
        best = "nothing was saved"
        if self.best_snapshot is not None:
            snapshot = self.best_snapshot
            best = f"best score {snapshot.eval_metrics.primary_score:g} at window {snapshot.episode_id}"
        facts = f"{self.stop_reason.describe()}; {self.windows} windows, {len(self.history)} evaluations, {best}"
        return "\n".join([facts, *self.notes])


def closing_notes(
    reason: StopReason,
    recent: Sequence[EvalMetrics],
    best: PolicySnapshot | None,
    cv_threshold: float,
    gap_threshold: float,
) -> list[str]:
    """What is to be said of a run's end: a plateau that is not steady, a best policy that is overfitted."""
    notes = []
    scores = [metrics.primary_score for metrics in recent]
    mean = abs(float(np.mean(scores))) if scores else 0.0
    if reason == StopReason.CONVERGED and mean > 0 and float(np.std(scores)) > cv_threshold * mean:
        share = float(np.std(scores)) / mean
        notes.append(f"the plateau is unsteady: its scores vary by {share:.0%} (cv_threshold {cv_threshold:.0%})")
    gap = None if best is None else best.eval_metrics.generalization_gap
    if best is not None and gap is not None and gap > gap_threshold * abs(best.eval_metrics.primary_score):
        notes.append(
            f"the best policy scores {gap:.4g} higher on training than on validation windows "
            f"(more than gap_threshold {gap_threshold:.0%}): it is overfitted"
        )
    return notes
