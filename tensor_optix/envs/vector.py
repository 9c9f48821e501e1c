"""Many copies of one environment, stepped together inside compiled code.

Everything has an explicit leading axis [N]; add a member axis with vmap. gymnax resets every environment at every
step and throws almost all of it away; here only environments whose episode ended are reset, a few per round of a loop
that usually runs zero rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.core.sparse_rows import update_rows
from tensor_optix.envs.contract import foreign_code, is_split
from tensor_optix.envs.parts import Goals
from tensor_optix.envs.spaces import ActionSpec, to_array

# Tags of the two draws that one step's key is used for.
_STEP, _RESET = 0, 1


@struct.dataclass
class VectorState:
    """N environments in play, and what their episodes have brought so far."""

    env: Any  # the environment's own state, every leaf [N, ...]
    episode_return: jax.Array  # [N] float32, raw rewards of the episode in play
    episode_length: jax.Array  # [N] int32, steps of the episode in play
    return_sum: jax.Array  # [N] float32, returns of the episodes that ended since the last `drain`
    length_sum: jax.Array  # [N] int32, their lengths
    episodes: jax.Array  # [N] int32, how many ended


@struct.dataclass
class StepOut:
    """What one step of N environments shows."""

    obs: jax.Array  # [N, *obs_shape], to act on next; the first of a new episode where one ended
    reward: jax.Array  # [N] float32
    terminated: jax.Array  # [N] bool, the task ended: nothing follows
    truncated: jax.Array  # [N] bool, the episode was cut; never together with `terminated`, which wins
    final_obs: jax.Array  # [N, *obs_shape], what this step led to; differs from `obs` only where an episode ended

    @property
    def done(self) -> jax.Array:
        """[N] bool, the episode ended in either way."""
        return self.terminated | self.truncated


@struct.dataclass
class EpisodeSums:
    """The episodes that ended since the last `drain`, all N environments together."""

    return_sum: jax.Array  # [] float32
    length_sum: jax.Array  # [] int32
    episodes: jax.Array  # [] int32


@dataclass(frozen=True)
class VectorEnv:
    """A static description of an environment and the pure functions that drive N copies of it.

    Hashable, so that it can sit in a static configuration: two that were made alike are equal and share one
    compilation. Build it with `tensor_optix.envs.make`.
    """

    name: str
    identity: Hashable = field(repr=False)  # the one thing besides the name that equality and hashing go by
    obs_shape: tuple[int, ...] = field(compare=False)  # of one observation as algorithms see it
    obs_dtype: Any = field(compare=False)  # float32, or uint8 for an image
    action: ActionSpec = field(compare=False)
    max_episode_steps: int | None = field(compare=False)  # the environment's own time limit if it has one
    env: Any = field(compare=False, repr=False)
    params: Any = field(compare=False, repr=False)
    observation_space: Any = field(compare=False, repr=False)  # the environment's own
    goals: Goals | None = field(default=None, compare=False)  # where its observations have them
    mask: tuple[int, int] | None = field(default=None, compare=False)  # where they say which actions are allowed

    @property
    def action_kind(self) -> str:
        """ "discrete" or "continuous"."""
        return self.action.kind

    @property
    def n_actions(self) -> int:
        """Number of choices. ValueError for a continuous action."""
        if self.action.kind != "discrete":
            raise ValueError(
                f"{self.name} has continuous actions; use action_dim ({self.action.n}) instead of n_actions"
            )
        return self.action.n

    @property
    def action_dim(self) -> int:
        """Number of action dimensions. ValueError for a discrete action."""
        if self.action.kind != "continuous":
            raise ValueError(f"{self.name} has discrete actions; use n_actions ({self.action.n}) instead of action_dim")
        return self.action.n

    def reset(self, key: jax.Array, n: int) -> tuple[VectorState, jax.Array]:
        """Start N episodes: their state, and observations [N, *obs_shape]."""
        if n < 1:
            raise ValueError(f"the number of environments must be at least 1, got {n}")
        env_state, obs = jax.vmap(self._reset_one)(jax.random.split(key, n))
        zeros, counts = jnp.zeros(n, jnp.float32), jnp.zeros(n, jnp.int32)
        return VectorState(env_state, zeros, counts, zeros, counts, counts), obs

    def step(self, key: jax.Array, state: VectorState, action: jax.Array) -> tuple[VectorState, StepOut]:
        """One step of every environment; where an episode ended, the next one is started.

        `action` is what a policy emits: int32 [N], or float32 [N, action_dim] with [-1, 1] standing for the bounds.
        """
        env_state, out = self._step_all(key, state.env, action)
        if self._is_split:
            env_state, obs = self._reset_ended(key, out.done, env_state, out.final_obs)
            out = dataclasses.replace(out, obs=obs)
        return _count(dataclasses.replace(state, env=env_state), out), out

    def step_once(self, key: jax.Array, env_state: Any, action: jax.Array) -> tuple[Any, StepOut]:
        """One step without starting anew where the environment allows that; for evaluation of first episodes.

        Takes and returns `VectorState.env`. What an environment shows after its episode's end means nothing.
        """
        return self._step_all(key, env_state, action)

    def drain(self, state: VectorState) -> tuple[VectorState, EpisodeSums]:
        """Take the sums over the episodes that ended since the last call, and start counting anew."""
        sums = EpisodeSums(
            state.return_sum.sum(), state.length_sum.sum(dtype=jnp.int32), state.episodes.sum(dtype=jnp.int32)
        )
        zeros, counts = jnp.zeros_like(state.return_sum), jnp.zeros_like(state.episodes)
        return dataclasses.replace(state, return_sum=zeros, length_sum=counts, episodes=counts), sums

    def sample_action(self, key: jax.Array, n: int) -> jax.Array:
        """Uniform random actions of a policy: int32 [N] or float32 [N, action_dim]; masks are not looked at."""
        return self.action.sample(key, n)

    def action_mask(self, obs: jax.Array) -> jax.Array | None:
        """[*batch, n_actions] bool, true where an action is allowed, for observations [*batch, *obs_shape].

        None where all always are.
        """
        return None if self.mask is None else obs[..., slice(*self.mask)] > 0.5

    def goal_worth(self, achieved: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rewards [B] float32 of having achieved [B, G] where `goal` [B, G] was wanted; whether that ended it [B] bool.

        ValueError where the environment has no goals.
        """
        if self.goals is None:
            raise ValueError(f"{self.name} has no goals; tensor_optix.envs.parts says what makes them")
        return self.goals.worth(self.env, self.params, achieved, goal)

    @cached_property
    def _is_split(self) -> bool:
        return is_split(self.env)

    def _reset_one(self, key: jax.Array) -> tuple[Any, jax.Array]:
        with foreign_code():
            reset = self.env.reset_env if self._is_split else self.env.reset
            obs, env_state = reset(key, self.params)
            return jax.tree.map(_strong, env_state), to_array(obs, self.observation_space)

    def _step_one(self, key: jax.Array, env_state: Any, action: jax.Array) -> tuple[Any, StepOut]:
        with foreign_code():
            action = self.action.to_env(action)
            if self._is_split:
                obs, after, reward, terminated, _ = self.env.step_env(key, env_state, action, self.params)
                truncated = self.env.is_truncated(after, self.params)
                final_obs = obs
            else:
                obs, after, reward, terminated, truncated, info = self.env.step(key, env_state, action, self.params)
                final_obs = info["final_observation"]
            terminated, truncated = _flag(terminated), _flag(truncated)
            out = StepOut(
                obs=to_array(obs, self.observation_space),
                reward=jnp.asarray(reward, jnp.float32).reshape(()),
                terminated=terminated,
                truncated=truncated & ~terminated,
                final_obs=to_array(final_obs, self.observation_space),
            )
            after = jax.tree.map(_strong, after)
        _assert_same(env_state, after, self.name)
        return after, out

    def _step_all(self, key: jax.Array, env_state: Any, action: jax.Array) -> tuple[Any, StepOut]:
        # Environments that ignore their key cost nothing here: the unused draw is removed by the compiler.
        keys = jax.random.split(jax.random.fold_in(key, _STEP), action.shape[0])
        return jax.vmap(self._step_one)(keys, env_state, action)

    def _reset_ended(self, key: jax.Array, ended: jax.Array, env_state: Any, obs: jax.Array) -> tuple[Any, jax.Array]:
        """Replace state and observation where `ended` [N], at most `per_round` of them per round of a loop.

        Exact for any number of ended episodes. The draw of an environment depends on `key` and its index only.
        """
        n = ended.shape[0]
        key_reset = jax.random.fold_in(key, _RESET)

        def fresh(index: jax.Array) -> tuple[Any, jax.Array]:
            return jax.vmap(self._reset_one)(jax.vmap(lambda i: jax.random.fold_in(key_reset, i))(index))

        return update_rows(ended, fresh, (env_state, obs), max(1, n // 8))


def _count(state: VectorState, out: StepOut) -> VectorState:
    # Kept per environment and reduced in `drain`, so that a step adds no reduction.
    done, zero, none = out.done, jnp.float32(0.0), jnp.int32(0)
    episode_return, episode_length = state.episode_return + out.reward, state.episode_length + jnp.int32(1)
    return dataclasses.replace(
        state,
        episode_return=jnp.where(done, zero, episode_return),
        episode_length=jnp.where(done, none, episode_length),
        return_sum=state.return_sum + jnp.where(done, episode_return, zero),
        length_sum=state.length_sum + jnp.where(done, episode_length, none),
        episodes=state.episodes + done.astype(jnp.int32),
    )


def _strong(x: Any) -> jax.Array:
    # A Python number in an environment's state is weakly typed, and a scan refuses a carry whose type wavers.
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(x, x.dtype)


def _flag(x: Any) -> jax.Array:
    return jnp.asarray(x).reshape(()).astype(bool)


def _assert_same(before: Any, after: Any, name: str) -> None:
    """Name the leaf of the state that a step changed in structure, shape or dtype, before a scan complains about it."""
    old: Any = jax.tree.structure(before)
    new: Any = jax.tree.structure(after)
    if old != new:
        raise ValueError(f"{name}: the state is {old} before step and {new} after; return the same structure")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"{name}: state{jax.tree_util.keystr(path)} is {a.dtype}{list(a.shape)} after reset and "
                f"{b.dtype}{list(b.shape)} after step; return the same shape and dtype from both"
            )
