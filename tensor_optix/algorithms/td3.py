"""Twin delayed deep deterministic policy gradient, compiled.

Fujimoto et al. 2018, "Addressing function approximation error in actor-critic methods": twin critics, smoothed targets,
an actor that is updated less often than the critics.
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
from tensor_optix.networks.functional import Network
from tensor_optix.networks.own import Places
from tensor_optix.networks.torsos import torso


@dataclass(frozen=True)
class TD3Config(OffPolicyConfig):
    """Everything static about a TD3."""

    noise_exponent: float = 0.0  # of the exploration noise: 0 independent at each step, 1 pink; see `colored_noise`
    policy_delay: int = 2  # updates of the critics for one of the actor and of the targets

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy_delay < 1:
            raise ValueError(f"policy_delay must be at least 1, got {self.policy_delay}")


class TD3Agent(struct.PyTreeNode):
    """What a TD3 learns."""

    actor: Trained
    critics: Trained  # both
    target_actor: jax.Array  # [P] float32
    target_critics: jax.Array  # [P] float32, both


class TD3Policy(struct.PyTreeNode):
    """What acting needs."""

    actor: Any  # its parameters, a tree


@dataclass(frozen=True)
class TD3(OffPolicy):
    """TD3 on one environment: a hashable description whose methods are pure."""

    config: TD3Config = dataclasses.field(default_factory=TD3Config)
    actor: Any = None  # with `init` and `apply` as a Network: [B, *obs] -> [B, D], before a tanh
    critic: Any = None  # ([B, *obs], [B, D]) -> [B, 1]

    name: ClassVar[str] = "td3"
    config_type: ClassVar[type[OffPolicyConfig]] = TD3Config
    action_kinds: ClassVar[tuple[str, ...]] = ("continuous",)
    # Noises are in units of half the action range.
    defaults: ClassVar[dict[str, float]] = {
        "learning_rate": 1e-3,
        "gamma": 0.99,
        "tau": 0.005,
        "exploration_noise": 0.1,
        "target_noise": 0.2,
        "target_noise_clip": 0.5,
        "adam_eps": 1e-8,
    }
    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "learning_rate": (0.0, 1.0),
        "gamma": (0.0, 1.0),
        "tau": (0.0, 1.0),
        "exploration_noise": (0.0, 2.0),
        "target_noise": (0.0, 2.0),
        "target_noise_clip": (0.0, 2.0),
        "adam_eps": (1e-12, 1.0),
    }
    bounds: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": ("log", 1e-4, 1e-3),
        "gamma": (0.97, 0.999),
        "tau": ("log", 1e-3, 1e-1),
    }
    losses: ClassVar[tuple[str, ...]] = ("actor_loss", "critic_loss", "q_mean")
    networks: ClassVar[tuple[str, ...]] = ("actor", "critics")
    follows: ClassVar[dict[str, str]] = {"target_actor": "actor", "target_critics": "critics"}

    def places(self) -> Places:
        return actor_and_critic(self.env.obs_shape, self.env.obs_dtype, self.env.action_dim, self.env.action_dim)

    # -- acting --------------------------------------------------------------------------------------------

    def policy(self, learner: OffPolicyLearner) -> TD3Policy:
        return TD3Policy(self._unravel_actor(learner.agent.actor.params))

    def act(
        self, policy: TD3Policy, obs: jax.Array, carry: Any, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        """Action [*batch, D] float32 in [-1, 1] for observations [*batch, *obs]; the policy itself is deterministic."""
        return self._action(policy.actor, obs), carry

    def draw_exploration(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return colored_noise(key, (*shape, self.env.action_dim), self.config.noise_exponent)

    def explore(self, agent: TD3Agent, obs: jax.Array, noise: Any, hyper: Hyperparams, steps: jax.Array) -> jax.Array:
        action = self._action(self._unravel_actor(agent.actor.params), obs)
        return _clipped(action + hyper["exploration_noise"] * noise, jnp.float32(1.0))

    def _action(self, actor: Any, obs: jax.Array) -> jax.Array:
        return jnp.tanh(self._actor.apply(actor, obs))

    # -- learning ------------------------------------------------------------------------------------------

    def init_agent(self, key: jax.Array, hyper: Hyperparams) -> TD3Agent:
        key_actor, key_critics = jax.random.split(key)
        actor = flat_adam.start(self._actor.init(key_actor))
        critics = flat_adam.start(self._critics.init(key_critics))
        return TD3Agent(actor, critics, actor.params, critics.params)

    def draw_updates(self, key: jax.Array, count: int) -> jax.Array:
        return jax.random.normal(key, (count, self.config.batch_size, self.env.action_dim), jnp.float32)

    def update(
        self, agent: TD3Agent, batch: Transitions, noise: jax.Array, hyper: Hyperparams, updates: jax.Array
    ) -> tuple[TD3Agent, jax.Array, dict[str, jax.Array]]:
        target = self.targets(agent, batch, noise, hyper)
        critic_grad = jax.value_and_grad(self._critics.loss, has_aux=True)
        params = self._critics.unravel(agent.critics.params)
        (critic_loss, td_error), grads = critic_grad(params, batch.obs, batch.action, target, batch.weight)
        agent = agent.replace(critics=flat_adam.step(agent.critics, grads, hyper["learning_rate"], hyper["adam_eps"]))

        def delayed(agent: TD3Agent) -> tuple[TD3Agent, jax.Array]:
            return self._update_actor(agent, batch, hyper)

        def not_now(agent: TD3Agent) -> tuple[TD3Agent, jax.Array]:
            return agent, jnp.float32(0.0)

        if self.config.policy_delay == 1:
            agent, actor_loss = delayed(agent)
        else:
            due = (updates + 1) % self.config.policy_delay == 0
            agent, actor_loss = jax.lax.cond(due, delayed, not_now, agent)
        # The mean over a window's updates is then the mean over those of the actor.
        values = (actor_loss * self.config.policy_delay, critic_loss, target.mean())
        return agent, td_error, dict(zip(self.losses, values, strict=True))

    def targets(self, agent: TD3Agent, batch: Transitions, noise: jax.Array, hyper: Hyperparams) -> jax.Array:
        """[B] float32: equation 14, with the target policy smoothed by clipped noise."""
        smoothing = _clipped(hyper["target_noise"] * noise, hyper["target_noise_clip"])
        action = self._action(self._unravel_actor(agent.target_actor), batch.next_obs)
        action = _clipped(action + smoothing, jnp.float32(1.0))
        return batch.reward + batch.discount * self._critics.lower(agent.target_critics, batch.next_obs, action)

    def _update_actor(self, agent: TD3Agent, batch: Transitions, hyper: Hyperparams) -> tuple[TD3Agent, jax.Array]:
        """The deterministic policy gradient through the first critic; then the targets follow."""
        first = self._critics.unravel(agent.critics.params)[0]

        def loss(actor: Any) -> jax.Array:
            return -(batch.weight * self._critics.one(first, batch.obs, self._action(actor, batch.obs))).mean()

        value, grads = jax.value_and_grad(loss)(self._unravel_actor(agent.actor.params))
        actor = flat_adam.step(agent.actor, grads, hyper["learning_rate"], hyper["adam_eps"])
        return agent.replace(
            actor=actor,
            target_actor=flat_adam.follow(agent.target_actor, actor.params, hyper["tau"]),
            target_critics=flat_adam.follow(agent.target_critics, agent.critics.params, hyper["tau"]),
        ), value

    @cached_property
    def _actor(self) -> Network:
        return self.actor or Network(self._build_actor)

    def _build_actor(self, rngs: Any) -> Any:
        config = self.config
        return torso(self.env.obs_shape, self.env.action_dim, config.hidden_sizes, config.activation, 0.01, rngs)

    @cached_property
    def _critics(self) -> TwinCritics:
        return twin_critics(self.critic, self.env.obs_shape, self.env.action_dim, self.config)

    @cached_property
    def _unravel_actor(self) -> Callable[[jax.Array], Any]:
        return flat_adam.unraveler(self._actor.init)


def _clipped(x: jax.Array, limit: jax.Array) -> jax.Array:
    return jnp.clip(x, -limit, limit)
