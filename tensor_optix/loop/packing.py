"""Many scalars as a few vectors, to carry them through a compiled loop.

A member has about a hundred scalars. As leaves of a loop's carry each costs the CPU a copy and the compiler a kernel of
its own; stacked by dtype they cost next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Packed = tuple[dict[str, jax.Array], list[jax.Array]]  # dtype -> [*shape, K] scalars; the leaves that are not scalars


@dataclass(frozen=True)
class Packing:
    """How a pytree is packed: its structure, and each leaf's vector and place, or None for a leaf left as it is."""

    treedef: Any
    places: tuple[tuple[str, int] | None, ...]

    @classmethod
    def of(cls, tree: Any, shape: tuple[int, ...]) -> Packing:
        """tree: arrays or their shapes. Scalars are the leaves of shape `shape`, a batch's axes; keys never are."""
        leaves, treedef = jax.tree.flatten(tree)
        count: dict[str, int] = {}
        places: list[tuple[str, int] | None] = []
        for leaf in leaves:
            if leaf.shape != shape or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                places.append(None)
                continue
            name = jnp.dtype(leaf.dtype).name
            places.append((name, count.get(name, 0)))
            count[name] = count.get(name, 0) + 1
        return cls(treedef, tuple(places))

    def pack(self, tree: Any) -> Packed:
        groups: dict[str, list[jax.Array]] = {}
        rest = []
        for leaf, place in zip(jax.tree.leaves(tree), self.places, strict=True):
            if place is None:
                rest.append(leaf)
            else:
                groups.setdefault(place[0], []).append(leaf)
        return {name: jnp.stack(leaves, axis=-1) for name, leaves in groups.items()}, rest

    def unpack(self, packed: Packed) -> Any:
        vectors, rest = packed
        others = iter(rest)
        leaves = [next(others) if place is None else vectors[place[0]][..., place[1]] for place in self.places]
        return jax.tree.unflatten(self.treedef, leaves)
