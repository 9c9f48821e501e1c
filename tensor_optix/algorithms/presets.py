"""Settings that suit an environment better than the general ones; used unless the caller says otherwise.

How each was found, and what it reaches, is in benchmarks/RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Differences from an algorithm's defaults."""

    config: Mapping[str, Any] = field(default_factory=dict)
    hyperparams: Mapping[str, float] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)  # fields of RunConfig: eval_every, eval_episodes


PRESETS: dict[tuple[str, str], Preset] = {
    ("ppo", "CartPole-v1"): Preset(
        config={"n_envs": 8, "n_steps": 64, "n_epochs": 4, "n_minibatches": 8},
        hyperparams={"learning_rate": 2e-3, "gamma": 0.98, "gae_lambda": 0.9},
        run={"eval_every": 2048},
    ),
    ("ppo", "Acrobot-v1"): Preset(
        config={"n_envs": 16, "n_steps": 128, "n_epochs": 4, "n_minibatches": 16},
        hyperparams={"learning_rate": 1e-3, "entropy_coef": 0.01},
        run={"eval_every": 8192},
    ),
    ("ppo", "Pendulum-v1"): Preset(
        config={"n_envs": 8, "n_steps": 256, "n_epochs": 10, "n_minibatches": 16, "normalize_rewards": True},
        hyperparams={"learning_rate": 1e-3, "gamma": 0.95, "clip_range": 0.1},
        run={"eval_every": 4096},
    ),
    ("ppo", "MountainCarContinuous-v0"): Preset(
        config={
            "n_envs": 8,
            "n_steps": 128,
            "n_epochs": 4,
            "n_minibatches": 8,
            "normalize_observations": True,
            "normalize_rewards": True,
        },
        hyperparams={"learning_rate": 1e-3},
        run={"eval_every": 2048},
    ),
    **{
        ("ppo", f"{game}-MinAtar"): Preset(
            config={
                "n_envs": 64,
                "n_steps": 128,
                "n_epochs": 4,
                "n_minibatches": 8,
                "hidden_sizes": [128],
                "activation": "relu",
            },
            hyperparams={"learning_rate": 1e-3, "entropy_coef": 0.01},
            run={"eval_every": 131_072, "eval_episodes": 32},
        )
        for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
    },
    # Those of DQN follow the settings published in RL Zoo.
    ("dqn", "CartPole-v1"): Preset(
        config={
            "n_steps": 256,
            "train_every": 256,
            "updates": 128,
            "batch_size": 64,
            "hidden_sizes": [256, 256],
            "target_period": 128,
            "double": False,
        },
        hyperparams={"learning_rate": 2.3e-3, "epsilon_steps": 8000.0, "epsilon_end": 0.04},
        run={"eval_every": 2048},
    ),
    ("dqn", "Acrobot-v1"): Preset(
        config={
            "train_every": 4,
            "updates": 4,
            "replay_size": 50_000,
            "hidden_sizes": [256, 256],
            "target_period": 250,
        },
        hyperparams={"learning_rate": 6.3e-4, "epsilon_steps": 12_000.0, "epsilon_end": 0.1},
    ),
    ("dqn", "MountainCar-v0"): Preset(
        config={
            "train_every": 16,
            "updates": 8,
            "batch_size": 128,
            "replay_size": 10_000,
            "hidden_sizes": [256, 256],
            "target_period": 300,
        },
        hyperparams={"learning_rate": 4e-3, "gamma": 0.98, "epsilon_steps": 24_000.0, "epsilon_end": 0.07},
    ),
    ("dqn", "BitFlip"): Preset(
        config={"train_every": 4, "updates": 4, "batch_size": 128, "hidden_sizes": [128]},
        hyperparams={"learning_rate": 1e-3, "gamma": 0.98, "epsilon_steps": 5000.0, "epsilon_end": 0.1},
    ),
    ("sac", "PointReach"): Preset(
        config={"hidden_sizes": [64, 64], "train_every": 2}, hyperparams={"learning_rate": 1e-3, "gamma": 0.95}
    ),
    ("td3", "PointReach"): Preset(
        config={"hidden_sizes": [64, 64], "train_every": 2}, hyperparams={"learning_rate": 1e-3, "gamma": 0.95}
    ),
    ("sac", "Pendulum-v1"): Preset(
        config={"hidden_sizes": [64, 64]}, hyperparams={"learning_rate": 1e-3}, run={"eval_every": 2048}
    ),
    ("sac", "MountainCarContinuous-v0"): Preset(
        config={"n_steps": 512, "train_every": 8, "updates": 4, "hidden_sizes": [64, 64], "noise_exponent": 1.0},
        hyperparams={"learning_rate": 1e-3, "tau": 0.01},
    ),
    ("td3", "Pendulum-v1"): Preset(
        config={"hidden_sizes": [64, 64]},
        hyperparams={"learning_rate": 1e-3, "gamma": 0.98},
        run={"eval_every": 2048},
    ),
    ("td3", "MountainCarContinuous-v0"): Preset(
        config={"n_steps": 512, "train_every": 8, "updates": 4, "hidden_sizes": [64, 64], "noise_exponent": 1.0},
        hyperparams={"exploration_noise": 0.5},
    ),
    ("rainbow", "CartPole-v1"): Preset(
        config={
            "n_envs": 4,
            "n_steps": 64,
            "train_every": 1,
            "batch_size": 128,
            "replay_size": 50_000,
            "hidden_sizes": [64, 64],
            "activation": "tanh",
            "n_step": 10,
            "target_period": 0,
        },
        hyperparams={
            "learning_rate": 2e-3,
            "gamma": 0.98,
            "tau": 0.02,
            "adam_eps": 1e-8,
            "v_min": 0.0,
            "v_max": 50.0,
            "per_beta_steps": 50_000.0,
        },
        run={"eval_every": 2048},
    ),
    # Obando-Ceron & Castro 2021, "Revisiting Rainbow", but with 16 environments: an update of 128 rows every 16 steps
    # reads as many as theirs of 32 every 4, and the target is copied every 4000 steps as there.
    **{
        (name, f"{game}-MinAtar"): Preset(
            config={
                "n_envs": 16,
                "n_steps": 16,
                "train_every": 1,
                "batch_size": 128,
                "replay_size": 100_000,
                "hidden_sizes": [128],
                "target_period": 250,
            },
            hyperparams={"learning_rate": 5e-4, "adam_eps": 3.125e-4, **hyperparams},
            run={"eval_every": 16_384, "eval_episodes": 32},
        )
        for name, game, hyperparams in (
            ("rainbow", "Breakout", {"v_min": 0.0, "v_max": 20.0}),
            ("rainbow", "SpaceInvaders", {"v_min": 0.0, "v_max": 25.0}),
            ("dqn", "Breakout", {"epsilon_steps": 50_000.0, "epsilon_end": 0.02}),
            ("dqn", "SpaceInvaders", {"epsilon_steps": 50_000.0, "epsilon_end": 0.02}),
        )
    },
    ("recurrent_ppo", "MaskedCartPole-v1"): Preset(
        config={
            "n_envs": 8,
            "n_steps": 128,
            "n_epochs": 4,
            "n_minibatches": 4,
            "cell": "gru",
            "sequence_length": 32,
            "normalize_observations": True,
        },
        hyperparams={"learning_rate": 5e-4},
        run={"eval_every": 8192},
    ),
    ("graph_ppo", "CartPole-v1"): Preset(
        config={"n_envs": 8, "n_steps": 64, "n_epochs": 4, "n_minibatches": 8},
        hyperparams={"learning_rate": 3e-3, "gamma": 0.98, "gae_lambda": 0.9},
        run={"eval_every": 2048},
    ),
    ("graph_ppo", "MaskedCartPole-v1"): Preset(
        config={
            "n_envs": 8,
            "n_steps": 128,
            "n_epochs": 4,
            "n_minibatches": 4,
            "hidden_sizes": [24],
            "feedback": 2,
            "sequence_length": 32,
            "normalize_observations": True,
        },
        hyperparams={"learning_rate": 2e-3},
        run={"eval_every": 8192},
    ),
    ("graph_ppo", "Pendulum-v1"): Preset(
        config={
            "n_envs": 8,
            "n_steps": 256,
            "n_epochs": 10,
            "n_minibatches": 16,
            "hidden_sizes": [32],
        },
        hyperparams={"learning_rate": 1e-3, "gamma": 0.95, "clip_range": 0.1},
        run={"eval_every": 4096},
    ),
    ("graph_ppo", "Acrobot-v1"): Preset(
        config={"n_envs": 16, "n_steps": 128, "n_epochs": 4, "n_minibatches": 16},
        hyperparams={"learning_rate": 1e-3, "entropy_coef": 0.01},
        run={"eval_every": 8192},
    ),
    ("recurrent_ppo", "MemoryChain-bsuite"): Preset(
        config={
            "n_envs": 16,
            "n_steps": 64,
            "n_epochs": 4,
            "n_minibatches": 4,
            "hidden_sizes": [32],
            "hidden_size": 32,
            "sequence_length": 16,
        },
        hyperparams={"learning_rate": 2e-3},
        run={"eval_every": 4096},
    ),
}


def preset(algorithm: str, env: str) -> Preset:
    """The preset for an algorithm on an environment id; an empty one where there is none."""
    return PRESETS.get((algorithm, env), Preset())
