"""Agents and environments of the host driver's benchmarks: one table of settings, each agent built from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Setting:
    """What is the same for every framework; `n_steps` of each of `n_envs` environments are a window."""

    env: str
    n_envs: int
    n_steps: int
    hyperparams: dict[str, float]
    hidden: int = 64
    normalize_observations: bool = False
    normalize_rewards: bool = False
    steps: int = 100_000
    reference: float | None = None
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


SETTINGS = {
    # RL Zoo's, as Stable-Baselines3 runs them
    "CartPole-v1 (SB3's settings)": Setting(
        "CartPole-v1", 8, 32,
        {"learning_rate": 1e-3, "gamma": 0.98, "gae_lambda": 0.8, "clip_ratio": 0.2, "entropy_coef": 0.0,
         "n_epochs": 20, "minibatch_size": 256},
    ),
    # the compiled PPO's own
    "CartPole-v1": Setting(
        "CartPole-v1", 8, 64,
        {"learning_rate": 2e-3, "gamma": 0.98, "gae_lambda": 0.9, "clip_ratio": 0.2, "entropy_coef": 0.0,
         "n_epochs": 4, "minibatch_size": 64},
        reference=500.0,
    ),
    "Pendulum-v1": Setting(
        "Pendulum-v1", 8, 256,
        {"learning_rate": 1e-3, "gamma": 0.95, "gae_lambda": 0.95, "clip_ratio": 0.1, "entropy_coef": 0.0,
         "n_epochs": 10, "minibatch_size": 128},
        normalize_rewards=True, reference=-172.0,
    ),
    # RL Zoo's
    "LunarLander-v3": Setting(
        "LunarLander-v3", 16, 1024,
        {"learning_rate": 3e-4, "gamma": 0.999, "gae_lambda": 0.98, "clip_ratio": 0.2, "entropy_coef": 0.01,
         "n_epochs": 4, "minibatch_size": 64},
        steps=1_000_000, reference=242.0,
    ),
}  # fmt: skip


@dataclass
class HostTask:
    """One agent on one setting."""

    setting: Setting
    agent: Any
    seed: int

    @property
    def rows(self) -> int:
        """Environment steps of a window."""
        return self.setting.n_envs * self.setting.n_steps

    def optimizer(self, directory: str, max_episodes: int, **settings: Any) -> Any:
        """The whole run as a user makes it; it goes on to its budget, learned or not."""
        import gymnasium as gym

        from tensor_optix import RLOptimizer, SPSAOptimizer, VectorBatchPipeline

        make = lambda: gym.make(self.setting.env, **self.setting.env_kwargs)  # noqa: E731
        pipeline = VectorBatchPipeline([make] * self.setting.n_envs, window_size=self.setting.n_steps, seed=self.seed)
        # The default tuner's bounds, but as they are for the starting values in every run of this agent.
        start = self.setting.hyperparams
        named = {k: v for k, v in self.agent.default_param_bounds.items() if k in self.agent.default_tuned}
        bounds = {k: (min(low, start.get(k, low)), max(high, start.get(k, high))) for k, (low, high) in named.items()}
        tuner = SPSAOptimizer(bounds, [name for name in self.agent.default_log_params if name in bounds])
        settings = {"min_episodes_before_dormant": 10**9, "optimizer": tuner, **settings}
        return RLOptimizer(
            agent=self.agent, pipeline=pipeline, checkpoint_dir=directory, max_episodes=max_episodes, seed=self.seed,
            **settings,
        )  # fmt: skip


def setting(name: str, agent_name: str, seed: int) -> HostTask:
    """The agent `agent_name` on the setting `name`."""
    import gymnasium as gym

    chosen = SETTINGS[name]
    env = gym.make(chosen.env, **chosen.env_kwargs)
    obs_dim, space = int(np.prod(env.observation_space.shape)), env.action_space
    env.close()
    n_out = int(space.n) if hasattr(space, "n") else int(np.prod(space.shape))
    build = next(builder for prefix, builder in _BUILDERS.items() if agent_name.startswith(prefix))
    agent = build(agent_name, chosen, obs_dim, n_out, seed)
    if hasattr(space, "low"):
        agent.set_action_bounds(space.low, space.high)
    return HostTask(chosen, agent, seed)


def score_of(task: HostTask, episodes: int) -> float:
    """Mean return of fresh episodes with the deterministic policy."""
    import gymnasium as gym

    envs = gym.make_vec(task.setting.env, num_envs=10, vectorization_mode="sync", **task.setting.env_kwargs)
    returns: list[float] = []
    for batch in range(-(-episodes // 10)):
        obs, _ = envs.reset(seed=100_000 + 1000 * task.seed + 10 * batch)
        total, alive = np.zeros(10), np.ones(10, bool)
        while alive.any():
            actions = task.agent.act_batch_deterministic(obs)
            if hasattr(envs.single_action_space, "low"):
                actions = np.clip(actions, envs.single_action_space.low, envs.single_action_space.high)
            obs, rewards, terminated, truncated, _ = envs.step(actions)
            total += rewards * alive
            alive &= ~(terminated | truncated)
        returns += total.tolist()
    envs.close()
    return float(np.mean(returns[:episodes]))


def _normalizers(chosen: Setting, obs_dim: int) -> dict[str, Any]:
    from tensor_optix import ObsNormalizer, RewardNormalizer

    found: dict[str, Any] = {}
    if chosen.normalize_rewards:
        found["reward_normalizer"] = RewardNormalizer(gamma=chosen.hyperparams["gamma"])
    if chosen.normalize_observations:
        found["obs_normalizer"] = ObsNormalizer((obs_dim,))
    return found


def _torch(name: str, chosen: Setting, obs_dim: int, n_out: int, seed: int) -> Any:
    import torch
    from torch import nn

    from tensor_optix import HyperparamSet
    from tensor_optix.algorithms import torch_ppo, torch_ppo_continuous

    torch.manual_seed(seed)
    gaussian = "Gaussian" in name

    def network(width: int, gain: float) -> nn.Module:
        layers = [
            nn.Linear(obs_dim, chosen.hidden),
            nn.Linear(chosen.hidden, chosen.hidden),
            nn.Linear(chosen.hidden, width),
        ]
        for layer, g in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
            nn.init.orthogonal_(layer.weight, g)
            nn.init.zeros_(layer.bias)
        return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    actor, critic = network(2 * n_out if gaussian else n_out, 0.01), network(1, 1.0)
    optimizer = torch.optim.Adam(
        [*actor.parameters(), *critic.parameters()], lr=chosen.hyperparams["learning_rate"], eps=1e-5
    )
    hyperparams = HyperparamSet(dict(chosen.hyperparams))
    common = {"seed": seed, **_normalizers(chosen, obs_dim)}
    if gaussian:
        return torch_ppo_continuous.TorchGaussianPPOAgent(actor, critic, optimizer, n_out, hyperparams, **common)
    return torch_ppo.TorchPPOAgent(actor, critic, optimizer, hyperparams, **common)


def _tensorflow(name: str, chosen: Setting, obs_dim: int, n_out: int, seed: int) -> Any:
    import tensorflow as tf

    from tensor_optix import HyperparamSet
    from tensor_optix.algorithms import tf_ppo, tf_ppo_continuous

    tf.keras.utils.set_random_seed(seed)
    gaussian = "Gaussian" in name

    def network(width: int, gain: float) -> Any:
        dense, orthogonal = tf.keras.layers.Dense, tf.keras.initializers.Orthogonal
        return tf.keras.Sequential([
            tf.keras.layers.Input(shape=(obs_dim,)),
            dense(chosen.hidden, activation="tanh", kernel_initializer=orthogonal(2**0.5)),
            dense(chosen.hidden, activation="tanh", kernel_initializer=orthogonal(2**0.5)),
            dense(width, kernel_initializer=orthogonal(gain)),
        ])  # fmt: skip

    actor, critic = network(2 * n_out if gaussian else n_out, 0.01), network(1, 1.0)
    optimizer = tf.keras.optimizers.Adam(chosen.hyperparams["learning_rate"], epsilon=1e-5)
    hyperparams = HyperparamSet(dict(chosen.hyperparams))
    common = {"seed": seed, **_normalizers(chosen, obs_dim)}
    if gaussian:
        return tf_ppo_continuous.TFGaussianPPOAgent(actor, critic, optimizer, n_out, hyperparams, **common)
    return tf_ppo.TFPPOAgent(actor, critic, optimizer, hyperparams, **common)


def _flax(name: str, chosen: Setting, obs_dim: int, n_out: int, seed: int) -> Any:
    from tensor_optix import HyperparamSet
    from tensor_optix.algorithms import flax_ppo, flax_ppo_continuous

    cls = flax_ppo_continuous.FlaxGaussianPPOAgent if "Gaussian" in name else flax_ppo.FlaxPPOAgent
    return cls(
        obs_dim, n_out, HyperparamSet(dict(chosen.hyperparams)), hidden_size=chosen.hidden, seed=seed,
        **_normalizers(chosen, obs_dim),
    )  # fmt: skip


_BUILDERS = {"Torch": _torch, "TF": _tensorflow, "Flax": _flax}
