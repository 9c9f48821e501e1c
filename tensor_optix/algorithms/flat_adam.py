"""Adam on one flat vector of parameters: a kernel for each leaf would cost more than the gradient itself.

Kingma & Ba 2015, with the gradient's global norm clipped before (Pascanu et al. 2013).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import struct
from jax.flatten_util import ravel_pytree


class Trained(struct.PyTreeNode):
    """Parameters, flat, and Adam's moments of them."""

    params: jax.Array  # [P] float32
    opt: Any  # optax.ScaleByAdamState


def start(tree: Any) -> Trained:
    """Parameters before their first update."""
    flat = ravel_pytree(tree)[0]
    return Trained(flat, optax.scale_by_adam().init(flat))


def unraveler(init: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """[P] -> the tree that `init(key)` makes. Nothing is computed."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    leaves, treedef = jax.tree.flatten(shapes)

    def unravel(flat: jax.Array) -> Any:
        pieces, begin = [], 0
        for leaf in leaves:
            pieces.append(jax.lax.slice_in_dim(flat, begin, begin + leaf.size, axis=-1).reshape(leaf.shape))
            begin += leaf.size
        return jax.tree.unflatten(treedef, pieces)

    return unravel


def step(
    trained: Trained, grads: Any, learning_rate: jax.Array, eps: jax.Array, max_norm: jax.Array | None = None
) -> Trained:
    """One update along the gradients, a tree like the parameters'. max_norm: of all of them together; None: no clip."""
    with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer count with floats
        flat = ravel_pytree(grads)[0]
        if max_norm is not None:
            flat, _ = optax.clip_by_global_norm(max_norm).update(flat, optax.EmptyState())
        updates, opt = optax.scale_by_adam(eps=eps).update(flat, trained.opt)
    return Trained(trained.params - learning_rate * updates, opt)


def follow(target: jax.Array, online: jax.Array, tau: jax.Array) -> jax.Array:
    """[P]: a target that follows the online parameters (Lillicrap et al. 2016), (1 - tau) target + tau online."""
    return target + tau * (online - target)


def perturbed(tree: Any, key: jax.Array, noise: jax.Array) -> Any:
    """Every weight multiplied by 1 + noise * N(0, 1), noise [] float32."""
    flat, unravel = ravel_pytree(tree)
    return unravel(flat * (1.0 + noise * jax.random.normal(key, flat.shape, flat.dtype)))
