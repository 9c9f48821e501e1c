"""What every compiled PPO has: settings, hyperparameters, the learner, and the methods that do not ask the networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from tensor_optix.algorithms import novelty_bonus
from tensor_optix.algorithms.clipped_surrogate import annealed
from tensor_optix.algorithms.contract import Hyperparams
from tensor_optix.algorithms.flat_adam import perturbed
from tensor_optix.core import normalizers, novelty
from tensor_optix.core.action_mask import masked
from tensor_optix.core.search_space import SearchSpace, search_space
from tensor_optix.core.sparse_rows import update_rows
from tensor_optix.envs.vector import VectorEnv, VectorState
from tensor_optix.networks.distributions import Categorical, MaskedCategorical
from tensor_optix.networks.functional import Params
from tensor_optix.networks.own import Places
from tensor_optix.networks.torsos import ACTIVATIONS

HYPERPARAMS: dict[str, float] = {
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.2,
    "entropy_coef": 0.0,
    "value_coef": 0.5,
    "max_grad_norm": 0.5,
    "adam_eps": 1e-5,
}

# Where each hyperparameter makes sense, both ends included.
LIMITS: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, 1.0),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "clip_range": (0.0, 10.0),
    "entropy_coef": (0.0, 10.0),
    "value_coef": (0.0, 100.0),
    "max_grad_norm": (1e-6, 1e6),
    "adam_eps": (1e-12, 1.0),
}

# What is tuned online unless the caller says otherwise; the bounds are CONTRACT-wide for every PPO.
BOUNDS: dict[str, tuple[Any, ...]] = {
    "learning_rate": ("log", 1e-4, 3e-3),
    "gamma": (0.95, 0.999),
    "clip_range": (0.1, 0.3),
    "entropy_coef": (0.0, 0.05),
}


@dataclass(frozen=True)
class PPOConfig:
    """Everything static about a PPO. Changing a field recompiles."""

    n_envs: int = 8
    n_steps: int = 128
    n_epochs: int = 4
    n_minibatches: int = 4
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    normalize_observations: bool = False
    normalize_rewards: bool = False
    normalize_advantages: bool = True
    clip_value: bool = False  # clip the value update by clip_range, as in the 2017 reference code
    anneal_windows: int = 0  # learning rate and clip range fall linearly to 0 over so many windows; 0: constant
    rnd: bool = False  # a bonus for novelty, by random network distillation
    initial_log_std: float = 0.0  # continuous actions, in units of half the action range

    def __post_init__(self) -> None:
        for name in ("n_envs", "n_steps", "n_epochs", "n_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.anneal_windows < 0:
            raise ValueError(f"anneal_windows must be 0 (constant) or more, got {self.anneal_windows}")
        if (self.n_envs * self.n_steps) % self.n_minibatches:
            raise ValueError(
                f"n_minibatches must divide n_envs * n_steps: {self.n_minibatches} does not divide "
                f"{self.n_envs} * {self.n_steps} = {self.n_envs * self.n_steps}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")


class PPOPolicy(struct.PyTreeNode):
    """What acting needs."""

    actor: Params
    log_std: Any  # [action_dim] float32, or () for discrete actions
    moments: Any  # observation moments, or () without normalisation


class PPOLearner(struct.PyTreeNode):
    """One PPO learner: N environments, parameters, Adam moments, normalisers."""

    params: dict[str, Any]  # actor, critic; log_std with continuous actions
    opt: Any  # optax.ScaleByAdamState of the parameters as one flat vector [P]
    obs_moments: Any  # normalizers.Moments [*obs] or ()
    reward_scale: Any  # normalizers.RewardScale or ()
    novelty: Any  # Novelty, or () without a bonus for it
    env_state: VectorState  # N environments
    obs: jax.Array  # [N, *obs]
    window: jax.Array  # [] int32, windows learned so far


class Rollout(NamedTuple):
    """One window as collected, time first."""

    obs: jax.Array  # [T, N, *obs]
    action: jax.Array  # [T, N] int32 or [T, N, D] float32
    log_prob: jax.Array  # [T, N] float32
    reward: jax.Array  # [T, N] float32, raw
    terminated: jax.Array  # [T, N] bool
    truncated: jax.Array  # [T, N] bool
    final_obs: jax.Array  # [T, N, *obs], differs from the next obs where an episode ended


@dataclass(frozen=True)
class BasePPO:
    """The part of a PPO that is the same whatever its networks are."""

    env: VectorEnv
    config: PPOConfig = dataclasses.field(default_factory=PPOConfig)

    action_kinds = ("discrete", "continuous")
    is_on_policy = True

    @property
    def steps_per_window(self) -> int:
        return self.config.n_envs * self.config.n_steps

    def replay_bytes(self) -> int:
        return 0

    def hyperparams(self) -> dict[str, float]:
        return {**HYPERPARAMS, **(novelty_bonus.HYPERPARAMS if self.config.rnd else {})}

    def hyperparam_limits(self) -> dict[str, tuple[float, float]]:
        return {**LIMITS, **(novelty_bonus.LIMITS if self.config.rnd else {})}

    def places(self) -> Places:
        """None, unless a subclass has some."""
        return {}

    def search_space(self) -> SearchSpace:
        return search_space(BOUNDS)

    def policy(self, learner: PPOLearner) -> PPOPolicy:
        return PPOPolicy(learner.params["actor"], learner.params.get("log_std", ()), learner.obs_moments)

    def snapshot(self, learner: PPOLearner) -> Any:
        return (
            learner.params,
            learner.opt,
            learner.obs_moments,
            learner.reward_scale,
            learner.novelty,
            learner.window,
        )

    def restore(self, learner: PPOLearner, snapshot: Any) -> PPOLearner:
        names = ("params", "opt", "obs_moments", "reward_scale", "novelty", "window")
        return learner.replace(**dict(zip(names, snapshot, strict=True)))

    def perturb(self, learner: PPOLearner, key: jax.Array, noise: jax.Array) -> PPOLearner:
        return learner.replace(params=perturbed(learner.params, key, noise))

    def _at_truncations(self, truncated: jax.Array, value: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """value(index) [T, N] where an episode was truncated, 0 elsewhere; index: int32 [K], rows of T * N.

        Truncations are rare, so only the rows that have one are computed, a few at a time.
        """
        mask = truncated.reshape(-1)
        per_round = min(max(8, self.config.n_envs), mask.shape[0])
        return update_rows(mask, value, jnp.zeros(mask.shape, jnp.float32), per_round).reshape(truncated.shape)

    def init_novelty(self, key: jax.Array) -> Any:
        """Nothing known yet, or () without a bonus for novelty."""
        return novelty.init(key, self.env.obs_shape) if self.config.rnd else ()

    def init_opt(self, params: Any) -> Any:
        """The optimiser's state before the first update."""
        return optax.scale_by_adam().init(ravel_pytree(params)[0])

    @property
    def _discrete(self) -> bool:
        return self.env.action_kind == "discrete"

    def _categorical(self, logits: jax.Array, obs: jax.Array) -> Categorical:
        """Over the actions that observations [*batch, *obs] allow, normalised or not."""
        mask = self.env.action_mask(obs)
        return Categorical(logits) if mask is None else MaskedCategorical(masked(logits, mask))

    def _normalize(self, moments: Any, obs: jax.Array) -> jax.Array:
        if self.config.normalize_observations:
            normalized = normalizers.normalize(moments, obs)
            if self.env.mask is None:
                return normalized
            start, stop = self.env.mask  # which stays as it is: it is read from here
            return normalized.at[..., start:stop].set(obs[..., start:stop].astype(normalized.dtype))
        return obs if obs.dtype == jnp.float32 or len(self.env.obs_shape) == 3 else obs.astype(jnp.float32)

    def _scale_rewards(self, scale: Any, rollout: Rollout, hyper: Hyperparams) -> tuple[Any, jax.Array]:
        if not self.config.normalize_rewards:
            return scale, rollout.reward
        done = rollout.terminated | rollout.truncated
        return normalizers.scale_rewards(scale, rollout.reward, done, hyper["gamma"])

    def _rewards(self, learner: PPOLearner, rollout: Rollout, hyper: Hyperparams) -> tuple[Any, Any, jax.Array]:
        """What is learned from [T, N]: the reward scale and the novelty after the window, and its rewards."""
        scale, rewards = self._scale_rewards(learner.reward_scale, rollout, hyper)
        if not self.config.rnd:
            return scale, (), rewards
        known, bonus = novelty_bonus.rewarded(
            learner.novelty, rollout.final_obs, None, hyper, self.config.n_minibatches
        )
        return scale, known, rewards + bonus

    def _observed(self, learner: PPOLearner, rollout: Rollout) -> Any:
        """The observation moments with those of a window, which is learned from before: acting and learning agree."""
        if not self.config.normalize_observations:
            return learner.obs_moments
        return normalizers.update_moments(learner.obs_moments, rollout.obs.reshape(-1, *self.env.obs_shape))

    def _annealed(self, learner: PPOLearner, hyper: Hyperparams) -> Hyperparams:
        return annealed(hyper, learner.window, self.config.anneal_windows)
