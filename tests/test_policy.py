"""A policy as a function, and as named arrays on disk."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tensor_optix.policy import Policy, from_named_arrays, named_arrays
from tests.runs import SMALL, assert_same_bits, plan_of


def policy_of(env, seed=0, algorithm="ppo", **config):
    config = SMALL | config if algorithm == "ppo" else config
    algorithm = plan_of(env=env, algorithm=algorithm, config=config).program.algorithm
    hyper = {name: np.float32(value) for name, value in algorithm.hyperparams().items()}
    params = jax.jit(lambda key: algorithm.policy(algorithm.init(key, hyper)))(jax.random.key(seed))
    return Policy(algorithm, params)


@pytest.fixture(scope="module")
def cartpole():
    return policy_of("CartPole-v1", normalize_observations=True)


@pytest.fixture(scope="module")
def pendulum():
    return policy_of("Pendulum-v1", initial_log_std=2.0)  # so wide that samples leave the bounds


def observations(count, size):
    return np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)


class TestCall:
    def test_single_and_batch_agree(self, cartpole, pendulum):
        for policy, size, action_shape in ((cartpole, 4, ()), (pendulum, 3, (1,))):
            obs = observations(5, size)
            batch = policy(obs)
            assert batch.shape == (5, *action_shape)
            single = policy(obs[3])
            assert single.shape == action_shape
            np.testing.assert_allclose(single, batch[3], rtol=1e-5, atol=1e-6)

    def test_lists_and_double_precision_are_taken(self, cartpole):
        obs = observations(1, 4)[0]
        assert cartpole(obs.tolist()) == cartpole(obs) == cartpole(obs.astype(np.float64))

    def test_what_the_environment_shows_is_taken_where_it_has_parts(self):
        policy = policy_of("BitFlip", algorithm="dqn")
        rng = np.random.default_rng(0)
        parts = {name: rng.integers(0, 2, (5, 12)).astype(np.float32) for name in ("achieved_goal", "desired_goal")}
        flat = np.concatenate([parts["achieved_goal"], parts["desired_goal"]], axis=1)
        np.testing.assert_array_equal(policy(parts), policy(flat))
        assert policy({name: part[2] for name, part in parts.items()}) == policy(flat[2])
        assert policy({name: part[:1] for name, part in parts.items()}).shape == (1,)
        assert policy(flat[2].tolist()) == policy(flat[2])
        with pytest.raises(ValueError, match="the observation does not fit"):
            policy({"achieved_goal": parts["achieved_goal"]})

    @pytest.mark.parametrize("shape", [(), (3,), (5,), (2, 5), (2, 2, 4)])
    def test_a_wrong_shape_is_refused(self, cartpole, shape):
        with pytest.raises(ValueError, match=r"observation has shape .*, expected \(4,\) or a batch"):
            cartpole(np.zeros(shape))

    def test_deterministic_without_a_key_sampled_with_one(self, pendulum):
        obs = observations(6, 3)
        np.testing.assert_array_equal(pendulum(obs), pendulum(obs))
        a, b = pendulum(obs, jax.random.key(1)), pendulum(obs, jax.random.key(2))
        assert not np.array_equal(a, b)
        np.testing.assert_array_equal(a, pendulum(obs, jax.random.key(1)))

    def test_actions_are_the_environments_own(self, pendulum, cartpole):
        torque = pendulum(observations(200, 3), jax.random.key(0))
        assert (np.abs(torque) <= 2.0).all()
        assert (np.abs(torque) > 1.0).any()  # Pendulum's bounds are -2 and 2, not -1 and 1
        pushes = cartpole(observations(200, 4), jax.random.key(0))
        assert set(pushes.tolist()) == {0, 1}


class TestArrays:
    def test_round_trip(self, cartpole):
        arrays = cartpole.arrays()
        assert all("/" in name for name in arrays if name.startswith("actor"))
        restored = from_named_arrays(jax.eval_shape(lambda: cartpole.params), arrays)
        assert_same_bits(restored, cartpole.params)

    def test_every_leaf_has_its_own_name(self, cartpole):
        assert len(cartpole.arrays()) == len(jax.tree.leaves(cartpole.params))

    def test_a_missing_leaf_is_named(self, cartpole):
        arrays = cartpole.arrays()
        arrays.pop(name := sorted(arrays)[0])
        with pytest.raises(ValueError, match=f"the saved policy lacks {name}; it has "):
            from_named_arrays(cartpole.params, arrays)

    def test_another_network_is_refused_with_both_shapes(self, cartpole):
        other = policy_of("CartPole-v1", normalize_observations=True, hidden_sizes=[8])
        with pytest.raises(ValueError, match=r"float32\[.*8.*\], expected float32\[.*16.*\]"):
            from_named_arrays(cartpole.params, other.arrays())

    def test_another_dtype_is_refused(self):
        with pytest.raises(ValueError, match=r"saved a is float64\[2\], expected float32\[2\]"):
            from_named_arrays({"a": np.zeros(2, np.float32)}, {"a": np.zeros(2)})
        with pytest.raises(ValueError, match="also has b: it belongs to another network"):
            from_named_arrays({"a": np.zeros(2)}, {"a": np.zeros(2), "b": np.zeros(2)})

    def test_names_are_paths(self):
        tree = {"a": [np.zeros(1), {"b": np.ones(2)}]}
        assert {name: x.shape for name, x in named_arrays(tree).items()} == {"a/0": (1,), "a/1/b": (2,)}

    def test_saved_as_safetensors_with_what_it_is(self, cartpole, tmp_path):
        folder = cartpole.save(tmp_path / "policy")
        assert_same_bits(load_file(folder / "policy.safetensors"), cartpole.arrays())
        told = json.loads((folder / "policy.json").read_text())
        text = json.dumps(told)
        assert "CartPole-v1" in text
        assert "ppo" in text
