"""Graphs to start from: layers of neurons, each fully connected to the next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, CellType, Graph, Kind, Role, Topology, Weights
from tensor_optix.neuroevo.graph.cells import fresh_gates

_FEEDBACK = 0.1  # standard deviation of all that delayed edges bring to a neuron, per unit of activity


def layered(
    capacity: Capacity,
    sizes: Sequence[int],
    activation: Activation,
    kind: Kind,
    feedback: int,
    output_gains: Sequence[float],
    key: jax.Array,
    inhibitory: float | None = None,
) -> Graph:
    """Inputs, hidden layers of `sizes` neurons, linear outputs; normal weights of variance 1 / fan-in, biases 0.

    Under Dale's law the hidden neurons' weights are the sizes of normal ones, with their neuron's sign. Inhibitory ones
    are larger by as much as they are fewer, so that what a neuron gets is balanced: 0 on average over the weights, and
    of the same variance for inputs that are independent.

    Args:
        capacity: has room for them.
        activation, kind: of the hidden neurons.
        feedback: delays 1 to `feedback` from every hidden neuron of a layer to every one of it; 0: none.
        output_gains: [O], what an output's weights are multiplied by.
        key: consumed.
        inhibitory: share of each hidden layer's neurons (its last ones) that inhibit, in [0, 1], the others excite;
            None: neurons of any type.
    """
    n, first = capacity.neurons, capacity.first_hidden
    role, kinds, activations = np.zeros((3, n), np.int8)
    hidden = slice(first, first + sum(sizes))
    role[: capacity.inputs], role[capacity.inputs : first], role[hidden] = Role.INPUT, Role.OUTPUT, Role.HIDDEN
    kinds[hidden], activations[hidden] = kind, activation
    borders = [first, *(first + np.cumsum(sizes)).tolist()]
    layers = [slice(0, capacity.inputs), *(slice(a, b) for a, b in itertools.pairwise(borders))]
    edges = np.zeros((1 + capacity.delays, n, n), bool)
    for before, after in itertools.pairwise([*layers, slice(capacity.inputs, first)]):
        edges[0, after, before] = True
    for layer in layers[1:]:
        edges[1 : 1 + feedback, layer, layer] = True

    scale = 1.0 / np.sqrt(np.maximum(edges.sum(axis=2), 1))  # [1 + D, N]
    scale[1:] *= _FEEDBACK / np.sqrt(max(feedback, 1))
    scale[0, capacity.inputs : first] *= np.asarray(output_gains)
    key_edges, key_gates = jax.random.split(key)
    drawn = jax.random.normal(key_edges, edges.shape, jnp.float32) * scale.astype(np.float32)[:, :, None]
    # Linear in the noise.
    still, unit = (np.stack([fresh_gates(Kind(int(code)), noise) for code in kinds]) for noise in (0.0, 1.0))
    gates = still + (unit - still) * jax.random.normal(key_gates, (n, 1), jnp.float32)
    types = np.zeros(n, np.int8)
    if inhibitory is not None:
        factors = np.ones(n, np.float32)
        for layer in layers[1:]:
            types[layer], factors[layer] = _balanced(layer.stop - layer.start, inhibitory)
        signed = jnp.abs(drawn) * (types * factors)[None, None]
        drawn = jnp.where((types != 0)[None, None], signed, drawn)
    topology = Topology(*map(jnp.asarray, (role, kinds, activations, types, edges)))
    raw = dale.raw_of(capacity, topology, drawn)
    weights = Weights(jnp.where(edges, raw, jnp.float32(0.0)), jnp.zeros((n,), jnp.float32), gates)
    return Graph(topology, weights, capacity)


def _balanced(count: int, inhibitory: float) -> tuple[np.ndarray, np.ndarray]:
    """Types of a layer's neurons, and what their weights are multiplied by, [count] each."""
    inhibits = np.arange(count) >= count - round(inhibitory * count)
    ratio = (~inhibits).sum() / inhibits.sum() if inhibits.any() and not inhibits.all() else 1.0
    factors = np.where(inhibits, ratio, 1.0)
    factors /= np.sqrt(np.mean(np.square(factors)))
    return np.where(inhibits, CellType.INHIBITORY, CellType.EXCITATORY), factors
