"""What every off-policy algorithm can be told: how it collects, stores and draws, and what its options add."""

from __future__ import annotations

from dataclasses import dataclass

from tensor_optix.algorithms import novelty_bonus
from tensor_optix.core.hindsight import check_strategy
from tensor_optix.networks.torsos import ACTIVATIONS

PRIORITY_HYPERPARAMS = {"per_alpha": 0.6, "per_beta": 0.4, "per_beta_steps": 1e6, "per_eps": 1e-6}
PRIORITY_LIMITS = {
    "per_alpha": (0.0, 2.0),
    "per_beta": (0.0, 1.0),
    "per_beta_steps": (1.0, 1e12),
    "per_eps": (0.0, 1.0),
}

# Four relabelled transitions for one that is as it was, which Andrychowicz et al. 2017 found best (k = 4, section 4.5).
HINDSIGHT_HYPERPARAMS = {"hindsight_share": 0.8}
HINDSIGHT_LIMITS = {"hindsight_share": (0.0, 1.0)}


@dataclass(frozen=True)
class OffPolicyConfig:
    """Everything static about collecting, storing and drawing. Changing a field recompiles."""

    n_envs: int = 1
    n_steps: int = 256  # of every environment in a window
    train_every: int = 1  # steps of every environment between rounds of updates
    updates: int = 1  # gradient steps in a round
    batch_size: int = 256
    replay_size: int = 100_000  # transitions
    warmup_steps: int = 1000  # transitions before the first update
    n_step: int = 1  # rewards summed before bootstrapping
    prioritized: bool = False
    hindsight: str = "auto"  # goals of the past: "off", "future", "final", "episode"; "auto": "future" where it can be
    rnd: bool = False  # a bonus for novelty (random network distillation) of what the n steps led to, unless to an end
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "relu"

    def __post_init__(self) -> None:
        for name in ("n_envs", "n_steps", "train_every", "updates", "batch_size", "replay_size", "n_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_steps % self.train_every:
            raise ValueError(f"train_every must divide n_steps={self.n_steps}, got {self.train_every}")
        needed = max(self.batch_size, self.n_envs * self.n_step)
        if self.replay_size < needed:
            raise ValueError(f"replay_size must hold a batch and n_step rows ({needed}), got {self.replay_size}")
        if not self.n_envs * self.n_step <= self.warmup_steps <= self.replay_size:
            raise ValueError(
                f"warmup_steps must be from n_envs * n_step ({self.n_envs * self.n_step}) to replay_size "
                f"({self.replay_size}), got {self.warmup_steps}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if self.hindsight not in ("auto", "off"):
            check_strategy(self.hindsight)
            if self.n_step > 1:
                raise ValueError(f"hindsight relabels single steps, got n_step={self.n_step}; set n_step to 1")


def optional_hyperparams(config: OffPolicyConfig, hindsight: bool) -> dict[str, float]:
    """Defaults of the hyperparameters that options bring."""
    return {
        **(PRIORITY_HYPERPARAMS if config.prioritized else {}),
        **(HINDSIGHT_HYPERPARAMS if hindsight else {}),
        **(novelty_bonus.HYPERPARAMS if config.rnd else {}),
    }


def optional_limits(config: OffPolicyConfig, hindsight: bool) -> dict[str, tuple[float, float]]:
    """Where they make sense, both ends included."""
    return {
        **(PRIORITY_LIMITS if config.prioritized else {}),
        **(HINDSIGHT_LIMITS if hindsight else {}),
        **(novelty_bonus.LIMITS if config.rnd else {}),
    }
