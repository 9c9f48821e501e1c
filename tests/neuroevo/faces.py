"""The oracle's graph as a `NeuronGraph`."""

from __future__ import annotations

import numpy as np

from tensor_optix.neuroevo import NeuronGraph
from tensor_optix.neuroevo.graph.arrays import Kind
from tensor_optix.neuroevo.neurons import CLASSES, n_gates

CELL_TYPES = {-1: "inhibitory", 0: "any", 1: "excitatory"}


def face_of(oracle, rng, max_delay=1):
    """The same neurons under the same ids; they and the edges are added in any order, inputs and outputs in theirs."""
    graph = NeuronGraph("softplus" if oracle.softplus_mode else "clamp")
    hidden = [name for name, neuron in oracle.neurons.items() if neuron.role == "hidden"]
    waiting = [list(oracle.input_ids), list(oracle.output_ids), [hidden[i] for i in rng.permutation(len(hidden))]]
    while any(waiting):
        queue = waiting[rng.choice([i for i, names in enumerate(waiting) if names])]
        _add(graph, queue.pop(0), oracle, max_delay)
    edges = list(oracle.edges)
    for i in rng.permutation(len(edges)):
        src, dst, delay = edges[i]
        graph.add_edge(src, dst, oracle.weight(edges[i]), delay, edge_id=edges[i])
    return graph


def _add(graph, name, oracle, max_delay):
    neuron = oracle.neurons[name]
    kind = Kind[neuron.kind.upper()]
    described = CLASSES[kind](**({"activation": neuron.activation} if kind == Kind.POINT else {}))
    described.bias.data = neuron.bias
    if described.gates is not None:
        described.gates.data = np.asarray(neuron.gates)[: n_gates(kind)]
    graph.add_neuron(
        neuron.role, neuron_id=name, max_delay=max_delay, cell_type=CELL_TYPES[neuron.cell_type], neuron=described
    )
