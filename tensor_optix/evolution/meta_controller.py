"""What to do when learning has come to a plateau: go on, spawn a variant, prune the ensemble, or stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tensor_optix.core.types import EvalMetrics
from tensor_optix.evolution.decisions import MEMORY, Evaluations, MetaAction, MetaConfig, decide

__all__ = ["MetaAction", "MetaController", "evaluations_of"]

HUGE = 1e30  # a score; sums of larger ones would not fit float32


class MetaController:
    """Decides by rules on the generalisation gap, its slope, and the score's trend; see `decisions.decide`.

    Args:
        gap_threshold: mean of training less validation score, as a share of the scale, above which the ensemble is
            pruned. Without validation scores there is no gap.
        gap_slope_threshold: the same for its rise per evaluation.
        improvement_threshold: rise of the score per evaluation, as a share of the scale, below which it is a plateau.
        window: newest evaluations that are looked at.

    Raises:
        ValueError: as of `MetaConfig`.
    """

    def __init__(
        self,
        gap_threshold: float = 0.2,
        gap_slope_threshold: float = 0.02,
        improvement_threshold: float = 0.01,
        window: int = 10,
    ) -> None:
        self.config = MetaConfig(gap_threshold, gap_slope_threshold, improvement_threshold, window)

    def decide(self, history: Sequence[EvalMetrics], status: Mapping[str, Any]) -> MetaAction:
        """What to do now.

        history: the evaluations so far, oldest first. status: as from `PolicyManager.status`; read is
        "budget_exhausted", False where it is missing.
        """
        left = np.bool_(not status.get("budget_exhausted", False))
        return MetaAction(int(_decide(self.config, evaluations_of(history, self.config.window), left)))


def evaluations_of(history: Sequence[EvalMetrics], window: int) -> Evaluations:
    """The newest of `history` as arrays of at least `window` entries; what is not finite is left out."""
    size = max(MEMORY, window)
    pairs = [
        (float(metrics.metrics["train_score"]), float(metrics.metrics["val_score"]))
        for metrics in history
        if metrics.generalization_gap is not None and np.isfinite(metrics.generalization_gap)
    ][-size:]
    scores = [float(m.primary_score) for m in history if np.isfinite(m.primary_score)][-size:]
    train, val = (padded([pair[i] for pair in pairs], size) for i in (0, 1))
    counts: list[Any] = [np.int32(len(scores)), np.int32(len(pairs))]
    return Evaluations(padded(scores, size), counts[0], train, val, counts[1])


def padded(values: Sequence[float], size: int) -> Any:
    """float32 [size], right-aligned behind zeros; what is beyond `HUGE` counts as that."""
    row = np.zeros(size, np.float32)
    row[size - len(values) :] = np.clip(values, -HUGE, HUGE)
    return row


_decide = jax.jit(decide, static_argnums=0)
