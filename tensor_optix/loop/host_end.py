"""The end of a host run: what is to be said of it, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tensor_optix.core.types import EvalMetrics, PolicySnapshot, StopReason
from tensor_optix.loop.host_result import HostResult

if TYPE_CHECKING:
    from tensor_optix.loop.host import LoopController


def concluded(loop: LoopController, reason: StopReason, of_faults: Sequence[str], run_dir: str | None) -> HostResult:
    """The result of a run that is over; what is to be said of its end joins its notes."""
    recent = loop.history[-loop.scheduler.config.trend_window :]
    loop.notes += of_faults
    loop.notes += closing_notes(reason, recent, loop.best_snapshot, loop.cv_threshold, loop.gap_threshold)
    return HostResult(
        reason,
        loop.brain.window,
        loop.history,
        loop.best_snapshot,
        loop.callbacks.failures,
        loop.notes,
        loop.seconds,
        run_dir,
    )


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
