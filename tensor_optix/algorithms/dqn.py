"""Deep Q-learning, compiled.

Mnih et al. 2015, "Human-level control through deep reinforcement learning"; double estimation of van Hasselt et al.
2016, dueling streams of Wang et al. 2016, prioritised replay of Schaul et al. 2016 and n-step returns by choice.
"""

from __future__ import annotations

import dataclasses
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
from tensor_optix.core.action_mask import masked
from tensor_optix.core.replay import Transitions
from tensor_optix.networks.functional import Network
from tensor_optix.networks.own import Places, place
from tensor_optix.networks.torsos import torso
from tensor_optix.networks.values import Dueling


@dataclass(frozen=True)
class DQNConfig(OffPolicyConfig):
    """Everything static about a DQN."""

    batch_size: int = 128
    hidden_sizes: tuple[int, ...] = (64, 64)
    double: bool = True
    dueling: bool = False
    target_period: int = 0  # updates between copies to the target network; 0: it follows each update by tau

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_period < 0:
            raise ValueError(f"target_period must be 0 (follow by tau) or more updates, got {self.target_period}")


class DQNAgent(struct.PyTreeNode):
    """What a DQN learns."""

    online: Trained
    target: jax.Array  # [P] float32


class DQNPolicy(struct.PyTreeNode):
    """What acting needs."""

    params: Any  # of the network, a tree
    epsilon: jax.Array  # [] float32, chance of a random action when not deterministic


@dataclass(frozen=True)
class DQN(OffPolicy):
    """DQN on one environment: a hashable description whose methods are pure."""

    config: DQNConfig = dataclasses.field(default_factory=DQNConfig)
    q_network: Any = None  # with `init` and `apply` as a Network: [B, *obs] -> [B, n_actions]

    name: ClassVar[str] = "dqn"
    config_type: ClassVar[type[OffPolicyConfig]] = DQNConfig
    action_kinds: ClassVar[tuple[str, ...]] = ("discrete",)
    defaults: ClassVar[dict[str, float]] = {
        "learning_rate": 5e-4,
        "gamma": 0.99,
        "tau": 0.005,
        "epsilon_start": 1.0,
        "epsilon_end": 0.05,
        "epsilon_steps": 10_000.0,  # environment steps over which epsilon falls linearly
        "max_grad_norm": 10.0,
        "adam_eps": 1e-8,
    }
    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "learning_rate": (0.0, 1.0),
        "gamma": (0.0, 1.0),
        "tau": (0.0, 1.0),
        "epsilon_start": (0.0, 1.0),
        "epsilon_end": (0.0, 1.0),
        "epsilon_steps": (1.0, 1e12),
        "max_grad_norm": (1e-6, 1e6),
        "adam_eps": (1e-12, 1.0),
    }
    bounds: ClassVar[dict[str, tuple[Any, ...]]] = {"learning_rate": ("log", 1e-4, 1e-3), "gamma": (0.95, 0.999)}
    losses: ClassVar[tuple[str, ...]] = ("loss", "q_mean", "td_error_mean")
    networks: ClassVar[tuple[str, ...]] = ("online",)
    follows: ClassVar[dict[str, str]] = {"target": "online"}

    def hyperparams(self) -> dict[str, float]:
        return self._used(super().hyperparams())

    def hyperparam_limits(self) -> dict[str, tuple[float, float]]:
        return self._used(super().hyperparam_limits())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.q_network is not None and self.config.dueling:
            raise ValueError("dueling is a form of the library's own network: leave it out beside a q_network of yours")

    def places(self) -> Places:
        return {"q_network": place((self.env.obs_shape, self.env.obs_dtype), outputs=self.env.n_actions)}

    def _used(self, table: dict[str, Any]) -> dict[str, Any]:
        """A target network that is copied does not follow."""
        return {name: entry for name, entry in table.items() if name != "tau" or not self.config.target_period}

    # -- acting --------------------------------------------------------------------------------------------

    def policy(self, learner: OffPolicyLearner) -> DQNPolicy:
        return DQNPolicy(self._unravel(learner.agent.online.params), jnp.float32(0.0))

    def act(
        self, policy: DQNPolicy, obs: jax.Array, carry: Any, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        """Action [*batch] int32 for observations [*batch, *obs]."""
        greedy = self._greedy(policy.params, obs)
        if deterministic:
            return greedy, carry
        noise = self.draw_exploration(key, greedy.shape)
        return self._randomly(greedy, obs, noise, policy.epsilon), carry

    def draw_exploration(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        key_coin, key_choice = jax.random.split(key)
        return jax.random.uniform(key_coin, shape, jnp.float32), self.draw_choices(key_choice, shape)

    def explore(self, agent: DQNAgent, obs: jax.Array, noise: Any, hyper: Hyperparams, steps: jax.Array) -> jax.Array:
        greedy = self._greedy(self._unravel(agent.online.params), obs)
        return self._randomly(greedy, obs, noise, epsilon(hyper, steps))

    def _greedy(self, params: Any, obs: jax.Array) -> jax.Array:
        values = masked(self._network.apply(params, obs), self.env.action_mask(obs))
        return jnp.argmax(values, axis=-1).astype(jnp.int32)

    def _randomly(self, greedy: jax.Array, obs: jax.Array, noise: Any, chance: jax.Array) -> jax.Array:
        coin, choice = noise
        return jnp.where(coin < chance, self.allowed(choice, obs), greedy)

    # -- learning ------------------------------------------------------------------------------------------

    def init_agent(self, key: jax.Array, hyper: Hyperparams) -> DQNAgent:
        online = flat_adam.start(self._network.init(key))
        return DQNAgent(online, online.params)

    def draw_updates(self, key: jax.Array, count: int) -> Any:
        return ()

    def update(
        self, agent: DQNAgent, batch: Transitions, noise: Any, hyper: Hyperparams, updates: jax.Array
    ) -> tuple[DQNAgent, jax.Array, dict[str, jax.Array]]:
        target = self.targets(agent, batch)
        params = self._unravel(agent.online.params)
        grads, (td_error, losses) = jax.grad(self._loss, has_aux=True)(params, batch, target)
        online = flat_adam.step(agent.online, grads, hyper["learning_rate"], hyper["adam_eps"], hyper["max_grad_norm"])
        return DQNAgent(online, self._followed(agent.target, online.params, hyper, updates)), td_error, losses

    def targets(self, agent: DQNAgent, batch: Transitions) -> jax.Array:
        """[B] float32: the return bootstrapped from the next observation."""
        following = self.values(agent.target, batch.next_obs)
        if self.config.double:
            best = jnp.argmax(self.values(agent.online.params, batch.next_obs), axis=-1)
            value = chosen(following, best)
        else:
            value = following.max(axis=-1)
        return batch.reward + batch.discount * value

    def values(self, params: jax.Array, obs: jax.Array) -> jax.Array:
        """[*batch, n_actions] float32 for flat parameters [P] and observations [*batch, *obs].

        Those of actions that are not allowed are `action_mask.NEVER`.
        """
        return masked(self._network.apply(self._unravel(params), obs), self.env.action_mask(obs))

    def _loss(self, params: Any, batch: Transitions, target: jax.Array) -> tuple[jax.Array, Any]:
        """Huber loss of the temporal-difference error, as the clipped error of Mnih et al. 2015."""
        value = chosen(self._network.apply(params, batch.obs), batch.action)
        td_error = value - target
        size = jnp.abs(td_error)
        huber = jnp.where(size < 1, jnp.float32(0.5) * jnp.square(td_error), size - jnp.float32(0.5))
        loss = (batch.weight * huber).mean()
        return loss, (td_error, {"loss": loss, "q_mean": value.mean(), "td_error_mean": size.mean()})

    def _followed(self, target: jax.Array, online: jax.Array, hyper: Hyperparams, updates: jax.Array) -> jax.Array:
        if not self.config.target_period:
            return flat_adam.follow(target, online, hyper["tau"])
        due = (updates + 1) % self.config.target_period == 0
        return jnp.where(due, online, target)

    @cached_property
    def _network(self) -> Network:
        return self.q_network or Network(self._build)

    def _build(self, rngs: Any) -> Any:
        shape, n_actions, config = self.env.obs_shape, self.env.n_actions, self.config
        if config.dueling:
            return Dueling(shape, n_actions, config.hidden_sizes, config.activation, rngs)
        return torso(shape, n_actions, config.hidden_sizes, config.activation, 1.0, rngs)

    @cached_property
    def _unravel(self) -> Any:
        return flat_adam.unraveler(self._network.init)


def epsilon(hyper: Hyperparams, steps: jax.Array) -> jax.Array:
    """[] float32: chance of a random action after `steps` environment steps; linear, then constant."""
    done = jnp.minimum(steps.astype(jnp.float32) / hyper["epsilon_steps"], jnp.float32(1.0))
    return hyper["epsilon_start"] + done * (hyper["epsilon_end"] - hyper["epsilon_start"])


def chosen(values: jax.Array, action: jax.Array) -> jax.Array:
    """[...]: of values [..., A] those of action [...]. A mask, because a gather's gradient is a scatter."""
    taken = action[..., None] == jax.lax.broadcasted_iota(action.dtype, values.shape, values.ndim - 1)
    return jnp.sum(jnp.where(taken, values, jnp.float32(0.0)), axis=-1)
