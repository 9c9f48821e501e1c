"""What a host run came to, in data, in a few lines and in a figure."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from tensor_optix.core.types import EvalMetrics, PolicySnapshot, StopReason
from tensor_optix.loop.episode_returns import PATIENCE, PER_STEP
from tensor_optix.loop.events import CallbackFailure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(repr=False)
class HostResult:
    """What a host run came to. Printing it tells the whole of it."""

    stop_reason: StopReason
    windows: int
    history: list[EvalMetrics]  # every evaluation, oldest first
    best_snapshot: PolicySnapshot | None
    callback_failures: list[CallbackFailure] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)  # what went wrong without ending the run
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # collect, learn, evaluate; total holds all
    run_dir: str | None = None  # where the run is kept: `RLOptimizer(..., resume_from=result.run_dir)` goes on with it

    @property
    def unit(self) -> str | None:
        """Of a score: "episode return", "reward per step" (no episode ended), "primary_score_fn"; None: not known."""
        metrics = self.history[-1].metrics if self.history else {}
        own = "checkpoint_score" in metrics
        return None if own else metrics.get("val_unit", metrics.get("unit"))

    def __str__(self) -> str:
        kept = self.run_dir is not None or self.stop_reason != StopReason.INTERRUPTED
        facts = f"{self.stop_reason.describe() if kept else 'interrupted'}; {self._facts()}"
        unit = f"a score is the mean reward of a step: no whole episode ended in the first {PATIENCE} windows"
        lines = [facts, *([unit] if self.unit == PER_STEP else []), *self.notes]
        return "\n".join([*lines, f"run: {self.run_dir}"] if self.run_dir else lines)

    def __repr__(self) -> str:
        return f"HostResult({self.stop_reason.label}; {self._facts()})"

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Scores, tuned hyperparameters and what happened, over windows; written to `path` if given.

        What happened besides the evaluations is read from `run_dir`, if the run was kept and is still there.
        Needs matplotlib: `pip install "tensor-optix[plot]"`.
        """
        try:
            from tensor_optix.loop.host_figures import result_figure
        except ImportError as error:
            raise ImportError('plot() needs matplotlib: pip install "tensor-optix[plot]"') from error
        figure = result_figure(self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _facts(self) -> str:
        best = "nothing was saved"
        if self.best_snapshot is not None:
            snapshot = self.best_snapshot
            best = f"best score {snapshot.eval_metrics.primary_score:g} at window {snapshot.episode_id}"
        return f"{self.windows} windows, {len(self.history)} evaluations, {best}"
