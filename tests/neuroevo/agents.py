"""Small graphs, and agents that act by them."""

from __future__ import annotations

import numpy as np

from tensor_optix.core.types import HyperparamSet
from tensor_optix.neuroevo import GraphAgent, NeuronGraph, RecurrentGraphAgent, TrainableGRUNeuron
from tests.algorithms.test_flax_ppo import CHOICES, DIMS, HIGH, LOW, OBS


def dense_graph(hidden=3, outputs=CHOICES + 1, mode="clamp", neuron=None, delay=0, seed=0, cell_type="any"):
    """Inputs to hidden to outputs, and hidden neurons among themselves with a delay."""
    rng, graph = np.random.default_rng(seed), NeuronGraph(mode, seed=seed)
    inputs = [graph.add_neuron("input", "linear") for _ in range(OBS)]
    made = [
        graph.add_neuron("hidden", "tanh", cell_type=cell_type, neuron=neuron() if neuron else None)
        for _ in range(hidden)
    ]
    ends = [graph.add_neuron("output", "linear") for _ in range(outputs)]
    sign = {"any": 1.0, "excitatory": 1.0, "inhibitory": -1.0}[cell_type]

    def weight(source):
        size = rng.normal() * 0.7
        return sign * abs(size) if source in made and cell_type != "any" else size

    for before, after in ((inputs, made), (made, ends)):
        for u in before:
            for v in after:
                graph.add_edge(u, v, weight(u))
    if delay:
        for u in made:
            graph.add_edge(u, made[0], weight(u), delay)
    return graph


def agent_of(graph=None, *, kind="discrete", recurrent=False, seed=0, reward_normalizer=False, **hyper):
    continuous = kind == "continuous"
    if graph is None:
        graph = dense_graph(outputs=DIMS + 1 if continuous else CHOICES + 1)
    settings = HyperparamSet({"n_epochs": 1, "minibatch_size": 16, "learning_rate": 0.01, "chunk_len": 4, **hyper})
    cls = RecurrentGraphAgent if recurrent else GraphAgent
    width = len(graph.output_ids) - 1
    agent = cls(graph, OBS, width, continuous, settings, seed=seed, reward_normalizer=reward_normalizer)
    if continuous:
        agent.set_action_bounds(LOW, HIGH)
    return agent


def trainable(**kwargs):
    return dense_graph(neuron=TrainableGRUNeuron, **kwargs)
