"""Edits of a graph while it learns: grow, prune, merge, as pure functions of slots that may be traced.

Every edit answers `ok`; where it cannot be done (no free slot, no such edge, a circle of edges without delay, a chain
longer than the capacity's levels) the graph comes back unchanged. It also says how the memories of running episodes
follow (`carried`): those that preserve the function do so in the middle of an episode, too. Weights are meant as they
act; `dale` translates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import (
    N_GATES,
    Activation,
    CellType,
    Graph,
    Kind,
    Memory,
    Role,
    Topology,
    Weights,
)
from tensor_optix.neuroevo.graph.levels import fits

SIGNIFICANT = 1e-9  # of a product of weights that `prune_neuron` hands on


class Edited(struct.PyTreeNode):
    """A graph after an edit, or as it was where `ok` is False."""

    graph: Graph
    ok: jax.Array  # [] bool
    source: jax.Array  # [N] int32, the slot whose past each slot takes over
    shift: jax.Array  # [N] int32, steps that it lies further back
    scale: jax.Array  # [N] float32, what it is multiplied by; 0: nothing is taken over


def insert(graph: Graph, delay: jax.Array, dst: jax.Array, src: jax.Array) -> Edited:
    """A relay on an edge: src -> new with delay // 2 and weight 1, new -> dst with the rest and the edge's weight.

    The function is preserved. The relay is linear, without bias; in a graph where some neuron has a type it is
    excitatory, for Dale's law: a negative sign stands before it.

    Args:
        graph: its capacity must allow linear neurons (ValueError).
        delay, dst, src: [] int32, which edge.
    """
    if Activation.LINEAR not in graph.capacity.activations:
        raise ValueError("a relay is linear: put Activation.LINEAR into the capacity's activations")
    topology, matrix = graph.topology, dale.effective(graph)
    (delay, dst, src), there = _edge(graph, delay, dst, src)
    new, free = _free_slot(graph)
    first, weight = delay // 2, matrix[delay, dst, src]
    typed, of_source = jnp.any(topology.cell_type != 0), topology.cell_type[src]
    negative = (of_source < 0) | ((of_source == 0) & (weight < 0) & typed)
    sign = jnp.where(negative, jnp.float32(-1.0), jnp.float32(1.0))
    matrix = matrix.at[delay, dst, src].set(0).at[first, new, src].set(sign)
    matrix = matrix.at[delay - first, dst, new].set(weight * sign)
    edges = topology.edges.at[delay, dst, src].set(False).at[first, new, src].set(True)
    edges = edges.at[delay - first, dst, new].set(True)
    excitatory = jnp.where(typed, int(CellType.EXCITATORY), int(CellType.ANY)).astype(jnp.int8)
    after = _with_neuron(graph, new, edges, Kind.POINT, Activation.LINEAR, excitatory)
    after = _weighted(graph, after, matrix)
    ok = there & topology.edges[delay, dst, src] & free & fits(after)
    same = _same_past(graph)
    return _settled(graph, after, ok, same[0].at[new].set(src), same[1].at[new].set(first), same[2].at[new].set(sign))


def split(graph: Graph, neuron: jax.Array, share: jax.Array | float = 0.5) -> Edited:
    """Two of a hidden neuron: a copy with the same inputs, bias, gates and memory; they share its outgoing weights.

    The function is preserved for every kind of neuron. With equal shares the two get equal gradients and stay alike for
    as long as nothing else tells them apart; with unequal ones they part.

    Args:
        graph: one graph.
        neuron: [] int32.
        share: of each outgoing weight, that the old one keeps; in [0, 1].
    """
    topology = graph.topology
    matrix, raw = dale.effective(graph), graph.weights.edges
    neuron, there = _slot(graph, neuron)
    new, free = _free_slot(graph)
    kept, given = share * matrix[:, :, neuron], (1 - share) * matrix[:, :, neuron]
    columns = [_raw_from(graph, neuron, weights) for weights in (kept, given)]
    raw = raw.at[:, :, neuron].set(columns[0]).at[:, :, new].set(columns[1])
    edges = topology.edges.at[:, :, new].set(topology.edges[:, :, neuron])
    raw, edges = raw.at[:, new].set(raw[:, neuron]), edges.at[:, new].set(edges[:, neuron])

    def copied(x: jax.Array) -> jax.Array:
        return x.at[new].set(x[neuron])

    after = graph.replace(
        topology=Topology(
            role=copied(topology.role),
            kind=copied(topology.kind),
            activation=copied(topology.activation),
            cell_type=copied(topology.cell_type),
            edges=edges,
        ),
        weights=Weights(jnp.where(edges, raw, 0), copied(graph.weights.bias), copied(graph.weights.gates)),
    )
    ok = there & (topology.role[neuron] == int(Role.HIDDEN)) & free
    same = _same_past(graph)
    return _settled(graph, after, ok, same[0].at[new].set(neuron), same[1], same[2])


def add_input(graph: Graph) -> Edited:
    """One more input behind the others, with an edge of weight 0 to every neuron that is no input."""
    topology, n_in = graph.topology, graph.capacity.inputs
    new = jnp.sum(topology.role[:n_in] == int(Role.INPUT), dtype=jnp.int32)
    ok = new < n_in
    new = jnp.minimum(new, n_in - 1)
    targets = (topology.role == int(Role.HIDDEN)) | (topology.role == int(Role.OUTPUT))
    edges = topology.edges.at[0, :, new].set(targets)
    after = graph.replace(
        topology=topology.replace(role=topology.role.at[new].set(int(Role.INPUT)), edges=edges),
        weights=graph.weights.replace(edges=graph.weights.edges.at[:, :, new].set(0)),
    )
    same = _same_past(graph)
    return _settled(graph, after, ok, same[0], same[1], same[2].at[new].set(0))


def add_edge(graph: Graph, delay: jax.Array, dst: jax.Array, src: jax.Array, weight: jax.Array | float = 0.0) -> Edited:
    """An edge that is not there yet; with weight 0 (under softplus: 8e-7) the function is preserved.

    Refused, too: into an input, without delay in a circle, with a weight of a sign that Dale's law forbids.
    """
    topology = graph.topology
    weight = jnp.asarray(weight, jnp.float32)
    (delay, dst, src), there = _edge(graph, delay, dst, src)
    lawful = topology.cell_type[src].astype(jnp.float32) * weight >= 0
    known = (topology.role[src] != int(Role.ABSENT)) & (topology.role[dst] > int(Role.INPUT))
    raw = _raw_from(graph, src, weight)
    after = graph.replace(
        topology=topology.replace(edges=topology.edges.at[delay, dst, src].set(True)),
        weights=graph.weights.replace(edges=graph.weights.edges.at[delay, dst, src].set(raw)),
    )
    ok = there & lawful & known & ~topology.edges[delay, dst, src] & fits(after)
    return _settled(graph, after, ok, *_same_past(graph))


def prune_edge(graph: Graph, delay: jax.Array, dst: jax.Array, src: jax.Array) -> Edited:
    """The edge goes."""
    (delay, dst, src), there = _edge(graph, delay, dst, src)
    after = graph.replace(
        topology=graph.topology.replace(edges=graph.topology.edges.at[delay, dst, src].set(False)),
        weights=graph.weights.replace(edges=graph.weights.edges.at[delay, dst, src].set(0)),
    )
    return _settled(graph, after, there & graph.topology.edges[delay, dst, src], *_same_past(graph))


def prune_neuron(graph: Graph, neuron: jax.Array, redistribute: bool = True) -> Edited:
    """A hidden neuron goes. What went through it is handed on along its edges, as if it had been linear.

    For every path u -> neuron -> v the product of both weights is added to the edge u -> v with the sum of both delays
    (made where there is none), unless it is below `SIGNIFICANT`; a sign that Dale's law forbids becomes 0. Refused
    where a path is longer than the capacity's delays.
    """
    topology, delays = graph.topology, graph.capacity.delays
    neuron, there = _slot(graph, neuron)
    matrix, edges = dale.effective(graph), topology.edges
    lost = jnp.bool_(False)
    if redistribute:
        others = jnp.arange(graph.capacity.neurons) != neuron
        into, out = (jnp.where(others, x, jnp.float32(0.0)) for x in (matrix[:, neuron, :], matrix[:, :, neuron]))
        for d1 in range(delays + 1):
            for d2 in range(delays + 1):
                product = out[d2][:, None] * into[d1][None, :]
                counts = jnp.abs(product) > SIGNIFICANT
                if d1 + d2 > delays:
                    lost = lost | counts.any()
                    continue
                matrix = matrix.at[d1 + d2].add(jnp.where(counts, product, jnp.float32(0.0)))
                edges = edges.at[d1 + d2].set(edges[d1 + d2] | counts)
    after = _without(_weighted(graph, graph.replace(topology=topology.replace(edges=edges)), matrix), neuron)
    same = _same_past(graph)
    ok = there & (topology.role[neuron] == int(Role.HIDDEN)) & ~lost
    return _settled(graph, after, ok, same[0], same[1], same[2].at[neuron].set(0))


def merge(graph: Graph, a: jax.Array, b: jax.Array, inherit: bool = True) -> Edited:
    """Two hidden neurons become one, `a`, with the sum of the outgoing weights.

    With `inherit` it has its inputs and those of `b` that it lacks, and the mean of both biases: the function is
    preserved for two that do the same and have the same inputs. Without, it stays as it is: the function is preserved
    for two whose values agree, whatever they are made of.

    Refused unless kind, activation and cell type agree, and where it would close a circle without delay.
    """
    topology = graph.topology
    (a, there), (b, also) = _slot(graph, a), _slot(graph, b)
    alike = there & also & (a != b)
    for field in (topology.role, topology.kind, topology.activation, topology.cell_type):
        alike = alike & (field[a] == field[b])
    matrix, edges = dale.effective(graph), topology.edges
    bias = graph.weights.bias
    matrix = matrix.at[:, :, a].add(matrix[:, :, b])
    edges = edges.at[:, :, a].set(edges[:, :, a] | edges[:, :, b])
    if inherit:
        matrix = matrix.at[:, a].set(jnp.where(edges[:, a], matrix[:, a], matrix[:, b]))
        edges = edges.at[:, a].set(edges[:, a] | edges[:, b])
        bias = bias.at[a].set((bias[a] + bias[b]) / 2)
    after = _weighted(graph, graph.replace(topology=topology.replace(edges=edges)), matrix)
    after = _without(after.replace(weights=after.weights.replace(bias=bias)), b)
    ok = alike & (topology.role[a] == int(Role.HIDDEN)) & fits(after)
    same = _same_past(graph)
    return _settled(graph, after, ok, same[0], same[1], same[2].at[b].set(0))


def absorb(graph: Graph, a: jax.Array, b: jax.Array) -> Edited:
    """`merge` without inheriting."""
    return merge(graph, a, b, inherit=False)


def unchanged(graph: Graph) -> Edited:
    """No edit: every neuron keeps its past."""
    return Edited(graph, jnp.bool_(True), *_same_past(graph))


def unless(refused: jax.Array, graph: Graph, edited: Edited) -> Edited:
    """The edit, or none: refused [] bool."""
    return _settled(graph, edited.graph, edited.ok & ~refused, edited.source, edited.shift, edited.scale)


def carried(edited: Edited, memory: Memory) -> Memory:
    """The memory [*batch, ...] of an episode that goes on with the edited graph."""

    def past_of(past: jax.Array) -> jax.Array:
        delays = past.shape[0]
        steps = jnp.arange(delays, dtype=jnp.int32)[:, None] + edited.shift[None, :]
        taken = past[jnp.minimum(steps, delays - 1), edited.source[None, :]] * edited.scale[None, :]
        return jnp.where(steps < delays, taken, jnp.float32(0.0))

    kind = edited.graph.topology.kind
    remembers = ((kind == int(Kind.LSTM)) | (kind == int(Kind.TRAINABLE_LSTM))) & (edited.scale != 0)

    def cell_of(cell: jax.Array) -> jax.Array:
        return jnp.where(remembers, cell[edited.source], jnp.float32(0.0))

    def mapped(f: Callable[[jax.Array], jax.Array], x: Any, rank: int) -> Any:
        if isinstance(x, tuple):  # there is no such memory
            return x
        for _ in range(x.ndim - rank):
            f = jax.vmap(f)
        return f(x)

    return Memory(mapped(past_of, memory.past, 2), mapped(cell_of, memory.cell, 1))


def learnable(topology: Topology) -> Weights:
    """Which parameters there are, bool in the place of each: of edges, of neurons that are no inputs, of cells."""
    inside = topology.role > int(Role.INPUT)
    gru = (topology.kind == int(Kind.GRU)) | (topology.kind == int(Kind.TRAINABLE_GRU))
    lstm = (topology.kind == int(Kind.LSTM)) | (topology.kind == int(Kind.TRAINABLE_LSTM))
    used = jnp.where(lstm, N_GATES, jnp.where(gru, 9, 0))
    gates = jnp.arange(N_GATES, dtype=jnp.int32)[None, :] < used[:, None]
    return Weights(topology.edges, inside, gates & inside[:, None])


def kept(before: Graph, after: Graph) -> Weights:
    """Which parameters came through one edit untouched, bool in the place of each.

    Of several edits, all must have left it so: a slot may have been given up and taken again. What an optimiser knows
    of the others (its moments) is of something else, and has to be forgotten.
    """
    both = jax.tree.map(jnp.logical_and, learnable(before.topology), learnable(after.topology))
    return jax.tree.map(lambda there, old, new: there & (old == new), both, before.weights, after.weights)


def _edge(graph: Graph, delay: Any, dst: Any, src: Any) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    """The place of an edge, moved inside, and whether it was inside."""
    delay = jnp.asarray(delay, jnp.int32)
    at = jnp.clip(delay, 0, graph.capacity.delays)
    (dst, to), (src, fro) = _slot(graph, dst), _slot(graph, src)
    return (at, dst, src), (at == delay) & to & fro


def _slot(graph: Graph, slot: Any) -> tuple[jax.Array, jax.Array]:
    """A slot, moved inside, and whether it was inside."""
    slot = jnp.asarray(slot, jnp.int32)
    at = jnp.clip(slot, 0, graph.capacity.neurons - 1)
    return at, at == slot


def _free_slot(graph: Graph) -> tuple[jax.Array, jax.Array]:
    """The first hidden slot that holds nothing, and whether there is one."""
    start = graph.capacity.first_hidden
    if start == graph.capacity.neurons:
        return jnp.int32(start - 1), jnp.bool_(False)
    absent = graph.topology.role[start:] == int(Role.ABSENT)
    return start + jnp.argmax(absent).astype(jnp.int32), absent.any()


def _with_neuron(
    graph: Graph, slot: jax.Array, edges: jax.Array, kind: Kind, activation: Activation, cell_type: jax.Array
) -> Graph:
    """A hidden neuron in `slot`, without bias."""
    topology, weights = graph.topology, graph.weights
    return graph.replace(
        topology=Topology(
            role=topology.role.at[slot].set(int(Role.HIDDEN)),
            kind=topology.kind.at[slot].set(int(kind)),
            activation=topology.activation.at[slot].set(int(activation)),
            cell_type=topology.cell_type.at[slot].set(cell_type),
            edges=edges,
        ),
        weights=weights.replace(bias=weights.bias.at[slot].set(0), gates=weights.gates.at[slot].set(0)),
    )


def _without(graph: Graph, slot: jax.Array) -> Graph:
    """Nothing in `slot`, and no edge to or from it."""
    topology, weights = graph.topology, graph.weights
    edges = topology.edges.at[:, slot].set(False).at[:, :, slot].set(False)
    return graph.replace(
        topology=Topology(
            role=topology.role.at[slot].set(0),
            kind=topology.kind.at[slot].set(0),
            activation=topology.activation.at[slot].set(0),
            cell_type=topology.cell_type.at[slot].set(0),
            edges=edges,
        ),
        weights=Weights(
            jnp.where(edges, weights.edges, jnp.float32(0.0)),
            weights.bias.at[slot].set(0),
            weights.gates.at[slot].set(0),
        ),
    )


def _weighted(before: Graph, after: Graph, matrix: jax.Array) -> Graph:
    """`after` with parameters that act as `matrix`; where that is as before, bit for bit the old ones."""
    same = (dale.effective(before) == matrix) & before.topology.edges
    raw = dale.raw_of(after.capacity, after.topology, matrix)
    raw = jnp.where(same, before.weights.edges, raw)
    edges = jnp.where(after.topology.edges, raw, jnp.float32(0.0))
    return after.replace(weights=after.weights.replace(edges=edges))


def _raw_from(graph: Graph, source: jax.Array, weights: jax.Array) -> jax.Array:
    """Parameters of `weights` (any shape), all from slot `source` [] int32."""
    one = graph.topology.replace(cell_type=graph.topology.cell_type[source][None])
    return dale.raw_of(graph.capacity, one, jnp.asarray(weights)[..., None])[..., 0]


def _same_past(graph: Graph) -> tuple[jax.Array, jax.Array, jax.Array]:
    size = graph.capacity.neurons
    return jnp.arange(size, dtype=jnp.int32), jnp.zeros((size,), jnp.int32), jnp.ones((size,), jnp.float32)


def _settled(
    before: Graph, after: Graph, ok: jax.Array, source: jax.Array, shift: jax.Array, scale: jax.Array
) -> Edited:
    graph, *past = jax.tree.map(
        lambda new, old: jnp.where(ok, new, old).astype(old.dtype),
        (after, source, shift, scale),
        (before, *_same_past(before)),
    )
    return Edited(graph, ok, *past)
