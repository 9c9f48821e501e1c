"""The arrays of a graph on the host, and their moves from slot to slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tensor_optix.neuroevo.graph.arrays import Capacity, Graph, Memory


def on_host(graph: Graph) -> Graph:
    """The same in NumPy arrays of its own, that can be written to."""
    return jax.tree.map(np.array, graph)


def relocated(
    graph: Graph, memory: Memory, values: np.ndarray | None, old: Sequence[int], new: Sequence[int], capacity: Capacity
) -> tuple[Graph, Memory, np.ndarray | None]:
    """What lies in the slots `old`, put into the slots `new` of another capacity; in all others is nothing.

    In and out are NumPy arrays. `capacity` has at least as many delays, and gated neurons where there are any. In
    contrast to `capacity.pad_graph` inputs and outputs may come and go.

    Args:
        values: [N] float32, of all neurons, or None.
    """
    source, target = np.asarray(old, np.int64), np.asarray(new, np.int64)
    delays = np.arange(1 + graph.capacity.delays)

    def neurons(x: np.ndarray) -> np.ndarray:
        out = np.zeros((capacity.neurons, *x.shape[1:]), x.dtype)
        out[target] = x[source]
        return out

    def edges(x: np.ndarray) -> np.ndarray:
        out = np.zeros((1 + capacity.delays, capacity.neurons, capacity.neurons), x.dtype)
        out[np.ix_(delays, target, target)] = x[np.ix_(delays, source, source)]
        return out

    def moved(x: np.ndarray) -> np.ndarray:
        return edges(x) if x.ndim == 3 else neurons(x)

    past = np.zeros((capacity.delays, capacity.neurons), np.float32)
    past[: graph.capacity.delays, target] = np.asarray(memory.past)[:, source]
    cell: Any = ()
    if capacity.gated:
        cell = neurons(np.asarray(memory.cell)) if graph.capacity.gated else np.zeros(capacity.neurons, np.float32)
    placed = Graph(jax.tree.map(moved, graph.topology), jax.tree.map(moved, graph.weights), capacity)
    return placed, Memory(past, cell), None if values is None else neurons(values)
