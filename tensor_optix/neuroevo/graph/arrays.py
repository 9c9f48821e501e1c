"""A graph of neurons as arrays of fixed capacity.

Slots of neurons come in three ranges, so that observations and outputs are plain slices:

    [0, I)          inputs, in the order of the observation, without gaps
    [I, I + O)      outputs, in their order
    [I + O, N)      hidden neurons, in any order

Edges are dense: `edges[d, v, u]` is the edge from u to v that delivers after d steps. Products of small dense matrices
are what CPUs and accelerators are fastest at; benchmarks/graphs.py has the comparison with lists of edges. Whatever has
no edge or no neuron holds zeros, and the masks say so. Graphs are stacked and mapped over like any other pytree: each
may have another topology.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

N_GATES = 12  # parameters of the largest cell: three of each of an LSTM's four gates


class Role(enum.IntEnum):
    """What a slot holds."""

    ABSENT = 0
    INPUT = 1
    HIDDEN = 2
    OUTPUT = 3


class Kind(enum.IntEnum):
    """How a neuron turns what comes in into its value; see `cells`."""

    POINT = 0  # activation(x)
    GRU = 1  # a scalar memory; no gradient flows back through it
    LSTM = 2
    TRAINABLE_GRU = 3  # the same, with gradients through time
    TRAINABLE_LSTM = 4


class Activation(enum.IntEnum):
    """Of a point neuron."""

    LINEAR = 0
    RELU = 1
    TANH = 2
    SIGMOID = 3
    ELU = 4


class CellType(enum.IntEnum):
    """Dale's law: the sign of all weights that leave a neuron."""

    INHIBITORY = -1
    ANY = 0
    EXCITATORY = 1


@dataclass(frozen=True)
class Capacity:
    """What is compiled for. Static and hashable; graphs that fit the same capacity share a program.

    Args:
      inputs: I, slots for inputs.
      outputs: O, slots for outputs.
      hidden: slots for hidden neurons.
      delays: D, the longest delay of an edge; at least 1 where neurons may be gated.
      levels: the longest chain of edges without delay, counted in neurons that are no inputs.
      gated: GRU and LSTM neurons may occur.
      activations: those that may occur, sorted.
      softplus: Dale's law by softplus of the parameter, instead of by clamping it.

    Raises:
      ValueError: a count is too small.
    """

    inputs: int
    outputs: int
    hidden: int
    delays: int = 1
    levels: int = 4
    gated: bool = False
    activations: tuple[Activation, ...] = tuple(Activation)
    softplus: bool = False

    def __post_init__(self) -> None:
        for name, least in (("inputs", 1), ("outputs", 1), ("hidden", 0), ("delays", int(self.gated)), ("levels", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.activations:
            raise ValueError("activations must name at least one")

    @property
    def neurons(self) -> int:
        """N."""
        return self.inputs + self.outputs + self.hidden

    @property
    def first_hidden(self) -> int:
        return self.inputs + self.outputs


class Topology(struct.PyTreeNode):
    """What there is. Nothing here has a gradient."""

    role: jax.Array  # [N] int8, `Role`
    kind: jax.Array  # [N] int8, `Kind`
    activation: jax.Array  # [N] int8, `Activation`
    cell_type: jax.Array  # [N] int8, `CellType`
    edges: jax.Array  # [1 + D, N, N] bool: delay, to, from


class Weights(struct.PyTreeNode):
    """What is learned; 0 where there is nothing."""

    edges: jax.Array  # [1 + D, N, N] float32, the raw parameter: see `dale`
    bias: jax.Array  # [N] float32; of inputs not used
    gates: jax.Array  # [N, 12] float32, of gated neurons


class Graph(struct.PyTreeNode):
    """A graph of neurons, at the capacity `capacity`."""

    topology: Topology
    weights: Weights
    capacity: Capacity = struct.field(pytree_node=False)


class Memory(struct.PyTreeNode):
    """What a graph carries from step to step. Batch axes in front."""

    past: Any  # [..., D, N] float32, values of the D steps before, the newest first; () without delays
    cell: Any  # [..., N] float32, of LSTM neurons; () where no gated neurons may occur


def empty(capacity: Capacity) -> Graph:
    """A graph without neurons."""
    n, d = capacity.neurons, capacity.delays
    nothing = jnp.zeros((n,), jnp.int8)
    topology = Topology(nothing, nothing, nothing, nothing, jnp.zeros((1 + d, n, n), bool))
    weights = Weights(
        jnp.zeros((1 + d, n, n), jnp.float32), jnp.zeros((n,), jnp.float32), jnp.zeros((n, N_GATES), jnp.float32)
    )
    return Graph(topology, weights, capacity)


def fresh_memory(capacity: Capacity, batch: tuple[int, ...] = ()) -> Memory:
    """Nothing remembered: the start of an episode."""
    n, d = capacity.neurons, capacity.delays
    return Memory(
        jnp.zeros((*batch, d, n), jnp.float32) if d else (),
        jnp.zeros((*batch, n), jnp.float32) if capacity.gated else (),
    )


def on_host(make: Callable[..., Any], *args: Any) -> Any:
    """What `empty` or `fresh_memory` makes (zeros), in NumPy: JAX computes nothing, and need not have started."""
    shapes = jax.eval_shape(lambda: make(*args))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def forgotten(memory: Memory, start: jax.Array) -> Memory:
    """The memory [*batch, ...] with nothing in it where an episode starts: start [*batch] bool."""

    def wipe(x: jax.Array) -> jax.Array:
        return jnp.where(start.reshape(*start.shape, *(1,) * (x.ndim - start.ndim)), jnp.zeros_like(x), x)

    return jax.tree.map(wipe, memory)


def present(topology: Topology) -> jax.Array:
    """[N] bool, slots that hold a neuron."""
    return topology.role != Role.ABSENT


def count_neurons(topology: Topology) -> jax.Array:
    """[] int32."""
    return jnp.sum(present(topology), dtype=jnp.int32)


def count_edges(topology: Topology) -> jax.Array:
    """[] int32."""
    return jnp.sum(topology.edges, dtype=jnp.int32)
