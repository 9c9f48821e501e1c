"""Soft actor-critic with a tuned temperature, compiled.

Haarnoja et al. 2018, "Soft actor-critic algorithms and applications" (arXiv 1812.05905): twin critics, a squashed
Gaussian, and a temperature that holds the policy's entropy at a target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.algorithms import flat_adam
from tensor_optix.algorithms.contract import Hyperparams
from tensor_optix.algorithms.flat_adam import Trained
from tensor_optix.algorithms.off_policy import OffPolicy, OffPolicyLearner
from tensor_optix.algorithms.off_policy_config import OffPolicyConfig
from tensor_optix.algorithms.twin_critics import TwinCritics, actor_and_critic, twin_critics
from tensor_optix.core.colored_noise import colored_noise
from tensor_optix.core.replay import Transitions
from tensor_optix.networks.distributions import SquashedGaussian
from tensor_optix.networks.functional import Network
from tensor_optix.networks.own import Places
from tensor_optix.networks.torsos import torso

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


@dataclass(frozen=True)
class SACConfig(OffPolicyConfig):
    """Everything static about a SAC."""

    noise_exponent: float = 0.0  # of the noise that acts: 0 independent at each step, 1 pink; see `colored_noise`
    tune_temperature: bool = True  # False: it stays at exp(log_alpha_init)


class SACAgent(struct.PyTreeNode):
    """What a SAC learns."""

    actor: Trained
    critics: Trained  # both
    target: jax.Array  # [P] float32, both target critics
    log_alpha: Trained  # [1] float32, logarithm of the temperature


class SACPolicy(struct.PyTreeNode):
    """What acting needs."""

    actor: Any  # its parameters, a tree


@dataclass(frozen=True)
class SAC(OffPolicy):
    """SAC on one environment: a hashable description whose methods are pure."""

    config: SACConfig = dataclasses.field(default_factory=SACConfig)
    actor: Any = None  # with `init` and `apply` as a Network: [B, *obs] -> [B, 2 D], means and log standard deviations
    critic: Any = None  # ([B, *obs], [B, D]) -> [B, 1]

    name: ClassVar[str] = "sac"
    config_type: ClassVar[type[OffPolicyConfig]] = SACConfig
    action_kinds: ClassVar[tuple[str, ...]] = ("continuous",)
    defaults: ClassVar[dict[str, float]] = {
        "learning_rate": 3e-4,
        "gamma": 0.99,
        "tau": 0.005,
        "log_alpha_init": 0.0,
        "target_entropy": -1.0,  # nats for each action dimension
        "adam_eps": 1e-8,
    }
    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "learning_rate": (0.0, 1.0),
        "gamma": (0.0, 1.0),
        "tau": (0.0, 1.0),
        "log_alpha_init": (-20.0, 5.0),
        "target_entropy": (-20.0, 0.7),
        "adam_eps": (1e-12, 1.0),
    }
    bounds: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": ("log", 1e-4, 1e-3),
        "gamma": (0.97, 0.999),
        "tau": ("log", 1e-3, 1e-1),
    }
    losses: ClassVar[tuple[str, ...]] = ("actor_loss", "critic_loss", "alpha", "entropy", "q_mean")
    networks: ClassVar[tuple[str, ...]] = ("actor", "critics")
    follows: ClassVar[dict[str, str]] = {"target": "critics"}

    def places(self) -> Places:
        return actor_and_critic(self.env.obs_shape, self.env.obs_dtype, self.env.action_dim, 2 * self.env.action_dim)

    # -- acting --------------------------------------------------------------------------------------------

    def policy(self, learner: OffPolicyLearner) -> SACPolicy:
        return SACPolicy(self._unravel_actor(learner.agent.actor.params))

    def act(
        self, policy: SACPolicy, obs: jax.Array, carry: Any, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        """Action [*batch, D] float32 in (-1, 1) for observations [*batch, *obs]."""
        dist = self.distribution(policy.actor, obs)
        if deterministic:
            return dist.mode(), carry
        return dist.sample_and_log_prob(dist.noise(key, dist.mean.shape))[0], carry

    def draw_exploration(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return colored_noise(key, (*shape, self.env.action_dim), self.config.noise_exponent)

    def explore(self, agent: SACAgent, obs: jax.Array, noise: Any, hyper: Hyperparams, steps: jax.Array) -> jax.Array:
        dist = self.distribution(self._unravel_actor(agent.actor.params), obs)
        return dist.sample_and_log_prob(noise)[0]

    def distribution(self, actor: Any, obs: jax.Array) -> SquashedGaussian:
        """The policy for observations [*batch, *obs]; the actor's parameters as a tree."""
        mean, log_std = jnp.split(self._actor.apply(actor, obs), 2, axis=-1)
        return SquashedGaussian(mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))

    # -- learning ------------------------------------------------------------------------------------------

    def init_agent(self, key: jax.Array, hyper: Hyperparams) -> SACAgent:
        key_actor, key_critics = jax.random.split(key)
        critics = flat_adam.start(self._critics.init(key_critics))
        return SACAgent(
            actor=flat_adam.start(self._actor.init(key_actor)),
            critics=critics,
            target=critics.params,
            log_alpha=flat_adam.start(hyper["log_alpha_init"][None]),
        )

    def draw_updates(self, key: jax.Array, count: int) -> jax.Array:
        return SquashedGaussian.noise(key, (count, 2, self.config.batch_size, self.env.action_dim))

    def update(
        self, agent: SACAgent, batch: Transitions, noise: jax.Array, hyper: Hyperparams, updates: jax.Array
    ) -> tuple[SACAgent, jax.Array, dict[str, jax.Array]]:
        rate, eps = hyper["learning_rate"], hyper["adam_eps"]
        alpha = jnp.exp(agent.log_alpha.params[0])
        actor = self._unravel_actor(agent.actor.params)

        target = self.targets(agent, batch, alpha, noise[0])
        critic_grad = jax.value_and_grad(self._critics.loss, has_aux=True)
        params = self._critics.unravel(agent.critics.params)
        (critic_loss, td_error), grads = critic_grad(params, batch.obs, batch.action, target, batch.weight)
        critics = flat_adam.step(agent.critics, grads, rate, eps)

        actor_grad = jax.value_and_grad(self._actor_loss, has_aux=True)
        (actor_loss, log_prob), grads = actor_grad(actor, critics.params, batch, alpha, noise[1])
        moved = flat_adam.step(agent.actor, grads, rate, eps)
        entropy = -log_prob.mean()
        agent = SACAgent(
            actor=moved,
            critics=critics,
            target=flat_adam.follow(agent.target, critics.params, hyper["tau"]),
            log_alpha=self._tempered(agent.log_alpha, entropy, hyper),
        )
        values = (actor_loss, critic_loss, alpha, entropy, target.mean())
        return agent, td_error, dict(zip(self.losses, values, strict=True))

    def targets(self, agent: SACAgent, batch: Transitions, alpha: jax.Array, noise: jax.Array) -> jax.Array:
        """[B] float32: the soft return bootstrapped from the next observation (equation 3 with the soft value)."""
        dist = self.distribution(self._unravel_actor(agent.actor.params), batch.next_obs)
        action, log_prob = dist.sample_and_log_prob(noise)
        value = self._critics.lower(agent.target, batch.next_obs, action) - alpha * log_prob
        return batch.reward + batch.discount * value

    def _actor_loss(
        self, actor: Any, critics: jax.Array, batch: Transitions, alpha: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Equation 7: E[alpha log pi - Q]; and the log-probabilities [B]."""
        action, log_prob = self.distribution(actor, batch.obs).sample_and_log_prob(noise)
        value = self._critics.lower(critics, batch.obs, action)
        return (batch.weight * (alpha * log_prob - value)).mean(), log_prob

    def _tempered(self, log_alpha: Trained, entropy: jax.Array, hyper: Hyperparams) -> Trained:
        """Equation 18: the temperature rises while the entropy is below its target. The step is in its logarithm."""
        if not self.config.tune_temperature:
            return log_alpha
        missing = hyper["target_entropy"] * self.env.action_dim - entropy
        return flat_adam.step(log_alpha, -missing[None], hyper["learning_rate"], hyper["adam_eps"])

    @cached_property
    def _actor(self) -> Network:
        return self.actor or Network(self._build_actor)

    def _build_actor(self, rngs: Any) -> Any:
        config = self.config
        return torso(self.env.obs_shape, 2 * self.env.action_dim, config.hidden_sizes, config.activation, 0.01, rngs)

    @cached_property
    def _critics(self) -> TwinCritics:
        return twin_critics(self.critic, self.env.obs_shape, self.env.action_dim, self.config)

    @cached_property
    def _unravel_actor(self) -> Callable[[jax.Array], Any]:
        return flat_adam.unraveler(self._actor.init)
