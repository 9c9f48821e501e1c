"""Networks of values: dueling heads for the values of all actions, and the value of one continuous action."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from tensor_optix.networks.torsos import ACTIVATIONS, MLP, torso


class Dueling(nnx.Module):
    """Values of all actions as the state's value plus advantages of mean 0 (Wang et al. 2016, equation 9).

    [..., *obs] -> [..., n_actions]. The torso is shared; the last hidden layer is each stream's own.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        n_actions: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        rngs: nnx.Rngs,
    ) -> None:
        if len(hidden_sizes) < 2:
            raise ValueError(f"a dueling network needs at least 2 hidden_sizes, got {hidden_sizes}")
        *shared, last, own = hidden_sizes
        self.torso = torso(obs_shape, last, tuple(shared), activation, math.sqrt(2.0), rngs)
        self.value = MLP(last, 1, (own,), activation, 1.0, rngs)
        self.advantage = MLP(last, n_actions, (own,), activation, 1.0, rngs)
        self.activation = activation

    def __call__(self, obs: jax.Array) -> jax.Array:
        features = ACTIVATIONS[self.activation](self.torso(obs))
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(axis=-1, keepdims=True)


class ActionValue(nnx.Module):
    """The value of a continuous action: ([..., *obs], [..., action_dim]) -> [..., 1].

    A vector is read together with the action; of an image a CNN makes a vector first.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        action_dim: int,
        hidden_sizes: tuple[int, ...],
        activation: str,
        rngs: nnx.Rngs,
    ) -> None:
        n_in = hidden_sizes[0] if len(obs_shape) == 3 else math.prod(obs_shape)
        self.image = torso(obs_shape, n_in, (), activation, math.sqrt(2.0), rngs) if len(obs_shape) == 3 else None
        self.mlp = MLP(n_in + action_dim, 1, hidden_sizes, activation, 1.0, rngs)
        self.activation = activation

    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        if self.image is not None:
            obs = ACTIVATIONS[self.activation](self.image(obs))
        return self.mlp(jnp.concatenate([obs, action], axis=-1))
