"""What a person may ask the host driver for, and how a file says which driver it is for."""

import inspect

import pytest

from tensor_optix.algorithms import host_ppo
from tensor_optix.config import ConfigError, RunConfig, config_from_dict, config_to_dict, driver_of, load_config
from tensor_optix.host_config import (
    AGENTS,
    FRAMEWORKS,
    MARKS,
    OPTIMIZER_SETTINGS,
    TrainConfig,
    agent_for,
    windows_for,
)
from tensor_optix.optimizer import RLOptimizer

KINDS = {"int": "whole", "float": "number", "bool": "flag", "str": "text", "str | Path": "text"}
NO_PLAIN_DATA = {
    *("agent", "pipeline", "evaluator", "optimizer", "callbacks", "val_pipeline", "checkpoint_score_fn"),
    *("agent_factory", "pipeline_factory", "val_pipeline_factory", "trial_agent_factory", "param_space"),
    *("resume_from", "manifest", "self"),
}


def refused(**values):
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"env": "CartPole-v1", "driver": "host", **values})
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestDefaults:
    def test_a_class_and_an_environment_are_enough(self):
        config = TrainConfig("CartPole-v1", "TorchPPOAgent")
        assert (config.framework, config.pipeline, config.window_size, config.n_envs) == (
            *("torch", "BatchPipeline", 2048),
            1,
        )
        assert (config.hidden_sizes, config.seed, config.deterministic, config.optimizer) == ([64, 64], 0, False, {})
        assert config.agent == host_ppo.DEFAULTS

    @pytest.mark.parametrize(
        ("algorithm", "sizes", "rate"),
        [("dqn", [64, 64], 5e-4), ("FlaxRainbowAgent", [128, 128], 2.5e-4), ("SAC", [256, 256], 3e-4)],
    )
    def test_of_agents_with_a_replay(self, algorithm, sizes, rate):
        config = TrainConfig("own", algorithm, agent={"buffer_size": 5000}, n_envs=4)
        assert (config.framework, config.hidden_sizes, config.window_size) == ("jax", sizes, 64)
        assert (config.agent["learning_rate"], config.agent["replay_capacity"]) == (rate, 5000)
        assert TrainConfig("own", "td3", deterministic=True).plain_algorithm == "td3"

    def test_several_environments_share_the_rows_of_a_window(self):
        config = TrainConfig("CartPole-v1", n_envs=8)
        assert (config.pipeline, config.window_size, config.rows_per_window) == ("VectorBatchPipeline", 256, 2048)
        assert TrainConfig("CartPole-v1", pipeline="VectorBatchPipeline").n_envs == 1

    @pytest.mark.parametrize(
        ("algorithm", "framework", "expected"),
        [
            ("ppo", None, "jax"),
            ("PPO", "tf", "tf"),
            ("ppo", "torch", "torch"),
            ("TFGaussianPPOAgent", None, "tf"),
            ("FlaxPPOAgent", "jax", "jax"),
        ],
    )
    def test_the_framework(self, algorithm, framework, expected):
        assert TrainConfig("CartPole-v1", algorithm, framework).framework == expected

    def test_budget_and_target_may_stand_with_the_settings_of_the_optimizer(self):
        settings = {"max_episodes": 500, "target_score": 480.0, "noise_k": 2}
        config = TrainConfig("CartPole-v1", optimizer=settings)
        assert (config.max_episodes, config.target_score, config.optimizer) == (500, 480.0, {"noise_k": 2})
        assert settings == {"max_episodes": 500, "target_score": 480.0, "noise_k": 2}
        assert TrainConfig("CartPole-v1", max_episodes=7, optimizer=settings).max_episodes == 7

    def test_steps_in_windows(self):
        config = TrainConfig("CartPole-v1", window_size=64, n_envs=4)
        assert [windows_for(config, steps) for steps in (1, 256, 257)] == [1, 1, 2]

    def test_numbers(self, tmp_path):
        text = (
            "env: CartPole-v1\nalgorithm: TFPPOAgent\nagent: {learning_rate: 3e-4, n_epochs: 4.0}\nwindow_size: 1e3\n"
        )
        (tmp_path / "run.yaml").write_text(text)
        config = load_config(tmp_path / "run.yaml", ["optimizer.noise_k=1.5e0", "agent.gamma=0.9"])
        assert config.agent["learning_rate"] == pytest.approx(3e-4)
        assert isinstance(config.agent["n_epochs"], int)
        assert (config.window_size, config.optimizer, config.agent["gamma"]) == (1000, {"noise_k": 1.5}, 0.9)


class TestDriver:
    @pytest.mark.parametrize(
        ("values", "driver"),
        [
            ({}, "compiled"),
            ({"algorithm": "ppo", "seeds": 3}, "compiled"),
            ({"algorithm": "TorchPPOAgent"}, "host"),
            ({"algorithm": "TorchSACAgent"}, "host"),
            ({"algorithm": "TorchPPOAgent", "driver": "compiled"}, "compiled"),
            ({"driver": "host"}, "host"),
            *(({mark: None}, "host") for mark in sorted(MARKS)),
        ],
    )
    def test_found(self, values, driver):
        assert driver_of({"env": "CartPole-v1", **values})[0] == driver

    def test_unknown(self):
        assert refused(driver="hosts") == "unknown driver 'hosts'; did you mean 'host'? known: compiled, host"

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            (
                {"driver": "host", "total_steps": 9},
                "'total_steps' is of the compiled driver.*it says driver: host.*max_ep",
            ),
            ({"algorithm": "TFPPOAgent", "seeds": 3}, "'seeds' .*because TFPPOAgent is an agent.*use seed instead"),
            ({"window_size": 9, "hyperparams": {}}, "'hyperparams' .*because window_size is set: use agent instead"),
            ({"driver": "host", "eval_every": 9}, "'eval_every' is of the compiled driver.*: take it out"),
            (
                {"seed": 3},
                "'seed' is of the host driver.*nothing asks for the host driver: use seeds.*or set driver: host",
            ),
            ({"driver": "compiled", "agent": {}}, "'agent' is of the host driver.*use hyperparams"),
        ],
    )
    def test_settings_of_the_other_one_are_refused(self, values, said):
        with pytest.raises(ConfigError, match=said):
            config_from_dict({"env": "CartPole-v1", **values})

    @pytest.mark.parametrize(
        "config",
        [
            RunConfig("CartPole-v1", seeds=[4, 2], tune=["gamma"]),
            TrainConfig("Pendulum-v1", framework="torch", n_envs=4, tune=["gamma"], max_episodes=3, stop=False),
            TrainConfig("CartPole-v1", "TFPPOAgent", agent={"gamma": 0.9}, optimizer={"verbose": True}),
        ],
    )
    def test_plain_data_and_back(self, config):
        values = config_to_dict(config)
        assert values["driver"] == ("compiled" if isinstance(config, RunConfig) else "host")
        assert config_from_dict(values) == config

    def test_a_compiled_run_is_what_it_was(self, tmp_path):
        (tmp_path / "run.yaml").write_text("env: CartPole-v1\nseeds: 2\ndriver: compiled\n")
        assert load_config(tmp_path / "run.yaml") == RunConfig("CartPole-v1", seeds=2)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("algorithm", "TorchSACAgent", "unknown algorithm of the host driver 'TorchSACAgent'; did you mean 'Torch"),
            ("algorithm", "dqm", "unknown algorithm of the host driver 'dqm'; did you mean 'dqn'"),
            ("algorithm", 3, "algorithm must be a name, got 3"),
            ("framework", "pytorch", "unknown framework 'pytorch'; did you mean 'torch'"),
            ("deterministic", True, "deterministic must be false"),
            ("hidden_sizes", [], "hidden_sizes must be a list"),
            ("hidden_sizes", 64, "hidden_sizes must be a list"),
            ("hidden_sizes", [64, 0], "hidden_sizes must be a whole number of at least 1, got 0"),
            ("pipeline", "LivePipeline", "LivePipeline reads a source that is a Python object"),
            ("pipeline", "BatchPipe", "unknown pipeline 'BatchPipe'; did you mean 'BatchPipeline'"),
            ("window_size", 0, "window_size must be a whole number of at least 1, got 0"),
            ("window_size", 1.5, "window_size must be a whole number"),
            ("n_envs", 0, "n_envs must be a whole number of at least 1"),
            ("seed", -1, "seed must be a whole number of at least 0"),
            ("seed", 2**31, "seed must be below 2**31"),
            ("seed", True, "seed must be a whole number"),
            ("agent", 3e-4, "agent must be a mapping"),
            ("agent", {"learning_rat": 1}, "unknown hyperparameter 'learning_rat'; did you mean 'learning_rate'"),
            ("agent", {"learning_rate": "3e-4x"}, "hyperparameter 'learning_rate' must be a finite number"),
            ("agent", {"learning_rate": True}, "hyperparameter 'learning_rate' must be a finite number"),
            ("agent", {"gamma": float("nan")}, "hyperparameter 'gamma' must be a finite number"),
            ("agent", {"gamma": 1.5}, "gamma must be from 0 to 1, got 1.5"),
            ("agent", {"n_epochs": 2.5}, "hyperparameter 'n_epochs' must be a whole number"),
            ("agent", {"adam_eps": 0.0}, "adam_eps must be above 0"),
            ("optimizer", [1], "optimizer must be a mapping"),
            ("optimizer", {"dormant_treshold": 9}, "'dormant_treshold'; did you mean 'dormant_threshold'"),
            ("optimizer", {"callbacks": []}, "unknown optimizer setting 'callbacks'"),
            ("optimizer", {"dormant_threshold": 2.5}, "dormant_threshold must be a whole number"),
            ("optimizer", {"noise_k": "two"}, "noise_k must be a finite number"),
            ("optimizer", {"rollback_on_degradation": 1}, "rollback_on_degradation must be true or false"),
            ("optimizer", {"checkpoint_dir": 3}, "checkpoint_dir must be a path"),
            ("optimizer", {"max_episodes": 0}, "max_episodes must be a whole number of at least 1"),
            ("max_episodes", 0, "max_episodes must be a whole number of at least 1"),
            ("target_score", "high", "target_score must be a finite number"),
            ("tune", "gamma", "tune must be true, false or a list"),
            ("tune", ["gama"], "unknown tunable hyperparameter 'gama'; did you mean 'gamma'"),
            ("stop", 1, "stop must be true or false"),
            ("stop", False, "set max_episodes"),
            ("env", "", "env must be the id"),
            ("window", 3, "unknown setting 'window'; did you mean 'window_size'"),
        ],
    )
    def test_one_sentence(self, name, value, said):
        assert said in refused(**{name: value})

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            (
                {"algorithm": "sac", "framework": "torch"},
                "there is no agent for sac in framework 'torch' yet, only for ppo",
            ),
            ({"algorithm": "sac", "tune": ["clip_ratio"]}, "unknown tunable hyperparameter 'clip_ratio'"),
            ({"algorithm": "sac", "agent": {"n_epochs": 2}}, "unknown hyperparameter 'n_epochs'"),
            ({"algorithm": "dqn", "agent": {"buffer_size": 2.5}}, "'buffer_size' must be a whole number"),
            ({"algorithm": "dqn", "agent": {"epsilon_decay": 2}}, "epsilon_decay must be from 0 to 1, got 2"),
            ({"algorithm": "dqn", "agent": {"replay_capacity": 10}}, "learning_starts must be at most replay_capacity"),
            ({"algorithm": "FlaxSACAgent", "framework": "torch"}, "FlaxSACAgent is an agent of framework 'jax'"),
            ({"algorithm": "sac", "deterministic": True}, "the policies of sac are random"),
        ],
    )
    def test_agents_with_a_replay(self, values, said):
        assert said in refused(**values)

    def test_contradictions(self):
        assert "TorchPPOAgent is an agent of framework 'torch'" in refused(algorithm="TorchPPOAgent", framework="tf")
        assert "use VectorBatchPipeline" in refused(pipeline="BatchPipeline", n_envs=2)
        assert "unknown hyperparameter 'adam_eps'" in refused(algorithm="TFPPOAgent", agent={"adam_eps": 1e-5})


class TestTables:
    def test_settings_are_those_of_rl_optimizer_that_are_plain_data(self):
        parameters = inspect.signature(RLOptimizer.__init__).parameters
        plain = {name: p for name, p in parameters.items() if name not in NO_PLAIN_DATA}
        assert set(plain) == set(OPTIMIZER_SETTINGS)
        kinds = {name: KINDS[str(p.annotation).removesuffix(" | None")] for name, p in plain.items()}
        assert kinds == OPTIMIZER_SETTINGS

    @pytest.mark.parametrize("framework", FRAMEWORKS)
    def test_every_framework_has_an_agent_for_both_kinds_of_actions(self, framework):
        config = TrainConfig("CartPole-v1", "ppo", framework)
        for actions in ("discrete", "continuous"):
            name = agent_for(config, actions)
            assert (AGENTS[name].framework, AGENTS[name].actions) == (framework, actions)

    def test_an_algorithm_that_does_not_fit_names_those_that_do(self):
        with pytest.raises(
            ConfigError, match="dqn needs discrete actions, and Pendulum-v1 has continuous ones: use Fl"
        ):
            agent_for(TrainConfig("Pendulum-v1", "dqn"), "continuous")
        assert agent_for(TrainConfig("Pendulum-v1", "TD3"), "continuous") == "FlaxTD3Agent"

    def test_an_agent_that_does_not_fit_names_the_one_that_does(self):
        with pytest.raises(
            ConfigError, match="needs continuous actions, and CartPole-v1 has discrete ones: use TFPPOAgent"
        ):
            agent_for(TrainConfig("CartPole-v1", "TFGaussianPPOAgent"), "discrete")
