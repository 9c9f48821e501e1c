"""Grow, prune and merge by ids; the edits themselves are in `tensor_optix.neuroevo.graph.edits`.

Growing preserves the function, in the middle of an episode, too, and in both forms of Dale's law: under softplus up to
the 8e-7 that stand for a weight of 0.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from tensor_optix.neuroevo.graph import edits
from tensor_optix.neuroevo.neuron_graph import NeuronGraph
from tensor_optix.neuroevo.neurons import ACTIVATIONS, SILENT, checked


def insert_neuron_on_edge(graph: NeuronGraph, edge_id: Hashable, neuron_id: Hashable = None) -> Hashable:
    """A linear neuron on an edge, which is cut in two: delay // 2 before it, the rest and the weight behind it.

    Returns:
        The new neuron's id.

    Raises:
        ValueError: no such edge, or the id is taken.
    """
    graph.place_of(edge_id)
    _room_for_one(graph)
    neurons, _ = graph.edit(edits.insert, *graph.index_of(edge_id), neuron_id=neuron_id)
    return neurons[0]


def split_neuron(
    graph: NeuronGraph, neuron_id: Hashable, new_id: Hashable = None, share: float = 0.5
) -> tuple[Hashable, Hashable]:
    """Two of a hidden neuron: a copy with the same inputs, bias, gates and memory; they share its outgoing weights.

    Args:
        graph: changed.
        neuron_id: a hidden neuron.
        new_id: of the copy; None: the graph's choice.
        share: of each outgoing weight, that the old one keeps. With 0.5 both get the same gradients.

    Returns:
        The ids of the old one and the copy.

    Raises:
        ValueError: no such hidden neuron, the id is taken, or share is not in [0, 1].
    """
    _hidden(graph, neuron_id, "split_neuron")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be in [0, 1], got {share}")
    _room_for_one(graph)
    (copy,), _ = graph.edit(edits.split, graph.slot_of(neuron_id), float(share), neuron_id=new_id)
    graph.get_neuron(copy).expand_history(graph.get_neuron(neuron_id).max_delay)
    return neuron_id, copy


def add_input_neuron(graph: NeuronGraph, activation: str = "linear", neuron_id: Hashable = None) -> Hashable:
    """One more input behind the others, with an edge of weight 0 to every neuron that is no input.

    Args:
        graph: changed; observations are longer by one from now on.
        activation: of no effect, an input's value is its observation.
        neuron_id: None: the graph's choice.

    Returns:
        The new input's id.

    Raises:
        ValueError: unknown activation, or the id is taken.
    """
    checked("activation", activation, ACTIVATIONS)
    graph.check_free(neuron_id)
    graph.make_room(inputs=len(graph.input_ids) + 1)
    neurons, _ = graph.edit(edits.add_input, neuron_id=neuron_id)
    return neurons[0]


def add_free_edge(
    graph: NeuronGraph, src: Hashable, dst: Hashable, delay: int = 1, edge_id: Hashable = None
) -> Hashable:
    """An edge of weight 0. Returns its id; errors are those of `NeuronGraph.add_edge`."""
    return graph.add_edge(src, dst, 0.0, delay, edge_id)


def prune_edge(graph: NeuronGraph, edge_id: Hashable) -> None:
    """The edge goes; ValueError if there is none."""
    graph.place_of(edge_id)
    graph.remove_edge(edge_id)


def prune_neuron(graph: NeuronGraph, neuron_id: Hashable, redistribute: bool = True) -> None:
    """A hidden neuron goes, with its edges.

    With `redistribute` for every path u -> neuron -> v the product of both weights is added to the edge u -> v with the
    sum of both delays, which is made where there is none: exact for a linear neuron without bias. In the middle of an
    episode values of longer ago than the graph kept count as 0.

    Raises:
        ValueError: no such neuron, or an input or output.
    """
    _hidden(graph, neuron_id, "prune_neuron")
    if not redistribute:
        graph.remove_neuron(neuron_id)
        return
    longest = [
        max((edge.delay for edge in edges if edge.src != edge.dst), default=0)
        for edges in (graph.edges_into(neuron_id), graph.edges_from(neuron_id))
    ]
    graph.make_room(delays=sum(longest))
    graph.edit(edits.prune_neuron, graph.slot_of(neuron_id))


def merge_neurons(graph: NeuronGraph, a: Hashable, b: Hashable, inherit: bool = True) -> Hashable:
    """Two hidden neurons become one, `a`, with the sum of the outgoing weights. Returns `a`.

    Args:
        graph: changed.
        a, b: ids.
        inherit: it has its inputs and those of `b` that it lacks, and the mean of both biases, which preserves the
            function for two that do the same and have the same inputs. False: it stays as it is, which preserves the
            function wherever both values agree.

    Raises:
        ValueError: no such hidden neurons, not of one class, activation and cell type, or it would close a circle
            without delay: one leads to the other (without `inherit`: `b` to `a`).
    """
    for name in (a, b):
        _hidden(graph, name, "merge_neurons")
    if a == b:
        raise ValueError(f"merge_neurons takes two neurons, got {a!r} twice")
    one, other = graph.get_neuron(a), graph.get_neuron(b)
    if not one.can_merge_with(other):
        raise ValueError(f"merge_neurons takes two of one class, activation and cell type, got {one} and {other}")
    way = (graph.chain(a, b) if inherit else None) or graph.chain(b, a)
    if way:
        raise ValueError(
            f"merging {a!r} and {b!r} would close a circle without delay: {' -> '.join(map(repr, way))} joins them"
        )
    graph.edit(edits.merge if inherit else edits.absorb, graph.slot_of(a), graph.slot_of(b))
    return a


def neuron_importance(graph: NeuronGraph, neuron_id: Hashable, activations: Any = None) -> float:
    """The sum of |weight| over all edges to and from the neuron, times its mean |activation| + 1e-8.

    Args:
        graph: read.
        neuron_id: any neuron.
        activations: [T] its values, to take the mean over; None: of the last forward pass alone, 0 before the first.
    """
    edges = {edge.edge_id: edge for edge in graph.edges_into(neuron_id) + graph.edges_from(neuron_id)}
    weights = sum(abs(edge.weight) for edge in edges.values())
    if activations is None:
        return graph.get_neuron(neuron_id).importance(weights)
    return weights * (float(np.mean(np.abs(np.asarray(activations, np.float32)))) + SILENT)


def edge_importance(graph: NeuronGraph, edge_id: Hashable) -> float:
    """|weight| as it acts."""
    return abs(graph.effective_weight(edge_id))


def cosine_similarity_neurons(graph: NeuronGraph, a: Hashable, b: Hashable) -> float:
    """Cosine of two neurons' values over the steps that the graph remembers; 0 where one was silent.

    These are as many as the longest edge's delay or max_delay, so little to go by: correlations over an episode say
    more.
    """
    past = np.asarray(graph.memory.past, np.float64)
    one, other = past[:, graph.slot_of(a)], past[:, graph.slot_of(b)]
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > 0 else 0.0


def _room_for_one(graph: NeuronGraph) -> None:
    graph.make_room(hidden=len(graph.hidden_ids) + 1)


def _hidden(graph: NeuronGraph, neuron_id: Hashable, what: str) -> None:
    graph.slot_of(neuron_id)
    for ids, role in ((graph.input_ids, "an input"), (graph.output_ids, "an output")):
        if neuron_id in ids:
            raise ValueError(f"{what} takes hidden neurons, and {neuron_id!r} is {role}")
