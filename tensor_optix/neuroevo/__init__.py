"""Graphs of neurons that grow, prune and learn. Names are resolved on first use."""

from __future__ import annotations

from tensor_optix._lazy import resolver

# name -> module that defines it
_PUBLIC = {
    "NeuronGraph": "tensor_optix.neuroevo.neuron_graph",
    "Edge": "tensor_optix.neuroevo.neuron_graph",
    "Parameter": "tensor_optix.neuroevo.parameters",
    "Neuron": "tensor_optix.neuroevo.neurons",
    "GRUNeuron": "tensor_optix.neuroevo.neurons",
    "LSTMNeuron": "tensor_optix.neuroevo.neurons",
    "TrainableGRUNeuron": "tensor_optix.neuroevo.neurons",
    "TrainableLSTMNeuron": "tensor_optix.neuroevo.neurons",
    "insert_neuron_on_edge": "tensor_optix.neuroevo.operations",
    "split_neuron": "tensor_optix.neuroevo.operations",
    "add_input_neuron": "tensor_optix.neuroevo.operations",
    "add_free_edge": "tensor_optix.neuroevo.operations",
    "prune_edge": "tensor_optix.neuroevo.operations",
    "prune_neuron": "tensor_optix.neuroevo.operations",
    "merge_neurons": "tensor_optix.neuroevo.operations",
    "neuron_importance": "tensor_optix.neuroevo.operations",
    "edge_importance": "tensor_optix.neuroevo.operations",
    "cosine_similarity_neurons": "tensor_optix.neuroevo.operations",
    "GraphAgent": "tensor_optix.algorithms.flax_graph_agent",
    "RecurrentGraphAgent": "tensor_optix.algorithms.flax_graph_agent",
    "TopologyController": "tensor_optix.neuroevo.topology_controller",
    "BrainNetwork": "tensor_optix.neuroevo.brain_network",
    "InterRegionEdge": "tensor_optix.neuroevo.named_brain",
    "HebbianHook": "tensor_optix.neuroevo.hebbian_hook",
    "NeuromodulatorSignal": "tensor_optix.neuroevo.neuromodulator",
    "TopologyAwareAdam": "tensor_optix.neuroevo.optimizer",
}

__all__ = sorted(_PUBLIC)


__getattr__ = resolver(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
