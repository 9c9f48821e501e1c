"""A tree of partial sums over non-negative leaves: change some, find the leaf at a given cumulative sum.

Schaul et al. 2016, "Prioritized experience replay", appendix B.2.1, use a binary tree. Here a node has 16 children: a
level costs a kernel, a row of 16 floats is one cache line, and a million leaves are five levels. A touched parent is
summed anew from its children, in one fixed order, and never adjusted by a difference: no drift, whatever the history.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

WIDTH = 16
MAX_LEAF = 2.0**96  # so that no sum of 2**31 of them overflows
_MIN_LEAF = float(np.finfo(np.float32).tiny)  # smaller ones are flushed to 0 by some processors and not by others


class SumTree(struct.PyTreeNode):
    """The sums, level by level from the root's children down to the leaves.

    Node i, counted over all rows, has its children in row i + 1; row 0 holds those of the root, which is not stored.
    Every level but the leaves' is complete; what is not needed there stays 0.
    """

    nodes: jax.Array  # [rows, WIDTH] float32
    capacity: int = struct.field(pytree_node=False)


def init(capacity: int) -> SumTree:
    """A tree of `capacity` leaves, all 0. ValueError unless 1 <= capacity <= 2**30."""
    if not 1 <= capacity <= 2**30:
        raise ValueError(f"capacity must be from 1 to 2**30 leaves, got {capacity}")
    rows = _first_leaf(capacity) // WIDTH + -(-capacity // WIDTH)
    return SumTree(jnp.zeros((rows, WIDTH), jnp.float32), capacity)


def set_leaves(tree: SumTree, index: jax.Array, value: jax.Array) -> SumTree:
    """The tree with the leaves `index` [B] int32 set to `value` [B] float32, and every sum above them made anew.

    An index outside [0, capacity) is dropped. Where an index comes more than once, the greatest of its values is
    taken, on every backend. A value that is negative, NaN or below the smallest normal float32 counts as 0, one above
    MAX_LEAF as MAX_LEAF.
    """
    nodes, nowhere = tree.nodes, jnp.int32(tree.nodes.size)
    inside = (index >= 0) & (index < tree.capacity)
    value = jnp.where(value >= jnp.float32(_MIN_LEAF), jnp.minimum(value, jnp.float32(MAX_LEAF)), jnp.float32(0.0))
    node = jnp.where(inside, index + jnp.int32(_first_leaf(tree.capacity)), nowhere)
    # Of several plain writes to one place it is not said which one stays; a maximum has no order.
    nodes = nodes.at[node // WIDTH, node % WIDTH].set(jnp.float32(0.0), mode="drop")
    nodes = nodes.at[node // WIDTH, node % WIDTH].max(value, mode="drop")
    for _ in range(_depth(tree.capacity) - 1):
        row = node // WIDTH
        sums = _sums(nodes.at[row].get(mode="clip"))
        node = jnp.where(inside, row - 1, nowhere)
        nodes = nodes.at[node // WIDTH, node % WIDTH].set(sums, mode="drop")
    return tree.replace(nodes=nodes)


def total(tree: SumTree) -> jax.Array:
    """Sum of all leaves, [] float32."""
    return _sums(tree.nodes[0])


def leaf(tree: SumTree, index: jax.Array) -> jax.Array:
    """Values [B] float32 of the leaves `index` [B] int32; 0 for an index outside [0, capacity)."""
    node = index + jnp.int32(_first_leaf(tree.capacity))
    value = tree.nodes.at[node // WIDTH, node % WIDTH].get(mode="clip")
    return jnp.where((index >= 0) & (index < tree.capacity), value, jnp.float32(0.0))


def find(tree: SumTree, mass: jax.Array, rest: jax.Array | None = None) -> jax.Array:
    """The leaves [B] int32 whose half-open intervals of cumulative sums hold `mass` [B] float32.

    For any mass in [0, total] the leaf is one above 0, also where rounding leaves no mass for it; a mass below 0
    counts as 0, one above the total as the total. An empty tree (total 0) gives 0.

    Where a write to this very tree does not depend on what is found, XLA may copy the tree to be free in their order:
    in a scan, write first and draw from the result, or write what depends on the draw.

    rest: [B] float32, what rounding has taken from `mass`: the mass is the unrounded sum of both. One float32 has
        2**24 steps, too few to point at one of a million leaves with its exact probability.
    """
    rest = jnp.zeros_like(mass) if rest is None else rest
    positive = mass + rest > 0  # else, and for NaN, the first child would be taken also if it is 0
    mass, rest = jnp.where(positive, mass, jnp.float32(0.0)), jnp.where(positive, rest, jnp.float32(0.0))

    def one_level(_: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        node, mass = carry
        row = node + 1
        sums = _running_sums(tree.nodes.at[row].get(mode="promise_in_bounds"))
        child, below = jnp.zeros_like(node), jnp.zeros_like(mass)
        for upto in sums[:-1]:
            # The difference is exact where it is near 0, and only there does the rest matter. Not past the sum of the
            # whole row: so the child is above 0 even if rounding has put the mass on that sum.
            passed = ((mass - upto) + rest >= 0) & (upto < sums[-1])
            child = child + passed.astype(jnp.int32)
            below = jnp.where(passed, upto, below)
        return row * WIDTH + child, mass - below

    # A loop, because unrolled levels fuse into one kernel that works out each level anew for each child below it.
    root = jnp.full(mass.shape, -1, jnp.int32)
    node, _ = jax.lax.fori_loop(0, _depth(tree.capacity), one_level, (root, mass))
    return node - jnp.int32(_first_leaf(tree.capacity))


def check_valid(tree: SumTree) -> jax.Array:
    """Whether every sum is bit for bit that of its children and what is unused is 0; [] bool. Costs a full pass."""
    flat, rows, first = tree.nodes.reshape(-1), tree.nodes.shape[0], _first_leaf(tree.capacity)
    sums = jnp.all(flat[: rows - 1] == _sums(tree.nodes)[1:])
    unused = jnp.all(flat[rows - 1 : first] == 0) & jnp.all(flat[first + tree.capacity :] == 0)
    leaves = flat[first:]
    return sums & unused & jnp.all((leaves >= 0) & (leaves <= jnp.float32(MAX_LEAF)))


def _depth(capacity: int) -> int:
    levels = 1
    while WIDTH**levels < capacity:
        levels += 1
    return levels


def _first_leaf(capacity: int) -> int:
    """Nodes before the leaves: 16 + 16**2 + ... of all levels above them."""
    return sum(WIDTH**level for level in range(1, _depth(capacity)))


def _running_sums(rows: jax.Array) -> list[jax.Array]:
    """Cumulative sums of [..., WIDTH] from left to right: WIDTH arrays [...].

    One order of adding everywhere makes a parent equal its row's last sum to the bit, and the sums never fall from one
    child to the next. `jnp.cumsum` promises neither, and takes ten times as long on a CPU.
    """
    sums = [rows[..., 0]]
    for child in range(1, WIDTH):
        sums.append(sums[-1] + rows[..., child])
    return sums


def _sums(rows: jax.Array) -> jax.Array:
    return _running_sums(rows)[-1]
