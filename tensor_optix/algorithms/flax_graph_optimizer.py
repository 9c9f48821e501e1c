"""What the Adam of a graph's agent knows of each parameter, to look at."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from tensor_optix.algorithms.flax_graph_programs import ADAM_EPS
from tensor_optix.neuroevo.brain_network import BrainNetwork
from tensor_optix.neuroevo.graph.adam import TopologyAwareAdamState
from tensor_optix.neuroevo.neuron_graph import NeuronGraph

_PARTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}


class GraphOptimizer:
    """A view, by the names of `TopologyAwareAdam`; the agent makes the steps, in `learn`.

    Args:
        graph: whose parameters are learned.
        read: gives the state of Adam as it is, each part a pair: beside the graph's weights, beside log_std.
        learning_rate: gives the hyperparameter.
    """

    def __init__(
        self,
        graph: NeuronGraph | BrainNetwork,
        read: Callable[[], TopologyAwareAdamState],
        learning_rate: Callable[[], float],
    ) -> None:
        self._graph, self._read, self._learning_rate = graph, read, learning_rate

    @property
    def lr(self) -> float:
        """The agent's hyperparameter "learning_rate", which `set_hyperparams` sets."""
        return self._learning_rate()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group, a copy: the parameters of the graph as it is, and the settings."""
        settings = {"betas": (0.9, 0.999), "eps": ADAM_EPS, "weight_decay": 0.0, "amsgrad": False}
        return [{"params": self._graph.parameters(), "lr": self.lr, **settings}]

    @property
    def state(self) -> Mapping[Any, Mapping[str, Any]]:
        """Parameter -> "step", "exp_avg" and "exp_avg_sq", of those that have made a step since an edit touched them.

        A copy that cannot be written to. "log_std" stands for the parameter that continuous actions have beside the
        graph.
        """
        state = self._read()
        beside: dict[str, dict[Hashable, Any]] = {}
        for name, part in {"step": state.count, **{k: getattr(state, v) for k, v in _PARTS.items()}}.items():
            of_graph, of_log_std = jax.tree.map(np.asarray, part)
            beside[name] = dict(_entries(self._graph, of_graph)) | {"log_std": of_log_std}
        steps = {key: int(np.max(count, initial=0)) for key, count in beside["step"].items()}
        return MappingProxyType(
            {
                key: MappingProxyType({"step": n, **{name: _fixed(beside[name][key]) for name in _PARTS}})
                for key, n in steps.items()
                if n
            }
        )

    def notify_topology_change(self, new_params: Any = None) -> None:
        """Nothing to do: moments follow the graph's edits by themselves, and forget what an edit has touched."""


def _entries(graph: NeuronGraph | BrainNetwork, tree: Any) -> Iterator[tuple[Any, Any]]:
    """Handles, and what stands in their places in a tree as that of the weights."""
    if isinstance(graph, NeuronGraph):
        for handle in graph.parameters():
            yield handle, graph.weight_in(tree, handle.field, handle.key)
        return
    for region, part in zip(graph.regions.values(), tree.regions, strict=True):
        yield from _entries(region, part)
    for edge, x in zip(graph.all_inter_region_edges(), tree.pathways, strict=False):  # behind them is room
        yield graph.parameter("edge", edge.edge_id), x


def _fixed(x: Any) -> np.ndarray:
    array = np.array(x)
    array.flags.writeable = False
    return array
