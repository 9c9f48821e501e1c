"""What evolving policies must not get wrong: a test for each trap, named for what must be true.

Traps that other tests show already:
elsewhere: the first DORMANT ends the run whatever the budget of spawns ->
    tests/evolution/test_policy_manager_callback.py::TestTheBudget::test_it_is_used_up_and_the_loop_stops_for_it
elsewhere: an agent without teardown cannot be pruned ->
    tests/evolution/test_policy_manager.py::TestEnsemble::test_an_agent_without_teardown_can_leave
elsewhere: a validation score near zero is taken for overfitting ->
    tests/evolution/test_decisions.py::TestMeta::test_a_validation_score_near_zero_is_no_overfitting
elsewhere: an ensemble is on-policy whatever its members ->
    tests/evolution/test_ensemble_agent.py::TestLearning::test_it_is_on_policy_if_all_are
"""

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix.algorithms.flax_dqn import FlaxDQNAgent
from tensor_optix.algorithms.flax_ppo import FlaxPPOAgent
from tensor_optix.algorithms.flax_ppo_continuous import FlaxGaussianPPOAgent
from tensor_optix.core.types import EvalMetrics, HyperparamSet
from tensor_optix.evolution.ensemble_agent import EnsembleAgent
from tensor_optix.evolution.policy_manager import PolicyManager
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.pipeline.batch import BatchPipeline
from tensor_optix.pipeline.vector import VectorBatchPipeline
from tests.evolution_parts import Chooser, loop_of
from tests.host_parts import Plain

PARAMS = {"n_epochs": 1, "minibatch_size": 32, "gamma": 0.99}


def flax_ppo(seed=0, **params):
    return FlaxPPOAgent(4, 2, HyperparamSet({**PARAMS, **params}), hidden_size=8, seed=seed)


def torch_ppo(seed=0, **params):
    import torch

    from tensor_optix.algorithms.torch_ppo import TorchPPOAgent

    torch.manual_seed(seed)
    actor, critic = torch.nn.Linear(4, 2), torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3)
    return TorchPPOAgent(actor, critic, optimizer, HyperparamSet({**PARAMS, **params}), device="cpu", seed=seed)


def tf_ppo(seed=0, **params):
    import tensorflow as tf

    from tensor_optix.algorithms.tf_ppo import TFPPOAgent

    tf.keras.utils.set_random_seed(seed)
    actor, critic = (tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(n)]) for n in (2, 1))
    optimizer = tf.keras.optimizers.Adam(1e-3)
    return TFPPOAgent(actor, critic, optimizer, HyperparamSet({**PARAMS, **params}), seed=seed)


AGENTS = {"flax": flax_ppo, "torch": torch_ppo, "tf": tf_ppo}


def test_no_spawn_has_a_discount_above_one_or_a_flag_that_is_a_number():
    pm = PolicyManager(CheckpointRegistry("never-written"))
    for agent, low, high in ((Plain, 0.0, 1.0), (Chooser, 0.95, 0.999)):
        for _ in range(40):
            params = pm.spawn_variant(agent(gamma=0.99, flag=True, off=False, count=3), 0.1).get_hyperparams().params
            assert low < params["gamma"] <= high
            assert params["gamma"] < 1.0
            assert (params["flag"], params["off"], params["count"]) == (True, False, 3)
            assert type(params["flag"]) is bool


def test_the_limit_of_the_ensemble_holds_through_a_run(tmp_path):
    agent, sizes = Chooser(), []
    pm = PolicyManager(None, max_spawns=5, max_ensemble_size=2)

    def factory():
        sizes.append(pm.ensemble_size)
        return Chooser()

    loop_of(tmp_path, agent, [0.0, 1.0], [pm.as_callback(agent, factory)]).run()
    assert (pm.spawn_count, pm.prune_count, pm.ensemble_size) == (5, 4, 2)
    assert max(sizes) == 2


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("deterministic", [False, True])
def test_an_environment_accepts_what_a_discrete_ensemble_does(n_envs, deterministic):
    pm = PolicyManager(None)
    for seed in range(2):
        pm.add_agent(flax_ppo(seed))
    agent = EnsembleAgent(pm, pm.agents[0])
    makers = [lambda: gym.make("CartPole-v1")] * n_envs
    pipeline = (
        BatchPipeline(makers[0](), agent, 20, deterministic=deterministic)
        if n_envs == 1
        else VectorBatchPipeline(makers, agent, 10, deterministic=deterministic)
    )
    pipeline.setup()
    data = next(pipeline.episodes())
    pipeline.teardown()
    assert set(np.asarray(data.actions).tolist()) <= {0, 1}
    assert agent.learn(data)["n_updates"] == 1.0  # without any cache of acting
    assert pm.ensemble_action(np.zeros(4, np.float32)) in (0, 1)


def test_a_continuous_ensemble_stays_in_the_environments_range():
    pm = PolicyManager(None)
    for seed in range(2):
        pm.add_agent(FlaxGaussianPPOAgent(3, 1, HyperparamSet(PARAMS), hidden_size=8, seed=seed))
    agent = EnsembleAgent(pm, pm.agents[0])
    pipeline = BatchPipeline(gym.make("Pendulum-v1"), agent, 40)
    pipeline.setup()
    pipeline.set_agent(agent)
    data = next(pipeline.episodes())
    pipeline.teardown()
    actions = np.asarray(data.actions)
    assert np.abs(actions).max() > 1.0  # beyond +-1: scaled to the bounds
    assert "member1/policy_loss" in agent.learn(data)


def test_an_ensemble_of_several_algorithms_learns_from_one_window():
    pm = PolicyManager(None)
    pm.add_agent(flax_ppo())
    pm.add_agent(FlaxDQNAgent(4, 2, HyperparamSet({"learning_starts": 8, "batch_size": 8}), hidden_sizes=(8,)))
    agent = EnsembleAgent(pm, pm.agents[0])
    assert not agent.is_on_policy
    pipeline = BatchPipeline(gym.make("CartPole-v1"), agent, 16)
    pipeline.setup()
    windows = pipeline.episodes()
    reports = [agent.learn(next(windows)) for _ in range(2)]
    pipeline.teardown()
    assert {"policy_loss", "member1/loss"} <= set(reports[1])


@pytest.mark.parametrize("framework", list(AGENTS))
def test_shells_of_every_framework_become_variants(tmp_path, framework):
    make, registry = AGENTS[framework], CheckpointRegistry(tmp_path)
    best, obs = make(0, gamma=0.97), np.array([0.1, -0.2, 0.3, 0.1], np.float32)
    registry.save(best, EvalMetrics(1.0, {}, 0), best.get_hyperparams())
    pm = PolicyManager(registry)
    shell = pm.spawn_variant(make(1), noise_scale=0.1)
    np.testing.assert_allclose(shell.action_probs(obs), best.action_probs(obs), atol=1e-6)
    params = shell.get_hyperparams().params
    assert 0.95 <= params["gamma"] <= 0.999
    assert params["gamma"] != 0.97
    assert (params["n_epochs"], params["minibatch_size"]) == (1, 32)
    noisy = pm.spawn_variant(make(2), weight_noise=0.1)
    assert 0 < np.abs(noisy.action_probs(obs) - best.action_probs(obs)).max() < 0.2
    pm.add_agent(best)
    pm.add_agent(shell)
    agent = EnsembleAgent(pm, best)
    agent.save_weights(str(tmp_path / "ensemble"))
    before = shell.action_probs(obs)
    shell.perturb_weights(0.5)
    agent.load_weights(str(tmp_path / "ensemble"))
    np.testing.assert_allclose(shell.action_probs(obs), before, atol=1e-6)
