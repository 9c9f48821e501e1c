"""A ladder of tiny environments, each of which only one kind of mistake can fail.

A learner that fails a rung and passes those below it has its fault in what the rung adds. Every class states what is
true of it as `optimal_return` (of one episode, undiscounted) and as values for a given discount, so that a test can
compare learned values with exact ones.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.envs.spaces import Box, Discrete


@struct.dataclass
class ProbeState:
    """State of every probe; a probe that needs less leaves the rest at zero."""

    time: jax.Array  # [] int32, steps taken
    signal: jax.Array  # [] float32, what the observation shows besides time


class Probe:
    """What the rungs share: a fixed number of steps, then termination."""

    default_params = None
    optimal_return = 1.0
    length = 1

    def observation_space(self, params: Any) -> Box:
        return Box(-1.0, 1.0, (1,))

    def action_space(self, params: Any) -> Any:
        return Discrete(2)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, ProbeState]:
        state = ProbeState(jnp.int32(0), self.draw(key))
        return self.observe(state), state

    def step_env(
        self, key: jax.Array, state: ProbeState, action: jax.Array, params: Any
    ) -> tuple[jax.Array, ProbeState, jax.Array, jax.Array, dict[str, Any]]:
        reward = self.reward(state, action).astype(jnp.float32)
        state = ProbeState(state.time + jnp.int32(1), state.signal)
        return self.observe(state), state, reward, self.is_terminated(state), {}

    def is_terminated(self, state: ProbeState) -> jax.Array:
        return state.time >= self.length

    def is_truncated(self, state: ProbeState, params: Any) -> jax.Array:
        return jnp.zeros((), bool)

    def draw(self, key: jax.Array) -> jax.Array:
        """The signal of a new episode, [] float32."""
        return jnp.float32(0.0)

    def observe(self, state: ProbeState) -> jax.Array:
        """[1] float32."""
        return state.signal[None]

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        """[] reward of `action` taken in `state`."""
        raise NotImplementedError


class ConstantReward(Probe):
    """One step, one observation, reward 1 whatever is done. Fails if: the value is not learned at all.

    Value 1 for every discount.
    """

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return jnp.float32(1.0)


class DelayedReward(Probe):
    """Two steps, reward 1 at the second; the observation is the time. Fails if: the discount or the bootstrap is wrong.

    Values gamma at observation 0 and 1 at observation 1.
    """

    length = 2

    def observe(self, state: ProbeState) -> jax.Array:
        return state.time.astype(jnp.float32)[None]

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return state.time == 1


class SignalValue(Probe):
    """One step; the observation is +1 or -1 and so is the reward. Fails if: the value ignores the observation.

    Value = observation. The optimal return is 0 on average.
    """

    optimal_return = 0.0

    def draw(self, key: jax.Array) -> jax.Array:
        return jax.random.rademacher(key, dtype=jnp.float32)

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return state.signal


class BestAction(Probe):
    """One step; action 1 brings 1 and action 0 brings -1. Fails if: the sign of the policy gradient is wrong.

    Optimal value 1; of the uniform policy 0.
    """

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return 2.0 * action.astype(jnp.float32) - 1.0


class SignalAction(Probe):
    """One step; reward 1 if the action (1 or 0) names the sign of the observation, else -1.

    Fails if: the policy ignores the observation, or actions and advantages are paired with the wrong rows.
    Optimal value 1; of any policy that ignores the observation 0.
    """

    def draw(self, key: jax.Array) -> jax.Array:
        return jax.random.rademacher(key, dtype=jnp.float32)

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return state.signal * (2.0 * action.astype(jnp.float32) - 1.0)


class DelayedCredit(Probe):
    """The first of 5 actions decides the only reward, +1 or -1, at the last step.

    The observation tells the time and, after the first step, the choice made.
    Fails if: credit does not travel back (lambda or n-step returns). Optimal value gamma ** (length - 1) at the start.
    """

    length = 5

    def observation_space(self, params: Any) -> Box:
        return Box(-1.0, 1.0, (2,))

    def observe(self, state: ProbeState) -> jax.Array:
        return jnp.stack([state.time.astype(jnp.float32) / self.length, state.signal])

    def step_env(
        self, key: jax.Array, state: ProbeState, action: jax.Array, params: Any
    ) -> tuple[jax.Array, ProbeState, jax.Array, jax.Array, dict[str, Any]]:
        choice = 2.0 * action.astype(jnp.float32) - 1.0
        state = ProbeState(state.time, jnp.where(state.time == 0, choice, state.signal))
        return super().step_env(key, state, action, params)

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return jnp.where(state.time == self.length - 1, state.signal, 0.0)


class TimeLimit(Probe):
    """Reward 1 for ever, in episodes cut after 5 steps; the observation never changes.

    Fails if: a truncation is taken for a termination. Value 1 / (1 - gamma), where that mistake learns less.
    """

    optimal_return = 5.0
    length = 5

    def is_terminated(self, state: ProbeState) -> jax.Array:
        return jnp.zeros((), bool)

    def is_truncated(self, state: ProbeState, params: Any) -> jax.Array:
        return state.time >= self.length

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return jnp.float32(1.0)


class Ending(TimeLimit):
    """`TimeLimit` whose fifth step terminates. Fails if: a termination is taken for a truncation.

    Value (1 - gamma**5) / (1 - gamma) at the start; the observation is the time left, as a share.
    """

    def observe(self, state: ProbeState) -> jax.Array:
        return 1.0 - state.time.astype(jnp.float32)[None] / self.length

    def is_terminated(self, state: ProbeState) -> jax.Array:
        return state.time >= self.length

    def is_truncated(self, state: ProbeState, params: Any) -> jax.Array:
        return jnp.zeros((), bool)


class MatchNumber(Probe):
    """One step; observation +1 or -1, action a number in [-4, 4], reward -(action - 2 observation)**2 / 4.

    Fails if: continuous actions have the wrong sign, scale or bounds. The optimum is 0, inside the bounds.
    """

    optimal_return = 0.0

    def action_space(self, params: Any) -> Box:
        return Box(-4.0, 4.0, (1,))

    def draw(self, key: jax.Array) -> jax.Array:
        return jax.random.rademacher(key, dtype=jnp.float32)

    def reward(self, state: ProbeState, action: jax.Array) -> jax.Array:
        return -jnp.square(action[0] - 2.0 * state.signal) / 4.0


LADDER: tuple[type[Probe], ...] = (
    ConstantReward,
    DelayedReward,
    SignalValue,
    BestAction,
    SignalAction,
    DelayedCredit,
    TimeLimit,
    Ending,
    MatchNumber,
)
