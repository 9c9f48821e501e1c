"""One graph, or a brain of several: what acting and learning ask of either."""

from __future__ import annotations

from typing import Any

import jax

from tensor_optix.neuroevo.graph import brain, dale
from tensor_optix.neuroevo.graph.arrays import Graph, Memory
from tensor_optix.neuroevo.graph.brain import Brain

Network = Graph | Brain


def whole(network: Network) -> Graph:
    """The graph that runs."""
    return brain.whole(network) if isinstance(network, Brain) else network


def by_regions(network: Network, values: jax.Array, memory: Memory) -> tuple[tuple[jax.Array, Memory], ...]:
    """Values [*batch, N] of the whole in a step and the memory before it, divided among the regions."""
    if not isinstance(network, Brain):
        return ((values, memory),)
    parts = zip(network.layout.places(), brain.divided(network.layout, memory), strict=True)
    return tuple((values[..., at], part) for at, part in parts)


def weights_of(network: Network) -> Any:
    """What is learned, a pytree of float32."""
    return brain.weights_of(network) if isinstance(network, Brain) else network.weights


def with_weights(network: Network, weights: Any) -> Network:
    """The network with other weights."""
    if isinstance(network, Brain):
        return brain.with_weights(network, weights)
    return network.replace(weights=weights)


def lawful(network: Network) -> Network:
    """The network with what Dale's law forbids set to 0."""
    return brain.enforced(network) if isinstance(network, Brain) else dale.enforced(network)
