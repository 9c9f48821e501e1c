"""Agents by name whose policy is a growing graph of neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tensor_optix.algorithms.flax_graph_agent import GraphAgent
from tensor_optix.core.types import HyperparamSet
from tensor_optix.neuroevo.hebbian_hook import HebbianHook
from tensor_optix.neuroevo.neuron_graph import NeuronGraph
from tensor_optix.neuroevo.neurons import GRUNeuron
from tensor_optix.neuroevo.topology_controller import TopologyController

MOST_INPUTS = 16  # beyond them observations go through a linear layer first
_POLICY_GAIN = 0.01  # the first policy is nearly uniform


def graph_agent(
    obs_dim: int,
    n_actions: int,
    continuous: bool,
    hyperparams: HyperparamSet | Mapping[str, Any] | None,
    *,
    graph_in: int | None,
    graph_hidden: int,
    graph_out: int | None,
    hebbian_lr: float,
    hebbian_decay: float,
    grow_cooldown: int,
    device: str,
    seed: int,
) -> GraphAgent:
    """A `GraphAgent`; its `callbacks`, a `HebbianHook` and a `TopologyController`, are the loop's to call.

    For the arguments see `make_agent`. ValueError for sizes that do not fit, TypeError for what is no number.
    """
    sizes = {"graph_in": graph_in, "graph_hidden": graph_hidden, "graph_out": graph_out, "grow_cooldown": grow_cooldown}
    for name, value in {**sizes, "hebbian_lr": hebbian_lr, "hebbian_decay": hebbian_decay}.items():
        _check_number(name, value, whole=name in sizes, optional=name in ("graph_in", "graph_out"))
    if graph_out not in (None, n_actions + 1):
        raise ValueError(
            f"graph_out must be {n_actions + 1}, one for each of {n_actions} actions and the value's, got {graph_out}: "
            "leave it out"
        )
    width = min(obs_dim, MOST_INPUTS) if graph_in is None else graph_in
    if not 1 <= width <= obs_dim or graph_hidden < 1:
        raise ValueError(
            f"graph_in must be from 1 to the {obs_dim} numbers of an observation and graph_hidden at least 1, got "
            f"{graph_in} and {graph_hidden}"
        )
    graph = _graph(obs_dim, width, graph_hidden, n_actions, seed)
    agent = GraphAgent(
        graph, obs_dim, n_actions, continuous, hyperparams, device, seed=seed, normalize_observations=True
    )  # fmt: skip
    agent.callbacks = [
        HebbianHook(graph, hebbian_lr=hebbian_lr, weight_decay=hebbian_decay),
        TopologyController(graph, grow_cooldown=grow_cooldown, seed=seed),
    ]
    return agent


def _check_number(name: str, value: Any, whole: bool, optional: bool) -> None:
    kinds = int | np.integer if whole else int | float | np.number
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, kinds):
        expected = f"a {'whole ' * whole}number{' or None' * optional}"
        raise TypeError(f"{name} must be {expected}, got {value!r}")


def _graph(obs_dim: int, width: int, hidden: int, n_actions: int, seed: int) -> NeuronGraph:
    """Inputs, a linear layer of `width` if that is less, GRU neurons, outputs; fully connected from layer to layer."""
    rng, graph = np.random.default_rng(seed), NeuronGraph(seed=seed)
    layers = [[graph.add_neuron("input", "linear") for _ in range(obs_dim)]]
    if width < obs_dim:
        layers.append([graph.add_neuron("hidden", "linear") for _ in range(width)])
    layers.append([graph.add_neuron("hidden", neuron=GRUNeuron()) for _ in range(hidden)])
    outputs = [graph.add_neuron("output", "linear") for _ in range(n_actions + 1)]
    for before, after in zip(layers, [*layers[1:], outputs], strict=True):
        for target in after:
            gain = _POLICY_GAIN if target in outputs[:-1] else 1.0
            for source in before:
                graph.add_edge(source, target, gain * rng.standard_normal() / np.sqrt(len(before)))
    return graph
