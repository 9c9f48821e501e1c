"""Networks with a memory: LSTM and GRU between an encoder and a linear head, one step at a time or over a window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tensor_optix.networks import products
from tensor_optix.networks.torsos import ACTIVATIONS, orthogonal, torso


def _by_gate(gates: int) -> Callable[..., jax.Array]:
    """An initialiser of kernels [n_in, gates * size]: an orthogonal one for each gate."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        part = (shape[0], shape[1] // gates)
        each = jax.vmap(lambda key: orthogonal(1.0)(key, part, dtype), out_axes=1)  # one factorisation to compile
        return each(jax.random.split(key, gates)).reshape(shape)

    return init


def _gates(n_in: int, size: int, bias: tuple[float, ...] | None, gates: int, rngs: nnx.Rngs) -> nnx.Linear:
    """[..., n_in] -> [..., gates * size]; bias: what it starts with at each gate, None for none."""

    def init_bias(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.repeat(jnp.asarray(bias, dtype), size)

    return nnx.Linear(
        n_in,
        gates * size,
        use_bias=bias is not None,
        kernel_init=_by_gate(gates),
        bias_init=init_bias,
        dot_general=products.dot_general,
        rngs=rngs,
    )


class LSTM(nnx.Module):
    """Long short-term memory of `size` units. Its carry [..., 2 size] is the output h and the cell state c.

        i, f, o = sigmoid(W x + U h + b),    g = tanh(W x + U h + b)
        c' = f c + i g,    h' = o tanh(c')

    Hochreiter & Schmidhuber 1997, "Long short-term memory", with the forget gate of Gers et al. 2000, whose bias starts
    at 1 (Jozefowicz et al. 2015): at first the memory lasts.
    """

    def __init__(self, n_in: int, size: int, rngs: nnx.Rngs) -> None:
        self.size, self.carry_size = size, 2 * size
        self.inputs = _gates(n_in, size, (0.0, 1.0, 0.0, 0.0), 4, rngs)
        self.recurrent = _gates(size, size, None, 4, rngs)

    def step(self, drive: jax.Array, carry: jax.Array) -> jax.Array:
        """The carry [..., 2 size] after one step; drive [..., 4 size] is `inputs(x)`."""
        h, c = jnp.split(carry, 2, axis=-1)
        i, f, o, g = jnp.split(drive + self.recurrent(h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jnp.concatenate([jax.nn.sigmoid(o) * jnp.tanh(c), c], axis=-1)


class GRU(nnx.Module):
    """Gated recurrent units. The carry [..., size] is the output h.

        r, z = sigmoid(W x + U h + b),    n = tanh(W x + U (r h) + b)
        h' = z h + (1 - z) n

    Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder", equations 5 to 8.
    """

    def __init__(self, n_in: int, size: int, rngs: nnx.Rngs) -> None:
        self.size, self.carry_size = size, size
        self.inputs = _gates(n_in, size, (0.0, 0.0, 0.0), 3, rngs)
        self.recurrent = _gates(size, size, None, 2, rngs)
        self.candidate = _gates(size, size, None, 1, rngs)

    def step(self, drive: jax.Array, carry: jax.Array) -> jax.Array:
        """The carry [..., size] after one step; drive [..., 3 size] is `inputs(x)`."""
        gates, drive = jnp.split(drive, [2 * self.size], axis=-1)
        r, z = jnp.split(jax.nn.sigmoid(gates + self.recurrent(carry)), 2, axis=-1)
        new = jnp.tanh(drive + self.candidate(r * carry))
        return z * carry + (jnp.float32(1.0) - z) * new


CELLS: dict[str, type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU}


def carry_size(cell: str, size: int) -> int:
    """Numbers that a memory of `size` units carries from step to step."""
    return {"lstm": 2, "gru": 1}[cell] * size


class RecurrentNetwork(nnx.Module):
    """Encoder (the torso that fits the observations), memory, linear head.

    A window is done in one scan of the memory; encoder, head and all that depends on inputs alone are batched over it.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        n_out: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        cell: str,
        size: int,
        head_gain: float,
        rngs: nnx.Rngs,
    ) -> None:
        *inner, width = hidden_sizes
        self.encoder = torso(obs_shape, width, tuple(inner), activation, math.sqrt(2.0), rngs)
        self.memory = CELLS[cell](width, size, rngs)
        self.head = nnx.Linear(
            size, n_out, kernel_init=orthogonal(head_gain), dot_general=products.dot_general, rngs=rngs
        )
        self.activation = activation

    def __call__(
        self, obs: jax.Array, carry: jax.Array, starts: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Outputs and the carry after each observation.

        One step: obs [*batch, *obs], carry [*batch, C] -> [*batch, n_out], [*batch, C].
        A window: obs [T, N, *obs], carry [N, C] before its first row, starts [T, N] bool -> [T, N, n_out], [T, N, C];
        where an observation starts an episode, what the memory carried is replaced by zeros.
        """
        drive = self.memory.inputs(ACTIVATIONS[self.activation](self.encoder(obs)))
        if starts is None:
            after = self.memory.step(drive, carry)
        else:
            _, after = jax.lax.scan(self._step, carry, (drive, starts))
        return self.head(after[..., : self.memory.size]), after

    def _step(self, carry: jax.Array, xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        drive, start = xs
        after = self.memory.step(drive, forget(carry, start))
        return after, after


def forget(carry: jax.Array, starts: jax.Array) -> jax.Array:
    """The carry [..., C] with zeros where an episode starts; starts [...] bool."""
    return jnp.where(starts[..., None], jnp.float32(0.0), carry)
