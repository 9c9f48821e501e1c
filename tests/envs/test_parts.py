"""Masks and goals in an environment's observation, choices of several kinds, and the tasks with goals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces as gym

from tensor_optix import envs
from tensor_optix.envs.checker import check_environment
from tensor_optix.envs.goal_tasks import BitFlip, PointReach
from tensor_optix.envs.probes import Probe
from tensor_optix.envs.spaces import Box, Dict, Discrete, MultiDiscrete, action_spec, spans, to_array


class Masked(Probe):
    """The observation says which of 3 actions is allowed beside number 1."""

    mask_size = 3

    def observation_space(self, params):
        return Dict({"seen": Box(-1.0, 1.0, (2,)), "action_mask": Box(0.0, 1.0, (self.mask_size,))})

    def action_space(self, params):
        return Discrete(3)

    def draw(self, key):
        return jax.random.rademacher(key, dtype=jnp.float32)

    def observe(self, state):
        mask = jnp.stack([state.signal < 0, jnp.bool_(True), state.signal > 0]).astype(jnp.float32)
        return {"seen": jnp.stack([state.signal, state.signal]), "action_mask": mask[: self.mask_size]}

    def reward(self, state, action):
        return action == 1


class TestMasks:
    def test_found_in_the_flat_observation(self):
        env = envs.make(Masked)
        _, obs = env.reset(jax.random.key(0), 16)
        assert env.mask == (2, 5)
        mask = env.action_mask(obs)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask[:, 0], obs[:, 0] < 0)
        np.testing.assert_array_equal(mask[:, 1], True)
        np.testing.assert_array_equal(mask[:, 2], obs[:, 0] > 0)
        assert env.action_mask(obs[0]).shape == (3,)

    def test_none_where_there_is_none(self):
        env = envs.make("CartPole-v1")
        assert env.mask is None
        assert env.action_mask(jnp.zeros((2, 4))) is None

    def test_of_the_wrong_size(self):
        class TooFew(Masked):
            mask_size = 2

        with pytest.raises(ValueError, match="action_mask has 2 entries and the environment 3 discrete actions"):
            envs.make(TooFew)

    def test_with_continuous_actions(self):
        class Continuous(Masked):
            def action_space(self, params):
                return Box(-1.0, 1.0, (3,))

        with pytest.raises(ValueError, match="continuous actions"):
            envs.make(Continuous)


class TestSpans:
    SPACE = Dict({"a": Discrete(3), "b": Box(0.0, 1.0, (2, 2)), "c": MultiDiscrete((2, 4))})
    OBS = {"a": jnp.int32(1), "b": jnp.arange(4.0).reshape(2, 2), "c": jnp.array([1, 2])}  # noqa: RUF012

    def test_say_where_the_parts_are(self):
        flat, found = to_array(self.OBS, self.SPACE), spans(self.OBS, self.SPACE)
        assert found == {"a": (0, 3), "b": (3, 7), "c": (7, 13)}
        np.testing.assert_array_equal(flat[slice(*found["b"])], [0, 1, 2, 3])
        np.testing.assert_array_equal(flat[slice(*found["c"])], [0, 1, 0, 0, 1, 0])

    def test_of_other_spaces(self):
        assert spans(jnp.zeros(3), Box(0.0, 1.0, (3,))) == {}


class TestSeveralChoices:
    def test_an_observation_is_one_hot_for_each_entry(self):
        space = gym.MultiDiscrete([3, 2], start=[1, 0])
        np.testing.assert_array_equal(to_array(np.array([3, 1]), space), [0, 0, 1, 0, 1])

    def test_a_choice_that_does_not_begin_at_0(self):
        np.testing.assert_array_equal(to_array(np.array(3), gym.Discrete(3, start=1)), [0, 0, 1])
        with pytest.raises(ValueError, match="must have 2 entries, got 3"):
            to_array(np.zeros(3, int), gym.MultiDiscrete([2, 2]))

    def test_a_multi_binary_observation_stays_as_it_is(self):
        np.testing.assert_array_equal(to_array(np.array([0, 1, 1]), gym.MultiBinary(3)), [0, 1, 1])

    @pytest.mark.parametrize(
        "space", [MultiDiscrete((2, 3)), gym.MultiDiscrete([2, 3]), gym.MultiDiscrete([2, 3], start=[5, -1])]
    )
    def test_an_action_numbers_their_combinations(self, space):
        spec = action_spec(space)
        assert (spec.kind, spec.n) == ("discrete", 6)
        played = np.array([spec.to_env(jnp.int32(i)) for i in range(6)])
        expected = np.array([[i, j] for i in range(2) for j in range(3)]) + np.asarray(getattr(space, "start", 0))
        np.testing.assert_array_equal(played, expected)
        if isinstance(space, gym.MultiDiscrete):
            assert all(space.contains(np.asarray(action, space.dtype)) for action in played)
        assert hash(spec) == hash(action_spec(space))

    def test_multi_binary_actions(self):
        spec = action_spec(gym.MultiBinary(3))
        assert spec.n == 8
        np.testing.assert_array_equal(spec.to_env(jnp.int32(6)), [1, 1, 0])

    def test_too_many_combinations(self):
        with pytest.raises(ValueError, match="has 1000000 combinations, expected 1 to 4096"):
            action_spec(MultiDiscrete((10,) * 6))


class TestGoals:
    @pytest.mark.parametrize("task", [BitFlip, PointReach])
    def test_the_tasks_are_environments_with_goals(self, task):
        assert not [p for p in check_environment(task()) if p.level == "error"]
        env = envs.make(task.name)
        assert env.goals is not None
        state, obs = env.reset(jax.random.key(0), 4)
        np.testing.assert_array_equal(env.goals.reached(obs), state.env.place)
        np.testing.assert_array_equal(env.goals.wanting(obs, state.env.place)[:, -env.goals.size :], state.env.place)
        reward, ended = env.goal_worth(state.env.place, state.env.place)
        np.testing.assert_array_equal(reward, 0.0)
        assert ended.all()

    def test_bits_flip_and_the_goal_ends_the_episode(self):
        env = BitFlip(4)
        obs, state = env.reset_env(jax.random.key(3), None)
        differ = np.flatnonzero(np.asarray(obs["achieved_goal"] != obs["desired_goal"]))
        assert len(differ) > 1
        for k, bit in enumerate(differ):
            obs, state, reward, terminated, _ = env.step_env(jax.random.key(0), state, jnp.int32(bit), None)
            last = k == len(differ) - 1
            assert (float(reward), bool(terminated)) == ((0.0, True) if last else (-1.0, False))

    def test_an_environment_without_a_worth_has_no_goals(self):
        class Mute(BitFlip):
            compute_reward = None

        space = Mute().observation_space(None)
        assert envs.parts.goals(Mute(), {"achieved_goal": (0, 12), "desired_goal": (12, 24)}, space) is None
        with pytest.raises(ValueError, match="has no goals"):
            envs.make("CartPole-v1").goal_worth(jnp.zeros((1, 1)), jnp.zeros((1, 1)))

    def test_goals_of_different_sizes(self):
        class Odd(BitFlip):
            def observation_space(self, params):
                return Dict({"achieved_goal": Box(0.0, 1.0, (3,)), "desired_goal": Box(0.0, 1.0, (12,))})

            def observe(self, state):
                return {"achieved_goal": state.place[:3], "desired_goal": state.goal}

        assert envs.make(Odd).goals is None

    def test_goals_that_are_single_choices_are_left_alone(self):
        class Chosen(BitFlip):
            def observation_space(self, params):
                return Dict({"achieved_goal": Box(0.0, 1.0, (12,)), "desired_goal": Discrete(12)})

            def observe(self, state):
                return {"achieved_goal": state.place, "desired_goal": jnp.int32(3)}

        assert envs.make(Chosen).goals is None
