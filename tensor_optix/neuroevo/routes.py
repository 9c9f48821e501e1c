"""Memories that others keep while a graph is edited: where each number of an older memory lies now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.graph.arrays import Capacity, Memory

_KEPT = 32  # versions of which memories were made; what is older is forgotten


class Route(NamedTuple):
    """new[i] = scale[i] * old[source[i]], of flat memories."""

    source: np.ndarray  # [C] int32
    scale: np.ndarray  # [C] float32: 1, -1, or 0 where nothing is taken over


def flat(memory: Memory) -> jax.Array:
    """[*batch, C] float32 of a memory [*batch, ...]."""
    parts = [] if isinstance(memory.past, tuple) else [memory.past.reshape(*memory.past.shape[:-2], -1)]
    parts += [] if isinstance(memory.cell, tuple) else [memory.cell]
    return jnp.concatenate(parts, axis=-1)


def unflat(capacity: Capacity, x: jax.Array) -> Memory:
    """The memory [*batch, ...] of [*batch, C]."""
    n, d = capacity.neurons, capacity.delays
    past = x[..., : d * n].reshape(*x.shape[:-1], d, n) if d else ()
    return Memory(past, x[..., d * n :] if capacity.gated else ())


def size(capacity: Capacity) -> int:
    """C."""
    return capacity.neurons * (capacity.delays + int(capacity.gated))


class Routes:
    """Follows a graph's edits for memories that are kept elsewhere, flat, each with its version in front.

    Attributes:
        version: that of memories that are made now.
    """

    def __init__(self, graph: Any) -> None:
        """graph: a `NeuronGraph` or a `BrainNetwork`."""
        self._graph = graph
        self._held: Capacity = graph.capacity
        self.version = 0
        self._given = False  # whether memories of this version were made
        self._routes: dict[int, Route] = {}  # from older versions to the present one
        self._kept = graph.remember(self)

    def carried(self, follow: Callable[[Memory], Memory]) -> None:
        """Every memory goes on as `follow(memory)`, which moves numbers or changes their sign."""
        numbers = unflat(self._held, jnp.arange(1, size(self._held) + 1, dtype=jnp.float32))
        found = np.asarray(flat(follow(numbers)))
        step = Route(np.maximum(np.abs(found) - 1, 0).astype(np.int32), np.sign(found).astype(np.float32))
        if len(found) == size(self._held) and np.array_equal(found, np.arange(1, len(found) + 1)):
            return  # nothing has moved
        self._routes = {version: _joined(route, step) for version, route in self._routes.items()}
        if self._given:
            self._routes[self.version] = step
        self._given = False
        for version in sorted(self._routes)[:-_KEPT]:
            del self._routes[version]
        self.version, self._held = self.version + 1, self._graph.capacity

    def replaced(self) -> None:
        """Memories made so far mean nothing any more."""
        self._routes, self.version, self._held = {}, self.version + 1, self._graph.capacity

    def present(self, memories: np.ndarray) -> np.ndarray:
        """[N, 1 + C] of the present version, of rows with their version in front; zeros of rows too old to follow.

        ValueError for rows that this graph has not made.
        """
        out = np.zeros((len(memories), 1 + size(self._graph.capacity)), np.float32)
        out[:, 0] = self.version
        self._given = True
        for version in np.unique(memories[:, 0]).tolist():
            rows = memories[:, 0] == version
            if version >= self.version:
                if version > self.version or memories.shape[1] not in (1, out.shape[1]):
                    raise ValueError(
                        f"hidden states must have {out.shape[1]} numbers each, got {memories.shape[1]}: those of "
                        "another agent mean nothing here, give None instead"
                    )
                out[rows, 1 : memories.shape[1]] = memories[rows, 1:]
            elif (route := self._routes.get(int(version))) is not None and memories.shape[1] > 1 + route.source.max():
                out[rows, 1:] = memories[rows, 1:][:, route.source] * route.scale
        return out

    def state(self) -> dict[str, Any]:
        """Plain values."""
        routes = {str(v): [r.source.tolist(), r.scale.tolist()] for v, r in self._routes.items()}
        return {"version": self.version, "routes": routes}

    def load(self, state: Mapping[str, Any]) -> None:
        """What `state` gave of the same graph."""
        self._held, self.version, self._given = self._graph.capacity, int(state["version"]), True
        self._routes = {
            int(v): Route(np.asarray(source, np.int32), np.asarray(scale, np.float32))
            for v, (source, scale) in state["routes"].items()
        }


def _joined(first: Route, then: Route) -> Route:
    """Along `first`, then along `then`."""
    return Route(first.source[then.source], first.scale[then.source] * then.scale)
