"""Distributions over a fixed row of atoms: the atoms, their mean, and the Bellman update projected onto them.

Bellemare et al. 2017, "A distributional perspective on reinforcement learning" (C51).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def atoms(n_atoms: int, v_min: jax.Array, v_max: jax.Array) -> jax.Array:
    """[n_atoms] float32: the support, evenly spaced from v_min to v_max, both included. NaN unless v_min < v_max."""
    return v_min + _spacing(n_atoms, v_min, v_max) * jnp.arange(n_atoms, dtype=jnp.float32)


def mean(probs: jax.Array, v_min: jax.Array, v_max: jax.Array) -> jax.Array:
    """[...] float32: expected values of the distributions `probs` [..., n_atoms]."""
    support = atoms(probs.shape[-1], v_min, v_max)
    return jnp.sum(probs * support.reshape(*(1,) * (probs.ndim - 1), -1), axis=-1)


def project(probs: jax.Array, reward: jax.Array, discount: jax.Array, v_min: jax.Array, v_max: jax.Array) -> jax.Array:
    """The distributions of reward + discount Z on the support again (Bellemare et al. 2017, equation 7).

        m_i = sum_j p_j max(0, 1 - |clip(reward + discount z_j, v_min, v_max) - z_i| / spacing)

    Args:
        probs: [..., n_atoms] float32, Z as probabilities of the atoms; at least 2 atoms.
        reward, discount: [...] float32, of each distribution; discount 0 where nothing follows.
        v_min, v_max: [] float32, first and last atom. The result is NaN unless v_min < v_max.

    Returns [..., n_atoms] float32; each row sums to what `probs` sums to. It is a target: gradients are stopped.
    """
    n_atoms = probs.shape[-1]
    probs, reward, discount = jax.lax.stop_gradient((probs, reward, discount))
    index = jnp.arange(n_atoms, dtype=jnp.float32)
    # Where z_j goes, counted in atoms: reward 0 and discount 1 leave j as it is, to the bit.
    offset = (reward - (jnp.float32(1.0) - discount) * v_min) / _spacing(n_atoms, v_min, v_max)
    row = index.reshape(*(1,) * reward.ndim, -1)
    place = jnp.clip(offset[..., None] + discount[..., None] * row, 0.0, n_atoms - 1)
    # The triangular kernel needs no scatter, and an atom that falls on another gives it all of its mass.
    distance = jnp.abs(place[..., None, :] - row[..., None])
    share = jnp.maximum(jnp.float32(1.0) - distance, 0.0)  # [..., to, from]
    return jnp.sum(share * probs[..., None, :], axis=-1)


def _spacing(n_atoms: int, v_min: jax.Array, v_max: jax.Array) -> jax.Array:
    if n_atoms < 2:
        raise ValueError(f"a distribution needs at least 2 atoms, got {n_atoms}")
    width = v_max - v_min
    return jnp.where(width > 0, width, jnp.float32(jnp.nan)) / jnp.float32(n_atoms - 1)
