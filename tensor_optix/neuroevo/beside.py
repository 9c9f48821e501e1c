"""Arrays beside those of a graph: traces, ages, an optimiser's moments. They follow the graph's edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tensor_optix.neuroevo.graph import edits
from tensor_optix.neuroevo.graph.arrays import Capacity, Graph, Weights
from tensor_optix.neuroevo.graph.capacity import relocated_edges, relocated_neurons
from tensor_optix.neuroevo.graph.edits import Edited
from tensor_optix.neuroevo.named_graph import NamedGraph


class Beside:
    """Arrays with an entry for each slot of a graph's neurons and edges, zeros at first.

    After an edit an entry is zero where its neuron or edge is new or gone, and where the edit has touched the edge's
    parameter; another graph starts from zeros, but for neurons that it shares if they `stay`.

    Args:
        graph: followed for as long as this is kept.
        neurons: name -> dtype, or (shape of a row, dtype).
        edges: name -> dtype.
        masks: (names of `neurons`, what an edit has kept) -> name -> bool array, in the place of "new or gone".
        stay: rows of neurons that another graph has, too, go over to it.

    Attributes:
        neurons: name -> [N, *row].
        edges: name -> [1 + D, N, N].
    """

    def __init__(
        self,
        graph: NamedGraph,
        neurons: Mapping[str, Any] | None = None,
        edges: Mapping[str, Any] | None = None,
        masks: Callable[[Weights], Mapping[str, Any]] | None = None,
        stay: bool = False,
    ) -> None:
        self._kinds = dict(neurons or {}), dict(edges or {})
        self._graph, self._masks, self._stay = graph, masks, stay
        self.neurons: dict[str, np.ndarray] = {}
        self.edges: dict[str, np.ndarray] = {}
        self.clear()
        graph.accompany(self)

    def replaced(self, source: np.ndarray, target: np.ndarray) -> None:
        before = self.neurons
        self.clear()
        if self._stay:
            for name, rows in self.neurons.items():
                rows[target] = before[name][source]

    def clear(self) -> None:
        """Zeros, for the graph as it is."""
        capacity = self._graph.arrays.capacity
        n, delays = capacity.neurons, capacity.delays
        rows = {name: kind if isinstance(kind, tuple) else ((), kind) for name, kind in self._kinds[0].items()}
        self.neurons = {name: np.zeros((n, *row), dtype) for name, (row, dtype) in rows.items()}
        self.edges = {name: np.zeros((1 + delays, n, n), dtype) for name, dtype in self._kinds[1].items()}

    def moved(self, source: np.ndarray, target: np.ndarray, capacity: Capacity) -> None:
        self.neurons = {k: relocated_neurons(x, source, target, capacity) for k, x in self.neurons.items()}
        self.edges = {k: relocated_edges(x, source, target, capacity) for k, x in self.edges.items()}

    def edited(self, pure: Any, slots: tuple[float, ...], before: Graph, after: Edited) -> None:
        kept = jax.tree.map(np.asarray, _kept(before, after.graph))
        roles = np.asarray(before.topology.role), np.asarray(after.graph.topology.role)
        same = (roles[0] == roles[1]) & (roles[1] != 0)
        masks = self._masks(kept) if self._masks else dict.fromkeys(self.neurons, same)
        for name, mask in masks.items():
            x = self.neurons[name]
            self.neurons[name] = np.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim)), x, 0).astype(x.dtype)
        for name, x in self.edges.items():
            self.edges[name] = np.where(kept.edges, x, 0).astype(x.dtype)


_kept = jax.jit(edits.kept)
