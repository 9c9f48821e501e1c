"""Noisy dense layers: weights with learned, factorised Gaussian noise, which is an argument of every call.

Fortunato et al. 2018, "Noisy networks for exploration", section 3.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from tensor_optix.networks import products
from tensor_optix.networks.torsos import ACTIVATIONS

SIGMA_0 = 0.5  # of Fortunato et al. 2018, section 3.2


def draw_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise float32 [*shape] for noisy layers: sign(e) sqrt|e| of standard normal e. Mean 0, and of size |e|."""
    normal = jax.random.normal(key, shape, jnp.float32)
    return jnp.sign(normal) * jnp.sqrt(jnp.abs(normal))


class NoisyLinear(nnx.Module):
    """A dense layer [..., n_in] -> [..., n_out] whose weights are mean + sigma * noise.

    The noise of a weight is the product of one number for its input and one for its output, the noise of a bias that
    of its output (factorised noise, equations 10 and 11). Means start uniform in +-1 / sqrt(n_in), and every sigma as
    sigma_0 / sqrt(n_in).
    """

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs, sigma_0: float = SIGMA_0) -> None:
        bound = 1.0 / math.sqrt(n_in)

        def uniform(shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)

        self.kernel = nnx.Param(uniform((n_in, n_out)))
        self.bias = nnx.Param(uniform((n_out,)))
        self.sigma_kernel = nnx.Param(jnp.full((n_in, n_out), sigma_0 * bound, jnp.float32))
        self.sigma_bias = nnx.Param(jnp.full((n_out,), sigma_0 * bound, jnp.float32))
        self.n_in = n_in
        self.noise_size = n_in + n_out

    def __call__(self, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """With the mean weights, or with noise float32 [noise_size] for all of x or [..., noise_size] for each row."""
        kernel, bias = self.kernel[...], self.bias[...]
        if noise is None:
            return _affine(x, kernel, bias)
        of_input, of_output = noise[..., : self.n_in], noise[..., self.n_in :]
        sigma_kernel, sigma_bias = self.sigma_kernel[...], self.sigma_bias[...]
        if noise.ndim == 1:
            # Formed once, and not again inside each kernel that reads them, as XLA does on a CPU.
            weights = kernel + sigma_kernel * (of_input[:, None] * of_output[None, :]), bias + sigma_bias * of_output
            return _affine(x, *jax.lax.optimization_barrier(weights))
        # Factorised, so that a row's own weights need not be formed: a second product does.
        return _affine(x, kernel, bias) + of_output * _affine(x * of_input, sigma_kernel, sigma_bias)


class NoisyMLP(nnx.Module):
    """Noisy dense layers with an activation between them: [..., n_in] -> [..., n_out]."""

    def __init__(self, n_in: int, n_out: int, hidden_sizes: tuple[int, ...], activation: str, rngs: nnx.Rngs) -> None:
        sizes = (n_in, *hidden_sizes, n_out)
        self.layers = nnx.List([NoisyLinear(a, b, rngs) for a, b in itertools.pairwise(sizes)])
        self.activation = activation
        self.noise_sizes = tuple(a + b for a, b in itertools.pairwise(sizes))
        self.noise_size = sum(self.noise_sizes)

    def __call__(self, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """With the mean weights, or with noise float32 [noise_size] for all of x or [..., noise_size] for each row."""
        pieces = split_noise(noise, self.noise_sizes)
        for i, (layer, piece) in enumerate(zip(self.layers, pieces, strict=True)):
            x = layer(ACTIVATIONS[self.activation](x) if i else x, piece)
        return x


def split_noise(noise: jax.Array | None, sizes: tuple[int, ...]) -> list[jax.Array | None]:
    """Flat noise [..., sum of sizes] in pieces [..., size]; None for each where it is None."""
    if noise is None:
        return [None] * len(sizes)
    if noise.shape[-1] != sum(sizes):
        raise ValueError(f"noise must have {sum(sizes)} numbers along its last axis, got shape {noise.shape}")
    begins = itertools.accumulate(sizes, initial=0)
    return [noise[..., begin : begin + size] for begin, size in zip(begins, sizes, strict=False)]


def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    y = products.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return y + bias.reshape(*(1,) * (y.ndim - 1), -1)
