"""What a neuron makes of its input: activations, and cells with a scalar memory.

With x the neuron's input (its bias included), h its value of the step before and c the memory of an LSTM:

    GRU   z = sig(wz h + uz x + bz)   r = sig(wr h + ur x + br)
          h' = (1 - z) h + z tanh(wn r h + un x + bn)
    LSTM  i, f, o = sig(w h + u x + b), each with its own   g = tanh(wg h + ug x + bg)
          c' = f c + i g              h' = o tanh(c')

Cho et al. 2014; Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000. A trainable cell is the same;
gradients flow back through its h and c from step to step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.graph.arrays import N_GATES, Activation, Capacity, Kind, Topology

# Columns of `Weights.gates`: w, u and b of each gate, one after the other.
GRU_GATES = ("z", "r", "n")
LSTM_GATES = ("i", "f", "g", "o")
_NEW_INPUT = 0.1  # standard deviation of the candidate's input weight in a fresh cell


def activate(capacity: Capacity, activation: jax.Array, x: jax.Array) -> jax.Array:
    """Each neuron's activation of x [M]; activation [M] int8. Only those that may occur are computed."""
    functions = {
        Activation.LINEAR: lambda x: x,
        Activation.RELU: jax.nn.relu,
        Activation.TANH: jnp.tanh,
        Activation.SIGMOID: jax.nn.sigmoid,
        Activation.ELU: jax.nn.elu,
    }
    first, *others = capacity.activations
    out = functions[first](x)
    for code in others:
        out = jnp.where(activation == int(code), functions[code](x), out)
    return out


def gated(
    kind: jax.Array, gates: jax.Array, x: jax.Array, h: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Values [M] of gated neurons, their memories c [M], and which are gated [M] bool.

    kind: [M] int8. gates: [M, 12]. x, h, c: [M].
    """
    is_gru = (kind == int(Kind.GRU)) | (kind == int(Kind.TRAINABLE_GRU))
    is_lstm = (kind == int(Kind.LSTM)) | (kind == int(Kind.TRAINABLE_LSTM))

    def gate(place: int, h: jax.Array) -> jax.Array:
        return gates[:, 3 * place] * h + gates[:, 3 * place + 1] * x + gates[:, 3 * place + 2]

    # The first two gates are sigmoids of the same form in both cells, and so is the candidate but for what it is given.
    first, second = jax.nn.sigmoid(gate(0, h)), jax.nn.sigmoid(gate(1, h))
    candidate = jnp.tanh(gate(2, jnp.where(is_gru, second * h, h)))
    gru = (1 - first) * h + first * candidate
    memory = second * c + first * candidate
    lstm = jax.nn.sigmoid(gate(3, h)) * jnp.tanh(memory)
    return jnp.where(is_lstm, lstm, gru), jnp.where(is_lstm, memory, c), is_gru | is_lstm


def is_trainable(topology: Topology) -> jax.Array:
    """[N] bool: gradients flow back through the neuron's own memory."""
    return (topology.kind == int(Kind.TRAINABLE_GRU)) | (topology.kind == int(Kind.TRAINABLE_LSTM))


def fresh_gates(kind: Kind, noise: float) -> np.ndarray:
    """[12] float32 of a new cell; zeros but for the candidate's input, and an LSTM's forget and output biases of 1.

    noise: standard normal, of the candidate's input weight.
    """
    gates = np.zeros(N_GATES, np.float32)
    if kind == Kind.POINT:
        return gates
    gates[3 * 2 + 1] = _NEW_INPUT * noise
    if kind in (Kind.LSTM, Kind.TRAINABLE_LSTM):
        gates[3 * 1 + 2] = gates[3 * 3 + 2] = 1.0
    return gates
