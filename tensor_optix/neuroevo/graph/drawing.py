"""Pictures of graphs of neurons: levels from left to right, weights by colour and width, kinds by shape.

Imports matplotlib, without pyplot: no window, no global state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Arc, FancyArrowPatch

from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import Graph, Kind, Role
from tensor_optix.neuroevo.graph.levels import levels
from tensor_optix.notebook_figure import NotebookFigure

Places = Mapping[int, tuple[float, float]]  # slot -> x, y

_POSITIVE, _NEGATIVE, _INK = "#1f5aa6", "#d9660c", "#30343b"
_FILL = {Role.INPUT: "#9aa7b8", Role.HIDDEN: "#a8d5b5", Role.OUTPUT: "#f3d98b"}
_SHAPE = {Kind.POINT: "o", Kind.GRU: "s", Kind.LSTM: "D", Kind.TRAINABLE_GRU: "s", Kind.TRAINABLE_LSTM: "D"}
_NAMES = {
    Kind.POINT: "point",
    Kind.GRU: "GRU",
    Kind.LSTM: "LSTM",
    Kind.TRAINABLE_GRU: "trainable GRU",
    Kind.TRAINABLE_LSTM: "trainable LSTM",
}
_MOST_DRAWN = 1500  # edges; beyond that only the heaviest
_MOST_LABELLED = 12  # inputs, and outputs; beyond that labels would cover each other


def draw(
    graph: Graph,
    axis: Axes,
    title: str = "",
    legend: bool = True,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    places: Places | None = None,
    largest: float | None = None,
) -> None:
    """Draw one graph (NumPy or JAX arrays, no leading axis) on `axis`.

    Straight lines are edges without delay, dashed arcs delayed ones; blue weights are positive, orange ones negative,
    and wide ones large.

    Args:
        graph: one graph.
        axis: what is there stays.
        title: "": the numbers of neurons and edges.
        legend: below the picture.
        input_names, output_names: of all, in their order; (): numbers. Up to 12 are shown.
        places: of the neurons, as `stable_places` gives them; None: those of this graph alone.
        largest: the weight of the widest line; None: this graph's.

    Raises:
        ValueError: names are more or fewer than inputs or outputs.
    """
    topology = graph.topology
    matrix, edges = np.asarray(dale.effective(graph)), np.asarray(topology.edges)
    labels = _labels(graph, input_names, output_names)
    everywhere = stable_places([graph]) if places is None else places
    there = {int(slot): everywhere[int(slot)] for slot in np.flatnonzero(np.asarray(topology.role))}
    _draw_edges(axis, matrix / (largest or np.abs(matrix).max() or 1.0), edges, there)
    _draw_neurons(axis, graph, there)
    for slot, (text, side) in labels.items():
        axis.annotate(text, there[slot], (9 * side, 0), textcoords="offset points", fontsize=8, color=_INK,
                      ha="left" if side > 0 else "right", va="center")  # fmt: skip
    axis.set_title(title or f"{len(there)} neurons, {int(edges.sum())} edges", loc="left", fontsize=10)
    axis.margins(0.08)
    axis.set_axis_off()
    if legend:
        handles = _handles(graph)
        axis.legend(handles=handles, fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.01),
                    ncols=len(handles))  # fmt: skip


def graph_figure(
    graph: Graph, title: str = "", *, input_names: Sequence[str] = (), output_names: Sequence[str] = ()
) -> Figure:
    """A figure of one graph; arguments as in `draw`."""
    figure = NotebookFigure(figsize=(8, 5.5), layout="constrained")
    draw(graph, figure.subplots(), title, input_names=input_names, output_names=output_names)
    return figure


def growth_figure(
    graphs: Sequence[Graph],
    titles: Sequence[str],
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> Figure:
    """A strip of the same graph at several times: neurons keep their places and weights their scale.

    Args:
        graphs: in their order.
        titles: one for each; "": the numbers of neurons and edges.
        input_names, output_names: as in `draw`.

    Raises:
        ValueError: no graph; titles or names are more or fewer; or inputs or outputs differ from graph to graph.
    """
    shared = _shared(graphs, titles)
    figure = NotebookFigure(figsize=(4.2 * len(graphs), 4.2), layout="constrained")
    axes = figure.subplots(1, len(graphs), squeeze=False, sharex=True, sharey=True)[0]
    for axis, graph, title in zip(axes, graphs, titles, strict=True):
        draw(graph, axis, title, legend=False, input_names=input_names, output_names=output_names, **shared)
    return figure


def growth_animation(
    graphs: Sequence[Graph],
    path: str | os.PathLike[str],
    titles: Sequence[str] = (),
    *,
    frames_per_second: float = 2.0,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> None:
    """Write an animated GIF of the same graph at several times, a frame each; see `growth_figure`.

    Args:
        graphs: in their order.
        path: a file in a directory that exists.
        titles: one for each, or none.
        frames_per_second: at most 50, where GIF ends.
        input_names, output_names: as in `draw`.

    Raises:
        ValueError: as in `growth_figure`, or frames_per_second is out of range.
    """
    if not 0 < frames_per_second <= 50:
        raise ValueError(f"frames_per_second must be in (0, 50], got {frames_per_second}")
    titles = titles or [""] * len(graphs)
    shared = _shared(graphs, titles)
    low, high = (f(list(shared["places"].values()), axis=0) for f in (np.min, np.max))
    room = 0.08 * (high - low) + 0.05
    left, right = (0.05 + 0.01 * max(map(len, names), default=1) for names in (input_names, output_names))
    figure = Figure(figsize=(6.4, 4.6))
    axis = figure.add_axes((left, 0.03, 1 - left - right, 0.88))  # the same in every frame
    writer = PillowWriter(fps=frames_per_second)  # type: ignore[arg-type]  # less than one a second, too
    with writer.saving(figure, os.fspath(path), dpi=100):
        for graph, title in zip(graphs, titles, strict=True):
            axis.clear()
            draw(graph, axis, title, legend=False, input_names=input_names, output_names=output_names, **shared)
            axis.set_xlim(low[0] - room[0], high[0] + room[0])
            axis.set_ylim(low[1] - room[1], high[1] + room[1])
            writer.grab_frame()


def stable_places(graphs: Sequence[Graph]) -> dict[int, tuple[float, float]]:
    """Slot -> x, y: the deepest level that a neuron in the slot has in any of the graphs, evenly spread within it.

    Outputs have the level behind all others.
    """
    column: dict[int, int] = {}
    outputs: set[int] = set()
    for graph in graphs:
        role = np.asarray(graph.topology.role)
        level = np.asarray(levels(graph.topology.edges[0], graph.capacity.levels, graph.capacity.inputs)[0])
        outputs.update(np.flatnonzero(role == Role.OUTPUT).tolist())
        for slot in np.flatnonzero(role).tolist():
            column[slot] = max(column.get(slot, 0), int(level[slot]))
    last = max([0, *(x for slot, x in column.items() if slot not in outputs)]) + 1
    column |= dict.fromkeys(outputs, last)  # together, at the right
    places = {}
    for x in sorted(set(column.values())):
        slots = sorted(slot for slot in column if column[slot] == x)
        for i, slot in enumerate(slots):
            places[slot] = float(x), -(i - (len(slots) - 1) / 2) / max(len(slots), 4)
    return places


def _shared(graphs: Sequence[Graph], titles: Sequence[str]) -> dict[str, Any]:
    """What `draw` is told for all of the graphs alike."""
    if len(graphs) != len(titles) or not graphs:
        raise ValueError(f"one title for each graph, and at least one: got {len(graphs)} and {len(titles)}")
    ends = {(graph.capacity.inputs, graph.capacity.outputs) for graph in graphs}
    if len(ends) > 1:
        raise ValueError(
            f"the same graph at several times has the same inputs and outputs, got {sorted(ends)}: draw others one by "
            "one with draw"
        )
    largest = max(float(np.abs(np.asarray(dale.effective(graph))).max()) for graph in graphs)
    return {"places": stable_places(graphs), "largest": largest}


def _draw_edges(axis: Axes, matrix: np.ndarray, edges: np.ndarray, places: Places) -> None:
    """matrix: weights [1 + D, N, N], at most 1 where lines are to be widest."""
    found = np.argwhere(edges)
    heaviest = np.argsort(-np.abs(matrix[edges]), kind="stable")[:_MOST_DRAWN]
    for d, dst, src in found[heaviest][::-1]:  # the heaviest on top
        weight = float(matrix[d, dst, src])
        style: dict[str, Any] = {
            "color": _POSITIVE if weight >= 0 else _NEGATIVE,
            "lw": 0.3 + 2.2 * abs(weight),
            "alpha": min(0.25 + 0.6 * abs(weight), 1.0),
            "zorder": 1,
        }
        (x0, y0), (x1, y1) = places[src], places[dst]
        if d == 0:
            axis.plot([x0, x1], [y0, y1], **style)
        elif src == dst:
            axis.add_patch(Arc((x0, y0 + 0.035), 0.09, 0.07, ls="--", **style))
        else:
            bend = f"arc3,rad={0.18 + 0.08 * d}"
            arc = FancyArrowPatch((x0, y0), (x1, y1), connectionstyle=bend, arrowstyle="-", ls="--", **style)
            axis.add_patch(arc)


def _draw_neurons(axis: Axes, graph: Graph, places: Places) -> None:
    role, kind = np.asarray(graph.topology.role), np.asarray(graph.topology.kind)
    for slot, (x, y) in places.items():
        code = Kind(int(kind[slot]))
        axis.plot(x, y, _SHAPE[code], ms=9, color=_FILL[Role(int(role[slot]))], mec=_INK, mew=_border(code), zorder=3)


def _border(kind: Kind) -> float:
    return 1.8 if kind in (Kind.TRAINABLE_GRU, Kind.TRAINABLE_LSTM) else 0.7


def _handles(graph: Graph) -> list[Line2D]:
    """Of the legend: what there is in this graph."""
    role, kind = np.asarray(graph.topology.role), np.asarray(graph.topology.kind)
    shown = [Kind(int(code)) for code in np.unique(kind[role != Role.ABSENT])]
    handles = [
        Line2D([], [], marker=_SHAPE[code], ls="none", color="white", mec=_INK, mew=_border(code), label=_NAMES[code])
        for code in shown
    ]
    handles += [Line2D([], [], color=_POSITIVE, label="positive"), Line2D([], [], color=_NEGATIVE, label="negative")]
    if np.asarray(graph.topology.edges)[1:].any():
        handles.append(Line2D([], [], color=_INK, ls="--", label="delayed"))
    return handles


def _labels(graph: Graph, input_names: Sequence[str], output_names: Sequence[str]) -> dict[int, tuple[str, int]]:
    """Slot -> its label, and the side on which it stands: -1 left, 1 right."""
    role, capacity = np.asarray(graph.topology.role), graph.capacity
    labels: dict[int, tuple[str, int]] = {}
    for what, code, first, names, side in (
        ("input", Role.INPUT, 0, input_names, -1),
        ("output", Role.OUTPUT, capacity.inputs, output_names, 1),
    ):
        slots = np.flatnonzero(role == code).tolist()
        count = max(slots, default=first - 1) + 1 - first
        if names and len(names) != count:
            raise ValueError(f"{what}_names must name every {what}, {count} of them, got {len(names)}")
        if len(slots) <= _MOST_LABELLED:
            labels |= {slot: (str(names[slot - first] if names else slot - first), side) for slot in slots}
    return labels
