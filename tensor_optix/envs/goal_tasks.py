"""Two tasks with goals and a sparse reward, which random play hardly ever earns: hindsight is what solves them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.envs.spaces import Box, Dict, Discrete


@struct.dataclass
class GoalState:
    """State of both tasks."""

    time: jax.Array  # [] int32, steps taken
    place: jax.Array  # [n] float32, where one is
    goal: jax.Array  # [n] float32, where one should be


class GoalTask:
    """What the tasks share: a place and a goal in [0, 1]^n or [-1, 1]^n, -1 for each step that is not at the goal."""

    default_params = None
    low, high = 0.0, 1.0

    def __init__(self, n: int, length: int) -> None:
        self.n, self.length = n, length
        self.max_steps_in_episode = length

    def observation_space(self, params: Any) -> Dict:
        box = Box(self.low, self.high, (self.n,))
        return Dict({"achieved_goal": box, "desired_goal": box})

    def reset_env(self, key: jax.Array, params: Any) -> tuple[dict[str, jax.Array], GoalState]:
        key_place, key_goal = jax.random.split(key)
        state = GoalState(jnp.int32(0), self.draw(key_place), self.draw(key_goal))
        return self.observe(state), state

    def step_env(
        self, key: jax.Array, state: GoalState, action: jax.Array, params: Any
    ) -> tuple[dict[str, jax.Array], GoalState, jax.Array, jax.Array, dict[str, Any]]:
        state = GoalState(state.time + jnp.int32(1), self.move(state.place, action), state.goal)
        ends = (state.place, state.goal, params)
        return self.observe(state), state, self.compute_reward(*ends), self.compute_terminated(*ends), {}

    def is_truncated(self, state: GoalState, params: Any) -> jax.Array:
        return state.time >= self.length

    def compute_reward(self, achieved_goal: jax.Array, desired_goal: jax.Array, params: Any) -> jax.Array:
        """0 at the goal, else -1."""
        return jnp.where(self.is_there(achieved_goal, desired_goal), jnp.float32(0.0), jnp.float32(-1.0))

    def compute_terminated(self, achieved_goal: jax.Array, desired_goal: jax.Array, params: Any) -> jax.Array:
        return self.is_there(achieved_goal, desired_goal)

    def observe(self, state: GoalState) -> dict[str, jax.Array]:
        return {"achieved_goal": state.place, "desired_goal": state.goal}

    def draw(self, key: jax.Array) -> jax.Array:
        """A place, [n] float32."""
        raise NotImplementedError

    def move(self, place: jax.Array, action: jax.Array) -> jax.Array:
        """Where `action` leads to, [n] float32."""
        raise NotImplementedError

    def is_there(self, place: jax.Array, goal: jax.Array) -> jax.Array:
        """[] bool."""
        raise NotImplementedError


class BitFlip(GoalTask):
    """n bits; an action flips one, and all are to be as in the goal within n steps.

    Andrychowicz et al. 2017, section 3.1. Random play meets one of 2^n goals. Return of the best policy:
    -(bits that differ - 1), -1 where none does; of one that never arrives -n.
    """

    name = "BitFlip"

    def __init__(self, n: int = 12) -> None:
        super().__init__(n, length=n)

    def action_space(self, params: Any) -> Discrete:
        return Discrete(self.n)

    def draw(self, key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(key, 0.5, (self.n,)).astype(jnp.float32)

    def move(self, place: jax.Array, action: jax.Array) -> jax.Array:
        return place.at[action].set(1.0 - place[action])

    def is_there(self, place: jax.Array, goal: jax.Array) -> jax.Array:
        return (place == goal).all()


class PointReach(GoalTask):
    """A point in [-1, 1]^n that moves by up to 0.1 a step along each axis, to within 0.05 (Euclidean) of the goal.

    50 steps at most. The return of a policy that goes straight is about -9 in three dimensions, of one that never
    arrives -50.
    """

    name = "PointReach"
    low, high = -1.0, 1.0
    _STEP, _NEAR = 0.1, 0.05

    def __init__(self, n: int = 3) -> None:
        super().__init__(n, length=50)

    def action_space(self, params: Any) -> Box:
        return Box(-1.0, 1.0, (self.n,))

    def draw(self, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (self.n,), jnp.float32, -1.0, 1.0)

    def move(self, place: jax.Array, action: jax.Array) -> jax.Array:
        return jnp.clip(place + self._STEP * action, -1.0, 1.0)

    def is_there(self, place: jax.Array, goal: jax.Array) -> jax.Array:
        return jnp.linalg.norm(place - goal) < self._NEAR


# Ids that `envs.make` knows beside those of gymnax.
IDS: dict[str, Any] = {BitFlip.name: BitFlip, PointReach.name: PointReach}
