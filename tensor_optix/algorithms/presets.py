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
}


def preset(algorithm: str, env: str) -> Preset:
    """The preset for an algorithm on an environment id; an empty one where there is none."""
    return PRESETS.get((algorithm, env), Preset())
