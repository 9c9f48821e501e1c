"""What an optimiser knows of a graph's weights, kept through edits: of what an edit has touched it knows nothing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.beside import Beside
from tensor_optix.neuroevo.brain_network import BrainNetwork
from tensor_optix.neuroevo.graph import edits
from tensor_optix.neuroevo.graph.adam import TopologyAwareAdamState
from tensor_optix.neuroevo.graph.arrays import N_GATES, Weights
from tensor_optix.neuroevo.graph.brain import BrainWeights
from tensor_optix.neuroevo.neuron_graph import NeuronGraph

PARTS = ("count", "mu", "nu")


class Moments:
    """The state of `topology_aware_adam` beside the weights of `graph`."""

    def __init__(self, graph: NeuronGraph) -> None:
        self._graph = graph
        neurons: dict[str, Any] = {f"bias.{part}": np.float32 for part in PARTS}
        neurons |= {f"gates.{part}": ((N_GATES,), np.float32) for part in PARTS}
        self._beside = Beside(graph, neurons, dict.fromkeys(PARTS, np.float32), self._masks)

    @staticmethod
    def _masks(kept: Weights) -> Mapping[str, np.ndarray]:
        return {f"{field}.{part}": getattr(kept, field) for field in ("bias", "gates") for part in PARTS}

    @property
    def state(self) -> TopologyAwareAdamState:
        """On the device."""
        neurons, edges = self._beside.neurons, self._beside.edges

        def part(name: str) -> Weights:
            found = edges[name], neurons[f"bias.{name}"], neurons[f"gates.{name}"]
            return Weights(*map(jnp.array, found))

        return TopologyAwareAdamState(part("count"), part("mu"), part("nu"), ())

    @state.setter
    def state(self, state: TopologyAwareAdamState) -> None:
        there = edits.learnable(self._graph.arrays.topology)
        for part in PARTS:  # beside what is not there nothing is counted: what comes to be there starts anew
            weights = jax.tree.map(lambda x, t: np.where(t, x, np.float32(0.0)), getattr(state, part), there)
            self._beside.edges[part] = weights.edges
            self._beside.neurons |= {f"bias.{part}": weights.bias, f"gates.{part}": weights.gates}

    def named(self) -> dict[str, np.ndarray]:
        """By neurons [n, ...] and edges [m], in the order of the graph's ids."""
        slots, places = self._places()
        found = {name: x[slots] for name, x in self._beside.neurons.items()}
        return found | {f"edges.{part}": self._beside.edges[part][places] for part in PARTS}

    def load(self, named: Mapping[str, np.ndarray]) -> None:
        """What `named` gave of a graph with the same neurons and edges. KeyError or ValueError if it is of another."""
        slots, places = self._places()
        self._beside.clear()
        for name, x in self._beside.neurons.items():
            x[slots] = _of_shape(name, named[name], (len(slots), *x.shape[1:]))
        for part in PARTS:
            self._beside.edges[part][places] = _of_shape(part, named[f"edges.{part}"], (len(places[0]),))

    def _places(self) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Slots of the neurons, and indices of the edges."""
        graph = self._graph
        slots = np.array([graph.slot_of(name) for name in graph.all_neuron_ids()], np.int64)
        edges = np.array([graph.index_of(edge.edge_id) for edge in graph.all_edges()], np.int64).reshape(-1, 3)
        return slots, tuple(edges.T)


class BrainMoments:
    """The same beside the weights of a brain: of each region, and of the edges between them by their ids."""

    def __init__(self, brain: BrainNetwork) -> None:
        self._brain = brain
        self._regions = [Moments(region) for region in brain.regions.values()]
        self._between: dict[Hashable, tuple[float, ...]] = {}  # weight as it was left, then the parts

    @property
    def state(self) -> TopologyAwareAdamState:
        """On the device."""
        states = [each.state for each in self._regions]
        room = self._brain.arrays.pathways.weight.shape[0]
        between = np.zeros((len(PARTS), room), np.float32)
        for i, edge in enumerate(self._brain.all_inter_region_edges()):
            weight, *parts = self._between.get(edge.edge_id, (None,))
            if weight == edge.weight:  # an edit has not touched it
                between[:, i] = parts

        def part(k: int) -> BrainWeights:
            return BrainWeights(tuple(each[k] for each in states), jnp.array(between[k]))

        return TopologyAwareAdamState(part(0), part(1), part(2), ())

    @state.setter
    def state(self, state: TopologyAwareAdamState) -> None:
        """To be set after the weights."""
        for r, each in enumerate(self._regions):
            each.state = TopologyAwareAdamState(state.count.regions[r], state.mu.regions[r], state.nu.regions[r], ())
        between = np.stack([np.asarray(part.pathways) for part in state[: len(PARTS)]])
        edges = self._brain.all_inter_region_edges()
        self._between = {edge.edge_id: (edge.weight, *between[:, i].tolist()) for i, edge in enumerate(edges)}

    def named(self) -> dict[str, np.ndarray]:
        """By regions, and between them [e] in the order of the edges."""
        found = {f"{r}.{key}": x for r, each in enumerate(self._regions) for key, x in each.named().items()}
        count, state = len(self._brain.all_inter_region_edges()), self.state
        return found | {f"between.{part}": np.asarray(getattr(state, part).pathways)[:count] for part in PARTS}

    def load(self, named: Mapping[str, np.ndarray]) -> None:
        """What `named` gave. KeyError or ValueError if it is of another brain."""
        for r, each in enumerate(self._regions):
            start = f"{r}."
            each.load({key.removeprefix(start): x for key, x in named.items() if key.startswith(start)})
        edges = self._brain.all_inter_region_edges()
        between = np.stack([_of_shape(part, named[f"between.{part}"], (len(edges),)) for part in PARTS])
        self._between = {edge.edge_id: (edge.weight, *between[:, i].tolist()) for i, edge in enumerate(edges)}


def _of_shape(name: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if x.shape != shape:
        raise ValueError(f"the optimiser's {name} has shape {list(x.shape)}, expected {list(shape)}: of another graph")
    return x
