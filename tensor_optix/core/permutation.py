"""Cheap pseudo-random permutations for shuffling minibatches.

`jax.random.permutation` sorts random bits, twice for many rows, and is a visible share of an update on a CPU.
On a power-of-two domain a few rounds of bijective integer mixing do the same job in one fused elementwise pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_ROUNDS = 4


def permutation(key: jax.Array, n: int) -> jax.Array:
    """A pseudo-random permutation of range(n), int32 [n].

    For n a power of two: four keyed rounds of x -> x*odd + c (mod n), x -> x ^ (x >> ceil(k/2)), each a bijection
    of k-bit integers (the finaliser construction of Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
    generators", keyed anew at each call). Other n fall back on `jax.random.permutation`. It shuffles minibatches;
    it is not meant for cryptography or for exact uniformity over all n! orders.
    """
    if n < 1:
        raise ValueError(f"permutation needs n >= 1, got {n}")
    bits = n.bit_length() - 1
    if n != 1 << bits or bits < 3:
        return jax.random.permutation(key, n).astype(jnp.int32)
    words = jax.random.bits(key, (_ROUNDS, 2), jnp.uint32)
    mask = jnp.uint32(n - 1)
    shift = jnp.uint32((bits + 1) // 2)
    x = jnp.arange(n, dtype=jnp.uint32)
    for multiplier, offset in words:
        x = (x * (multiplier | jnp.uint32(1)) + offset) & mask
        x = x ^ (x >> shift)
    return x.astype(jnp.int32)
