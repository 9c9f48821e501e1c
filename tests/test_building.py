"""Agents, pipelines and runs that a TrainConfig describes: they fit the environment, and one seed is in all of them."""

import sys

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix.building import (
    build_agent_from_config,
    build_optimizer_from_config,
    build_pipeline_from_config,
    make_environment,
)
from tensor_optix.config import ConfigError, RunConfig
from tensor_optix.core.types import StopReason
from tensor_optix.host_config import TrainConfig
from tensor_optix.loop.run_dir import RunDir

SMALL = {"hidden_sizes": [8], "window_size": 16, "agent": {"n_epochs": 1}}
FRAMEWORKS = ("torch", "jax")  # TensorFlow has one test of its own: importing it takes long


class Spaces:
    """As much of an environment as has to do with its shape."""

    def __init__(self, observation=None, action=None):
        self.observation_space = observation or gym.spaces.Box(-1, 1, (3,))
        self.action_space = action or gym.spaces.Discrete(2)


def parts_of(config):
    agent = build_agent_from_config(config)
    return agent, build_pipeline_from_config(config, agent)


def first_window(config):
    _, pipeline = parts_of(config)
    window = next(pipeline.episodes())
    pipeline.teardown()
    return np.asarray(window.observations), np.asarray(window.actions)


class TestSeeds:
    @pytest.mark.parametrize("framework", FRAMEWORKS)
    @pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
    def test_one_seed_is_in_weights_actions_and_environments(self, framework, env):
        again = [TrainConfig(env, "ppo", framework, seed=seed, **SMALL) for seed in (3, 3, 4)]
        windows = [first_window(config) for config in again]
        for same, other in zip(*(windows[i] for i in (1, 2)), strict=True):
            assert not np.array_equal(same, other)
        np.testing.assert_array_equal(windows[0][0], windows[1][0])
        np.testing.assert_array_equal(windows[0][1], windows[1][1])
        assert not np.array_equal(windows[0][0][0], windows[2][0][0])  # the first observation
        agents = [build_agent_from_config(config) for config in again]
        discrete = env == "CartPole-v1"
        modes = [(a.action_probs if discrete else a.act_deterministic)(windows[0][0][0]) for a in agents]
        np.testing.assert_array_equal(modes[0], modes[1])
        assert not np.array_equal(modes[0], modes[2])  # of the weights alone

    def test_no_global_generator_is_touched(self):
        torch = pytest.importorskip("torch")
        before = torch.random.get_rng_state()
        build_agent_from_config(TrainConfig("CartPole-v1", framework="torch", **SMALL))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_environments_side_by_side_differ(self):
        config = TrainConfig("CartPole-v1", "ppo", "torch", n_envs=3, hidden_sizes=[8], window_size=4)
        rows, _ = first_window(config)
        assert len(rows) == 12
        assert len({tuple(rows[i]) for i in (0, 4, 8)}) == 3


class TestNetworks:
    def test_torch_layers_are_orthogonal_and_the_head_is_small(self):
        torch = pytest.importorskip("torch")
        from tensor_optix.default_networks import torch_mlp

        *hidden, head = [p for p in torch_mlp(4, 2, [8, 6], 0.01, (0, 0)).parameters() if p.ndim == 2]
        assert [list(p.shape) for p in (*hidden, head)] == [[8, 4], [6, 8], [2, 6]]
        for weights, gain in ((hidden[0].T, 2.0), (hidden[1], 2.0), (head, 1e-4)):
            torch.testing.assert_close(weights @ weights.T, gain * torch.eye(len(weights)), atol=1e-5, rtol=0)

    def test_actor_and_critic_start_apart(self):
        agent = build_agent_from_config(TrainConfig("CartPole-v1", framework="torch", **SMALL))
        actor, critic = (next(iter(net.parameters())).detach().numpy() for net in (agent._actor, agent._critic))
        assert not np.array_equal(actor, critic)


class TestAgents:
    @pytest.mark.parametrize("framework", FRAMEWORKS)
    @pytest.mark.parametrize(
        ("env", "name"), [("CartPole-v1", "PPOAgent"), ("Pendulum-v1", "GaussianPPOAgent")], ids=["discrete", "box"]
    )
    def test_the_class_that_fits_the_actions(self, framework, env, name):
        agent = build_agent_from_config(TrainConfig(env, framework=framework, hidden_sizes=[8], agent={"gamma": 0.9}))
        assert type(agent).__name__ == {"torch": "Torch", "jax": "Flax"}[framework] + name
        assert agent.get_hyperparams().params["gamma"] == 0.9
        if env == "Pendulum-v1":
            sampled = agent.act_batch(np.zeros((500, 3), np.float32))
            assert 1.6 < sampled.std() < 2.4  # unit spread, in bounds of -2..2

    @pytest.mark.parametrize(
        ("env", "algorithm", "name"),
        [("CartPole-v1", "dqn", "FlaxDQNAgent"), ("Pendulum-v1", "FlaxTD3Agent", "FlaxTD3Agent"),
         pytest.param("CartPole-v1", "rainbow", "FlaxRainbowAgent", marks=pytest.mark.slow),
         pytest.param("Pendulum-v1", "sac", "FlaxSACAgent", marks=pytest.mark.slow)],
    )  # fmt: skip
    def test_agents_with_a_replay(self, env, algorithm, name):
        config = TrainConfig(env, algorithm, hidden_sizes=[8, 8], window_size=16, agent={"buffer_size": 5000})
        agent = build_agent_from_config(config)
        assert type(agent).__name__ == name
        assert agent.get_hyperparams().params == config.agent
        if env == "Pendulum-v1":
            assert 1.0 < np.abs(agent.act_batch(np.zeros((500, 3), np.float32))).max() <= 2.0

    def test_an_environment_may_be_given(self):
        agent = build_agent_from_config(TrainConfig("not-made", framework="torch", **SMALL), env=Spaces())
        assert agent.act(np.zeros(3, np.float32)) in (0, 1)

    def test_images(self):
        space = Spaces(gym.spaces.Box(0, 255, (6, 6, 2), np.uint8))
        agent = build_agent_from_config(TrainConfig("images", framework="jax", hidden_sizes=[8]), env=space)
        assert agent.act(np.zeros((6, 6, 2), np.uint8)) in (0, 1)
        with pytest.raises(ConfigError, match=r"images of shape \[6, 6, 2\], which TorchPPOAgent .* framework: jax"):
            build_agent_from_config(TrainConfig("images", framework="torch"), env=space)

    @pytest.mark.parametrize(
        ("space", "said"),
        [
            (Spaces(gym.spaces.Discrete(4)), "observations of Discrete.*FlattenObservation"),
            (Spaces(gym.spaces.Dict(a=gym.spaces.Discrete(2))), "observations of Dict.*FlattenObservation"),
            (Spaces(gym.spaces.Box(-1, 1, (3, 3))), "observations of Box.*FlattenObservation"),
            (Spaces(action=gym.spaces.MultiDiscrete([2, 3])), "actions of MultiDiscrete.*TransformAction"),
            (Spaces(action=gym.spaces.MultiBinary(3)), "actions of MultiBinary"),
            (Spaces(action=gym.spaces.Discrete(3, start=1)), "counted from 0"),
            (Spaces(action=gym.spaces.Box(-1, 1, (2, 2))), "Box .n. of floats"),
            (Spaces(action=gym.spaces.Box(0, 9, (2,), np.int32)), "Box .n. of floats"),
        ],
    )
    def test_spaces_that_do_not_fit(self, space, said):
        with pytest.raises(ConfigError, match=said):
            build_agent_from_config(TrainConfig("own", framework="jax"), env=space)

    @pytest.mark.parametrize(
        ("framework", "module", "extra"), [("torch", "torch", "torch"), ("tf", "tensorflow", "tensorflow")]
    )
    def test_a_missing_framework(self, framework, module, extra, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf'pip install "tensor-optix\[{extra}\]"'):
            build_agent_from_config(TrainConfig("own", framework=framework), env=Spaces())

    def test_a_configuration_of_the_other_driver(self):
        for build in (build_agent_from_config, build_pipeline_from_config):
            with pytest.raises(TypeError, match="must be a TrainConfig, got RunConfig"):
                build(RunConfig("CartPole-v1"))

    @pytest.mark.parametrize("env", ["Nothing-v0", "CartPole-v99", "no_such_module:Env-v0", "bad id"])
    def test_environments_that_are_not_to_be_had(self, env):
        with pytest.raises(ConfigError, match="Gymnasium cannot make environment") as caught:
            make_environment(env)
        assert "\n" not in str(caught.value)


class TestOptimizer:
    def run_of(self, tmp_path, **settings):
        config = TrainConfig("CartPole-v1", framework="torch", **{**SMALL, **settings})
        agent, pipeline = parts_of(config)
        return config, build_optimizer_from_config(config, agent, pipeline, checkpoint_dir=tmp_path)

    def test_settings_reach_it_and_the_manifest_has_the_configuration(self, tmp_path):
        settings = {"dormant_threshold": 30, "max_snapshots": 3, "diagnostics": False}
        config, run = self.run_of(tmp_path, max_episodes=2, optimizer=settings)
        assert (run.scheduler.config.dormant_threshold, run.diagnostics) == (30, None)
        result = run.run()
        assert (result.stop_reason, result.windows) == (StopReason.BUDGET, 2)
        manifest = RunDir.read(run.run_dir).manifest
        assert manifest["config"]["driver"] == "host"
        record = manifest["train_config"]
        assert record.pop("driver") == "host"
        assert TrainConfig(**record) == config

    def test_settings_out_of_range(self, tmp_path):
        with pytest.raises(ConfigError, match="optimizer: max_snapshots must be at least 2"):
            self.run_of(tmp_path, optimizer={"max_snapshots": 1})
        assert not list(tmp_path.iterdir())

    def test_what_is_tuned(self, tmp_path):
        def tuned(**settings):
            tuner = self.run_of(tmp_path, **settings)[1].optimizer
            return dict(tuner.space.entries) if hasattr(tuner, "space") else {}

        assert set(tuned()) == {"learning_rate"}
        assert set(tuned(tune=["gamma"])) == {"gamma"}
        assert tuned(tune=False) == {}
        wide = tuned(agent={"learning_rate": 0.1, "gamma": 0.5}, tune=["learning_rate", "gamma"])
        assert (wide["learning_rate"].high, wide["gamma"].low) == (0.1, 0.5)
        assert wide["learning_rate"].log
        assert "learning_rate" not in tuned(agent={"learning_rate": 0.0})

    @pytest.mark.slow
    def test_a_run_of_an_agent_with_a_replay(self, tmp_path):
        small = {"batch_size": 8, "learning_starts": 20}
        config = TrainConfig("Pendulum-v1", "sac", hidden_sizes=[8], window_size=16, agent=small, tune=["tau"])
        agent, pipeline = parts_of(config)
        run = build_optimizer_from_config(config, agent, pipeline, checkpoint_dir=tmp_path, max_episodes=3)
        assert run.optimizer.space.entries[0][0] == "tau"
        assert run.run().windows == 3
        assert not run.scheduler.config.detect_degradation
        assert run.scheduler.config.min_evaluations_before_dormant == 30

    def test_untuned_hyperparameters_stay(self, tmp_path):
        _, run = self.run_of(tmp_path, max_episodes=6, tune=False)
        before = run.agent.get_hyperparams().params
        run.run()
        assert run.agent.get_hyperparams().params == before

    def test_without_stopping_the_whole_budget_is_used(self, tmp_path):
        rule = {"plateau_threshold": 2, "dormant_threshold": 4, "trend_window": 4, "score_window": 4}
        windows = {}
        for stop in (True, False):
            settings = {"max_episodes": 60, "tune": False, "optimizer": rule, "agent": {"learning_rate": 0.0}}
            _, run = self.run_of(tmp_path, stop=stop, **settings)
            result = run.run()
            windows[stop] = result.windows, result.stop_reason
        assert windows[True][1] == StopReason.CONVERGED
        assert windows[True][0] < 60
        assert windows[False][0] == 60


def test_tensorflow(tmp_path):
    pytest.importorskip("tensorflow")
    configs = [TrainConfig("Pendulum-v1", "ppo", "tf", seed=seed, **SMALL) for seed in (3, 3, 4)]
    agents = [build_agent_from_config(config) for config in configs]
    assert type(agents[0]).__name__ == "TFGaussianPPOAgent"
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for act in ("act_batch", "act_batch_deterministic"):
        first, same, other = (getattr(agent, act)(obs) for agent in agents)
        np.testing.assert_array_equal(first, same)
        assert not np.array_equal(first, other)
    pipeline = build_pipeline_from_config(configs[0], agents[0])
    run = build_optimizer_from_config(configs[0], agents[0], pipeline, checkpoint_dir=tmp_path, max_episodes=1)
    assert run.run().windows == 1
