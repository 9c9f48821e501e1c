"""Rainbow, SAC, TD3, graph and recurrent PPO on the rungs of the probe ladder, three seeds each.

Continuous actions take the rungs of two actions by their sign. Values are compared where the algorithm's are those of
the task: a SAC's hold the entropy too.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.algorithms import registry
from tensor_optix.envs import probes
from tensor_optix.envs.spaces import Box
from tests.learning.test_probe_ladder import KINDS, VALUES, AnyRung

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SEEDS = 3
OFF_POLICY = {
    "n_envs": 4, "n_steps": 64, "train_every": 2, "updates": 2, "batch_size": 64, "replay_size": 2000,
    "warmup_steps": 200, "hidden_sizes": (32,),
}  # fmt: skip


class BySign(AnyRung):
    """A number above 0 is action 1."""

    def action_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def step_env(self, key, state, action, params):
        return super().step_env(key, state, (action[0] > 0).astype(jnp.int32), params)


# Environment, configuration, hyperparameters, windows.
WAYS = {
    "rainbow": (
        AnyRung,
        OFF_POLICY | {"hidden_sizes": (32, 32), "n_step": 3, "n_atoms": 81, "target_period": 0},
        {"learning_rate": 2e-3, "tau": 0.05, "v_min": -2.0, "v_max": 6.0, "adam_eps": 1e-8, "per_beta_steps": 4000.0},
        24,
    ),
    "sac": (BySign, OFF_POLICY, {"learning_rate": 3e-3, "tau": 0.05, "target_entropy": -2.0}, 40),
    "td3": (BySign, OFF_POLICY, {"learning_rate": 1e-3, "tau": 0.02, "exploration_noise": 0.5}, 40),
    "graph_ppo": (
        AnyRung,
        {
            "n_envs": 8, "n_steps": 16, "n_epochs": 4, "n_minibatches": 2, "hidden_sizes": (16,), "feedback": 2,
            "sequence_length": 8,
        },
        {"learning_rate": 5e-3, "max_grad_norm": 10.0},
        250,
    ),
    "recurrent_ppo": (
        AnyRung,
        {
            "n_envs": 8, "n_steps": 16, "n_epochs": 4, "n_minibatches": 2, "hidden_sizes": (16,), "hidden_size": 16,
            "sequence_length": 8, "cell": "gru",
        },
        {"learning_rate": 5e-3, "max_grad_norm": 10.0},
        250,
    ),
}  # fmt: skip


def values_of(algorithm, learner, obs, hyper):
    """[M]: what the learner takes the observations [M, 2] to be worth."""
    if algorithm.name == "rainbow":
        return algorithm.values(learner.agent.online.params, obs, hyper).max(axis=-1)
    if algorithm.name == "td3":
        action = algorithm.act(algorithm.policy(learner), obs, (), None, True)[0]
        return algorithm._critics.lower(learner.agent.critics.params, obs, action)
    return jnp.zeros(len(obs))


@functools.cache
def learned(name):
    """rung -> (returns [seeds, episodes], values [seeds, observations])."""
    env_class, config, hyperparams, windows = WAYS[name]
    cls, env = registry.get(name), envs.make(env_class)

    @jax.jit
    def one(rung, gamma, inputs, key):
        algorithm = cls(dataclasses.replace(env, params=rung), cls.config_type(**config))
        hyper = {k: jnp.asarray(v, jnp.float32) for k, v in {**algorithm.hyperparams(), **hyperparams}.items()}
        hyper["gamma"] = gamma
        key_init, key_train, key_eval = jax.random.split(key, 3)
        learner, _ = jax.lax.scan(
            lambda learner, key: (algorithm.window(learner, hyper, key)[0], ()),
            algorithm.init(key_init, hyper),
            jax.random.split(key_train, windows),
        )
        policy, carry = algorithm.policy(learner), algorithm.initial_carry()
        act = lambda obs, carry, key: algorithm.act(policy, obs, carry, key, True)  # noqa: E731
        stats, _ = envs.evaluate_with_carry(algorithm.env, act, carry, key_eval, 32, 10)
        return stats.returns, values_of(algorithm, learner, inputs, hyper)

    results = {}
    for i, rung in enumerate(KINDS):
        gamma, obs, _ = VALUES[rung]
        inputs = np.zeros((3, 2), np.float32)
        inputs[: len(obs), : len(obs[0])] = obs
        runs = [one(np.int32(i), np.float32(gamma), inputs, jax.random.key(seed)) for seed in range(SEEDS)]
        results[rung] = tuple(np.stack(parts) for parts in zip(*runs, strict=True))
    return results


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("rung", [r for r in KINDS if r is not probes.SignalValue], ids=lambda rung: rung.__name__)
def test_the_optimal_return_is_reached(rung, name):  # that of SignalValue is a coin flip
    np.testing.assert_array_equal(learned(name)[rung][0], rung.optimal_return)


@pytest.mark.parametrize("name", ["rainbow", "td3"])
@pytest.mark.parametrize("rung", KINDS, ids=lambda rung: rung.__name__)
def test_the_values_are_exact(rung, name):
    exact = VALUES[rung][2]
    values = learned(name)[rung][1][:, : len(exact)]
    np.testing.assert_allclose(values, np.broadcast_to(exact, values.shape), rtol=0.08, atol=0.08)


def test_every_algorithm_is_on_a_ladder():
    assert set(WAYS) | {"ppo", "dqn"} == set(registry.names())
