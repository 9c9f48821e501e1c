"""What an agent whose policy is a graph has saved, one or the mean of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tensor_optix.adapters.jax import agent_files
from tensor_optix.algorithms import flax_graph_mean
from tensor_optix.neuroevo.graph_state import put_together


class Saved(NamedTuple):
    """An agent's directory."""

    record: dict[str, Any]  # hyperparameters, normalisers and what else is plain
    graph: dict[str, Any]  # `state_dict` of the graph or brain
    log_std: np.ndarray  # [A] float32 of continuous actions, else [0]
    of_graph: dict[str, np.ndarray]  # what Adam knows, `Moments.named`
    of_log_std: dict[str, np.ndarray]  # and of log_std, by parts


def read(path: str) -> Saved:
    """RunDirError for what is missing or damaged, ValueError for what another kind of agent has saved."""
    found = agent_files.read_arrays(path)
    try:
        graph = put_together(found.record["graph"], _below("graph", found.params))
        log_std = found.params["log_std"]
    except KeyError as error:
        raise ValueError(f"'{path}' was not saved by such an agent: it lacks {error}") from None
    return Saved(found.record, graph, log_std, _below("graph", found.opt), _below("log_std", found.opt))


def read_mean(paths: Sequence[str]) -> Saved:
    """The first, with the mean of the weights of all.

    ValueError if there is none, or if their structures differ: weights of other neurons mean something else.
    """
    if not paths:
        raise ValueError("average_weights got no paths: give at least one that save_weights wrote")
    saved = [read(path) for path in paths]
    first = saved[0]
    for path, each in zip(paths, saved, strict=True):
        if flax_graph_mean.structure(each.graph) != flax_graph_mean.structure(first.graph):
            raise ValueError(f"'{path}' has other neurons or edges than '{paths[0]}': their weights have no mean")
        if each.log_std.shape != first.log_std.shape:
            raise ValueError(f"'{path}' has other actions than '{paths[0]}': their weights have no mean")
    graph = flax_graph_mean.mean([each.graph for each in saved])
    return first._replace(graph=graph, log_std=flax_graph_mean.mean_array([each.log_std for each in saved]))


def _below(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those under a path."""
    return {key.removeprefix(f"{name}/"): x for key, x in arrays.items() if key.startswith(f"{name}/")}
