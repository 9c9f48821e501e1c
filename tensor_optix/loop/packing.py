"""Many scalars as a few vectors, to carry them through compiled loops.

A member has about a hundred scalars. As leaves of a loop's carry each costs the CPU a copy and the compiler a kernel of
its own, in every loop that it passes through; stacked by dtype they cost next to nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Place = tuple[str, int] | None  # a scalar's vector and place in it; None for a leaf that is left as it is


class Packed(struct.PyTreeNode):
    """A pytree with its scalars stacked. Batch axes may be added in front by vmap, scan or NumPy."""

    vectors: dict[str, jax.Array]  # dtype -> [..., K] the scalars of that dtype
    rest: list[jax.Array]  # the leaves that are not scalars, in order
    places: tuple[Place, ...] = struct.field(pytree_node=False)
    treedef: Any = struct.field(pytree_node=False)

    def unpack(self) -> Any:
        """The pytree as it was."""
        others = iter(self.rest)
        leaves = [next(others) if place is None else self.vectors[place[0]][..., place[1]] for place in self.places]
        return jax.tree.unflatten(self.treedef, leaves)


def pack(tree: Any, shape: tuple[int, ...]) -> Packed:
    """Scalars are the leaves of shape `shape`, the batch's axes; typed keys never are.

    Arrays of NumPy are packed on the host, all others by JAX.
    """
    leaves, treedef = jax.tree.flatten(tree)
    stack: Any = np.stack if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp.stack
    groups: dict[str, list[Any]] = {}
    places: list[Place] = []
    rest = []
    for leaf in leaves:
        if leaf.shape != shape or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            places.append(None)
            rest.append(leaf)
            continue
        name = jnp.dtype(leaf.dtype).name
        group = groups.setdefault(name, [])
        places.append((name, len(group)))
        group.append(leaf)
    vectors = {name: stack(group, axis=-1) for name, group in groups.items()}
    return Packed(vectors, rest, tuple(places), treedef)
