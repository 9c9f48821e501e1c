"""A picture of a graph of neurons: levels from left to right, weights by colour and width, kinds by shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import Graph, Kind, Role
from tensor_optix.neuroevo.graph.levels import levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POSITIVE, _NEGATIVE = "#1f5aa6", "#d9660c"
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


def draw(graph: Graph, axis: Axes, title: str = "", legend: bool = True) -> None:
    """Draw one graph (NumPy or JAX arrays, no leading axis) on `axis`.

    Straight lines are edges without delay, dashed arcs delayed ones; blue weights are positive, orange ones negative,
    and wide ones large.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch

    topology = graph.topology
    role, kind = np.asarray(topology.role), np.asarray(topology.kind)
    matrix, edges = np.asarray(dale.effective(graph)), np.asarray(topology.edges)
    places = _places(graph)
    largest = np.abs(matrix).max() or 1.0
    found = np.argwhere(edges)
    heaviest = np.argsort(-np.abs(matrix[edges]), kind="stable")[:_MOST_DRAWN]
    for d, dst, src in found[heaviest][::-1]:  # the heaviest on top
        weight = matrix[d, dst, src] / largest
        style: dict[str, Any] = {
            "color": _POSITIVE if weight >= 0 else _NEGATIVE,
            "lw": 0.3 + 2.2 * abs(weight),
            "alpha": 0.25 + 0.6 * abs(weight),
            "zorder": 1,
        }
        (x0, y0), (x1, y1) = places[src], places[dst]
        if d == 0:
            axis.plot([x0, x1], [y0, y1], **style)
        elif src == dst:
            axis.add_patch(_loop(x0, y0, style))
        else:
            axis.add_patch(
                FancyArrowPatch(
                    (x0, y0), (x1, y1), connectionstyle=f"arc3,rad={0.18 + 0.08 * d}", arrowstyle="-", ls="--", **style
                )
            )
    for slot, (x, y) in places.items():
        code = Kind(int(kind[slot]))
        trainable = code in (Kind.TRAINABLE_GRU, Kind.TRAINABLE_LSTM)
        axis.plot(x, y, _SHAPE[code], ms=9, color=_FILL[Role(int(role[slot]))], mec="#30343b",
                  mew=1.8 if trainable else 0.7, zorder=3)  # fmt: skip
    axis.set_title(title or f"{len(places)} neurons, {int(edges.sum())} edges", loc="left", fontsize=10)
    axis.margins(0.08)
    axis.set_axis_off()
    if legend:
        shown = sorted({int(kind[slot]) for slot in places})
        handles = [
            Line2D([], [], marker=_SHAPE[Kind(code)], ls="none", color="white", mec="#30343b",
                   mew=1.8 if code >= Kind.TRAINABLE_GRU else 0.7, label=_NAMES[Kind(code)])
            for code in shown
        ]  # fmt: skip
        handles += [
            Line2D([], [], color=_POSITIVE, label="positive"),
            Line2D([], [], color=_NEGATIVE, label="negative"),
        ]
        if edges[1:].any():
            handles.append(Line2D([], [], color="#30343b", ls="--", label="delayed"))
        axis.legend(handles=handles, fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.01),
                    ncols=len(handles))  # fmt: skip


def graph_figure(graph: Graph, title: str = "") -> Figure:
    """A figure of one graph."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    draw(graph, figure.subplots(), title)
    return figure


def growth_figure(graphs: list[Graph], titles: list[str]) -> Figure:
    """A strip of the same graph at several times, side by side."""
    from matplotlib.figure import Figure

    if len(graphs) != len(titles) or not graphs:
        raise ValueError(f"one title for each graph, and at least one: got {len(graphs)} and {len(titles)}")
    figure = Figure(figsize=(4.2 * len(graphs), 4.2), layout="constrained")
    for axis, graph, title in zip(figure.subplots(1, len(graphs), squeeze=False)[0], graphs, titles, strict=True):
        draw(graph, axis, title, legend=False)
    return figure


def _places(graph: Graph) -> dict[int, tuple[float, float]]:
    """slot -> x, y: the level, and evenly spread within it."""
    role = np.asarray(graph.topology.role)
    level = np.asarray(levels(graph.topology.edges[0], graph.capacity.levels, graph.capacity.inputs)[0])
    last = max((int(level[slot]) for slot in np.flatnonzero(role != Role.ABSENT)), default=1)
    level = np.where(role == Role.OUTPUT, max(last, 1), level)  # together, at the right
    places = {}
    for column in np.unique(level[role != Role.ABSENT]):
        slots = np.flatnonzero((role != Role.ABSENT) & (level == column))
        for i, slot in enumerate(slots):
            places[int(slot)] = float(column), -(i - (len(slots) - 1) / 2) / max(len(slots), 4)
    return places


def _loop(x: float, y: float, style: dict[str, Any]) -> Any:
    from matplotlib.patches import Arc

    return Arc((x, y + 0.035), 0.09, 0.07, ls="--", **style)
