"""The documented calls of the host driver, with their names and arguments, each run for a window or two."""

import contextlib
import itertools

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix import (
    BaseAgent,
    BaseEvaluator,
    BatchPipeline,
    CheckpointRegistry,
    EpisodeData,
    EvalMetrics,
    HyperparamSet,
    LivePipeline,
    LoopCallback,
    LoopController,
    Optimizer,
    RLOptimizer,
    SPSAOptimizer,
    TFPPOAgent,
    VectorBatchPipeline,
    optimal_window_size,
)
from tests.host_parts import Plain, stop_after

PPO_PARAMS = {
    "learning_rate": 3e-4, "clip_ratio": 0.2, "entropy_coef": 0.01, "vf_coef": 0.5, "gamma": 0.99, "gae_lambda": 0.95,
    "n_epochs": 10, "minibatch_size": 64,
}  # fmt: skip


class MyFeed:
    """A feed of prices."""

    def stream(self):
        for i in itertools.count():
            yield np.array([np.sin(i), 1.0], np.float32), float(np.cos(i)), i % 50 == 49, False, {}


MarketFeed = MyFeed


def torch_ppo(obs_dim=4, n_actions=2):
    import torch
    from torch import nn

    from tensor_optix.algorithms.torch_ppo import TorchPPOAgent

    actor = nn.Sequential(nn.Linear(obs_dim, 64), nn.Tanh(), nn.Linear(64, n_actions))
    critic = nn.Sequential(nn.Linear(obs_dim, 64), nn.Tanh(), nn.Linear(64, 1))

    return TorchPPOAgent(
        actor=actor,
        critic=critic,
        optimizer=torch.optim.Adam(list(actor.parameters()) + list(critic.parameters()), lr=3e-4),
        hyperparams=HyperparamSet(
            params={
                "learning_rate": 3e-4, "clip_ratio": 0.2, "entropy_coef": 0.01,
                "gamma": 0.99, "gae_lambda": 0.95, "n_epochs": 10, "minibatch_size": 64,
            },
            episode_id=0,
        ),
    )  # fmt: skip


def tf_networks(n_out=2):
    import tensorflow as tf

    actor = tf.keras.Sequential([
        tf.keras.layers.Input(shape=(4,)),
        tf.keras.layers.Dense(64, activation="tanh"),
        tf.keras.layers.Dense(64, activation="tanh"),
        tf.keras.layers.Dense(n_out),
    ])  # fmt: skip
    critic = tf.keras.Sequential([
        tf.keras.layers.Input(shape=(4,)),
        tf.keras.layers.Dense(64, activation="tanh"),
        tf.keras.layers.Dense(64, activation="tanh"),
        tf.keras.layers.Dense(1),
    ])  # fmt: skip
    return actor, critic, tf.keras.optimizers.Adam(3e-4)


class TestAgents:
    def test_torch_ppo(self):
        agent = torch_ppo()
        pipeline = BatchPipeline(env=gym.make("CartPole-v1"), agent=agent, window_size=2048)
        opt = RLOptimizer(agent=agent, pipeline=pipeline)
        stop_after(opt, 1)
        opt.run()
        assert opt.best_snapshot.eval_metrics.primary_score > 5

    def test_torch_gaussian_ppo(self):
        import torch
        from torch import nn

        from tensor_optix.algorithms.torch_ppo_continuous import TorchGaussianPPOAgent

        obs_dim, act_dim = 8, 2  # as in LunarLanderContinuous-v3
        actor = nn.Sequential(nn.Linear(obs_dim, 64), nn.Tanh(), nn.Linear(64, act_dim * 2))
        critic = nn.Sequential(nn.Linear(obs_dim, 64), nn.Tanh(), nn.Linear(64, 1))
        agent = TorchGaussianPPOAgent(
            actor=actor, critic=critic,
            optimizer=torch.optim.Adam(list(actor.parameters()) + list(critic.parameters()), lr=3e-4),
            action_dim=act_dim,
            hyperparams=HyperparamSet(params={
                "learning_rate": 3e-4, "clip_ratio": 0.2, "entropy_coef": 0.01,
                "gamma": 0.99, "gae_lambda": 0.95, "n_epochs": 10, "minibatch_size": 64,
            }, episode_id=0),
        )  # fmt: skip
        assert np.shape(agent.act(np.zeros(8, np.float32))) == (2,)

    def test_device(self):
        import torch

        agent = torch_ppo()
        again = type(agent)(
            actor=agent._actor, critic=agent._critic, optimizer=torch.optim.SGD(
                list(agent._actor.parameters()) + list(agent._critic.parameters()), lr=1e-3
            ),
            hyperparams=HyperparamSet(params=PPO_PARAMS), device="cpu",
        )  # fmt: skip
        assert again.act(np.zeros(4, np.float32)) in (0, 1)

    def test_tensorflow_ppo(self):
        actor, critic, optimizer = tf_networks()
        agent = TFPPOAgent(
            actor=actor, critic=critic, optimizer=optimizer, hyperparams=HyperparamSet(params=PPO_PARAMS, episode_id=0)
        )
        env = gym.make("CartPole-v1")
        pipeline = BatchPipeline(env=env, agent=agent, window_size=2048)
        opt = RLOptimizer(agent=agent, pipeline=pipeline)
        stop_after(opt, 1)
        opt.run()
        assert opt.best_snapshot.eval_metrics.primary_score > 5

    def test_an_algorithm_is_extended(self):
        import tensorflow as tf

        from tensor_optix.core.normalizers import RewardNormalizer

        class TradingPPO(TFPPOAgent):
            """Adds action distribution logging to standard PPO."""

            def learn(self, episode_data):
                diag = super().learn(episode_data)
                obs = tf.cast(episode_data.observations[:256], tf.float32)
                probs = tf.nn.softmax(self._actor(obs, training=False))
                probs_mean = tf.reduce_mean(probs, axis=0).numpy()
                diag["p_flat"] = float(probs_mean[0])
                diag["p_long"] = float(probs_mean[1])
                diag["p_short"] = float(probs_mean[2])
                return diag

        actor, critic, optimizer = tf_networks(3)
        reward_norm = RewardNormalizer(gamma=0.99, clip=10.0)
        agent = TradingPPO(
            actor=actor, critic=critic, optimizer=optimizer, hyperparams=HyperparamSet(params=PPO_PARAMS),
            reward_normalizer=reward_norm,
        )  # fmt: skip
        rng = np.random.default_rng(0)
        window = EpisodeData(
            observations=rng.normal(size=(128, 4)).astype(np.float32), actions=rng.integers(0, 3, 128),
            rewards=rng.normal(size=128).tolist(), terminated=[i == 60 for i in range(128)], truncated=[False] * 128,
            infos=[{}] * 128, episode_id=0,
        )  # fmt: skip
        diag = agent.learn(window)
        assert diag["p_flat"] + diag["p_long"] + diag["p_short"] == pytest.approx(1.0, abs=1e-5)
        assert reward_norm.rms.count > 100

    def test_flax_ppo(self):
        from tensor_optix.adapters.jax.flax_evaluator import FlaxEvaluator
        from tensor_optix.algorithms.flax_ppo import FlaxPPOAgent

        env = gym.make("CartPole-v1")
        obs_dim = env.observation_space.shape[0]
        n_actions = env.action_space.n
        agent = FlaxPPOAgent(
            obs_dim=obs_dim,
            n_actions=n_actions,
            hyperparams=HyperparamSet(params=PPO_PARAMS, episode_id=0),
            hidden_size=64,
            seed=0,
        )
        pipeline = BatchPipeline(env=env, agent=agent, window_size=2048)
        opt = RLOptimizer(agent=agent, pipeline=pipeline, evaluator=FlaxEvaluator())
        stop_after(opt, 1)
        opt.run()
        assert 5 < opt.best_snapshot.eval_metrics.primary_score < 500  # of an episode, not of the window

    def test_documented_addresses(self):
        from tensor_optix.adapters.jax.flax_agent import FlaxAgent
        from tensor_optix.adapters.pytorch.torch_agent import TorchAgent
        from tensor_optix.adapters.pytorch.torch_evaluator import TorchEvaluator
        from tensor_optix.adapters.tensorflow.tf_agent import TFAgent
        from tensor_optix.adapters.tensorflow.tf_evaluator import TFEvaluator
        from tensor_optix.algorithms.tf_ppo import TFPPOAgent as SamePPO
        from tensor_optix.algorithms.tf_ppo_continuous import TFGaussianPPOAgent
        from tensor_optix.core import RegimeDetector
        from tensor_optix.core.backoff_scheduler import BackoffConfig
        from tensor_optix.core.checkpoint_registry import CheckpointRegistry as SameRegistry
        from tensor_optix.core.loop_controller import LoopController as SameController
        from tensor_optix.core.trajectory_buffer import compute_gae
        from tensor_optix.optimizers import SPSAOptimizer as SameTuner
        from tensor_optix.pipeline.batch_pipeline import BatchPipeline as SameBatch
        from tensor_optix.pipeline.live_pipeline import LivePipeline as SameLive

        assert SamePPO is TFPPOAgent
        assert (SameRegistry, SameController, SameTuner) == (CheckpointRegistry, LoopController, SPSAOptimizer)
        assert (SameBatch, SameLive) == (BatchPipeline, LivePipeline)
        assert all(issubclass(cls, BaseAgent) for cls in (FlaxAgent, TorchAgent, TFAgent, TFGaussianPPOAgent))
        assert all(issubclass(cls, BaseEvaluator) for cls in (TorchEvaluator, TFEvaluator))
        assert all(callable(thing) for thing in (RegimeDetector, BackoffConfig, compute_gae))


class TestPipelines:
    def test_all_three(self):
        agent = Plain()
        pipeline = BatchPipeline(env=gym.make("CartPole-v1"), agent=agent, window_size=200)
        assert len(next(iter(pipeline.episodes())).rewards) == 200
        pipeline = LivePipeline(
            data_source=MyFeed(),
            agent=agent,
            episode_boundary_fn=LivePipeline.every_n_seconds(300),
        )
        assert pipeline.is_live
        pipeline = VectorBatchPipeline(
            env_fns=[lambda: gym.make("CartPole-v1")] * 8,
            agent=agent,
            window_size=200,
        )
        with contextlib.closing(pipeline.episodes()) as windows:
            assert len(next(windows).rewards) == 1600
        pipeline.teardown()

    def test_the_agent_may_come_later(self):
        from tensor_optix.pipeline.vector_pipeline import VectorBatchPipeline

        env_fns = [lambda: gym.make("CartPole-v1")] * 8
        pipeline = VectorBatchPipeline(env_fns=env_fns, window_size=16)
        opt = RLOptimizer(agent=Plain(), pipeline=pipeline, max_episodes=1)
        assert opt.run().windows == 1

    def test_env_id_and_n_steps(self):
        pipeline = BatchPipeline(env_id="CartPole-v1", n_steps=64)
        assert RLOptimizer(agent=Plain(), pipeline=pipeline, max_episodes=2).run().windows == 2

    def test_a_live_run(self):
        agent = Plain()
        pipeline = LivePipeline(
            data_source=MarketFeed(), agent=agent, episode_boundary_fn=LivePipeline.every_n_steps(60)
        )
        val_pipeline = LivePipeline(
            data_source=MarketFeed(), agent=agent, episode_boundary_fn=LivePipeline.every_n_steps(60)
        )
        opt = RLOptimizer(
            agent=agent,
            pipeline=pipeline,
            val_pipeline=val_pipeline,
            rollback_on_degradation=True,
            checkpoint_score_fn=lambda a: a.weight,
            max_episodes=3,
        )
        assert [m.primary_score for m in opt.run().history] == [1.0, 2.0, 3.0]


class TestLoop:
    def test_the_usual_arguments(self):
        agent, env = Plain(), gym.make("CartPole-v1")
        opt = RLOptimizer(
            agent=agent,
            pipeline=BatchPipeline(env=env, agent=agent, window_size=200),
            val_pipeline=BatchPipeline(env=gym.make("CartPole-v1"), agent=agent, window_size=200),
            rollback_on_degradation=True,
            checkpoint_score_fn=lambda a: a.weight,
            dormant_threshold=10,
            min_episodes_before_dormant=50,
        )
        stop_after(opt, 2)
        opt.run()
        snapshot = opt.best_snapshot
        assert (snapshot.eval_metrics.primary_score, snapshot.hyperparams.params) == (2.0, {})

    def test_full_configuration(self):
        agent = Plain()
        opt = RLOptimizer(
            agent=agent,
            pipeline=BatchPipeline(env_id="CartPole-v1", n_steps=200),
            val_pipeline=BatchPipeline(env_id="CartPole-v1", n_steps=200),
            evaluator=None,
            optimizer=None,
            checkpoint_dir="./checkpoints",
            max_snapshots=10,
            checkpoint_score_fn=None,
            max_episodes=2,
            base_interval=1,
            backoff_factor=2.0,
            max_interval_episodes=100,
            plateau_threshold=5,
            dormant_threshold=20,
            score_smoothing=2,
            improvement_margin=0.0,
            noise_k=2.0,
            score_window=20,
            rollback_on_degradation=False,
            degradation_threshold=0.95,
            min_episodes_before_dormant=0,
            min_episodes_before_degradation=5,
            callbacks=[],
            verbose=False,
        )
        opt.run()
        assert opt.run_dir.parent.name == "checkpoints"

    def test_custom_evaluator(self):
        class SharpeEvaluator(BaseEvaluator):
            def score(self, episode_data: EpisodeData, train_diagnostics: dict) -> EvalMetrics:
                rewards = np.array(episode_data.rewards)
                sharpe = rewards.mean() / (rewards.std() + 1e-8)
                return EvalMetrics(
                    primary_score=float(sharpe),
                    metrics={"sharpe": float(sharpe), "mean_reward": float(rewards.mean())},
                    episode_id=episode_data.episode_id,
                )

        pipeline = LivePipeline(data_source=MyFeed(), episode_boundary_fn=LivePipeline.every_n_steps(32))
        opt = RLOptimizer(agent=Plain(), pipeline=pipeline, evaluator=SharpeEvaluator())
        stop_after(opt, 3)
        opt.run()
        assert "sharpe" in opt.result.history[0].metrics

    def test_own_control_agent_with_spsa(self):
        class HVACAgent(Plain):
            pass

        agent = HVACAgent(setpoint_gain=1.0, integral_coef=0.1, comfort_weight=1.0)
        opt = RLOptimizer(
            agent=agent,
            pipeline=BatchPipeline(env=gym.make("CartPole-v1"), agent=agent, window_size=96),
            optimizer=SPSAOptimizer(param_bounds={
                "setpoint_gain": (0.1, 2.0),
                "integral_coef": (0.01, 0.5),
                "comfort_weight": (0.5, 5.0),
            }),
            checkpoint_score_fn=lambda a: -abs(a.params["setpoint_gain"] - 0.7),
            verbose=True,
        )  # fmt: skip
        stop_after(opt, 8)
        opt.run()
        assert len({seen["setpoint_gain"] for seen in agent.seen}) > 2

    def test_spsa_of_some_parameters(self):
        optimizer = SPSAOptimizer(
            param_bounds={"learning_rate": (1e-4, 3e-3), "clip_ratio": (0.1, 0.3)},
            log_params={"learning_rate"},
        )
        agent = Plain(learning_rate=1e-3, clip_ratio=0.2)
        opt = RLOptimizer(agent=agent, pipeline=BatchPipeline(env_id="CartPole-v1", n_steps=32), optimizer=optimizer)
        stop_after(opt, 2)
        opt.run()
        assert agent.seen[0]["learning_rate"] != 1e-3

    def test_custom_callback(self, capsys):
        class MyLogger(LoopCallback):
            def on_improvement(self, snapshot):
                print(f"New best: {snapshot.eval_metrics.primary_score:.4f}")

            def on_dormant(self, window_id):
                print(f"Converged at window {window_id}")

        opt = RLOptimizer(
            agent=Plain(), pipeline=BatchPipeline(env_id="CartPole-v1", n_steps=8), callbacks=[MyLogger()],
            checkpoint_score_fn=lambda a: 1.0,
        )  # fmt: skip
        opt.run()
        printed = capsys.readouterr().out
        assert printed.startswith("New best: 1.0000")
        assert "Converged at window" in printed

    def test_built_in_callbacks(self):
        from tensor_optix.callbacks import RichDashboardCallback, TensorBoardCallback

        opt = RLOptimizer(
            agent=Plain(), pipeline=BatchPipeline(env_id="CartPole-v1", n_steps=64),
            callbacks=[RichDashboardCallback(refresh_rate=2)],
        )  # fmt: skip
        opt.add_callback(RichDashboardCallback())
        opt.add_callback(TensorBoardCallback(log_dir="./tb"))
        stop_after(opt, 2)
        assert opt.run().callback_failures == []

    def test_one_line(self):
        opt = Optimizer(Plain(), lambda: gym.make("CartPole-v1"), n_envs=8)
        stop_after(opt, 1)
        opt.run()
        assert optimal_window_size(gym.make("CartPole-v1"), "PPO") == 2000

    def test_controller_with_three_arguments(self):
        agent = Plain()
        pipeline = BatchPipeline(env=gym.make("CartPole-v1"), agent=agent, window_size=32)

        class Ctrl(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                if episode_id == 1:
                    loop.stop()

        loop = LoopController(agent=agent, pipeline=pipeline, callbacks=[Ctrl()])
        loop.run()
        assert loop.result.windows == 2

    def test_registry(self):
        registry = CheckpointRegistry(checkpoint_dir="./checkpoints", max_snapshots=10)
        agent, hyperparams = Plain(), HyperparamSet({})
        for weight in (1.0, 3.0, 2.0):
            agent.weight = weight
            registry.save(agent, EvalMetrics(weight, {}, 0), hyperparams)
        registry.load_best(agent)
        assert agent.weight == 3.0
        assert len(registry.load_ensemble(agent, top_k=3)) == 1  # it cannot average
