"""DQN, SAC and TD3 solve the rungs of the probe ladder that apply to them, in three seeds; the values are exact."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.algorithms.dqn import DQN, DQNConfig
from tensor_optix.algorithms.sac import SAC, SACConfig
from tensor_optix.algorithms.td3 import TD3, TD3Config
from tensor_optix.envs import probes
from tests.learning.test_probe_ladder import KINDS, VALUES, AnyRung

SEEDS = 3
WINDOWS = {1: 40, 3: 16}  # by n_step: sums of rewards bring values back faster
CONFIG = {
    "n_envs": 4, "n_steps": 64, "train_every": 2, "updates": 2, "batch_size": 64, "replay_size": 2000,
    "warmup_steps": 200, "hidden_sizes": (32,),
}  # fmt: skip
# n_step: without it, with it.
DQNS = {1: {"prioritized": False}, 3: {"prioritized": True, "n_step": 3, "dueling": True, "hidden_sizes": (32, 32)}}
N_STEPS = [pytest.param(1, marks=pytest.mark.slow), 3]
HYPER = {"learning_rate": 3e-3, "tau": 0.05}


def trained(algorithm, key, **changes):
    """Deterministic returns [episodes] after training, and the learner."""
    hyper = {k: jnp.asarray(v, jnp.float32) for k, v in {**algorithm.hyperparams(), **HYPER, **changes}.items()}
    key_init, key_train, key_eval = jax.random.split(key, 3)
    learner, _ = jax.lax.scan(
        lambda learner, key: (algorithm.window(learner, hyper, key)[0], ()),
        algorithm.init(key_init, hyper),
        jax.random.split(key_train, WINDOWS[algorithm.config.n_step]),
    )
    policy = algorithm.policy(learner)
    act = lambda obs, key: algorithm.act(policy, obs, (), key, True)[0]  # noqa: E731
    return envs.evaluate(algorithm.env, act, key_eval, 32, 10).returns, learner


@functools.cache
def learned(n_step):
    """rung -> (returns [seeds, episodes], values of the best actions [seeds, observations])."""
    env = envs.make(AnyRung)

    @jax.jit
    def one(rung, gamma, inputs, key):
        config = DQNConfig(**{**CONFIG, **DQNS[n_step]})
        algorithm = DQN(dataclasses.replace(env, params=rung), config)
        # A sum of several rewards is the acting policy's: that has to become the greedy one.
        end = 0.05 if n_step == 1 else 0.0
        returns, learner = trained(algorithm, key, gamma=gamma, epsilon_steps=1500.0, epsilon_end=end)
        return returns, algorithm.values(learner.agent.online.params, inputs).max(axis=-1)

    results = {}
    for i, rung in enumerate(KINDS):
        gamma, obs, _ = VALUES[rung]
        inputs = np.zeros((3, 2), np.float32)
        inputs[: len(obs), : len(obs[0])] = obs
        runs = [one(np.int32(i), np.float32(gamma), inputs, jax.random.key(seed)) for seed in range(SEEDS)]
        results[rung] = tuple(np.stack(parts) for parts in zip(*runs, strict=True))
    return results


@pytest.mark.parametrize("n_step", N_STEPS)
@pytest.mark.parametrize("rung", [r for r in KINDS if r is not probes.SignalValue], ids=lambda rung: rung.__name__)
@pytest.mark.slow
def test_dqn_reaches_the_optimal_return(rung, n_step):  # that of SignalValue is a coin flip
    np.testing.assert_array_equal(learned(n_step)[rung][0], rung.optimal_return)


@pytest.mark.parametrize("n_step", N_STEPS)
@pytest.mark.parametrize("rung", KINDS, ids=lambda rung: rung.__name__)
def test_dqn_learns_the_exact_values(rung, n_step):
    exact = VALUES[rung][2]
    values = learned(n_step)[rung][1][:, : len(exact)]
    np.testing.assert_allclose(values, np.broadcast_to(exact, values.shape), rtol=0.08, atol=0.08)


@pytest.mark.parametrize("kind", [SAC, pytest.param(TD3, marks=pytest.mark.slow)])
def test_a_continuous_action_finds_its_number(kind):
    config = {SAC: SACConfig, TD3: TD3Config}[kind](**CONFIG)
    algorithm = kind(envs.make(probes.MatchNumber), config)
    run = jax.jit(lambda key: trained(algorithm, key, gamma=0.5)[0])
    returns = np.stack([run(jax.random.key(seed)) for seed in range(SEEDS)])
    assert np.min(returns) >= -0.05, np.min(returns, axis=1)
