"""Parts of an observation that a learner reads by name: which actions are allowed, which goal is wanted or reached.

An environment whose observation is a Dict has them by name:

- "action_mask": one number for each discrete action, above 0.5 where it is allowed.
- "achieved_goal" and "desired_goal", as in Gymnasium-Robotics, with a method that says what reaching one is worth:
  `compute_reward(achieved_goal, desired_goal, params) -> reward`, and optionally
  `compute_terminated(achieved_goal, desired_goal, params) -> bool`, where reaching a goal ends the episode.

The parts stay in the flat observation, so whatever stores observations stores them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tensor_optix.envs.contract import foreign_code
from tensor_optix.envs.spaces import ActionSpec, is_discrete

MASK, ACHIEVED, DESIRED = "action_mask", "achieved_goal", "desired_goal"

Span = tuple[int, int]  # start and stop in the flat observation


@dataclass(frozen=True)
class Goals:
    """Where the goals lie in a flat observation, and the environment's own shape of one."""

    achieved: Span
    desired: Span
    shape: tuple[int, ...]
    dtype: str
    ends: bool  # the environment says which goals end an episode

    @property
    def size(self) -> int:
        """Numbers in one goal."""
        return self.desired[1] - self.desired[0]

    def reached(self, obs: jax.Array) -> jax.Array:
        """[*batch, G] float32: the achieved goals in observations [*batch, W]."""
        return obs[..., slice(*self.achieved)]

    def wanting(self, obs: jax.Array, goal: jax.Array) -> jax.Array:
        """[*batch, W]: observations [*batch, W] in which goals [*batch, G] are desired."""
        start, stop = self.desired
        return jnp.concatenate([obs[..., :start], goal, obs[..., stop:]], axis=-1)

    def worth(self, env: Any, params: Any, achieved: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rewards [B] float32 of having achieved [B, G] where `goal` [B, G] was wanted; whether that ended it [B]."""

        def one(achieved: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = tuple(part.reshape(self.shape).astype(self.dtype) for part in (achieved, goal))
            reward = jnp.asarray(env.compute_reward(*own, params), jnp.float32).reshape(())
            ended = env.compute_terminated(*own, params) if self.ends else False
            return reward, jnp.asarray(ended).reshape(()).astype(bool)

        with foreign_code():
            return jax.vmap(one)(achieved, goal)


def mask_span(parts: Mapping[str, Span], action: ActionSpec, name: str) -> Span | None:
    """Where the action mask lies in the flat observation; None if there is none. `parts` as `spaces.spans` gives them.

    ValueError: the actions are continuous, or there are more or fewer entries than actions.
    """
    found = parts.get(MASK)
    if found is None:
        return None
    size = found[1] - found[0]
    if action.kind != "discrete" or size != action.n:
        actions = f"{action.n} discrete actions" if action.kind == "discrete" else "continuous actions"
        raise ValueError(
            f"{name}: the observation's {MASK} has {size} entries and the environment {actions}; "
            "give one entry for each discrete action (each combination of several), or rename that part"
        )
    return found


def goals(env: Any, parts: Mapping[str, Span], space: Any) -> Goals | None:
    """The goals of an environment; None where it has none that hindsight could replace.

    That takes both, each a Box (or MultiBinary) of the same shape, and a method `compute_reward`.
    """
    if ACHIEVED not in parts or DESIRED not in parts or not callable(getattr(env, "compute_reward", None)):
        return None
    own, reached = space.spaces[DESIRED], space.spaces[ACHIEVED]
    if any(is_discrete(each) or hasattr(each, "nvec") or hasattr(each, "spaces") for each in (own, reached)):
        return None
    if tuple(own.shape) != tuple(reached.shape):
        return None
    return Goals(
        achieved=parts[ACHIEVED],
        desired=parts[DESIRED],
        shape=tuple(int(size) for size in own.shape),
        dtype=jax.dtypes.canonicalize_dtype(own.dtype).name,
        ends=callable(getattr(env, "compute_terminated", None)),
    )
