"""Cheap pseudo-random permutations for shuffling minibatches.

`jax.random.permutation` sorts random bits, twice for many rows, and is a visible share of an update on a CPU.
On a power-of-two domain a few rounds of bijective integer mixing do the same job in one fused elementwise pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_ROUNDS = 4


def permutations(key: jax.Array, count: int, n: int) -> jax.Array:
    """`count` pseudo-random permutations of range(n), int32 [count, n].

    For n a power of two: keyed rounds of x -> x*odd + c (mod n), x -> x ^ (x >> ceil(k/2)), each a bijection of k-bit
    integers (the finaliser construction of Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators",
    keyed anew for each permutation). Other n fall back on `jax.random.permutation`. This shuffles minibatches; it is
    not meant for cryptography or for exact uniformity over all n! orders.
    """
    if n < 1 or count < 1:
        raise ValueError(f"permutations needs count >= 1 and n >= 1, got {count} and {n}")
    bits = n.bit_length() - 1
    if n != 1 << bits or bits < 3:
        keys = jax.random.split(key, count)
        return jax.vmap(lambda k: jax.random.permutation(k, n))(keys).astype(jnp.int32)
    words = jax.random.bits(key, (_ROUNDS, 2, count, 1), jnp.uint32)
    mask, shift = jnp.uint32(n - 1), jnp.uint32((bits + 1) // 2)
    x = jnp.broadcast_to(jnp.arange(n, dtype=jnp.uint32), (count, n))
    for i in range(_ROUNDS):
        multiplier, offset = words[i, 0] | jnp.uint32(1), words[i, 1]
        x = (x * multiplier + offset) & mask
        x = x ^ (x >> shift)
    return x.astype(jnp.int32)
