"""PPO solves every rung of the probe ladder in three seeds, and its critic learns the exact values.

The rungs with two actions are trained side by side in one compiled program, as lanes of one environment.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.algorithms.ppo import PPO, PPOConfig
from tensor_optix.envs import probes
from tensor_optix.envs.spaces import Box, Discrete

SEEDS, WINDOWS = 3, 250
CONFIG = PPOConfig(n_envs=8, n_steps=16, n_epochs=4, n_minibatches=2, hidden_sizes=(16,))
HYPER = {"learning_rate": 5e-3, "max_grad_norm": 10.0}
KINDS = [rung for rung in probes.LADDER if isinstance(rung().action_space(None), Discrete)]

# rung: discount, observations, their exact values under the optimal policy.
VALUES = {
    probes.ConstantReward: (0.5, [[0.0]], [1.0]),
    probes.DelayedReward: (0.5, [[0.0], [1.0]], [0.5, 1.0]),
    probes.SignalValue: (0.5, [[-1.0], [1.0]], [-1.0, 1.0]),
    probes.BestAction: (0.5, [[0.0]], [1.0]),
    probes.SignalAction: (0.5, [[-1.0], [1.0]], [1.0, 1.0]),
    probes.DelayedCredit: (0.8, [[0.0, 0.0], [0.8, 1.0]], [0.8**4, 1.0]),
    probes.TimeLimit: (0.8, [[0.0]], [1 / (1 - 0.8)]),
    probes.Ending: (0.8, [[1.0], [0.6], [0.2]], [(1 - 0.8**5) / (1 - 0.8), 1 + 0.8 + 0.8**2, 1.0]),
}


class AnyRung:
    """The rungs of KINDS as one environment: its parameter says which. Observations are padded to two numbers."""

    default_params = np.int32(0)

    def observation_space(self, params):
        return Box(-1.0, 1.0, (2,))

    def action_space(self, params):
        return Discrete(2)

    def reset_env(self, key, params):
        return jax.lax.switch(params, [lambda k, r=rung: pad(r().reset_env(k, None)) for rung in KINDS], key)

    def step_env(self, key, state, action, params):
        steps = [lambda k, s, a, r=rung: pad(r().step_env(k, s, a, None)) for rung in KINDS]
        return jax.lax.switch(params, steps, key, state, action)

    def is_truncated(self, state, params):
        return jax.lax.switch(params, [lambda s, r=rung: r().is_truncated(s, None) for rung in KINDS], state)


def pad(result):
    obs, *rest = result
    return jnp.pad(obs, (0, 2 - obs.shape[0])), *rest


def learn(algorithm, gamma, inputs, key):
    """Deterministic returns [episodes] after training, and the values of `inputs`."""
    hyper = {k: jnp.float32(v) for k, v in {**algorithm.hyperparams(), **HYPER}.items()} | {"gamma": gamma}
    key_init, key_train, key_eval = jax.random.split(key, 3)
    learner, _ = jax.lax.scan(
        lambda learner, key: (algorithm.window(learner, hyper, key)[0], ()),
        algorithm.init(key_init, hyper),
        jax.random.split(key_train, WINDOWS),
    )
    policy = algorithm.policy(learner)
    act = lambda obs, key: algorithm.act(policy, obs, (), key, True)[0]  # noqa: E731
    stats = envs.evaluate(algorithm.env, act, key_eval, 32, 10)
    return stats.returns, algorithm._value(learner.params["critic"], inputs)


@pytest.fixture(scope="module")
def learned():
    """rung -> (returns [seeds, episodes], values [seeds, observations])."""
    env = envs.make(AnyRung)
    inputs = np.zeros((len(KINDS), 3, 2), np.float32)
    for i, rung in enumerate(KINDS):
        obs = np.asarray(VALUES[rung][1])
        inputs[i, : obs.shape[0], : obs.shape[1]] = obs
    gammas = jnp.asarray([VALUES[rung][0] for rung in KINDS], jnp.float32)

    def one(rung, gamma, inputs, key):
        return learn(PPO(dataclasses.replace(env, params=rung), CONFIG), gamma, inputs, key)

    over_seeds = jax.vmap(one, (None, None, None, 0))
    over_rungs = jax.jit(jax.vmap(over_seeds, (0, 0, 0, None)))
    keys = jax.random.split(jax.random.key(0), SEEDS)
    returns, values = over_rungs(jnp.arange(len(KINDS), dtype=jnp.int32), gammas, jnp.asarray(inputs), keys)
    return {rung: (np.asarray(returns[i]), np.asarray(values[i])) for i, rung in enumerate(KINDS)}


def test_every_rung_is_here():
    assert set(VALUES) == set(KINDS)
    assert set(probes.LADDER) - set(KINDS) == {probes.MatchNumber}


@pytest.mark.parametrize("rung", [r for r in KINDS if r is not probes.SignalValue], ids=lambda rung: rung.__name__)
def test_the_optimal_return_is_reached(learned, rung):  # that of SignalValue is a coin flip
    returns, _ = learned[rung]
    np.testing.assert_array_equal(returns, rung.optimal_return)


@pytest.mark.parametrize("rung", KINDS, ids=lambda rung: rung.__name__)
def test_the_critic_learns_the_exact_values(learned, rung):
    _, exact = VALUES[rung][1:]
    values = learned[rung][1][:, : len(exact)]
    np.testing.assert_allclose(values, np.broadcast_to(exact, values.shape), rtol=0.06, atol=0.06)


def test_a_continuous_action_finds_its_number():
    algorithm = PPO(envs.make(probes.MatchNumber), CONFIG)
    run = jax.jit(jax.vmap(lambda key: learn(algorithm, jnp.float32(0.5), jnp.zeros((1, 1)), key)))
    returns, _ = run(jax.random.split(jax.random.key(0), SEEDS))
    assert np.min(returns) >= -0.05, np.min(returns, axis=1)
