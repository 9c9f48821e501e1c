"""Room for more: the same graph at a larger capacity. On the host, since shapes change.

`step(pad(graph), pad(memory))` is `step(graph, memory)`: what is added holds nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.graph.arrays import Capacity, Graph, Memory, fresh_memory, on_host


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
    moved = relocated(graph, np.arange(graph.capacity.neurons), _places(graph.capacity, capacity), capacity)
    return jax.tree.map(jnp.asarray, moved)


def pad_memory(memory: Memory, old: Capacity, new: Capacity, batch: tuple[int, ...] = ()) -> Memory:
    """A memory [*batch, ...] at a larger capacity.

    batch: of an old memory that holds nothing, and so does not tell.
    """
    moved = relocated_memory(memory, np.arange(old.neurons), _places(old, new), new, batch)
    return jax.tree.map(jnp.asarray, moved)


def relocated(graph: Graph, old: np.ndarray, new: np.ndarray, capacity: Capacity) -> Graph:
    """What lies in the slots `old`, put into the slots `new` of another capacity; in all others is nothing. In NumPy.

    Inputs and outputs may come and go. `capacity` has at least as many delays.
    """

    def moved(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return (relocated_neurons if x.ndim < 3 else relocated_edges)(x, old, new, capacity)

    return Graph(jax.tree.map(moved, graph.topology), jax.tree.map(moved, graph.weights), capacity)


def relocated_memory(
    memory: Memory, old: np.ndarray, new: np.ndarray, capacity: Capacity, batch: tuple[int, ...] = ()
) -> Memory:
    """The memory [*batch, ...] that goes with `relocated`. batch: of one that holds nothing."""
    there = [np.asarray(x) for x in (memory.past, memory.cell) if not isinstance(x, tuple)]
    if there:
        batch = there[0].shape[: there[0].ndim - (1 if isinstance(memory.past, tuple) else 2)]
    fresh = on_host(fresh_memory, capacity, batch)
    if not isinstance(memory.past, tuple):
        past = np.asarray(memory.past)
        fresh.past[..., : past.shape[-2], new] = past[..., old]
    if not isinstance(memory.cell, tuple):
        fresh.cell[..., new] = np.asarray(memory.cell)[..., old]
    return fresh


def relocated_neurons(x: np.ndarray, old: np.ndarray, new: np.ndarray, capacity: Capacity) -> np.ndarray:
    """The same for an array [N, ...] with a row for each neuron."""
    out = np.zeros((capacity.neurons, *x.shape[1:]), x.dtype)
    out[new] = x[old]
    return out


def relocated_edges(x: np.ndarray, old: np.ndarray, new: np.ndarray, capacity: Capacity) -> np.ndarray:
    """The same for an array [1 + D, N, N] with an entry for each edge."""
    out = np.zeros((1 + capacity.delays, capacity.neurons, capacity.neurons), x.dtype)
    delays = np.arange(x.shape[0])
    out[np.ix_(delays, new, new)] = x[np.ix_(delays, old, old)]
    return out


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
