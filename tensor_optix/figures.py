"""The figure of a run: learning curves above, tuned hyperparameters, sizes of graphs and loop states below.

Imports matplotlib; only `TrainResult.plot` imports this module. No pyplot: no window, no global state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from tensor_optix.core.types import Event, LoopState, StopReason
from tensor_optix.figure_style import ACCENT, MUTED, STATE_COLOURS, STYLE, THIN, dress_track, running_mean
from tensor_optix.notebook_figure import NotebookFigure
from tensor_optix.statistics import interquartile_mean

if TYPE_CHECKING:
    from tensor_optix.curves import Curve
    from tensor_optix.results import MemberResult, TrainResult

_GRID = 200  # points of the common env-steps grid
_COUNTS = ("neurons", "edges")  # what a graph that grows says of its size, among the losses
_RESAMPLES = 300  # of the band; its edge is drawn one pixel or so wide
_COPY = "#d9660c"
_STOP_MARKERS = {  # marker, colour, relative size
    StopReason.CONVERGED: ("o", "#2c8a4b", 1.0),
    StopReason.TARGET: ("*", "#d08a00", 1.7),
    StopReason.BUDGET: ("s", "#6b7480", 0.9),
    StopReason.NON_FINITE: ("X", "#c4302b", 1.0),
    StopReason.INTERRUPTED: ("d", "#8250a8", 1.0),
    StopReason.EXHAUSTED: ("s", "#3b82a0", 0.9),
}
_EVENT_MARKERS = {  # marker, colour, label
    Event.BEST: ("|", "#2f5d3c", "new best"),
    Event.ROLLBACK: ("<", "#d9660c", "roll-back"),
    Event.NON_FINITE: ("x", "#c4302b", "NaN or infinity"),
}


def training_figure(result: TrainResult) -> Figure:
    """Draw `result`. Members that stopped early hold their kept best (dashed) after a marker of why they stopped."""
    result, starts = _one_after_the_other(result)
    curves = [member.curve for member in result.members]
    tracks = [("hyperparams", name) for name in tuned_hyperparams(curves)]
    tracks += [("losses", name) for name in _COUNTS if _varies([curve.losses for curve in curves], name)]
    lived = [i for i, member in enumerate(result.members) if member.stop_reason != StopReason.UNSPAWNED]
    heights = [3.4, *([0.85] * len(tracks)), _states_height(len(lived))]
    with matplotlib.rc_context(STYLE):
        figure = NotebookFigure(figsize=(9.0, sum(heights) + 1.5), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        _draw_scores(axes[0], result)
        for axis, (kind, name) in zip(axes[1:-1], tracks, strict=True):
            _draw_track(axis, result, kind, name)
        names = [str(m.seed) if result.population == 1 else f"{m.seed}.{m.variant}" for m in result.members]
        handles = _draw_states(axes[-1], [result.members[i] for i in lived], starts[lived], [names[i] for i in lived])
        if result.lineage is not None and result.lineage.copies.any() and tracks:
            handles.append(Line2D([], [], color=_COPY, marker=".", ms=5, lw=0.9, label="copied"))
        whose = "seed with its variants" if result.max_spawns else "member"
        axes[-1].set_xlabel(f"environment steps of each {whose}")
        axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[-1].set_xlim(0, max((member.env_steps for member in result.members), default=0) * 1.015 or 1)
        for axis in axes[:-1]:
            axis.tick_params(axis="x", length=0)
        figure.align_ylabels(axes)
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) or 1, frameon=False, fontsize=8.5)
    return figure


def _one_after_the_other(result: TrainResult) -> tuple[TrainResult, np.ndarray]:
    """The result with every variant moved to where it was spawned, and those places [M] in environment steps."""
    starts = np.zeros(len(result.members), np.int64)
    if not result.max_spawns or result.lineage is None:
        return result, starts
    per_window = max((m.env_steps // m.windows for m in result.members if m.windows), default=0)
    windows = np.zeros_like(starts)
    for window, parents in zip(result.lineage.window, result.lineage.parents, strict=True):
        windows[parents != np.arange(len(parents))] = window
    starts = windows * per_window
    members = []
    for member, window, start in zip(result.members, windows, starts, strict=True):
        curve = member.curve
        moved = dataclasses.replace(curve, window=curve.window + window, env_steps=curve.env_steps + start)
        members.append(dataclasses.replace(member, curve=moved, env_steps=int(member.env_steps + start)))
    return dataclasses.replace(result, members=members), starts


def tuned_hyperparams(curves: Sequence[Curve]) -> list[str]:
    """Names of the hyperparameters that differ over time or between members, in their order of appearance."""
    names = list(dict.fromkeys(name for curve in curves for name in curve.hyperparams))
    return [name for name in names if _varies([curve.hyperparams for curve in curves], name)]


def _varies(columns: Sequence[Mapping[str, np.ndarray]], name: str) -> bool:
    values = np.concatenate([np.zeros(0), *(own[name] for own in columns if name in own)])
    return bool(values.size) and values.min() != values.max()


def common_grid(members: Sequence[MemberResult]) -> tuple[np.ndarray, np.ndarray]:
    """Env-steps grid [G] and each member's score on it [members, G], both float64.

    Between two evaluations the score is interpolated; after a member stopped it holds that of its kept policy, on fresh
    episodes where they were played.
    Members without a finite score are left out; the grid begins where all others have been evaluated once.
    """
    known = [(m, *_finite_scores(m.curve)) for m in members]
    known = [item for item in known if item[1].size]
    if not known:
        return np.zeros(0), np.zeros((0, 0))
    grid = np.linspace(max(steps[0] for _, steps, _ in known), max(m.env_steps for m, _, _ in known), _GRID)
    rows = []
    for member, steps, scores in known:
        row = np.interp(grid, steps, scores)
        rows.append(np.where(grid > member.env_steps, _held_score(member, scores), row))
    return grid, np.stack(rows)


def _finite_scores(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    finite = np.isfinite(curve.score)
    return curve.env_steps[finite].astype(np.float64), curve.score[finite].astype(np.float64)


def _held_score(member: MemberResult, finite_scores: np.ndarray) -> float:
    """Score of the policy that a stopped member keeps, of its fresh episodes.

    Where none were played, of the evaluation at which it was saved, the luckiest of many; or the highest if none was.
    """
    if np.isfinite(member.score):
        return float(member.score)
    kept = member.curve.best_so_far()[-1]
    return float(kept) if np.isfinite(kept) else float(finite_scores.max())


def _draw_scores(axis: Axes, result: TrainResult) -> None:
    members = result.members
    grid, rows = common_grid(members)
    axis.set_title(f"{result.env}   {result.algorithm}", loc="left", fontsize=12, fontweight="bold")
    axis.set_ylabel("score")
    axis.grid(axis="y", color="#e8ebef", lw=0.8)
    axis.set_axisbelow(True)
    if not grid.size:
        axis.text(0.5, 0.5, "no finite score", transform=axis.transAxes, ha="center", color=MUTED)
        return
    handles = _draw_members(axis, members, 0.6 if result.max_spawns else 0.16)
    if len(rows) > 1 and not result.max_spawns:
        who = str(len(rows)) if result.population == 1 else f"all {len(rows)} members"
        label = f"interquartile mean of {who}, 95 % band"
        handles[:0] = axis.plot(grid, interquartile_mean(rows, axis=0), color=ACCENT, lw=2.2, zorder=3, label=label)
        axis.fill_between(grid, *_band(rows), color=ACCENT, alpha=0.2, lw=0, zorder=2)
    axis.set_ylim(*_score_limits(members, rows))
    axis.legend(handles=handles, loc="lower right", frameon=False, fontsize=8.5)
    if np.isfinite(result.iqm):
        low, high = result.iqm_interval
        final = f"final {'score' if len(members) == 1 else 'IQM'} {result.iqm:.4g}  [{low:.4g}, {high:.4g}]"
        axis.set_title(final, loc="right", fontsize=9.5, color=MUTED)


def _draw_members(axis: Axes, members: Sequence[MemberResult], faintest: float) -> list[Line2D]:
    """Each member's scores, and where it stopped at the score of the policy it kept. Returns the legend's handles."""
    n = len(members)
    end = max(member.env_steps for member in members)
    colour, width, alpha = (ACCENT, 1.6, 1.0) if n == 1 else (THIN, 0.9, float(np.clip(3.0 / n, faintest, 0.75)))
    held_style: dict[str, Any] = {"color": MUTED, "lw": 0.7, "ls": (0, (4, 3))}
    handles: dict[str, Line2D] = {}
    for member in members:
        steps, scores = _finite_scores(member.curve)
        if not steps.size:
            continue
        held = _held_score(member, scores)
        axis.plot(steps, scores, color=colour, lw=width, alpha=alpha, zorder=1)
        if member.env_steps < end:
            axis.plot([member.env_steps, end], [held, held], alpha=max(alpha, 0.3), zorder=1, **held_style)
            handles[""] = Line2D([], [], label="kept policy, after the stop", **held_style)
        if member.stop_reason in _STOP_MARKERS:
            marker, fill, scale = _STOP_MARKERS[member.stop_reason]
            style: dict[str, Any] = {"marker": marker, "color": fill, "mec": "white", "mew": 0.6, "ls": "none"}
            axis.plot(member.env_steps, held, ms=scale * (6.5 if n <= 16 else 4.5), zorder=4, clip_on=False, **style)
            label = member.stop_reason.label
            handles[label] = Line2D([], [], ms=6.5 * scale, label=f"kept policy, fresh episodes: {label}", **style)
    return [handles[label] for label in sorted(handles)]


def _score_limits(members: Sequence[MemberResult], rows: np.ndarray) -> tuple[float, float]:
    """Limits that show the mean and all but far outliers: one diverged evaluation must not flatten the picture."""
    scores = np.concatenate([_finite_scores(member.curve)[1] for member in members])
    middle = interquartile_mean(rows, axis=0)
    low, high = np.quantile(scores, [0.02, 0.98])
    low, high = min(low, np.quantile(middle, 0.02)), max(high, np.quantile(middle, 0.98), rows[:, -1].max())
    span = high - low
    pad = 0.05 * span or 0.05 * abs(high) or 1.0
    return max(scores.min(), low - span) - pad, min(scores.max(), high + span) + pad


def _band(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[members, G] -> 2.5 % and 97.5 % quantile [G] each of the interquartile mean over resampled members."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(rows), (_RESAMPLES, len(rows)))
    drawn = np.stack([interquartile_mean(rows[pick], axis=0) for pick in picks])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return low, high


def _draw_track(axis: Axes, result: TrainResult, kind: str, name: str) -> None:
    """One of `Curve.hyperparams` or `Curve.losses` (kind) over time.

    Each member a thin step line, and their median; a stopped member's last value counts on. Of hyperparameters the
    median is of running means: a tuner tries values on both sides of what it has found.
    """
    members = [m for m in result.members if name in getattr(m.curve, kind) and len(m.curve)]
    grid = np.linspace(0, max(member.env_steps for member in members), _GRID)
    alpha = float(np.clip(4.0 / len(members), 0.2, 0.8))
    tracks = []
    for member in members:
        steps, values = member.curve.env_steps, getattr(member.curve, kind)[name]
        axis.step(steps, values, where="pre", color=THIN, lw=0.8, alpha=alpha)
        if kind == "hyperparams":
            values = running_mean(values, name in result.log_hyperparams)
        tracks.append(values[np.minimum(np.searchsorted(steps, grid), len(steps) - 1)])
    if kind == "hyperparams":
        _draw_copies(axis, result, name)
    axis.plot(grid, np.median(tracks, axis=0), color=ACCENT, lw=1.6)
    dress_track(axis, name, name in result.log_hyperparams)


def _draw_copies(axis: Axes, result: TrainResult, name: str) -> None:
    """A line from each parent's value to that of the copy which was made of it."""
    if result.lineage is None:
        return
    for window, parents in zip(result.lineage.window, result.lineage.parents, strict=True):
        for child in np.flatnonzero(parents != np.arange(len(parents))):
            curves = [result.members[i].curve for i in (int(parents[child]), int(child))]
            at = [np.searchsorted(curve.window, window) for curve in curves]  # the first evaluation after it
            if at[0] == 0 or at[1] >= len(curves[1]):
                continue
            values = curves[0].hyperparams[name][at[0] - 1], curves[1].hyperparams[name][at[1]]
            steps = float(curves[0].env_steps[at[0] - 1])
            axis.plot([steps, steps], values, color=_COPY, lw=0.9, alpha=0.8, zorder=4)
            axis.plot(steps, values[1], ".", color=_COPY, ms=4, zorder=4)


def _states_height(n_members: int) -> float:
    """Inches of the strip of loop states."""
    return float(np.clip(0.15 * n_members, 0.4, 2.4))


def _draw_states(
    axis: Axes, members: Sequence[MemberResult], starts: np.ndarray, names: Sequence[str]
) -> list[Line2D | Patch]:
    """One row per member, coloured by loop state; marks for new bests, roll-backs and non-finite values.

    Returns the handles of what occurs.
    """
    n = len(members)
    size = float(np.clip(0.62 * 72 * _states_height(n) / max(n, 1), 1.6, 6.0))
    seen: set[LoopState] = set()
    happened = 0
    for y, member in enumerate(members):
        spans, states = _state_spans(member, float(starts[y]))
        seen |= set(states)
        colours = [STATE_COLOURS[state] for state in states]
        axis.broken_barh(spans, (y - 0.5, 0.92 if n <= 24 else 1.0), facecolors=colours, lw=0)
        for event, (marker, colour, _) in _EVENT_MARKERS.items():
            steps = member.curve.env_steps[(member.curve.events & event) != 0]
            happened |= event if len(steps) else 0
            width = 0.6 if event == Event.BEST else 1.1
            axis.plot(steps, np.full(len(steps), y), marker, color=colour, ms=size, mew=width, ls="none")
        if member.stop_reason in _STOP_MARKERS:
            marker, colour, scale = _STOP_MARKERS[member.stop_reason]
            axis.plot(member.env_steps, y, marker, color=colour, ms=size * scale, mew=0, clip_on=False)
    axis.set_ylim(n - 0.4, -0.6)
    by = "by seed" if "." not in "".join(names) else "seed.member"
    axis.set_ylabel("state" if n < 6 else f"loop state\n{by}", fontsize=8.5)
    step = max(1, -(-n // 8))
    axis.set_yticks(range(0, n, step), [names[i] for i in range(0, n, step)])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    handles: list[Line2D | Patch] = [Patch(color=STATE_COLOURS[s], label=s.name.lower()) for s in sorted(seen)]
    for event, (marker, colour, label) in _EVENT_MARKERS.items():
        if happened & event:
            handles.append(Line2D([], [], marker=marker, color=colour, ls="none", ms=6, label=label))
    return handles


def _state_spans(member: MemberResult, start: float = 0.0) -> tuple[list[tuple[float, float]], list[LoopState]]:
    """(start, width) and state of the stretches of equal state: a state holds from its evaluation to the next."""
    states = np.concatenate([[LoopState.ACTIVE], member.curve.state]).astype(int)
    borders = np.concatenate([[start], member.curve.env_steps]).astype(float)
    changes = np.flatnonzero(np.diff(states, prepend=-1))
    starts = borders[changes]
    widths = np.diff(starts, append=max(float(member.env_steps), starts[-1]))
    spans = [(start, width) for start, width in zip(starts.tolist(), widths.tolist(), strict=True) if width > 0]
    return spans, [LoopState(int(state)) for state in states[changes][widths > 0]]
