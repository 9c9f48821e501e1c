"""How the graphs of a run came to be: each member's, at the times when its topology had changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tensor_optix.neuroevo.graph.arrays import Capacity, Graph

MOST_FRAMES = 24  # of one member; beyond that those closest to their neighbours go
_STRIP = 6  # graphs in a picture
_CAPACITY = ("inputs", "outputs", "hidden", "delays", "levels", "gated", "softplus")
_PREFIX = "growth/"  # of the arrays


class Frame(NamedTuple):
    """One graph, without what is empty of its arrays."""

    env_steps: int  # of its member, then
    neurons: np.ndarray  # [n, 5] int32: slot, role, kind, activation, cell type
    edges: np.ndarray  # [e, 3] int32: delay, to, from
    weights: np.ndarray  # [e] float32, raw parameters
    bias: np.ndarray  # [n] float32
    gates: np.ndarray  # [n, 12] float32

    @classmethod
    def of(cls, env_steps: int, graph: Graph) -> Frame:
        """graph: of NumPy arrays, or of such that NumPy can read."""
        topology, weights = graph.topology, graph.weights
        slots = np.flatnonzero(np.asarray(topology.role))
        columns = (topology.role, topology.kind, topology.activation, topology.cell_type)
        edges = np.argwhere(np.asarray(topology.edges)).astype(np.int32)
        return cls(
            env_steps,
            np.stack([slots, *(np.asarray(column)[slots] for column in columns)], axis=1).astype(np.int32),
            edges,
            np.asarray(weights.edges)[tuple(edges.T)],
            np.asarray(weights.bias)[slots],
            np.asarray(weights.gates)[slots],
        )

    def same_topology(self, other: Frame) -> bool:
        return np.array_equal(self.neurons, other.neurons) and np.array_equal(self.edges, other.edges)

    def graph(self, capacity: Capacity) -> Graph:
        """The graph, in NumPy."""
        from tensor_optix.neuroevo.graph import arrays

        graph = arrays.on_host(arrays.empty, capacity)
        slots, edges = self.neurons[:, 0], tuple(self.edges.T)
        for i, name in enumerate(("role", "kind", "activation", "cell_type")):
            getattr(graph.topology, name)[slots] = self.neurons[:, 1 + i]
        graph.topology.edges[edges] = True
        graph.weights.edges[edges] = self.weights
        graph.weights.bias[slots], graph.weights.gates[slots] = self.bias, self.gates
        return graph


class Growth:
    """The graphs of every member over a run. Frames are a chunk of windows apart, or more.

    Attributes:
      capacity: of all graphs.
      frames: of each member, in order: the graph at the start, after changes, and at the end.
    """

    def __init__(self, capacity: Capacity, n_members: int) -> None:
        self.capacity = capacity
        self.frames: list[list[Frame]] = [[] for _ in range(n_members)]

    def graphs(self, member: int) -> list[Graph]:
        """A member's graphs, NumPy arrays, in order."""
        return [frame.graph(self.capacity) for frame in self.frames[member]]

    def observe(self, member: int, env_steps: int, graph: Graph, *, last: bool = False) -> None:
        """Keep a member's graph if its topology is another than before, or if it is the `last`."""
        frame, frames = Frame.of(env_steps, graph), self.frames[member]
        if frames and frames[-1].env_steps == env_steps:
            frames.pop()
        if frames and not last and frames[-1].same_topology(frame):
            return
        frames.append(frame)
        if len(frames) > MOST_FRAMES:
            del frames[_least_missed([frame.env_steps for frame in frames])]

    def neurons(self, member: int) -> list[int]:
        """How many a member's graphs have, inputs and outputs included."""
        return [len(frame.neurons) for frame in self.frames[member]]

    def plot(self, member: int, path: str | os.PathLike[str] | None = None) -> Figure | None:
        """Draw a member's graphs: up to six side by side, or, for a path that ends in .gif, all as an animation.

        Returns the figure, or None for an animation. ValueError: there is no member of that number, or no graph of it.
        """
        from tensor_optix.neuroevo.graph.drawing import growth_animation, growth_figure

        if not 0 <= member < len(self.frames) or not self.frames[member]:
            raise ValueError(f"member must be one of 0 to {len(self.frames) - 1} that has run, got {member}")
        frames = self.frames[member]
        animated = path is not None and Path(path).suffix.lower() == ".gif"
        if not animated and len(frames) > _STRIP:
            frames = [frames[i] for i in np.linspace(0, len(frames) - 1, _STRIP).round().astype(int)]
        graphs = [frame.graph(self.capacity) for frame in frames]
        titles = [
            f"{frame.env_steps:,} steps: {len(frame.neurons)} neurons, {len(frame.edges)} edges" for frame in frames
        ]
        names = output_names(self.capacity)
        if animated:
            assert path is not None
            growth_animation(graphs, path, titles, output_names=names)
            return None
        figure = growth_figure(graphs, titles, output_names=names)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays, for npz; inverse: `from_arrays`."""
        rows = [(m, f) for m, frames in enumerate(self.frames) for f in frames]
        facts = [(m, f.env_steps, len(f.neurons), len(f.edges)) for m, f in rows]
        arrays = {
            "capacity": np.asarray([int(getattr(self.capacity, name)) for name in _CAPACITY], np.int64),
            "activations": np.asarray([int(code) for code in self.capacity.activations], np.int64),
            "members": np.asarray(len(self.frames), np.int64),
            "frames": np.asarray(facts, np.int64).reshape(-1, 4),
        }
        for name in ("neurons", "edges", "weights", "bias", "gates"):
            parts = [getattr(f, name) for _, f in rows]
            arrays[name] = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return {_PREFIX + name: array for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Growth | None:
        """What `to_arrays` made, among others perhaps; None if there is nothing of it."""
        if _PREFIX + "frames" not in arrays:
            return None
        from tensor_optix.neuroevo.graph.arrays import Activation, Capacity

        own = {name.removeprefix(_PREFIX): x for name, x in arrays.items() if name.startswith(_PREFIX)}
        counts: dict[str, Any] = dict(zip(_CAPACITY, own["capacity"].tolist(), strict=True))
        counts |= {name: bool(counts[name]) for name in ("gated", "softplus")}
        activations = tuple(Activation(code) for code in own["activations"].tolist())
        growth = cls(Capacity(**counts, activations=activations), int(own["members"]))
        facts = own["frames"]
        neuron_ends, edge_ends = np.cumsum(facts[:, 2])[:-1], np.cumsum(facts[:, 3])[:-1]
        ends = {
            "neurons": neuron_ends,
            "edges": edge_ends,
            "weights": edge_ends,
            "bias": neuron_ends,
            "gates": neuron_ends,
        }
        parts = {name: np.split(own[name], where) for name, where in ends.items()}
        for i, (member, env_steps) in enumerate(facts[:, :2].tolist()):
            growth.frames[member].append(Frame(env_steps, **{name: pieces[i] for name, pieces in parts.items()}))
        return growth


def output_names(capacity: Capacity) -> list[str]:
    """Of a policy's graph: its actions' outputs, then the value's."""
    return [*(f"action {i}" for i in range(capacity.outputs - 1)), "value"]


def _least_missed(times: list[int]) -> int:
    """Which of the times, apart from the first and the last, is closest to its neighbours."""
    gaps = [after - before for before, after in zip(times[:-2], times[2:], strict=True)]
    return 1 + int(np.argmin(gaps))
