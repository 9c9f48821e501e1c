"""Environments that no policy without memory can master: the newest observation does not tell the state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.envs._gymnax import gymnax
from tensor_optix.envs.probes import Probe, ProbeState
from tensor_optix.envs.spaces import Box


class MaskedCartPole:
    """gymnax's CartPole-v1 whose velocities are hidden: the observation is cart position and pole angle.

    Balancing needs the velocities, which two observations tell and one does not. Barto et al. 1983 for the task; hidden
    velocities as in Wierstra et al. 2007, "Solving deep memory POMDPs with recurrent policy gradients".
    """

    name = "MaskedCartPole-v1"
    _SHOWN = (0, 2)  # of position, velocity, angle, angular velocity

    def __init__(self) -> None:
        self._cartpole, self.default_params = gymnax().make("CartPole-v1")

    def observation_space(self, params: Any) -> Box:
        bounds = np.asarray(self._cartpole.observation_space(params).high, np.float32)[list(self._SHOWN)]
        return Box(tuple((-bounds).tolist()), tuple(bounds.tolist()), (len(self._SHOWN),))

    def action_space(self, params: Any) -> Any:
        return self._cartpole.action_space(params)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        obs, state = self._cartpole.reset_env(key, params)
        return self._mask(obs), state

    def step_env(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, dict[Any, Any]]:
        obs, state, reward, terminated, info = self._cartpole.step_env(key, state, action, params)
        return self._mask(obs), state, reward, terminated, info

    def is_truncated(self, state: Any, params: Any) -> jax.Array:
        return self._cartpole.is_truncated(state, params)

    def _mask(self, obs: jax.Array) -> jax.Array:
        return jnp.stack([obs[i] for i in self._SHOWN])


class Recall(Probe):
    """The first observation is a cue, +1 or -1, all later ones are 0; the last action (1 or 0) must name its sign.

    Fails if: the memory does not last, is cleared too often or not at all, or does not learn through time. Reward 1 if
    the cue is named, else -1, at the last of `length` steps: optimal return 1, of any policy without memory 0 on
    average. ValueError for a length below 2, where nothing is to be remembered.
    """

    def __init__(self, length: int = 5) -> None:
        if length < 2:
            raise ValueError(f"length must be at least 2 steps, got {length}")
        self.length = length

    def draw(self, key: jax.Array) -> jax.Array:
        return jax.random.rademacher(key, dtype=jnp.float32)

    def observe(self, state: ProbeState) -> jax.Array:
        return jnp.where(state.time == 0, state.signal, jnp.float32(0.0))[None]

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        named = state.signal * (2.0 * action.astype(jnp.float32) - 1.0)
        return jnp.where(state.time == self.length - 1, named, 0.0)


# What a policy needs a memory for; the probes of `probes.LADDER` ask for none.
MEMORY_LADDER: tuple[type[Probe], ...] = (Recall,)

# Ids that `envs.make` knows beside those of gymnax.
IDS: dict[str, Any] = {MaskedCartPole.name: MaskedCartPole}
