"""Ways of a graph's edges in its picture: straight where that is clear, bowed or from gap to gap where it is not.

Geometry alone, in NumPy: nothing is drawn here.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Places = Mapping[int, tuple[float, float]]  # slot -> x, y

# Points
_CLEAR = 9.5  # of other neurons' middles, where there is room
_APART = 6.5  # lines where they pass a level


class Edge(Protocol):
    """What a way is laid for."""

    @property
    def src(self) -> int: ...
    @property
    def dst(self) -> int: ...
    @property
    def delay(self) -> int: ...


class Routes:
    """Ways from neuron to neuron, in inches, clear of others: of neurons, and of ways that were laid before."""

    def __init__(self, places: Places, scale: np.ndarray) -> None:
        self._at = {slot: np.asarray(place) * scale for slot, place in places.items()}
        self._step = float(scale[0])  # from level to level
        columns: dict[float, list[float]] = defaultdict(list)
        for x, y in self._at.values():
            columns[float(x)].append(float(y))
        self._columns = {x: np.sort(columns[x]) for x in sorted(columns)}
        self._passed: dict[float, list[float]] = {x: [] for x in columns}  # where ways cross it
        self._within: dict[float, list[np.ndarray]] = defaultdict(list)  # x midway -> three heights of ways around it
        self._between: Counter[tuple[int, int, int]] = Counter()  # side, neurons -> ways of that side
        gaps = [float(gap) for ys in self._columns.values() for gap in np.diff(ys)]
        self._clear = min(_CLEAR / 72, 0.45 * min(gaps, default=1.0))
        self._lanes = {x: self._lanes_of(ys) for x, ys in self._columns.items()}

    def turn(self, edge: Edge) -> tuple[Any, ...]:
        """Whose turn it is: straight ways come first, then short ones, whatever they weigh."""
        start, end = self._at[edge.src], self._at[edge.dst]
        straight = False
        if edge.delay == 0 and start[0] != end[0]:
            straight = bool(self._are_clear(np.zeros(1), start, end, self._crossed(start, end))[0])
        return not straight, edge.delay > 0, abs(start[0] - end[0]), edge.delay, edge.src, edge.dst

    def lay(self, edge: Edge) -> np.ndarray:
        """[n, 2], from the middle of a neuron to the middle of the other."""
        start, end = self._at[edge.src], self._at[edge.dst]
        if edge.src == edge.dst:
            return start[None]
        if start[0] == end[0]:
            return self._aside(edge, start, end)
        crossed = self._crossed(start, end)
        way = self._bent(edge, start, end, crossed)
        for x, y in zip(crossed, _heights(way, crossed), strict=True):
            self._passed[x].append(float(y))
        for x in _midway(start, end, crossed):
            self._within[x].append(_heights(way, self._around(x)))
        return way

    def _crossed(self, start: np.ndarray, end: np.ndarray) -> list[float]:
        """The levels between, in the order in which a way comes to them."""
        low, high = sorted((float(start[0]), float(end[0])))
        return [x for x in self._columns if low < x < high][:: 1 if start[0] < end[0] else -1]

    def _aside(self, edge: Edge, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Within a level: past the neurons between, on the left as seen from the source, and never over labels."""
        column = self._columns[float(start[0])]
        side = -1 if end[1] > start[1] or start[0] == max(self._columns) else 1
        low, high = sorted((float(start[1]), float(end[1])))
        far = 1 + np.count_nonzero((column > low) & (column < high)) + 0.7 * self._rank(edge, side)
        width = max(self._step * (0.06 + 0.36 * far / (far + 3)), _CLEAR / 72)
        t = np.linspace(0, 1, 33)[:, None]
        return start + (end - start) * t + np.asarray((side * width, 0.0)) * (1 - np.abs(2 * t - 1) ** 2.5)

    def _bent(self, edge: Edge, start: np.ndarray, end: np.ndarray, crossed: Sequence[float]) -> np.ndarray:
        """Straight or in the flattest bow that is clear, a bit higher to be alone; or else from gap to gap."""
        heights = self._bows(edge, start, end)
        good = self._are_clear(heights, start, end, crossed)
        if crossed and not good.any():
            return self._threaded(start, end, crossed)
        flattest = abs(heights[good.argmax()])
        alone = good & self._are_alone(heights, start, end, crossed) & (abs(heights) < 1.6 * flattest)
        return _bowed(start, end, float(heights[(alone if alone.any() else good).argmax()]))

    def _bows(self, edge: Edge, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Heights to try: on the left as seen from the source they are positive."""
        length = float(np.hypot(*(end - start)))
        if edge.delay:
            first = min(0.05 + 0.1 * length, 0.4) * (1 + 0.7 * self._rank(edge, 0))
            return first * np.asarray((1.0, 1.25, 1.55, 2.2, -1.0, -1.25, -1.55, -2.2))
        bows = (0.08 + 0.055 * length) * np.asarray((1.0, 1.25, 1.55, 2.1, 2.8, 3.6))
        return np.concatenate([[0.0], *([bow, -bow] for bow in bows if bow <= 0.22 * length)])

    def _rank(self, edge: Edge, side: int) -> int:
        """Counts it among its like, and says how many were before; bows (side 0) of both directions differ already."""
        ends = (edge.src, edge.dst) if side == 0 or edge.src < edge.dst else (edge.dst, edge.src)
        self._between[side, *ends] += 1
        return self._between[side, *ends] - 1

    def _are_clear(
        self, heights: np.ndarray, start: np.ndarray, end: np.ndarray, crossed: Sequence[float]
    ) -> np.ndarray:
        """Whether bows of these heights [B] keep clear where they cross levels; those that bend, also at their ends."""
        along, lift = end - start, _lift(heights, start, end)
        good = np.ones(len(heights), bool)
        for x in (*crossed, float(start[0]), float(end[0])):
            inner = x in crossed
            t = (x - start[0]) / along[0]
            y, slope = start[1] + along[1] * t + lift * 4 * t * (1 - t), (along[1] + lift * 4 * (1 - 2 * t)) / along[0]
            others = self._columns[x]
            others = others if inner else others[others != (start if t < 0.5 else end)[1]]
            far = _least(y, others) / np.hypot(1, slope)  # across the way
            good &= (far >= self._clear) | (not inner and heights == 0.0)
            if inner:
                good &= (_least(y, np.asarray(self._passed[x])) >= _APART / 72) | (heights == 0.0)
        return good

    def _are_alone(
        self, heights: np.ndarray, start: np.ndarray, end: np.ndarray, crossed: Sequence[float]
    ) -> np.ndarray:
        """Whether bows of these heights [B] lie beside no way between two levels; they may cross it."""
        good = np.ones(len(heights), bool)
        for x in _midway(start, end, crossed):
            t = ((self._around(x) - start[0]) / (end[0] - start[0]))[None]
            y = start[1] + (end[1] - start[1]) * t + _lift(heights, start, end)[:, None] * 4 * t * (1 - t)
            others = np.asarray(self._within[x]).reshape(-1, 3)
            good &= ~((np.abs(y[:, None] - others) < 0.5 * _APART / 72).sum(axis=2) > 1).any(axis=1)
        return good

    def _around(self, x: float) -> np.ndarray:
        """[3]: of the strip between two levels, whose middle this is."""
        return x + 0.25 * self._step * np.arange(-1, 2)

    def _lanes_of(self, ys: np.ndarray) -> np.ndarray:
        """Where ways may cross a level: between its neurons, below and above them."""
        outside = _CLEAR / 72 + _APART / 72 * np.arange(6)
        lanes = [ys[0] - outside, ys[-1] + outside]
        for low, high in itertools.pairwise(ys):
            room = max((high - low) / 2 - self._clear, 0.0)
            half = min(int(room / (_APART / 144)), 6)
            lanes.append((low + high) / 2 + np.arange(-half, half + 1) * (room / max(half, 1)))
        return np.concatenate(lanes)

    def _threaded(self, start: np.ndarray, end: np.ndarray, crossed: Sequence[float]) -> np.ndarray:
        """The shortest way along lanes; one that is taken costs as much as a detour."""
        x, ys, cost = float(start[0]), start[1:], np.zeros(1)
        came: list[tuple[np.ndarray, np.ndarray]] = []  # of each level its lanes, and where each is best come from
        for column in [*crossed, float(end[0])]:
            lanes = self._lanes[column] if column != end[0] else end[1:]
            total = cost + np.hypot(column - x, lanes[:, None] - ys)
            passed = np.asarray(self._passed[column] if column != end[0] else [])
            taken = np.maximum(1 - np.abs(lanes[:, None] - passed) / (_APART / 72), 0.0).sum(axis=1)
            came.append((lanes, total.argmin(axis=1)))
            x, ys, cost = column, lanes, total.min(axis=1) + 0.1 * np.minimum(taken, 3)
        at, points = 0, [end]
        for column, (lanes, _), (_, back) in zip(crossed[::-1], came[-2::-1], came[:0:-1], strict=True):
            at = int(back[at])
            points.append(np.asarray((column, lanes[at])))
        return _smooth(np.stack([start, *points[::-1]]))


def _midway(start: np.ndarray, end: np.ndarray, crossed: Sequence[float]) -> list[float]:
    """x between levels that follow each other."""
    return [(a + b) / 2 for a, b in itertools.pairwise([float(start[0]), *crossed, float(end[0])])]


def _heights(way: np.ndarray, columns: Sequence[float] | np.ndarray) -> np.ndarray:
    """y of a way at each x."""
    forth = way if way[0, 0] < way[-1, 0] else way[::-1]
    return np.interp(np.asarray(columns), forth[:, 0], forth[:, 1])


def _bowed(start: np.ndarray, end: np.ndarray, height: float) -> np.ndarray:
    """[n, 2]: a bow that never leaves the strip between both; its height as seen across the line."""
    if height == 0.0:
        return np.stack([start, end])
    t = np.linspace(0, 1, 33)[:, None]
    return start + (end - start) * t + np.asarray((0.0, _lift(height, start, end))) * 4 * t * (1 - t)


def _lift(height: Any, start: np.ndarray, end: np.ndarray) -> Any:
    """How far up a bow is lifted in its middle."""
    along = end - start
    return height * np.sign(along[0]) * min(float(np.hypot(*along)) / abs(float(along[0])), 2.5)


def _least(ys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """From each of ys to the nearest of the others."""
    return np.abs(ys[:, None] - others).min(axis=1, initial=np.inf)


def _smooth(points: np.ndarray) -> np.ndarray:
    """[n, 2]: a curve through points whose x goes one way; between two of them it stays between their heights."""
    x, y = points.T
    step = np.diff(x)
    rise = np.diff(y) / step
    slope = np.concatenate([rise[:1], np.zeros(len(rise) - 1), rise[-1:]])
    weight = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
    same = rise[:-1] * rise[1:] > 0  # else it turns there
    a, b = (np.where(same, r, 1.0) for r in (rise[:-1], rise[1:]))
    slope[1:-1] = np.where(same, sum(weight) / (weight[0] / a + weight[1] / b), 0.0)
    slope[0], slope[-1] = (3 * rise[0] - slope[1]) / 2, (3 * rise[-1] - slope[-2]) / 2
    t = np.linspace(0, 1, 13)[:-1, None]
    basis = 2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t, 3 * t**2 - 2 * t**3, t**3 - t**2
    curve = basis[0] * y[:-1] + basis[1] * step * slope[:-1] + basis[2] * y[1:] + basis[3] * step * slope[1:]
    return np.concatenate([np.stack([x[:-1] + t * step, curve], axis=2).swapaxes(0, 1).reshape(-1, 2), points[-1:]])
