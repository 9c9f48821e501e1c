"""Environments that need a memory: what they show, what they reward, and that nothing else would do."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.envs import memory
from tensor_optix.envs.checker import check_environment
from tensor_optix.envs.memory import MEMORY_LADDER, MaskedCartPole, Recall
from tensor_optix.envs.spaces import Discrete
from tests.runs import XLA_DEFAULTS


@pytest.mark.parametrize("env", [MaskedCartPole, *MEMORY_LADDER])
def test_the_contract_is_followed(env):
    assert check_environment(env(), steps=100) == []


class TestMaskedCartPole:
    def test_it_is_cartpole_without_velocities(self):
        env, whole = envs.make("MaskedCartPole-v1"), envs.make("CartPole-v1")
        assert env.obs_shape == (2,)
        assert (env.n_actions, env.max_episode_steps) == (2, 500)
        key = jax.random.key(0)
        state, obs = env.reset(key, 3)
        peer, seen = whole.reset(key, 3)
        step, peer_step = (jax.jit(each.step, compiler_options=XLA_DEFAULTS) for each in (env, whole))
        ended = 0
        for t in range(60):
            np.testing.assert_array_equal(obs, seen[:, [0, 2]])
            action = jnp.full(3, t % 3 == 0, jnp.int32)
            key_step = jax.random.fold_in(key, t)
            state, out = step(key_step, state, action)
            peer, expected = peer_step(key_step, peer, action)
            for name in ("reward", "terminated", "truncated"):
                np.testing.assert_array_equal(getattr(out, name), getattr(expected, name))
            np.testing.assert_array_equal(out.final_obs, expected.final_obs[:, [0, 2]])
            obs, seen = out.obs, expected.obs
            ended += int(out.done.sum())
        assert ended > 0

    def test_it_is_cut_at_its_time_limit(self):
        params = gymnax.make("CartPole-v1")[1].replace(max_steps_in_episode=3)
        env = envs.make("MaskedCartPole-v1", params)
        state, _ = env.reset(jax.random.key(0), 2)
        for _ in range(3):
            state, out = env.step(jax.random.key(1), state, jnp.zeros(2, jnp.int32))
        assert out.truncated.all()
        assert not out.terminated.any()

    def test_it_is_known_by_its_id(self):
        assert "MaskedCartPole-v1" in envs.list_environments()
        assert "MaskedCartPole-v1" not in gymnax.registered_envs
        assert envs.make("MaskedCartPole-v1") == envs.make("MaskedCartPole-v1")
        with pytest.raises(ValueError, match="did you mean MaskedCartPole-v1"):
            envs.make("MaskedCartpole-v1")

    def test_ids_are_names(self):
        assert all(kind().name == env_id for env_id, kind in memory.IDS.items())


class TestRecall:
    @pytest.mark.parametrize("length", [2, 5])
    def test_the_cue_is_shown_once_and_asked_for_at_the_end(self, length):
        env = envs.make(Recall, length=length)
        state, obs = env.reset(jax.random.key(0), 8)
        cue = obs[:, 0]
        assert set(np.asarray(cue).tolist()) == {-1.0, 1.0}
        named = (cue > 0).astype(jnp.int32)
        for t in range(length):
            last = t == length - 1
            answer = named if last else 1 - named
            state, out = env.step(jax.random.key(t), state, answer.at[0].set(1 - answer[0]))
            assert out.terminated.all() == out.terminated.any() == last
            np.testing.assert_array_equal(out.reward, [-1.0 if last else 0.0] + [1.0 if last else 0.0] * 7)
            np.testing.assert_array_equal(out.final_obs, jnp.zeros((8, 1)))

    def test_remembering_is_optimal_and_forgetting_is_chance(self):
        env = envs.make(Recall, length=4)

        def remember(obs, carry, key):
            carry = jnp.where(obs[:, 0] != 0, obs[:, 0], carry)
            return (carry > 0).astype(jnp.int32), carry

        stats, _ = envs.evaluate_with_carry(env, remember, jnp.float32(0.0), jax.random.key(0), 256, 10)
        np.testing.assert_array_equal(stats.returns, Recall.optimal_return)
        stats = envs.evaluate(env, lambda obs, key: (obs[:, 0] > 0).astype(jnp.int32), jax.random.key(0), 256, 10)
        assert abs(stats.returns.mean()) < 5 / 16  # five standard errors of a coin: false alarm 6e-7

    def test_a_length_without_memory_is_refused(self):
        with pytest.raises(ValueError, match="length must be at least 2 steps, got 1"):
            Recall(1)

    def test_the_ladder_has_two_actions(self):
        assert all(rung().action_space(None) == Discrete(2) for rung in MEMORY_LADDER)


def test_memory_chain_of_gymnax_runs():
    env = envs.make("MemoryChain-bsuite")
    assert env.obs_shape == (3,)

    def remember(obs, carry, key):
        carry = jnp.where(obs[:, 2] != 0, obs[:, 2], carry)
        return (carry > 0).astype(jnp.int32), carry

    stats, _ = envs.evaluate_with_carry(env, remember, jnp.float32(0.0), jax.random.key(0), 64, 1000)
    np.testing.assert_array_equal(stats.returns, 1.0)
    assert stats.completed.all()
