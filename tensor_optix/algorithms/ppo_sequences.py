"""Windows cut into sequences: what every PPO with a memory learns from."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tensor_optix.algorithms.ppo_base import PPOConfig
from tensor_optix.core.permutation import permutations


@dataclass(frozen=True)
class SequencePPOConfig(PPOConfig):
    """What is static about a PPO that learns from sequences."""

    sequence_length: int = 16  # steps that gradients flow back through; divides n_steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {self.sequence_length}")
        if self.n_steps % self.sequence_length:
            raise ValueError(
                f"sequence_length must divide n_steps: {self.sequence_length} does not divide {self.n_steps}"
            )
        if self.n_sequences % self.n_minibatches:
            raise ValueError(
                "n_minibatches must divide the sequences of a window, n_envs * n_steps / sequence_length: "
                f"{self.n_minibatches} does not divide {self.n_sequences}"
            )

    @property
    def n_sequences(self) -> int:
        """S, sequences of a window: what minibatches are drawn from."""
        return self.n_envs * (self.n_steps // self.sequence_length)


def cut(config: SequencePPOConfig, x: jax.Array) -> jax.Array:
    """[T, N, ...] -> [S, L, ...], each sequence of one environment."""
    length = config.sequence_length
    x = x.reshape(x.shape[0] // length, length, *x.shape[1:])
    return jnp.swapaxes(x, 1, 2).reshape(config.n_sequences, length, *x.shape[3:])


def minibatches(config: SequencePPOConfig, key: jax.Array) -> jax.Array:
    """[U, M] int32: the sequences of each minibatch of a window, all of them once an epoch."""
    order = permutations(key, config.n_epochs, config.n_sequences)
    return order.reshape(config.n_epochs * config.n_minibatches, -1)
