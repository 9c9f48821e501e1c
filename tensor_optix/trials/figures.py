"""The figure of a study: scores over trials above, scores over each hyperparameter below.

Imports matplotlib; only `TuneResult.plot` imports this module.
"""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tensor_optix.figure_style import ACCENT, GOLD, MUTED, STYLE, THIN, tick_label
from tensor_optix.notebook_figure import NotebookFigure
from tensor_optix.trials.ledger import best_of
from tensor_optix.trials.space import Choice, Range, TrialSpace

_COLUMNS = 3  # slices side by side


def study_figure(study: Study, space: TrialSpace, title: str) -> Figure:
    """Draw `study`: every complete and pruned trial, the best so far, and a slice for each hyperparameter of `space`.

    `title` stands above. A pruned trial counts with its last score.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    columns = min(_COLUMNS, max(len(space.entries), 1))
    rows = -(-len(space.entries) // columns)
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(9.0, 3.2 + 2.2 * rows), layout="constrained")
        grid = figure.add_gridspec(1 + rows, columns, height_ratios=[3.0, *([2.0] * rows)])
        top = figure.add_subplot(grid[0, :])
        _draw_history(top, study, trials, title)
        for i, (name, entry) in enumerate(space.entries):
            axis = figure.add_subplot(grid[1 + i // columns, i % columns])
            _draw_slice(axis, study, trials, name, entry)
            if i % columns == 0:
                axis.set_ylabel("score")
    return figure


def _draw_history(axis: Axes, study: Study, trials: list[FrozenTrial], title: str) -> None:
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axis.set_ylabel("score")
    axis.set_xlabel("trial")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", color="#e8ebef", lw=0.8)
    axis.set_axisbelow(True)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not done:
        axis.text(0.5, 0.5, "no finite score", transform=axis.transAxes, ha="center", color=MUTED)
        return
    scores = np.asarray([trial.value for trial in done], float)
    best = np.maximum if study.direction == StudyDirection.MAXIMIZE else np.minimum
    numbers = [trial.number for trial in done]
    axis.step(numbers, best.accumulate(scores), where="post", color=ACCENT, lw=1.8, label="best so far", zorder=2)
    _draw_trials(axis, trials, [trial.number for trial in trials])
    axis.legend(loc="lower right", frameon=False, fontsize=8.5)
    champion = best_of(study)
    assert champion is not None
    axis.plot(champion.number, float(champion.value or 0.0), "o", color=GOLD, ms=8, mec="white", mew=0.8, zorder=4)
    axis.set_title(f"best {champion.value:.4g} (trial {champion.number})", loc="right", fontsize=9.5, color=MUTED)


def _draw_slice(axis: Axes, study: Study, trials: list[FrozenTrial], name: str, entry: Range | Choice) -> None:
    """Scores over one hyperparameter."""
    known = [trial for trial in trials if name in trial.params]
    values: list[Any] = [trial.params[name] for trial in known]
    if isinstance(entry, Choice):
        labels = [str(label) for label in entry.fact()[1:]]
        values = [labels.index(str(value)) for value in values]
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlim(-0.5, len(labels) - 0.5)
    else:
        axis.set_xlim(entry.low, entry.high)
        if entry.log:
            axis.set_xscale("log")
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(lambda value, _: tick_label(value))
    _draw_trials(axis, known, values)
    best = best_of(study)
    for value, trial in zip(values, known, strict=True):
        if best is not None and trial.number == best.number:
            axis.plot(value, float(trial.value or 0.0), "o", color=GOLD, ms=7, mec="white", mew=0.8, zorder=4)
    axis.set_xlabel(name, fontsize=8.5)
    axis.grid(axis="y", color="#eef0f3", lw=0.8)
    axis.set_axisbelow(True)


def _draw_trials(axis: Axes, trials: list[FrozenTrial], places: list[Any]) -> None:
    for state, marker, colour, label in (
        (TrialState.COMPLETE, "o", THIN, "trial"),
        (TrialState.PRUNED, "x", "#c4302b", "pruned trial"),
    ):
        chosen = [(place, trial.value) for place, trial in zip(places, trials, strict=True) if trial.state == state]
        if chosen:
            axis.plot(*zip(*chosen, strict=True), marker, color=colour, ms=5, mew=1.2, ls="none", label=label, zorder=3)
