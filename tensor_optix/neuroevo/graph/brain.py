"""Several graphs, the regions, and weighted pathways between their neurons: one graph that `forward.step` runs.

`whole` lays all regions out in one graph of the ordinary kind, as pure code, so that gradients reach every region's
weights and those of the pathways. Where each slot goes depends on capacities alone: programs are compiled once for a
`Layout`, whatever the neurons, edges and pathways.

    inputs    those of all regions, in the order of the regions
    outputs   those of the output regions, in their order
    hidden    of each region one relay for every input, its outputs if they are not the brain's, its hidden neurons

An input's relay stands for the input within its region: its value is the observation and what pathways bring, and all
edges of the input start from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import (
    Activation,
    Capacity,
    Graph,
    Memory,
    Role,
    Topology,
    Weights,
    empty,
    fresh_memory,
)


@dataclass(frozen=True)
class Layout:
    """What a brain is compiled for. Static and hashable.

    Args:
      regions: capacities, in the order of the regions.
      outputs: which regions' outputs are the brain's, in their order.
      levels: the longest chain of edges and pathways without delay, counted in neurons and relays.
    """

    regions: tuple[Capacity, ...]
    outputs: tuple[int, ...]
    levels: int

    @cached_property
    def capacity(self) -> Capacity:
        """Of the whole."""
        inputs = sum(region.inputs for region in self.regions)
        outputs = sum(self.regions[r].outputs for r in self.outputs)
        relays_and_neurons = sum(region.neurons for region in self.regions)
        return Capacity(
            inputs=inputs,
            outputs=outputs,
            hidden=relays_and_neurons - outputs,
            delays=max(region.delays for region in self.regions),
            levels=self.levels,
            gated=any(region.gated for region in self.regions),
            activations=tuple(sorted({Activation.LINEAR, *(a for c in self.regions for a in c.activations)})),
        )

    def places(self) -> tuple[np.ndarray, ...]:
        """Of each region [N of it] int: where its slots are in the whole; those of inputs are their relays'."""
        return self._places

    @cached_property
    def _places(self) -> tuple[np.ndarray, ...]:
        hidden = self.capacity.first_hidden
        output = sum(region.inputs for region in self.regions)
        firsts = {}
        for r in self.outputs:
            firsts[r], output = output, output + self.regions[r].outputs
        places = []
        for r, region in enumerate(self.regions):
            slots = np.arange(region.neurons)
            is_output = (slots >= region.inputs) & (slots < region.first_hidden)
            if r in firsts:
                at = np.where(slots < region.inputs, slots, slots - region.outputs) + hidden
                places.append(np.where(is_output, slots - region.inputs + firsts[r], at))
                hidden += region.neurons - region.outputs
            else:
                places.append(slots + hidden)
                hidden += region.neurons
        return tuple(places)


class Pathways(struct.PyTreeNode):
    """Edges from region to region, P of them; made by `pathways`."""

    src: jax.Array  # [P] int32, place in the whole
    dst: jax.Array  # [P] int32, place in the whole; an input's is its relay's
    delay: jax.Array  # [P] int32, steps
    weight: jax.Array  # [P] float32, as it acts
    there: jax.Array  # [P] bool; the others do nothing


class Brain(struct.PyTreeNode):
    """Regions and the pathways between them; `outputs` and `levels` are those of `Layout`.

    A region's capacity has at least the delays of the pathways that leave it.
    """

    regions: tuple[Graph, ...]
    pathways: Pathways
    outputs: tuple[int, ...] = struct.field(pytree_node=False)
    levels: int = struct.field(pytree_node=False)

    @property
    def layout(self) -> Layout:
        return Layout(tuple(region.capacity for region in self.regions), self.outputs, self.levels)


class BrainWeights(NamedTuple):
    """What is learned of a brain."""

    regions: tuple[Weights, ...]
    pathways: jax.Array  # [P] float32


def pathways(src: Sequence[int], dst: Sequence[int], delay: Sequence[int], weight: Sequence[float]) -> Pathways:
    """All of the same length, brought to a power of two. On the host.

    Raises:
      ValueError: two run between the same neurons with the same delay.
    """
    ends = list(zip(src, dst, delay, strict=True))
    if len(set(ends)) < len(ends):
        twice = next(end for end in ends if ends.count(end) > 1)
        raise ValueError(
            f"two pathways run from place {twice[0]} to place {twice[1]} with delay {twice[2]}: make them one, or give "
            "one of them another delay"
        )
    room = 1 << max(len(ends) - 1, 0).bit_length()

    def padded(x: Sequence[Any], dtype: Any) -> jax.Array:
        return jnp.asarray(np.pad(np.asarray(x, dtype), (0, room - len(ends))))

    return Pathways(
        src=padded(src, np.int32),
        dst=padded(dst, np.int32),
        delay=padded(delay, np.int32),
        weight=padded(weight, np.float32),
        there=jnp.asarray(np.arange(room) < len(ends)),
    )


def places(brain: Brain) -> tuple[np.ndarray, ...]:
    """Of each region [N of it] int: where its slots are in the whole; those of inputs are their relays'."""
    return brain.layout.places()


def whole(brain: Brain) -> Graph:
    """All of it as one graph in the form of clamp, with weights as they act.

    Observations [*batch, I] of `forward.step` are those of all regions, one after another, each as long as its region's
    capacity has inputs.
    """
    layout = brain.layout
    nothing = empty(layout.capacity)
    t, w = nothing.topology, nothing.weights
    role, kind, activation, cell_type, edges = t.role, t.kind, t.activation, t.cell_type, t.edges
    matrix, bias, gates = w.edges, w.bias, w.gates
    inputs = 0
    for r, (region, at) in enumerate(zip(brain.regions, layout.places(), strict=True)):
        own, n_in = region.topology, region.capacity.inputs
        kept = (own.role == int(Role.ABSENT)) | ((own.role == int(Role.OUTPUT)) & (r in layout.outputs))
        inside = np.arange(region.capacity.neurons) >= n_in
        role = role.at[at].set(jnp.where(kept, own.role, jnp.int8(Role.HIDDEN)))
        kind, cell_type = kind.at[at].set(own.kind), cell_type.at[at].set(own.cell_type)
        activation = activation.at[at].set(jnp.where(inside, own.activation, jnp.int8(Activation.LINEAR)))
        bias = bias.at[at].set(jnp.where(inside, region.weights.bias, jnp.float32(0.0)))
        gates = gates.at[at].set(region.weights.gates)
        edges, matrix = _put(edges, own.edges, at), _put(matrix, dale.effective(region), at)
        seen = own.role[:n_in] == int(Role.INPUT)
        true = np.arange(inputs, inputs + n_in)
        role = role.at[true].set(own.role[:n_in])
        to_relay = 0, at[:n_in], true
        edges, matrix = edges.at[to_relay].set(seen), matrix.at[to_relay].set(seen.astype(jnp.float32))
        inputs += n_in

    p = brain.pathways
    # Those that are not there lie outside.
    index = p.delay, jnp.where(p.there, p.dst, jnp.int32(layout.capacity.neurons)), p.src
    edges = edges.at[index].set(True, mode="drop")
    matrix = matrix.at[index].add(p.weight, mode="drop")
    topology = Topology(role, kind, activation, cell_type, edges)
    return Graph(topology, Weights(matrix, bias, gates), layout.capacity)


def weights_of(brain: Brain) -> BrainWeights:
    """What to differentiate by, and to hand to an optimiser."""
    return BrainWeights(tuple(region.weights for region in brain.regions), brain.pathways.weight)


def with_weights(brain: Brain, weights: BrainWeights) -> Brain:
    """The brain with other weights."""
    regions = tuple(region.replace(weights=w) for region, w in zip(brain.regions, weights.regions, strict=True))
    return brain.replace(regions=regions, pathways=brain.pathways.replace(weight=weights.pathways))


def enforced(brain: Brain) -> Brain:
    """Dale's law in all regions; weights of pathways that their source's type forbids are clamped to 0, too."""
    sign = whole(brain).topology.cell_type[brain.pathways.src].astype(jnp.float32)
    weight = brain.pathways.weight
    weight = jnp.where(weight * sign < 0, jnp.float32(0.0), weight)
    return brain.replace(
        regions=tuple(dale.enforced(region) for region in brain.regions),
        pathways=brain.pathways.replace(weight=weight),
    )


def joined(layout: Layout, parts: Sequence[Memory]) -> Memory:
    """The memory of the whole, out of those of the regions [*batch, ...]. What a region does not keep is 0."""
    regions = list(zip(layout.regions, parts, strict=True))
    batches = [part.past.shape[:-2] for region, part in regions if region.delays]
    batches += [part.cell.shape[:-1] for region, part in regions if region.gated]
    memory = fresh_memory(layout.capacity, batches[0] if batches else ())
    past, cell = memory.past, memory.cell
    for (region, part), at in zip(regions, layout.places(), strict=True):
        if region.delays:
            past = past.at[..., : region.delays, at].set(part.past)
        if region.gated:
            cell = cell.at[..., at].set(part.cell)
    return Memory(past, cell)


def divided(layout: Layout, memory: Memory) -> tuple[Memory, ...]:
    """The memories of the regions, out of that of the whole [*batch, ...]."""
    parts = []
    for region, at in zip(layout.regions, layout.places(), strict=True):
        past = memory.past[..., : region.delays, at] if region.delays else ()
        parts.append(Memory(past, memory.cell[..., at] if region.gated else ()))
    return tuple(parts)


def _put(x: jax.Array, part: jax.Array, at: np.ndarray) -> jax.Array:
    """`x` [1 + D, N, N] with a region's `part` at the places `at`, in blocks of neighbours."""
    runs = np.split(np.arange(len(at)), np.flatnonzero(np.diff(at) != 1) + 1)
    for to in runs:
        for fro in runs:
            block = part[:, to[0] : to[-1] + 1, fro[0] : fro[-1] + 1]
            x = jax.lax.dynamic_update_slice(x, block, (0, int(at[to[0]]), int(at[fro[0]])))
    return x
