"""Pictures of graphs of neurons: levels from left to right, weights by colour and width, kinds by shape.

Imports matplotlib, without pyplot: no window, no global state.
"""

from __future__ import annotations

import os
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import CellType, Graph, Kind, Role
from tensor_optix.neuroevo.graph.drawing_lines import (
    MOST_NUMBERED,
    NEGATIVE,
    POSITIVE,
    DrawnEdge,
    draw_delays,
    draw_edge,
    loop,
)
from tensor_optix.neuroevo.graph.drawing_routes import Places, Routes
from tensor_optix.neuroevo.graph.levels import levels
from tensor_optix.notebook_figure import NotebookFigure

_INK = "#30343b"
_FILL = {Role.INPUT: "#9aa7b8", Role.HIDDEN: "#a8d5b5", Role.OUTPUT: "#f3d98b"}
_SHAPE = {Kind.POINT: "o", Kind.GRU: "s", Kind.LSTM: "D", Kind.TRAINABLE_GRU: "s", Kind.TRAINABLE_LSTM: "D"}
_NAMES = {
    Kind.POINT: "point",
    Kind.GRU: "GRU",
    Kind.LSTM: "LSTM",
    Kind.TRAINABLE_GRU: "trainable GRU",
    Kind.TRAINABLE_LSTM: "trainable LSTM",
}
_SIGN = {CellType.EXCITATORY: "+", CellType.INHIBITORY: "_"}  # markers
_MOST_DRAWN = 1500  # edges; beyond that only the heaviest
_MOST_LABELLED = 12  # inputs, and outputs; beyond that labels would cover each other
_MOST_IN_A_ROW = 3  # panels of a strip
_TITLE_SIZE, _LABEL_SIZE, _LEGEND_SIZE = 9.5, 8.0, 7.5
_MARGIN = 0.1

# Points
_MARKER = 9.0


class HasArrays(Protocol):
    """What stands for a graph, such as a `NeuronGraph`."""

    @property
    def arrays(self) -> Graph:
        """The graph."""


def draw(
    graph: Graph | HasArrays,
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

    Full lines are edges without delay: from left to right, or with a head. Dashed ones with a head are delayed, by the
    number beside them or by 1; without numbers where these would be many. Blue weights are positive, orange ones
    negative, and wide ones large. Lines keep clear of neurons that are not theirs where there is room. + and - are
    neurons that Dale's law makes excitatory and inhibitory.

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
        TypeError: this is no graph, and has none as its `arrays`.
    """
    graph = _arrays(graph)
    labels = _labels(graph, input_names, output_names)
    places = stable_places([graph]) if places is None else places
    size = _inches(axis, labels)
    scale = _scale(places, size)
    there, edges, ways = _laid(graph, scale, places, largest)
    for edge, way in zip(edges, ways, strict=True):
        draw_edge(axis, edge, way)
    draw_delays(axis, edges, ways, there, scale)
    _draw_neurons(axis, graph, there)
    for slot, (text, side) in labels.items():
        away = max([_MARKER, *(loop(edge.delay)[:, 0].max() + 3 for edge in edges if edge[:2] == (slot, slot))])
        axis.annotate(text, there[slot], (away * side, 0), textcoords="offset points", fontsize=_LABEL_SIZE,
                      color=_INK, ha="left" if side > 0 else "right", va="center")  # fmt: skip
    title = title or f"{len(there)} neurons, {int(np.asarray(graph.topology.edges).sum())} edges"
    axis.set_title(_wrapped(title, size[0]), loc="left", fontsize=_TITLE_SIZE)
    axis.update_datalim(_frame(places))
    axis.margins(_MARGIN)
    axis.set_axis_off()
    if legend:
        axis.legend(**_legend([graph], size[0]), loc="upper center", bbox_to_anchor=(0.5, -0.01))


def graph_figure(
    graph: Graph | HasArrays, title: str = "", *, input_names: Sequence[str] = (), output_names: Sequence[str] = ()
) -> Figure:
    """A figure of one graph; arguments as in `draw`."""
    places = stable_places([graph])
    rows = max(Counter(x for x, _ in places.values()).values(), default=1)
    figure = NotebookFigure(figsize=(8, min(2.4 + 0.7 * rows, 5.5)), layout="constrained")
    draw(graph, figure.subplots(), title, input_names=input_names, output_names=output_names, places=places)
    return figure


def growth_figure(
    graphs: Sequence[Graph | HasArrays],
    titles: Sequence[str],
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> Figure:
    """A strip of the same graph at several times: neurons keep their places and weights their scale.

    Panels stand in rows of up to three, above one legend.

    Args:
        graphs: in their order.
        titles: one for each; "": the numbers of neurons and edges.
        input_names, output_names: as in `draw`.

    Raises:
        ValueError: no graph; titles or names are more or fewer; or inputs or outputs differ from graph to graph.
        TypeError: as in `draw`.
    """
    graphs, shared = _shared(graphs, titles)
    rows = -(-len(graphs) // _MOST_IN_A_ROW)
    columns = -(-len(graphs) // rows)
    figure = NotebookFigure(figsize=(3.5 * columns, 3.1 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).reshape(-1)
    for axis in axes[len(graphs) :]:
        axis.remove()
    for axis, graph, title in zip(axes, graphs, titles, strict=False):
        draw(graph, axis, title, legend=False, input_names=input_names, output_names=output_names, **shared)
    figure.legend(**_legend(graphs, 3.5 * columns), loc="outside lower center")
    return figure


def growth_animation(
    graphs: Sequence[Graph | HasArrays],
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
        TypeError: as in `draw`.
    """
    if not 0 < frames_per_second <= 50:
        raise ValueError(f"frames_per_second must be in (0, 50], got {frames_per_second}")
    titles = titles or [""] * len(graphs)
    graphs, shared = _shared(graphs, titles)
    figure, axis = _stage(graphs, titles, input_names, output_names)
    low, high = _limits(graphs, _scale(shared["places"], _inches(axis)), **shared)
    writer = PillowWriter(fps=frames_per_second)  # type: ignore[arg-type]  # less than one a second, too
    with writer.saving(figure, os.fspath(path), dpi=100):
        for graph, title in zip(graphs, titles, strict=True):
            axis.clear()
            draw(graph, axis, title, legend=False, input_names=input_names, output_names=output_names, **shared)
            axis.set_xlim(low[0], high[0])
            axis.set_ylim(low[1], high[1])
            writer.grab_frame()


def stable_places(graphs: Sequence[Graph | HasArrays]) -> dict[int, tuple[float, float]]:
    """Slot -> x, y: the deepest level that a neuron in the slot has in any of the graphs, evenly spread within it.

    Outputs have the level behind all others.
    """
    column: dict[int, int] = {}
    outputs: set[int] = set()
    for graph in map(_arrays, graphs):
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


def _arrays(graph: Graph | HasArrays) -> Graph:
    arrays = getattr(graph, "arrays", graph)
    if not isinstance(arrays, Graph):
        raise TypeError(
            f"what is drawn is a Graph, or has one as its `arrays` as a NeuronGraph has, got a {type(graph).__name__}"
        )
    return arrays


def _shared(graphs: Sequence[Graph | HasArrays], titles: Sequence[str]) -> tuple[list[Graph], dict[str, Any]]:
    """The graphs, and what `draw` is told for all of them alike."""
    if len(graphs) != len(titles) or not graphs:
        raise ValueError(f"one title for each graph, and at least one: got {len(graphs)} and {len(titles)}")
    pure = [_arrays(graph) for graph in graphs]
    ends = {(graph.capacity.inputs, graph.capacity.outputs) for graph in pure}
    if len(ends) > 1:
        raise ValueError(
            f"the same graph at several times has the same inputs and outputs, got {sorted(ends)}: draw others one by "
            "one with draw"
        )
    largest = max(float(np.abs(np.asarray(dale.effective(graph))).max()) for graph in pure)
    return pure, {"places": stable_places(pure), "largest": largest}


# Where lines run


def _frame(places: Places) -> np.ndarray:
    """[2, 2]: the least and the largest x, y, not too near each other where neurons stand in one row."""
    corners = np.asarray(list(places.values())).reshape(-1, 2) if places else np.zeros((1, 2))
    low, high = corners.min(axis=0), corners.max(axis=0)
    room = np.maximum(np.asarray((1.0, 0.5)) - (high - low), 0.0) / 2
    return np.stack([low - room, high + room])


def _inches(axis: Axes, labels: Mapping[int, tuple[str, int]] | None = None) -> np.ndarray:
    """[2]: width and height; before a layout that adapts to labels, what they are going to be."""
    box, figure = axis.get_window_extent(), axis.figure
    spec = axis.get_subplotspec()
    if figure.get_layout_engine() is None or spec is None or spec.get_topmost_subplotspec() is not spec:
        return np.asarray((box.width, box.height)) / figure.dpi
    rows, columns, first, last = spec.get_geometry()
    across, down = 1 + last % columns - first % columns, 1 + last // columns - first // columns
    beside = [max((len(text) for text, at in (labels or {}).values() if at == side), default=0) for side in (-1, 1)]
    width = figure.bbox.width / figure.dpi * across / columns - (18 + 0.6 * _LABEL_SIZE * sum(beside)) / 72
    return np.asarray((max(width, 1.0), 0.85 * figure.bbox.height / figure.dpi * down / rows))


def _scale(places: Places, size: np.ndarray) -> np.ndarray:
    """[2]: inches between places that are 1 apart."""
    low, high = _frame(places)
    return size / ((1 + 2 * _MARGIN) * (high - low))


def _laid(
    graph: Graph, scale: np.ndarray, places: Places, largest: float | None
) -> tuple[dict[int, tuple[float, float]], list[DrawnEdge], list[np.ndarray]]:
    """Places of the neurons that there are; the edges to draw, the heaviest last; and of each its way, [n, 2]."""
    there = {int(slot): places[int(slot)] for slot in np.flatnonzero(np.asarray(graph.topology.role))}
    matrix = np.asarray(dale.effective(graph))
    matrix = matrix / (largest or np.abs(matrix).max() or 1.0)
    mask = np.asarray(graph.topology.edges)
    heaviest = np.argsort(-np.abs(matrix[mask]), kind="stable")[:_MOST_DRAWN]
    found = np.argwhere(mask)[heaviest][::-1].tolist()
    edges = [DrawnEdge(src, dst, d, float(matrix[d, dst, src])) for d, dst, src in found]

    routes = Routes(there, scale)
    ways = {edge: routes.lay(edge) / scale for edge in sorted(edges, key=routes.turn)}
    return there, edges, [ways[edge] for edge in edges]


def _limits(
    graphs: Sequence[Graph], scale: np.ndarray, places: Places, largest: float
) -> tuple[np.ndarray, np.ndarray]:
    """What all of the graphs take up, with a margin."""
    taken = [_frame(places)]
    for graph in graphs:
        taken += _laid(graph, scale, places, largest)[2]
    corners = np.concatenate(taken)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return low - _MARGIN * (high - low), high + _MARGIN * (high - low)


# Neurons, and what is written


def _draw_neurons(axis: Axes, graph: Graph, places: Places) -> None:
    topology = graph.topology
    role, kind, cell_type = (np.asarray(x) for x in (topology.role, topology.kind, topology.cell_type))
    for slot, (x, y) in places.items():
        code = Kind(int(kind[slot]))
        axis.plot(x, y, _SHAPE[code], ms=_MARKER, color=_FILL[Role(int(role[slot]))], mec=_INK, mew=_border(code),
                  zorder=3, label=f"_{slot}")  # fmt: skip
        sign = CellType(int(cell_type[slot]))
        if sign != CellType.ANY:
            axis.plot(x, y, zorder=3.5, label=f"_{slot}-{sign.name.lower()}", **_mark(sign))


def _mark(sign: CellType) -> dict[str, Any]:
    return {"marker": _SIGN[sign], "ls": "none", "ms": 5.0, "mec": _INK, "mew": 1.1}


def _border(kind: Kind) -> float:
    return 1.8 if kind in (Kind.TRAINABLE_GRU, Kind.TRAINABLE_LSTM) else 0.7


def _legend(graphs: Sequence[Graph], width: float) -> dict[str, Any]:
    """Arguments of a legend of what there is in any of the graphs, as many in a row as go into a width in inches."""
    entries = _entries(graphs)
    inches = [_LEGEND_SIZE / 72 * (0.56 * len(name) + 4.8) for name, _ in entries]
    rows = -(-sum(inches) // width)
    return {
        "handles": [handle for _, handle in entries],
        "labels": [name for name, _ in entries],
        "ncols": int(-(-len(entries) // max(rows, 1))),
        "fontsize": _LEGEND_SIZE,
        "frameon": False,
    }


def _entries(graphs: Sequence[Graph]) -> list[tuple[str, Any]]:
    """Label and handle, in the order of the legend."""
    kinds: set[Kind] = set()
    signs: set[CellType] = set()
    delayed: set[str] = set()
    for topology in (graph.topology for graph in graphs):
        there = np.asarray(topology.role) != Role.ABSENT
        kinds.update(Kind(int(code)) for code in np.unique(np.asarray(topology.kind)[there]))
        signs.update(CellType(int(code)) for code in np.unique(np.asarray(topology.cell_type)[there]))
        late = np.asarray(topology.edges)[1:].sum(axis=(1, 2))
        if late.any():
            delayed.add("delayed (number: steps)" if 0 < late[1:].sum() <= MOST_NUMBERED else "delayed")

    def neuron(code: Kind) -> Line2D:
        return Line2D([], [], marker=_SHAPE[code], ls="none", color="white", mec=_INK, mew=_border(code))

    entries: list[tuple[str, Any]] = [(_NAMES[code], neuron(code)) for code in sorted(kinds)]
    for sign in (CellType.EXCITATORY, CellType.INHIBITORY):
        if sign in signs:
            disc = Line2D([], [], marker="o", ls="none", ms=_MARKER - 1, color=_FILL[Role.HIDDEN], mec=_INK, mew=0.7)
            entries.append((sign.name.lower(), (disc, Line2D([], [], **_mark(sign)))))
    entries += [("positive", Line2D([], [], color=POSITIVE)), ("negative", Line2D([], [], color=NEGATIVE))]
    return entries + [(name, Line2D([], [], color=_INK, ls="--")) for name in sorted(delayed)[-1:]]


def _stage(
    graphs: Sequence[Graph], titles: Sequence[str], input_names: Sequence[str], output_names: Sequence[str]
) -> tuple[Figure, Axes]:
    """A figure with a legend and an axis that are the same in every frame of an animation."""
    width, height = 6.4, 4.8
    figure, arguments = Figure(figsize=(width, height)), _legend(graphs, width)
    figure.legend(**arguments, loc="lower center", borderaxespad=0.3)
    left, right = (0.05 + 0.01 * max(map(len, names), default=1) for names in (input_names, output_names))
    lines = 1 + max(_wrapped(title, width * (1 - left - right)).count("\n") for title in titles)
    rows = -(-len(arguments["labels"]) // arguments["ncols"])
    below, above = 0.03 + 0.045 * rows, 0.05 + 0.04 * lines
    return figure, figure.add_axes((left, below, 1 - left - right, 1 - below - above))


def _wrapped(title: str, width: float) -> str:
    """Its lines broken where they would be wider than a width in inches."""
    lines = []
    for line in title.split("\n"):
        share = width * 72 / TextPath((0, 0), line, size=_TITLE_SIZE).get_extents().width if line.strip() else 1.0
        lines.append(line if share >= 1 else textwrap.fill(line, max(int(0.95 * share * len(line)), 6)))
    return "\n".join(lines)


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
