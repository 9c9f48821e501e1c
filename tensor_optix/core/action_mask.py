"""Discrete actions of which not all are allowed: Huang & Ontanon 2020, "A closer look at invalid action masking".

A mask [..., A] is true where an action is allowed. Where none is, all are: something has to be done.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Far below any logit or value, and finite: a probability of exactly 0 whose gradients are 0 too.
NEVER = -1e9


def masked(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Logits or values [..., A] float32, those of actions that are not allowed replaced by `NEVER`."""
    if mask is None:
        return values
    return jnp.where(_allowed(mask), values, jnp.float32(NEVER))


def choose(bits: jax.Array, mask: jax.Array) -> jax.Array:
    """[...] int32: an allowed action, each alike, from random bits uint32 [...] and masks [..., A].

    The remainder's bias is below A / 2^32.
    """
    mask = _allowed(mask)
    count = jnp.sum(mask, axis=-1, dtype=jnp.uint32)
    wanted = jax.lax.rem(bits, count).astype(jnp.int32)
    before = jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - mask.astype(jnp.int32)
    return jnp.argmax(mask & (before == wanted[..., None]), axis=-1).astype(jnp.int32)


def _allowed(mask: jax.Array) -> jax.Array:
    return mask | ~mask.any(axis=-1, keepdims=True)
