"""The matrix products of networks, in the forms that XLA's CPU compiler does best.

Two things are slow on a CPU when left to XLA. Acting for a few environments: every product becomes a call to a library
(YNN), and a loop with such calls cannot become one kernel; they then cost more than the arithmetic. A product written
as a convolution over one point is not handed over, and XLA's own tiled code is as fast for few rows. And the gradient
of a kernel, a product of two matrices along their rows: XLA does it up to twice as fast when the first is transposed in
memory beforehand. Elsewhere, and for all else, a product is a product.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

# XLA has tiled code for [m, k] x [k, n] up to these sizes; beyond them a loop in one kernel works element by element.
_MAX_ROWS, _MAX_WIDTH = 32, 128


def dot_general(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, *args: Any, **kwargs: Any) -> jax.Array:
    """`jax.lax.dot_general`, float32 [m, k] x [k, n] in the form that suits it. For `nnx.Linear(dot_general=...)`.

    Differentiable in reverse mode (`jax.grad`, `jax.vjp`) and safe under vmap.
    """
    plain = dimension_numbers == (((1,), (0,)), ((), ())) and lhs.ndim == rhs.ndim == 2
    plain = plain and all(choice is None for choice in (*args, *kwargs.values()))  # precision, result type
    if plain and lhs.dtype == rhs.dtype == jnp.float32:
        return _matmul(lhs, rhs)
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, *args, **kwargs)


@jax.custom_vjp
def _matmul(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """[m, k] x [k, n] -> [m, n]."""
    if lhs.shape[0] > _MAX_ROWS or max(rhs.shape) > _MAX_WIDTH:
        return lhs @ rhs
    return jax.lax.platform_dependent(lhs, rhs, cpu=_over_one_point, default=jnp.matmul)


def _forward(lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return lhs @ rhs, (lhs, rhs)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    lhs, rhs = saved
    return gradient @ rhs.T, _along_rows(lhs, gradient)


_matmul.defvjp(_forward, _backward)


def _along_rows(lhs: jax.Array, gradient: jax.Array) -> jax.Array:
    """[m, k], [m, n] -> [k, n]."""
    return jax.lax.platform_dependent(
        lhs,
        gradient,
        cpu=lambda x, g: jax.lax.optimization_barrier(x.T) @ g,
        default=lambda x, g: x.T @ g,
    )


@custom_vmap
def _over_one_point(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(lhs[None], rhs[None], (1,), "VALID", dimension_numbers=numbers)[0]


@_over_one_point.def_vmap
def _batched(axis_size: int, in_batched: list[bool], lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size  # as a convolution it would become a grouped one
    axes = (0 if in_batched[0] else None, 0 if in_batched[1] else None)
    return jax.vmap(jnp.matmul, axes)(lhs, rhs), True
