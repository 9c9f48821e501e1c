"""Room for more: the same graph at a larger capacity. On the host, since shapes change.

`step(pad(graph), pad(memory))` is `step(graph, memory)`: what is added holds nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.graph.arrays import Capacity, Graph, Memory, Topology, Weights, fresh_memory


def grown(capacity: Capacity, **room: int) -> Capacity:
    """The capacity with at least so much `room` (hidden=, delays=, levels=, inputs=), in powers of two.

    So programs are compiled for few capacities, whatever the graphs that come along.
    """
    changed: dict[str, Any] = {}
    for name, wanted in room.items():
        if wanted > getattr(capacity, name):
            changed[name] = 1 << max(wanted - 1, 0).bit_length()
    return dataclasses.replace(capacity, **changed)


def pad_graph(graph: Graph, capacity: Capacity) -> Graph:
    """The graph at a larger capacity; hidden neurons stay in their order, behind the outputs.

    Raises:
      ValueError: `capacity` has less room in some respect, another number of outputs, or another form of Dale's law.
    """
    _check(graph.capacity, capacity)
    topology, weights = graph.topology, graph.weights
    place = _places(graph.capacity, capacity)
    n, d = capacity.neurons, capacity.delays

    def neurons(x: jax.Array) -> jax.Array:
        return jnp.zeros((n, *x.shape[1:]), x.dtype).at[place].set(x)

    def edges(x: jax.Array) -> jax.Array:
        delays = np.arange(x.shape[0])
        return jnp.zeros((1 + d, n, n), x.dtype).at[np.ix_(delays, place, place)].set(x)

    return Graph(
        Topology(
            role=neurons(topology.role),
            kind=neurons(topology.kind),
            activation=neurons(topology.activation),
            cell_type=neurons(topology.cell_type),
            edges=edges(topology.edges),
        ),
        pad_weights(weights, graph.capacity, capacity),
        capacity,
    )


def pad_weights(weights: Weights, old: Capacity, new: Capacity) -> Weights:
    """Weights, or what an optimiser keeps beside each of them, at a larger capacity."""
    place = _places(old, new)
    n = new.neurons
    edges = jnp.zeros((1 + new.delays, n, n), weights.edges.dtype)
    return Weights(
        edges=edges.at[np.ix_(np.arange(1 + old.delays), place, place)].set(weights.edges),
        bias=jnp.zeros((n,), weights.bias.dtype).at[place].set(weights.bias),
        gates=jnp.zeros((n, weights.gates.shape[1]), weights.gates.dtype).at[place].set(weights.gates),
    )


def pad_memory(memory: Memory, old: Capacity, new: Capacity, batch: tuple[int, ...] = ()) -> Memory:
    """A memory [*batch, ...] at a larger capacity.

    batch: of an old memory that holds nothing, and so does not tell.
    """
    place = _places(old, new)
    batch = memory.past.shape[:-2] if old.delays else batch
    fresh = fresh_memory(new, batch)
    past = fresh.past.at[(..., *np.ix_(np.arange(old.delays), place))].set(memory.past) if old.delays else fresh.past
    return Memory(past, fresh.cell.at[..., place].set(memory.cell) if old.gated else fresh.cell)


def pad_observation(obs: Any, capacity: Capacity) -> jax.Array:
    """Observations [*batch, i] with zeros behind them, [*batch, I]."""
    obs = jnp.asarray(obs, jnp.float32)
    return jnp.pad(obs, [(0, 0)] * (obs.ndim - 1) + [(0, capacity.inputs - obs.shape[-1])])


def _places(old: Capacity, new: Capacity) -> np.ndarray:
    """[N old] int: where each slot goes."""
    slots = np.arange(old.neurons)
    outputs = (slots >= old.inputs) & (slots < old.first_hidden)
    moved = np.where(outputs, slots - old.inputs + new.inputs, slots)
    return np.where(slots >= old.first_hidden, slots - old.first_hidden + new.first_hidden, moved)


def _check(old: Capacity, new: Capacity) -> None:
    for name in ("inputs", "outputs", "hidden", "delays", "levels"):
        if getattr(new, name) < getattr(old, name):
            raise ValueError(
                f"the new capacity has {name}={getattr(new, name)}, less than the old one's {getattr(old, name)}: "
                "a capacity only grows"
            )
    if new.outputs != old.outputs:
        raise ValueError(f"a graph keeps its outputs: got {new.outputs}, expected {old.outputs}")
    if new.softplus != old.softplus or not set(old.activations) <= set(new.activations) or old.gated > new.gated:
        raise ValueError("the new capacity must allow all that the old one did, by the same form of Dale's law")
