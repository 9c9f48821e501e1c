"""The documented calls of evolving policies, with their names and arguments."""

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix.core.types import StopReason
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.pipeline.batch import BatchPipeline
from tests.evolution_parts import Chooser, history, window
from tests.host_parts import Source

SETTINGS = {"plateau_threshold": 2, "dormant_threshold": 4, "max_interval_episodes": 1, "max_episodes": 900}


@pytest.fixture
def registry():
    from tensor_optix.core.checkpoint_registry import CheckpointRegistry

    return CheckpointRegistry("./checkpoints")


@pytest.fixture
def agent():
    return Chooser()


def source():
    return Source(lambda i: window(episode_id=i))


@pytest.fixture
def opt(agent):
    return RLOptimizer(agent=agent, pipeline=source(), **SETTINGS)


def make_agent():
    return Chooser()


def test_a_budget_with_a_factory(registry, agent, opt):
    from tensor_optix.core.policy_manager import PolicyManager

    pm = PolicyManager(registry, max_spawns=4)
    cb = pm.as_callback(agent, agent_factory=make_agent)
    cb.set_stop_fn(opt.stop)
    opt.add_callback(cb)
    opt.run()
    assert opt.result.stop_reason == StopReason.SPAWN_BUDGET
    assert not opt.result.callback_failures
    assert (pm.spawn_count, pm.ensemble_size) == (4, 5)
    assert pm.training_report()["best_score"] == opt.best_snapshot.eval_metrics.primary_score


def test_trading(registry, agent):
    from tensor_optix.core.policy_manager import PolicyManager

    opt = RLOptimizer(
        agent=agent, pipeline=source(), val_pipeline=source(), rollback_on_degradation=True,
        checkpoint_score_fn=lambda a: 1.0, **SETTINGS,
    )  # fmt: skip
    pm = PolicyManager(registry, max_spawns=4)
    cb = pm.as_callback(agent, agent_factory=make_agent)
    cb.set_stop_fn(opt.stop)
    opt.add_callback(cb)
    opt.run()
    assert pm.budget_exhausted


def test_a_callback_that_is_not_added_does_nothing(registry, agent, opt):
    from tensor_optix.core.policy_manager import PolicyManager

    pm = PolicyManager(registry, max_spawns=3)
    cb = pm.as_callback(agent, agent_factory=make_agent)
    cb.set_stop_fn(opt.stop)
    opt.run()
    assert opt.result.stop_reason == StopReason.CONVERGED


def test_rollback_alone():
    from tensor_optix.core.checkpoint_registry import CheckpointRegistry
    from tensor_optix.core.policy_manager import PolicyManager

    agent = Chooser()
    registry = CheckpointRegistry("./checkpoints")
    pm = PolicyManager(registry)
    opt = RLOptimizer(
        agent=agent,
        pipeline=source(),
        callbacks=[pm.as_callback(agent)],
        **SETTINGS,
    )
    opt.run()
    assert opt.result.stop_reason == StopReason.CONVERGED
    assert not opt.result.callback_failures


def test_a_budget_without_a_factory(registry, agent, caplog):
    from tensor_optix.core.policy_manager import PolicyManager, PolicyManagerCallback

    opt = RLOptimizer(agent=agent, pipeline=source(), **SETTINGS)
    pm = PolicyManager(registry, max_spawns=3)
    cb = pm.as_callback(agent)
    cb.set_stop_fn(opt.stop)
    opt.add_callback(cb)
    opt.run()
    assert isinstance(cb, PolicyManagerCallback)
    assert caplog.text.count("Training Complete") == 1


def test_autonomous_spawning_and_meta_controller(registry, agent, opt):
    from tensor_optix.core.meta_controller import MetaController
    from tensor_optix.core.policy_manager import PolicyManager

    pm = PolicyManager(registry, max_spawns=5, max_ensemble_size=4)
    cb = pm.as_callback(
        agent,
        agent_factory=make_agent,
        meta_controller=MetaController(
            gap_threshold=0.3,
            gap_slope_threshold=0.02,
            improvement_threshold=0.05,
        ),
    )
    cb.set_stop_fn(opt.stop)
    opt.add_callback(cb)
    opt.run()
    assert (pm.spawn_count, pm.ensemble_size, pm.prune_count) == (5, 4, 2)
    assert opt.result.stop_reason == StopReason.SPAWN_BUDGET


def test_ensemble(registry):
    from tensor_optix.core.ensemble_agent import EnsembleAgent
    from tensor_optix.core.policy_manager import PolicyManager
    from tests.examples.test_host_examples import stop_after
    from tests.test_evolution_traps import torch_ppo

    agent_a, agent_b, env = torch_ppo(0), torch_ppo(1), gym.make("CartPole-v1")
    pm = PolicyManager(registry)
    pm.add_agent(agent_a, weight=1.0)
    pm.add_agent(agent_b, weight=1.0)

    ensemble = EnsembleAgent(pm, primary_agent=agent_a)

    opt = RLOptimizer(
        agent=ensemble,
        pipeline=BatchPipeline(env=env, agent=ensemble, window_size=256),
        callbacks=[pm.as_callback(agent_a)],
    )
    stop_after(opt, 2)
    opt.run()
    assert not opt.result.callback_failures
    assert opt.best_snapshot.eval_metrics.primary_score > 5
    assert ensemble.policy_manager is pm


def test_memory(registry):
    from tensor_optix.core.policy_manager import PolicyManager

    pm = PolicyManager(registry)
    for _ in range(4):
        pm.add_agent(Chooser())
    removed = pm.prune(bottom_k=2)
    assert [a.torn_down for a in removed] == [1, 1]
    removed[0].teardown()


def test_factory_mode(registry):
    from tensor_optix.core.policy_manager import PolicyManager

    pm = PolicyManager(registry, max_spawns=1)
    agents = []

    def make(params):
        return Chooser(**params)

    def agent_factory_full(params):
        agent = make(params)
        pm_cb = pm.as_callback(agent, agent_factory=lambda: make(params))
        pm_cb.set_stop_fn(rl_opt.stop)
        rl_opt.add_callback(pm_cb)
        agents.append(agent)
        return agent

    rl_opt = RLOptimizer(agent_factory=agent_factory_full, pipeline=source(), **SETTINGS)
    rl_opt.run()
    assert rl_opt.result.stop_reason == StopReason.SPAWN_BUDGET
    assert agents[0] in pm.agents
    assert pm.ensemble_size == 2


def test_regimes():
    from tensor_optix.core import RegimeDetector

    regime = RegimeDetector().detect(history(np.linspace(0, 1, 20)))
    assert regime in ("trending", "ranging", "volatile")


@pytest.mark.slow
def test_torch_ppo_on_cartpole_spends_its_budget():
    from tensor_optix.core.ensemble_agent import EnsembleAgent
    from tensor_optix.core.policy_manager import PolicyManager
    from tests.examples.test_host_examples import torch_ppo

    agent = torch_ppo()
    pm = PolicyManager(None, max_spawns=2, max_ensemble_size=3)
    opt = RLOptimizer(
        agent=agent, pipeline=BatchPipeline(env=gym.make("CartPole-v1"), agent=agent, window_size=2048, seed=0),
        max_episodes=150,
    )  # fmt: skip
    cb = pm.as_callback(agent, agent_factory=torch_ppo)
    cb.set_stop_fn(opt.stop)
    opt.add_callback(cb)
    result = opt.run()
    print(result, pm.report_text, sep="\n")
    assert not result.callback_failures
    assert result.stop_reason == StopReason.SPAWN_BUDGET
    assert pm.ensemble_size == 3
    assert opt.best_snapshot.eval_metrics.primary_score > 300
    ensemble, env = EnsembleAgent(pm, agent), gym.make("CartPole-v1")
    (obs, _), total, over = env.reset(seed=0), 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(ensemble.act_deterministic(obs))
        total, over = total + float(reward), terminated or truncated
    assert total > 200
