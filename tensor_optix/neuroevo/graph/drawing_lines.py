"""Lines of edges in a graph's picture: by weight in colour and width, heads and numbers on delayed ones, loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform

from tensor_optix.neuroevo.graph.drawing_routes import Places

POSITIVE, NEGATIVE = "#1f5aa6", "#d9660c"
MOST_NUMBERED = 24  # edges with a delay above 1
_REACH = 6.2  # points from a neuron's middle, where heads end
_NUMBER_SIZE = 6.5
_PAPER = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.85}  # under numbers


class DrawnEdge(NamedTuple):
    """An edge, as its picture needs it."""

    src: int
    dst: int
    delay: int
    weight: float  # at most 1 where lines are to be widest

    @property
    def label(self) -> str:
        """Of its line, for who looks for it; the underscore keeps it out of legends."""
        return f"_{self.src}-{self.dst}-{self.delay}"

    @property
    def width(self) -> float:
        """Points."""
        return 0.3 + 2.2 * abs(self.weight)

    @property
    def style(self) -> dict[str, Any]:
        color = POSITIVE if self.weight >= 0 else NEGATIVE
        return {"color": color, "alpha": min(0.25 + 0.6 * abs(self.weight), 1.0), "zorder": 1}


class _InPixels(PathPatch):
    """An outline that is made anew at each drawing: what has its size in points stays as large on any axis."""

    def __init__(self, outline: Callable[[], np.ndarray], **style: Any) -> None:
        super().__init__(Path(np.zeros((2, 2))), in_layout=False, **style)
        self._outline = outline

    def get_path(self) -> Path:
        return Path(self._outline())

    def get_transform(self) -> IdentityTransform:
        return IdentityTransform()


def draw_edge(axis: Axes, edge: DrawnEdge, way: np.ndarray) -> None:
    """way: [n, 2]; of one point: a loop."""
    if edge.delay == 0 and way[0, 0] < way[-1, 0]:
        axis.plot(*way.T, lw=edge.width, label=edge.label, solid_capstyle="butt", **edge.style)
        return
    dash = (0, (3.0 / edge.width + 0.8, 2.0 / edge.width + 0.4)) if edge.delay else "-"  # thin ones must not be dots
    size = min(3.8 + 1.3 * edge.width, 6.5)

    def pixels() -> tuple[np.ndarray, np.ndarray, float]:
        point = axis.figure.dpi / 72
        points = axis.transData.transform(way)
        line = points if len(way) > 1 else points + loop(edge.delay) * point
        return line, points[-1], point

    def stem() -> np.ndarray:
        line, target, point = pixels()
        return _cut(line, target, (_REACH + 0.8 * size) * point)

    def head() -> np.ndarray:
        line, target, point = pixels()
        tip = _cut(line, target, _REACH * point)[-1]
        base = _cut(line, target, (_REACH + size) * point)[-1]
        across = 0.36 * np.asarray(((base - tip)[1], -(base - tip)[0]))
        return np.stack([tip, base + across, base - across, tip])

    clipped = len(way) > 1  # a loop may reach out of the axis
    axis.add_artist(
        _InPixels(stem, fill=False, lw=edge.width, ls=dash, label=edge.label, clip_on=clipped, **edge.style)
    )
    axis.add_artist(_InPixels(head, lw=0, label=f"{edge.label}-head", clip_on=clipped, **edge.style))
    axis.update_datalim(way)


def loop(delay: int) -> np.ndarray:
    """[n, 2], points from a neuron's middle: a circle over it, the larger and the wider open the longer the delay."""
    radius, half_open = 24 - 16.5 * 0.8 ** (delay - 1), np.radians(90 - 55 * 0.55 ** (delay - 1))
    foot = (_REACH - 1) * np.asarray((np.sin(half_open), np.cos(half_open)))
    up = np.sqrt(radius**2 - foot[0] ** 2)
    below = np.arctan2(up, foot[0])
    angle = np.linspace(np.pi + below, -below, 49)
    return np.stack([radius * np.cos(angle), foot[1] + up + radius * np.sin(angle)], axis=1)


def _cut(line: np.ndarray, target: np.ndarray, radius: float) -> np.ndarray:
    """The line up to where it comes as near to the target for good."""
    far = np.hypot(*(line - target).T)
    outside = np.flatnonzero(far >= radius)
    if not len(outside):
        return line[:1].repeat(2, axis=0)
    i = outside[-1]
    if i == len(line) - 1:
        return line
    share = (far[i] - radius) / (far[i] - far[i + 1])
    return np.concatenate([line[: i + 1], [line[i] + share * (line[i + 1] - line[i])]])


def draw_delays(
    axis: Axes, edges: Sequence[DrawnEdge], ways: Sequence[np.ndarray], places: Places, scale: np.ndarray
) -> None:
    """Numbers on edges with a delay above 1, if they are few: each on its line, where the others are not."""
    scale = 72 * scale  # to points
    taken = [np.asarray(place) * scale for place in places.values()]
    late = [(edge, way) for edge, way in zip(edges, ways, strict=True) if edge.delay > 1]
    for edge, way in late if len(late) <= MOST_NUMBERED else []:
        spots = [(way[0], _beside(edge.delay))] if len(way) == 1 else [(spot, np.zeros(2)) for spot in _spots(way)]
        room = [min(np.hypot(*(spot * scale + shift - other)) for other in taken) for spot, shift in spots]
        spot, shift = spots[next((i for i, far in enumerate(room) if far > 10), int(np.argmax(room)))]
        taken.append(spot * scale + shift)
        axis.annotate(str(edge.delay), tuple(spot), tuple(shift), textcoords="offset points", fontsize=_NUMBER_SIZE,
                      color=edge.style["color"], zorder=4, ha="center", va="center", label=f"{edge.label}-delay",
                      annotation_clip=False, bbox=_PAPER)  # fmt: skip


def _spots(way: np.ndarray) -> list[np.ndarray]:
    """Along a way, its middle first."""
    at = np.asarray((0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74)) * (len(way) - 1)
    return [np.asarray([np.interp(i, np.arange(len(way)), axis) for axis in way.T]) for i in at]


def _beside(delay: int) -> np.ndarray:
    """Points from a neuron's middle: on its loop, right and left in turn."""
    points = loop(delay)
    return points[len(points) * (3 if delay % 2 else 7) // 10]
