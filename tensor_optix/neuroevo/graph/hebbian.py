"""Hebbian plasticity: weights follow what fires together, beside what gradients do.

    dw = lr * mean_t(h_pre * h_post) - decay * w

in the form of Oja (1982), "Simplified neuron model as a principal component analyzer", with a constant decay. h_pre is
the value that the edge delivered: that of `delay` steps before. The parameter moves, not the weight that it stands for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import Capacity, Graph, Memory


class Coactivity(struct.PyTreeNode):
    """What has fired together."""

    total: jax.Array  # [1 + D, N, N] float32, summed products, in the places of the edges
    steps: jax.Array  # [] int32


def init(capacity: Capacity) -> Coactivity:
    """Nothing recorded."""
    n = capacity.neurons
    return Coactivity(jnp.zeros((1 + capacity.delays, n, n), jnp.float32), jnp.int32(0))


def record(seen: Coactivity, values: jax.Array, memory: Memory) -> Coactivity:
    """After a step: its values [*batch, N], and the memory *before* it, [*batch, ...]."""
    n = values.shape[-1]
    post = values.reshape(-1, n)
    delivered = values[..., None, :]
    if seen.total.shape[0] > 1:
        delivered = jnp.concatenate([delivered, memory.past], axis=-2)
    delivered = delivered.reshape(post.shape[0], -1, n)
    total = seen.total + jnp.einsum("bv,bdu->dvu", post, delivered)
    return Coactivity(total, seen.steps + jnp.int32(post.shape[0]))


def apply(
    graph: Graph,
    seen: Coactivity,
    lr: jax.Array | float,
    decay: jax.Array | float,
    clip: float | None = None,
    respect_dale: bool = True,
) -> Graph:
    """The graph after one update; as it is where nothing was recorded.

    Args:
        graph: of the edges that there are, the parameters move.
        seen: what was recorded.
        lr, decay: eta and lambda.
        clip: parameters stay in [-clip, clip].
        respect_dale: enforce Dale's law afterwards, where it is one of clamping.
    """
    mean = seen.total / jnp.maximum(seen.steps, 1).astype(jnp.float32)
    raw = graph.weights.edges
    moved = raw + lr * mean - decay * raw
    if clip is not None:
        moved = jnp.clip(moved, -clip, clip)
    moved = jnp.where(graph.topology.edges & (seen.steps > 0), moved, raw)
    after = graph.replace(weights=graph.weights.replace(edges=moved))
    return dale.enforced(after) if respect_dale else after
