"""The figure of a host run: scores above, tuned hyperparameters and what happened below.

Imports matplotlib; only `HostResult.plot` and the command line import this module. No pyplot: no window, no global
state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from tensor_optix.figure_style import ACCENT, GOLD, MUTED, STATE_COLOURS, STYLE, THIN, dress_track, running_mean
from tensor_optix.loop.durable import RunDirError
from tensor_optix.loop.episode_returns import PER_RETURN, PER_STEP
from tensor_optix.loop.host_course import Course, course_of, rows_of
from tensor_optix.loop.run_dir import RunDir
from tensor_optix.notebook_figure import NotebookFigure

if TYPE_CHECKING:
    from tensor_optix.loop.host_result import HostResult

_MARKS = {  # marker, colour, label
    "best": ("|", "#2f5d3c", "new best"),
    "plateau": ("v", "#8a6a00", "plateau"),
    "dormant": ("s", "#6b4a8c", "dormant"),
    "degraded": ("x", "#c4302b", "score fell"),
    "rollback": ("<", "#d9660c", "roll-back"),
}
_UNITS = {PER_RETURN: "episode return", PER_STEP: "reward per step"}


def result_figure(result: HostResult) -> Figure:
    """Draw `result`, with what its run directory tells where that can be read; else the evaluations alone."""
    settings: Mapping[str, Any] = {}
    rows: list[dict[str, Any]] = rows_of(result.history)
    if result.run_dir is not None:
        try:
            directory = RunDir.read(result.run_dir)
            settings, rows = directory.manifest.get("config") or {}, directory.read_events()
        except RunDirError:
            pass
    hyperparams = settings.get("hyperparams")
    return events_figure(rows, title=settings.get("agent", ""), hyperparams=hyperparams, windows=result.windows)


def events_figure(
    rows: Iterable[Mapping[str, Any]],
    *,
    title: str = "",
    hyperparams: Mapping[str, Any] | None = None,
    windows: int | None = None,
    steps_per_window: int | None = None,
) -> Figure:
    """Draw a host run from the rows of its `events.jsonl`, in order.

    Args:
        rows: as `RunDir.read_events` gives them.
        title: above the scores.
        hyperparams: those at the start (`manifest["config"]["hyperparams"]`); a row tells changes only.
        windows: of the whole run (`manifest["windows"]`); by default up to the last row.
        steps_per_window: the axis counts environment steps where it is given, windows otherwise.
    """
    course, scale = course_of(rows, hyperparams, windows), steps_per_window or 1
    heights = [3.4, *([0.85] * len(course.hyperparams)), 0.45]
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(9.0, sum(heights) + 1.5), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        _draw_scores(axes[0], course, scale, title)
        for axis, name in zip(axes[1:-1], course.hyperparams, strict=True):
            _draw_track(axis, course, scale, name)
        handles = _draw_events(axes[-1], course, scale)
        axes[-1].set_xlabel("windows" if steps_per_window is None else "environment steps")
        axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
        if steps_per_window is None:
            axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[-1].set_xlim(0, course.end * scale * 1.015 or 1)
        for axis in axes[:-1]:
            axis.tick_params(axis="x", length=0)
        figure.align_ylabels(axes)
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5)
    return figure


def _draw_scores(axis: Axes, course: Course, scale: int, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold")
    unit = _UNITS.get(course.unit or "")
    axis.set_ylabel(f"score: {unit}" if unit else "score")
    axis.grid(axis="y", color="#e8ebef", lw=0.8)
    axis.set_axisbelow(True)
    finite = np.isfinite(course.score)
    if not finite.any():
        axis.text(0.5, 0.5, "no score", transform=axis.transAxes, ha="center", color=MUTED)
        return
    at, score, best = course.at[finite] * scale, course.score[finite], course.best_so_far[finite]
    marker = "o" if len(at) < 40 else ""
    shown = [score]
    if np.isfinite(course.train).any():
        own = np.isfinite(course.train)
        axis.plot(
            course.at[own] * scale, course.train[own], color=THIN, lw=1.2, marker=marker, ms=2.5, label="training"
        )
        shown.append(course.train[own])
    decided = {"score": "training windows"}.get(course.decided_by, course.decided_by)
    axis.plot(at, score, color=ACCENT, lw=1.6, marker=marker, ms=3, label=decided, zorder=3)
    held = np.append(at, max(course.end * scale, at[-1])), np.append(best, best[-1])
    axis.step(*held, where="post", color=MUTED, lw=0.9, ls=(0, (4, 3)), label="best so far", zorder=2)
    first = int(np.argmax(score))
    star: dict[str, Any] = {"marker": "*", "color": GOLD, "mec": "white", "mew": 0.6, "ls": "none"}
    axis.plot(at[first], score[first], ms=12, zorder=4, clip_on=False, label="highest", **star)
    axis.set_ylim(*_limits(np.concatenate(shown)))
    axis.legend(loc="best", frameon=False, fontsize=8.5)
    axis.set_title(f"highest of {len(score)} evaluations {score[first]:.4g}", loc="right", fontsize=9.5, color=MUTED)


def _limits(scores: np.ndarray) -> tuple[float, float]:
    """All but far outliers, and the best: one diverged evaluation must not flatten the picture."""
    low, high = np.quantile(scores, 0.02), scores.max()
    span = high - low
    pad = 0.06 * span or 0.05 * abs(high) or 1.0
    return max(scores.min(), low - span) - pad, high + pad


def _draw_track(axis: Axes, course: Course, scale: int, name: str) -> None:
    """A tuned hyperparameter, each value from where it came into force; thick: what lies between a tuner's probes."""
    track = course.hyperparams[name]
    steps, values = np.asarray([*track, course.end]) * scale, np.asarray(list(track.values()))
    log = bool(min(values) > 0 and max(values) > 5 * min(values))
    middle = running_mean(values, log)
    axis.step(steps, [*values, values[-1]], where="post", color=THIN, lw=0.8)
    axis.step(steps, [*middle, middle[-1]], where="post", color=ACCENT, lw=1.6)
    dress_track(axis, name, log)


def _draw_events(axis: Axes, course: Course, scale: int) -> list[Line2D | Patch]:
    """Loop states as a strip with marks on it; the handles of what occurs."""
    ends = [start for start, _ in course.states[1:]] + [course.end]
    spans = [(start, end, state) for (start, state), end in zip(course.states, ends, strict=False) if end > start]
    for start, end, state in spans:
        axis.broken_barh([(start * scale, (end - start) * scale)], (-0.5, 1.0), facecolors=STATE_COLOURS[state], lw=0)
    happened = [name for name in _MARKS if course.marks[name]]
    for name in happened:
        marker, colour, _ = _MARKS[name]
        when = np.asarray(course.marks[name]) * scale
        width = 0.9 if name == "best" else 1.4
        axis.plot(when, np.zeros(len(when)), marker, color=colour, ms=6.5, mew=width, ls="none", clip_on=False)
    axis.set_ylim(-0.5, 0.5)
    axis.set_yticks([])
    axis.set_ylabel("state" if spans else "events", fontsize=8.5)
    axis.spines["left"].set_visible(False)
    seen = sorted({state for _, _, state in spans})
    handles: list[Line2D | Patch] = [Patch(color=STATE_COLOURS[state], label=state.name.lower()) for state in seen]
    for name in happened:
        marker, colour, label = _MARKS[name]
        handles.append(Line2D([], [], marker=marker, color=colour, ls="none", ms=6, label=label))
    return handles
