"""The documented searches, with their names and arguments; smaller numbers, CartPole."""

import pytest

from tensor_optix import BaseAgent, BasePipeline, BatchPipeline, HyperparamSet, RLOptimizer
from tensor_optix.orchestrator import TrialOrchestrator


def make_pipeline() -> BasePipeline:
    return BatchPipeline(env_id="CartPole-v1", n_steps=256)


def torch_agent(params):
    import torch
    from torch import nn

    from tensor_optix import TorchPPOAgent

    actor = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    return TorchPPOAgent(
        actor=actor,
        critic=critic,
        optimizer=torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=params["learning_rate"]),
        hyperparams=HyperparamSet(params=params, episode_id=0),
    )


def test_a_pair_then_the_full_run():
    make_agent = torch_agent
    orchestrator = TrialOrchestrator(
        agent_factory=make_agent,
        pipeline_factory=make_pipeline,
        param_space={
            "learning_rate": ("log_float", 1e-4, 3e-3),   # log-uniform (good for lr)
            "clip_ratio":    ("float",     0.1,  0.3),
            "entropy_coef":  ("float",     0.001, 0.05),  # 0.001 floor prevents entropy collapse
            "gamma":         ("float",     0.95, 0.999),
        },
        n_trials=2,       # number of independent runs
        trial_steps=512,  # step budget per trial
    )  # fmt: skip
    best_params, best_score = orchestrator.run()

    # Final full-budget run with the best configuration found
    agent = make_agent(best_params)
    optimizer = RLOptimizer(agent=agent, pipeline=make_pipeline(), max_episodes=1)
    optimizer.run()

    assert best_score > 5
    assert [t.user_attrs["env_steps"] for t in orchestrator.study.trials] == [512, 512]
    assert agent.get_hyperparams().params["gamma"] == best_params["gamma"]


def test_one_configuration():
    make_agent = torch_agent
    orch = TrialOrchestrator(
        agent_factory=make_agent,
        pipeline_factory=make_pipeline,
        param_space={
            "learning_rate": ("log_float", 1e-4, 3e-3),
            "clip_ratio":    ("float",     0.1,  0.3),
            "minibatch_size": ("int",      32,   512),
        },
        n_trials=1,
        trial_episodes=2,
    )  # fmt: skip
    best_config = orch.run()

    agent = make_agent(dict(best_config))
    assert agent.get_hyperparams().params["minibatch_size"] == best_config["minibatch_size"]
    make_agent(best_config)  # and as it is
    agent.load_weights(orch.best_weights_path)


@pytest.mark.slow
def test_tensorflow():
    import tensorflow as tf

    from tensor_optix import TFPPOAgent

    def make_agent(params: dict) -> BaseAgent:
        net = tf.keras.Sequential([tf.keras.layers.Input(shape=(4,)), tf.keras.layers.Dense(2)])
        critic_net = tf.keras.Sequential([tf.keras.layers.Input(shape=(4,)), tf.keras.layers.Dense(1)])
        return TFPPOAgent(
            actor=net, critic=critic_net,
            optimizer=tf.keras.optimizers.Adam(params["learning_rate"]),
            hyperparams=HyperparamSet(params=params, episode_id=0),
        )  # fmt: skip

    orchestrator = TrialOrchestrator(
        agent_factory=make_agent,
        pipeline_factory=make_pipeline,
        param_space={"learning_rate": ("log_float", 1e-4, 3e-3)},
        n_trials=2,
        trial_steps=256,
    )
    best_params, best_score = orchestrator.run()
    assert set(best_params) == {"learning_rate"}
    assert best_score > 5
