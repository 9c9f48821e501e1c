"""Several policies of one algorithm that act as one, inside the compiled program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.algorithms.contract import Algorithm, Policy
from tensor_optix.envs.vector import VectorEnv


class EnsembleParams(struct.PyTreeNode):
    """What an ensemble of N policies acts with."""

    members: Policy  # [N, ...], stacked
    weights: jax.Array  # [N] float32, at least 0, not all of them 0


@dataclass(frozen=True)
class Ensemble:
    """N policies of `algorithm` as one, in as much of its contract as acting takes. Hashable; all methods are pure.

    A choice among actions is voted on: the deterministic policy takes what weighs most (of equals the lowest number),
    a sampled action is that of a member drawn by weight. Continuous actions are averaged by weight. Policies with
    memory remember each for itself.
    """

    algorithm: Algorithm
    size: int

    @property
    def env(self) -> VectorEnv:
        return self.algorithm.env

    @property
    def name(self) -> str:
        return f"ensemble of {self.algorithm.name}"  # type: ignore[attr-defined]

    def initial_carry(self) -> Any:
        """[N, ...]: every member's."""
        carry = self.algorithm.initial_carry()
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.size, *jnp.shape(x))), carry)

    def act(
        self, policy: EnsembleParams, obs: jax.Array, carry: Any, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        """Actions [B] or [B, D] for observations [B, *obs], and memory [B, N, ...]; or for one without that axis."""
        single = obs.ndim == len(self.env.obs_shape)
        axis = 0 if single else 1
        key_act, key_draw = jax.random.split(key)
        keys = jax.random.split(key_act, self.size)

        def one(member: Policy, carry: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            return self.algorithm.act(member, obs, carry, key, deterministic)

        actions, carry = jax.vmap(one, in_axes=(0, axis, 0), out_axes=(0, axis))(policy.members, carry, keys)
        shares = policy.weights / policy.weights.sum()
        if self.env.action_kind == "continuous":
            return jnp.tensordot(shares, actions, axes=1), carry
        if not deterministic:
            drawn = jax.random.categorical(key_draw, jnp.log(shares), shape=actions.shape[1:])
            return jnp.take_along_axis(actions, drawn[None], axis=0)[0], carry
        votes = jnp.tensordot(shares, jax.nn.one_hot(actions, self.env.n_actions, dtype=jnp.float32), axes=1)
        return jnp.argmax(votes, axis=-1).astype(actions.dtype), carry
