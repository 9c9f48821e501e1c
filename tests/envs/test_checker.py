"""One deliberately broken environment per finding, and sound ones without any."""

import re

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tensor_optix.envs.checker import EnvironmentProblems, check_environment
from tensor_optix.envs.spaces import Box, Discrete


@struct.dataclass
class State:
    position: jax.Array
    time: jax.Array


class Sound:
    """A correct walk on a line; every broken environment below changes one thing."""

    default_params = None

    def reset_env(self, key, params):
        state = State(jax.random.uniform(key, (2,)), jnp.int32(0))
        return state.position, state

    def step_env(self, key, state, action, params):
        state = State(jnp.clip(state.position + 0.1 * action, 0.0, 1.0), state.time + jnp.int32(1))
        return state.position, state, state.position.sum(), self.is_terminated(state), {}

    def is_terminated(self, state):
        return state.position[0] > 0.95

    def is_truncated(self, state, params):
        return state.time >= 50

    def observation_space(self, params):
        return Box(0.0, 1.0, (2,))

    def action_space(self, params):
        return Box(-1.0, 1.0, (2,))


class SoundWithReset(Sound):
    """The same, starting new episodes by itself."""

    def reset(self, key, params):
        return self.reset_env(key, params)

    def step(self, key, state, action, params):
        key_step, key_reset = jax.random.split(key)
        obs, after, reward, terminated, _ = self.step_env(key_step, state, action, params)
        truncated = self.is_truncated(after, params)
        fresh = self.reset_env(key_reset, params)
        new = jax.tree.map(lambda a, b: jnp.where(terminated | truncated, a, b), fresh, (obs, after))
        return *new, reward, terminated, truncated, {"final_observation": obs}


class NoSpaces:
    def reset(self, key, params): ...

    def step(self, key, state, action, params): ...


class BadActionSpace(Sound):
    def action_space(self, params):
        return (0, 1)


class BadObservationSpace(Sound):
    def observation_space(self, params):
        return (2,)


class ResetOfThree(Sound):
    def reset_env(self, key, params):
        return *super().reset_env(key, params), {}


class StepOfFour(Sound):
    def step_env(self, key, state, action, params):
        return super().step_env(key, state, action, params)[:4]


class PythonBranch(Sound):
    def step_env(self, key, state, action, params):
        if state.time > 3:
            state = state.replace(time=jnp.int32(0))
        return super().step_env(key, state, action, params)


class NumPyInside(Sound):
    def step_env(self, key, state, action, params):
        return super().step_env(key, state.replace(position=np.asarray(state.position)), action, params)


class ShapeChanges(Sound):
    def step_env(self, key, state, action, params):
        obs, state, *rest = super().step_env(key, state, action, params)
        return obs, state.replace(position=state.position[:1]), *rest


class StructureChanges(Sound):
    def step_env(self, key, state, action, params):
        obs, state, *rest = super().step_env(key, state, action, params)
        return obs, state.replace(position=(state.position, obs)), *rest


class WeakType(Sound):
    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        return obs, state.replace(time=0)


class ObsUnlikeSpace(Sound):
    def observation_space(self, params):
        return Box(0.0, 1.0, (3,))


class ObsTypeUnlikeSpace(Sound):
    def observation_space(self, params):
        return Box(0.0, 1.0, (2,), jnp.uint8)


class VectorReward(Sound):
    def step_env(self, key, state, action, params):
        obs, state, _, *rest = super().step_env(key, state, action, params)
        return obs, state, obs, *rest


class FloatTerminated(Sound):
    def is_terminated(self, state):
        return (state.position[0] > 0.95).astype(jnp.float32)


class NoFinalObservation(SoundWithReset):
    def step(self, key, state, action, params):
        return *super().step(key, state, action, params)[:5], {}


class HiddenRandomness(Sound):
    rng = np.random.default_rng(0)

    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        return obs + self.rng.random(), state


class HiddenRandomStep(Sound):
    rng = np.random.default_rng(0)

    def step_env(self, key, state, action, params):
        obs, *rest = super().step_env(key, state, action, params)
        return obs + self.rng.random(), *rest


class CountsCalls(Sound):
    calls = 0

    def step_env(self, key, state, action, params):
        self.calls = self.calls + 1
        return super().step_env(key, state, action, params)


class KeepsLog(Sound):
    def __init__(self):
        self.log = []

    def step_env(self, key, state, action, params):
        self.log.append(1)
        return super().step_env(key, state, action, params)


class IgnoresKey(Sound):
    def reset_env(self, key, params):
        return super().reset_env(jax.random.key(0), params)


class ReusesKey(Sound):
    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        return obs, state.replace(position=jax.random.uniform(key, (2,)))


class NaNReward(Sound):
    def step_env(self, key, state, action, params):
        obs, state, _, *rest = super().step_env(key, state, action, params)
        return obs, state, jnp.log(obs[0] - 0.5), *rest


class InfiniteObservation(Sound):
    def step_env(self, key, state, action, params):
        obs, *rest = super().step_env(key, state, action, params)
        return 1.0 / jnp.maximum(obs - 0.1, 0.0), *rest


class OutsideSpace(Sound):
    def step_env(self, key, state, action, params):
        obs, *rest = super().step_env(key, state, action, params)
        return obs * 3.0, *rest


class NeverEnds(Sound):
    def is_terminated(self, state):
        return jnp.bool_(False)

    def is_truncated(self, state, params):
        return jnp.bool_(False)


class OutsideDiscrete(Sound):
    def observation_space(self, params):
        return Discrete(3)

    def reset_env(self, key, params):
        _, state = super().reset_env(key, params)
        return state.time, state

    def step_env(self, key, state, action, params):
        _, state, *rest = super().step_env(key, state, action, params)
        return state.time, state, *rest


BROKEN = [
    (NoSpaces, "error", "observation_space", "there is no method"),
    (BadActionSpace, "error", "action_space", "return a Discrete, MultiDiscrete or floating point Box"),
    (BadObservationSpace, "error", "observation_space", "is no Box, Discrete, MultiDiscrete"),
    (ResetOfThree, "error", "reset", r"returns \(observation, state\)"),
    (StepOfFour, "error", "step", "not enough values to unpack"),
    (PythonBranch, "error", "step", "use jnp.where or lax.cond"),
    (NumPyInside, "error", "step", "use jax.numpy"),
    (ShapeChanges, "error", "state.position", r"float32\[2\] after reset and float32\[1\] after step"),
    (StructureChanges, "error", "state", "return the same structure"),
    (WeakType, "warning", "state.time", "plain Python number"),
    (ObsUnlikeSpace, "error", "reset", r"shape \(2,\), observation_space says \(3,\)"),
    (ObsTypeUnlikeSpace, "warning", "reset", "float32, observation_space says uint8"),
    (VectorReward, "error", "reward", r"shape \(2,\); return a scalar"),
    (FloatTerminated, "error", "terminated", r"float32\[\]; return a boolean scalar"),
    (NoFinalObservation, "error", "info", "final_observation"),
    (HiddenRandomness, "error", "reset", "two calls with the same key differ"),
    (HiddenRandomStep, "error", "step", "two calls with the same arguments differ"),
    (CountsCalls, "error", "step", "self.calls"),
    (KeepsLog, "error", "step", "self.log"),
    (IgnoresKey, "warning", "reset", "two different keys give the same episode start"),
    (ReusesKey, "warning", "reset", "one key is used for two draws"),
    (NaNReward, "error", "reward", "NaN or infinite"),
    (InfiniteObservation, "error", "observation", "NaN or infinity"),
    (OutsideSpace, "warning", "observation", "lies outside observation_space"),
    (NeverEnds, "warning", "step", "no episode ended within 100 random steps"),
    (OutsideDiscrete, "error", "observation", r"leaves the range 0 \.\. 2"),
]


@pytest.mark.parametrize(("broken", "level", "where", "text"), BROKEN, ids=[row[0].__name__ for row in BROKEN])
def test_each_fault_is_found_and_named(broken, level, where, text):
    problems = check_environment(broken(), steps=100, raise_errors=False)
    found = [p for p in problems if p.level == level and p.where == where]
    assert found, problems
    assert any(re.search(text, p.message) for p in found), found
    if level == "error":
        with pytest.raises(EnvironmentProblems, match="cannot be trained on"):
            check_environment(broken(), steps=100)
    else:
        assert all(p.level == "warning" for p in problems)


@pytest.mark.parametrize("sound", [Sound(), SoundWithReset(), Sound], ids=["split", "own reset", "class"])
def test_a_sound_environment_has_no_findings(sound):
    assert check_environment(sound, steps=100) == []


def test_gymnax_passes():
    # CartPole keeps its time as a Python number and its first observation bounds are generous: no errors.
    env, params = gymnax.make("CartPole-v1")
    assert {p.level for p in check_environment(env, params, steps=300)} <= {"warning"}
