"""How deep a graph is, and whether its edges without delay run in a circle."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tensor_optix.neuroevo.graph.arrays import Graph


def levels(edges: jax.Array, most: int, first: int = 0) -> tuple[jax.Array, jax.Array]:
    """The level of every neuron, [N] int32, and whether all are at most `most` ([] bool; False in a circle).

    A neuron's level is the number of neurons that are no inputs on the longest chain of edges that ends in it, itself
    included: 0 for an input, 1 for one that only inputs lead to.

    Args:
        edges: [N, N] bool, to, from; of delay 0.
        most: static.
        first: slots below are inputs.
    """
    size = edges.shape[0]
    start = (jnp.arange(size) >= first).astype(jnp.int32)

    def longer(_: int, level: jax.Array) -> jax.Array:
        longest = jnp.max(jnp.where(edges, level[None, :], jnp.int32(-1)), axis=1)
        return jnp.maximum(start, jnp.where(longest >= 0, longest + start, start))

    level = jax.lax.fori_loop(0, most, longer, start)
    return level, jnp.max(level) <= most


def fits(graph: Graph) -> jax.Array:
    """[] bool: the forward pass of its capacity reaches every neuron, and nothing runs in a circle."""
    return levels(graph.topology.edges[0], graph.capacity.levels, graph.capacity.inputs)[1]
