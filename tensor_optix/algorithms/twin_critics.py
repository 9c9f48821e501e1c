"""Two critics of continuous actions side by side, as SAC and TD3 have them (Fujimoto et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from tensor_optix.algorithms import flat_adam
from tensor_optix.networks.functional import Network
from tensor_optix.networks.own import Places, place
from tensor_optix.networks.values import ActionValue


class TwinCritics:
    """Pure functions over the flat parameters [P] of both. `network` is one critic's."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters, (first, second)."""
        first, second = jax.random.split(key)
        return self._network.init(first), self._network.init(second)

    @cached_property
    def unravel(self) -> Callable[[jax.Array], Any]:
        """[P] -> (first, second)."""
        return flat_adam.unraveler(self.init)

    def one(self, params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """[*batch] float32 of one critic, for observations [*batch, *obs] and actions [*batch, D]."""
        return self._network.apply(params, obs, action)[..., 0]

    def both(self, params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        """[2, *batch] float32."""
        return jnp.stack([self.one(each, obs, action) for each in params])

    def lower(self, flat: jax.Array, obs: jax.Array, action: jax.Array) -> jax.Array:
        """[*batch] float32: the lower of both, which keeps the maximum of noise out of the targets."""
        return self.both(self.unravel(flat), obs, action).min(axis=0)

    def loss(
        self, params: Any, obs: jax.Array, action: jax.Array, target: jax.Array, weight: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Summed weighted mean squared errors, and the mean absolute error of each row [B]."""
        error = self.both(params, obs, action) - target[None]
        squared = weight[None] * jnp.square(error)
        return squared.mean(axis=-1).sum(), jnp.abs(error).mean(axis=0)


def actor_and_critic(obs_shape: tuple[int, ...], obs_dtype: Any, action_dim: int, actor_outputs: int) -> Places:
    """The places of an algorithm with an actor and twin critics, which are made alike."""
    obs, action = (obs_shape, obs_dtype), ((action_dim,), jnp.float32)
    return {"actor": place(obs, outputs=actor_outputs), "critic": place(obs, action, outputs=1)}


def twin_critics(given: Any, obs_shape: tuple[int, ...], action_dim: int, config: Any) -> TwinCritics:
    """`given` (a Network) twice, or what fits the observations."""

    def build(rngs: Any) -> ActionValue:
        return ActionValue(obs_shape, action_dim, config.hidden_sizes, config.activation, rngs)

    return TwinCritics(given or Network(build))
