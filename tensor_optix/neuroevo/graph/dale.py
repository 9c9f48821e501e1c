"""Dale's law: all weights that leave a neuron have one sign.

Clamp: a parameter is its weight; after each step of the optimiser what has the wrong sign is set to 0 (`enforced`).
Softplus: the weight of an edge from an excitatory (inhibitory) neuron is softplus(theta) (minus that), which never has
the wrong sign and always a gradient. From a neuron of any type the parameter is the weight in both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tensor_optix.neuroevo.graph.arrays import Capacity, Graph, Topology

# The parameter that stands for a weight of 0 under softplus: softplus(-14) = 8.3e-7.
ZERO = -14.0
_TINY = 8.3153e-07


def effective(graph: Graph) -> jax.Array:
    """Weights as they act, float32 [1 + D, N, N]; 0 where there is no edge."""
    raw = graph.weights.edges
    if graph.capacity.softplus:
        sign = graph.topology.cell_type.astype(jnp.float32)[None, None, :]  # by source
        raw = jnp.where(sign == 0, raw, sign * jax.nn.softplus(raw))
    return jnp.where(graph.topology.edges, raw, jnp.float32(0.0))


def raw_of(capacity: Capacity, topology: Topology, weights: jax.Array) -> jax.Array:
    """Parameters whose `effective` weights are `weights` [..., N] (the last axis: the source), where the law allows it.

    A weight of the wrong sign becomes 0.
    """
    sign = topology.cell_type.astype(jnp.float32)
    sign = sign.reshape((1,) * (weights.ndim - 1) + sign.shape)
    if not capacity.softplus:
        return jnp.where(weights * sign < 0, jnp.float32(0.0), weights)
    size = jnp.maximum(weights * sign, jnp.float32(0.0))
    # log(exp(s) - 1), without overflow for a large s and without cancellation for a small one
    theta = size + jnp.log(-jnp.expm1(-jnp.maximum(size, jnp.float32(_TINY))))
    theta = jnp.where(size <= _TINY, jnp.float32(ZERO), theta)
    return jnp.where(sign == 0, weights, theta)


def enforced(graph: Graph) -> Graph:
    """The graph with what a step of the optimiser has made of the wrong sign clamped to 0; for softplus as it is."""
    if graph.capacity.softplus:
        return graph
    edges = raw_of(graph.capacity, graph.topology, graph.weights.edges)
    return graph.replace(weights=graph.weights.replace(edges=edges))
