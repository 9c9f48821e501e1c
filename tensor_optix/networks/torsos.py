"""Feed-forward torsos: MLP for vectors, CNN for images, both ending in a linear head."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tensor_optix.networks import products

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
}


def orthogonal(gain: float) -> Callable[..., jax.Array]:
    """An initialiser: kernels [..., n_out], as a matrix orthogonal (rows or columns, whichever are fewer) times `gain`.

    Saxe et al. 2014. The matrix that is orthogonalised is uniform rather than normal, which compiles in a sixth of the
    time.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        n_in, n_out = math.prod(shape[:-1]), shape[-1]
        tall = jax.random.uniform(key, (max(n_in, n_out), min(n_in, n_out)), jnp.float32, minval=-1.0, maxval=1.0)
        q, r = jnp.linalg.qr(tall)
        q = q * jnp.where(jnp.diag(r) < 0, jnp.float32(-1), jnp.float32(1))[None]
        return (jnp.float32(gain) * (q if n_in >= n_out else q.T)).reshape(shape).astype(dtype)

    return init


def _dense(n_in: int, n_out: int, gain: float, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(n_in, n_out, kernel_init=orthogonal(gain), dot_general=products.dot_general, rngs=rngs)


class MLP(nnx.Module):
    """Dense layers with orthogonal weights (gain sqrt 2 inside, `head_gain` at the head).

    [..., n_in] -> [..., n_out]. Initialisation as in Engstrom et al. 2020, "Implementation matters in deep RL".
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        head_gain: float,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = (n_in, *hidden_sizes)
        self.hidden = nnx.List([_dense(a, b, math.sqrt(2.0), rngs) for a, b in itertools.pairwise(sizes)])
        self.head = _dense(sizes[-1], n_out, head_gain, rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        for layer in self.hidden:
            x = act(layer(x))
        return self.head(x)


class CNN(nnx.Module):
    """One 3x3 convolution of 16 channels, then an MLP: the MinAtar network of Young & Tian 2019.

    [..., H, W, C] -> [..., n_out]; uint8 and bool images are accepted and read as float32. The convolution is a matrix
    product over shifted copies of the image: the same numbers, several times faster on a CPU, and under vmap over
    members it stays a batched product where a convolution would become a grouped one.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        n_out: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        head_gain: float,
        rngs: nnx.Rngs,
        channels: int = 16,
    ) -> None:
        height, width, depth = shape
        self.kernel = (min(3, height), min(3, width))
        self.out = (height - self.kernel[0] + 1, width - self.kernel[1] + 1)
        self.conv = _dense(self.kernel[0] * self.kernel[1] * depth, channels, math.sqrt(2.0), rngs)
        self.mlp = MLP(self.out[0] * self.out[1] * channels, n_out, hidden_sizes, activation, head_gain, rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        rows, columns = self.out
        shifted = [
            x[..., i : i + rows, j : j + columns, :] for i in range(self.kernel[0]) for j in range(self.kernel[1])
        ]
        x = ACTIVATIONS[self.activation](self.conv(jnp.concatenate(shifted, axis=-1)))
        return self.mlp(x.reshape(*x.shape[:-3], -1))


def torso(
    obs_shape: tuple[int, ...],
    n_out: int,
    hidden_sizes: tuple[int, ...],
    activation: str,
    head_gain: float,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The network that fits an observation: a CNN for [H, W, C], an MLP for a vector."""
    if len(obs_shape) == 3:
        return CNN(obs_shape, n_out, hidden_sizes, activation, head_gain, rngs)
    if len(obs_shape) <= 1:
        return MLP(math.prod(obs_shape), n_out, hidden_sizes, activation, head_gain, rngs)
    raise ValueError(
        f"no torso for observations of shape {obs_shape}; expected a vector [n] or an image [H, W, C]: "
        "flatten the observation in the environment"
    )
