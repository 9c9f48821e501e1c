"""Proportional prioritised sampling of replay rows: Schaul et al. 2016, "Prioritized experience replay".

A row i of raw priority p_i = |delta_i| + eps is drawn with probability P(i) = p_i^alpha / sum_k p_k^alpha. This file
keeps the p_i^alpha in a sum tree and knows nothing of what the rows hold.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.core import sum_tree
from tensor_optix.core.sum_tree import SumTree

Scalar = jax.Array | float

_MIN_WEIGHT = 2.0**-96  # of an inserted row: p^alpha that underflows to 0 could never be drawn, so never be mended
_UNIFORM_STEP = 2.0**-23  # of jax.random.uniform


class Priorities(struct.PyTreeNode):
    """Priorities of the rows of a replay."""

    tree: SumTree  # capacity leaves: p^alpha, 0 for a row that is not to be drawn
    max_priority: jax.Array  # [] float32, greatest raw priority so far, 1 at first


def init(capacity: int) -> Priorities:
    """Priorities of `capacity` rows, none inserted. ValueError unless 1 <= capacity <= 2**30."""
    return Priorities(sum_tree.init(capacity), jnp.float32(1.0))


def insert(state: Priorities, index: jax.Array, alpha: Scalar) -> Priorities:
    """Give the rows `index` [B] int32 the greatest raw priority so far (Algorithm 1, line 6).

    So a new row is likely to be replayed soon. An index outside [0, capacity) is dropped. `alpha` is a float32 scalar,
    traced. A row keeps the alpha that it was last written with.
    """
    weight = _weight(state.max_priority, alpha)
    return state.replace(tree=sum_tree.set_leaves(state.tree, index, jnp.broadcast_to(weight, index.shape)))


def remove(state: Priorities, index: jax.Array) -> Priorities:
    """Rows `index` [B] int32 are not drawn any more, until they are inserted again."""
    return state.replace(tree=sum_tree.set_leaves(state.tree, index, jnp.zeros(index.shape, jnp.float32)))


def update(state: Priorities, index: jax.Array, td_error: jax.Array, alpha: Scalar, eps: Scalar) -> Priorities:
    """Give the rows `index` [B] int32 the priorities |td_error| + eps (section 3.3, Algorithm 1 line 12).

    td_error: [B] float32. One that is NaN or infinite counts as the greatest priority so far, these included.
    alpha, eps: float32 scalars, traced. A row that is not inserted stays out, a row that comes more than once takes
    the greatest of its priorities.
    """
    known = sum_tree.leaf(state.tree, index) > 0
    priority = jnp.abs(td_error) + jnp.asarray(eps, jnp.float32)
    finite = jnp.isfinite(priority)
    greatest = jnp.max(jnp.where(known & finite, priority, jnp.float32(0.0)), initial=0.0)
    greatest = jnp.maximum(state.max_priority, greatest)
    weight = _weight(jnp.where(finite, priority, greatest), alpha)
    tree = sum_tree.set_leaves(state.tree, jnp.where(known, index, jnp.int32(-1)), weight)
    return Priorities(tree, greatest)


def sample(
    state: Priorities, key: jax.Array, batch: int, n_rows: jax.Array | int, beta: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Draw `batch` rows, one from each of `batch` equal ranges of the total (section 3.3), with their weights.

    Returns indices [batch] int32 and importance weights [batch] float32, (N P(i))^-beta over the greatest of the batch
    (section 3.4): in (0, 1]. N is `n_rows`, how many rows are inserted; `beta` is a float32 scalar, traced. Rows may
    come more than once. Without any row the indices are 0 and the weights 1: do not learn from them.
    """
    return sample_at(state, draws(key, (), batch), n_rows, beta)


def draws(key: jax.Array, shape: tuple[int, ...], batch: int) -> jax.Array:
    """Random numbers [*shape, 2, batch] for `sample_at`; drawn in bulk, outside a scan."""
    return jax.random.uniform(key, (*shape, 2, batch), jnp.float32)


def sample_at(
    state: Priorities, uniform: jax.Array, n_rows: jax.Array | int, beta: Scalar
) -> tuple[jax.Array, jax.Array]:
    """`sample` with random numbers from `draws`: [2, batch] float32 in [0, 1)."""
    batch = uniform.shape[-1]
    total = sum_tree.total(state.tree)
    borders = jnp.arange(batch + 1, dtype=jnp.float32) * (total / jnp.float32(batch))
    low, width = borders[:-1], borders[1:] - borders[:-1]
    beyond = uniform[0] * width
    mass = low + beyond
    # What that sum has rounded away, and random bits below those of the first number.
    rest = (beyond - (mass - low)) + uniform[1] * (width * jnp.float32(_UNIFORM_STEP))
    index = sum_tree.find(state.tree, mass, rest)
    leaf = sum_tree.leaf(state.tree, index)
    expected = jnp.where(leaf > 0, jnp.asarray(n_rows, jnp.float32) * (leaf / total), jnp.float32(1.0))
    # Over the rarest row before the power, so that no power can overflow.
    weights = (jnp.min(expected) / expected) ** jnp.asarray(beta, jnp.float32)
    return index, weights


def beta(step: jax.Array | int, total_steps: jax.Array | int, beta_0: Scalar) -> jax.Array:
    """beta_0 at step 0, rising in a straight line to 1 at `total_steps` and staying there (section 3.4); [] float32."""
    done = jnp.asarray(step, jnp.float32) / jnp.maximum(jnp.asarray(total_steps, jnp.float32), jnp.float32(1.0))
    done = jnp.clip(done, jnp.float32(0.0), jnp.float32(1.0))
    return jnp.asarray(beta_0, jnp.float32) * (jnp.float32(1.0) - done) + done


def _weight(priority: jax.Array, alpha: Scalar) -> jax.Array:
    return jnp.maximum(priority ** jnp.asarray(alpha, jnp.float32), jnp.float32(_MIN_WEIGHT))
