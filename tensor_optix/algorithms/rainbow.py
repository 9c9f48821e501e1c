"""Rainbow, compiled: six improvements of deep Q-learning, each of which can be switched off.

Hessel et al. 2018, "Rainbow: combining improvements in deep reinforcement learning": double estimation (van Hasselt et
al. 2016), prioritised replay (Schaul et al. 2016), dueling streams (Wang et al. 2016), n-step returns (Sutton 1988),
distributions of returns (Bellemare et al. 2017) and noisy layers (Fortunato et al. 2018).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx, struct

from tensor_optix.algorithms import flat_adam
from tensor_optix.algorithms.contract import Hyperparams
from tensor_optix.algorithms.dqn import chosen, epsilon
from tensor_optix.algorithms.flat_adam import Trained
from tensor_optix.algorithms.off_policy import OffPolicy, OffPolicyLearner
from tensor_optix.algorithms.off_policy_config import OffPolicyConfig
from tensor_optix.core import categorical_projection
from tensor_optix.core.action_mask import masked
from tensor_optix.core.replay import Transitions
from tensor_optix.networks.categorical_values import CategoricalValues
from tensor_optix.networks.functional import Network
from tensor_optix.networks.noisy import draw_noise


@dataclass(frozen=True)
class RainbowConfig(OffPolicyConfig):
    """Everything static about a Rainbow. For each of its parts there is a switch; `n_step=1` is that of returns."""

    train_every: int = 4
    batch_size: int = 32
    n_step: int = 3
    prioritized: bool = True
    hidden_sizes: tuple[int, ...] = (128, 128)
    double: bool = True
    dueling: bool = True
    distributional: bool = True  # off: values, and the Huber loss of a DQN
    noisy: bool = True  # off: random actions with probability epsilon
    n_atoms: int = 51  # of a distribution
    target_period: int = 1000  # updates between copies to the target network; 0: it follows each update by tau

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_period < 0:
            raise ValueError(f"target_period must be 0 (follow by tau) or more updates, got {self.target_period}")
        if self.n_atoms < 2:
            raise ValueError(f"n_atoms must be at least 2, got {self.n_atoms}; distributional=False needs no atoms")


class RainbowAgent(struct.PyTreeNode):
    """What a Rainbow learns."""

    online: Trained
    target: jax.Array  # [P] float32


class RainbowPolicy(struct.PyTreeNode):
    """What acting needs."""

    params: jax.Array  # [P] float32


# Hyperparameters that only one setting of a switch gives a meaning.
_DISTRIBUTIONAL = ("v_min", "v_max")
_EPSILON = ("epsilon_start", "epsilon_end", "epsilon_steps")
_SOFT_TARGET = ("tau",)


@dataclass(frozen=True)
class Rainbow(OffPolicy):
    """Rainbow on one environment: a hashable description whose methods are pure.

    Noise of the layers (Fortunato et al. 2018, section 3.1): every environment draws its own for every step. An update
    draws three samples, each for all rows of the batch: one for the online network that learns, one for the target
    network, one for the online network that chooses the next action (their equation for double estimation).
    """

    config: RainbowConfig = dataclasses.field(default_factory=RainbowConfig)

    name: ClassVar[str] = "rainbow"
    config_type: ClassVar[type[OffPolicyConfig]] = RainbowConfig
    action_kinds: ClassVar[tuple[str, ...]] = ("discrete",)
    defaults: ClassVar[dict[str, float]] = {
        "learning_rate": 2.5e-4,
        "gamma": 0.99,
        "tau": 0.005,
        "v_min": -10.0,  # the first atom; returns below it are taken for it
        "v_max": 10.0,  # the last atom, above v_min
        "max_grad_norm": 10.0,
        "adam_eps": 1.5e-4,
        "epsilon_start": 1.0,
        "epsilon_end": 0.01,
        "epsilon_steps": 10_000.0,  # environment steps over which epsilon falls linearly
    }
    limits: ClassVar[dict[str, tuple[float, float]]] = {
        "learning_rate": (0.0, 1.0),
        "gamma": (0.0, 1.0),
        "tau": (0.0, 1.0),
        "v_min": (-1e9, 1e9),
        "v_max": (-1e9, 1e9),
        "max_grad_norm": (1e-6, 1e6),
        "adam_eps": (1e-12, 1.0),
        "epsilon_start": (0.0, 1.0),
        "epsilon_end": (0.0, 1.0),
        "epsilon_steps": (1.0, 1e12),
    }
    bounds: ClassVar[dict[str, tuple[Any, ...]]] = {"learning_rate": ("log", 5e-5, 1e-3)}
    losses: ClassVar[tuple[str, ...]] = ("loss", "q_mean", "td_error_mean")
    networks: ClassVar[tuple[str, ...]] = ("online",)
    follows: ClassVar[dict[str, str]] = {"target": "online"}

    def hyperparams(self) -> dict[str, float]:
        """Defaults of those that the switches leave a meaning; per_alpha as in Hessel et al. 2018."""
        rainbows = {"per_alpha": 0.5} if self.config.prioritized else {}
        return self._used({**super().hyperparams(), **rainbows})

    def hyperparam_limits(self) -> dict[str, tuple[float, float]]:
        return self._used(super().hyperparam_limits())

    def _used(self, entries: dict[str, Any]) -> dict[str, Any]:
        config = self.config
        unused: tuple[str, ...] = () if config.distributional else _DISTRIBUTIONAL
        unused += _EPSILON if config.noisy else ()
        unused += _SOFT_TARGET if config.target_period else ()
        return {name: value for name, value in entries.items() if name not in unused}

    # -- acting --------------------------------------------------------------------------------------------

    def policy(self, learner: OffPolicyLearner) -> RainbowPolicy:
        return RainbowPolicy(learner.agent.online.params)

    def act(
        self, policy: RainbowPolicy, obs: jax.Array, carry: Any, key: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        """Action [*batch] int32 for observations [*batch, *obs]: of the mean weights, or of noisy ones."""
        batch = obs.shape[: obs.ndim - len(self.env.obs_shape)]
        noise = None if deterministic or not self.config.noisy else draw_noise(key, (*batch, self._noise_size))
        return self._greedy(policy.params, obs, noise), carry

    def draw_exploration(self, key: jax.Array, shape: tuple[int, ...]) -> Any:
        if self.config.noisy:
            return draw_noise(key, (*shape, self._noise_size))
        key_coin, key_choice = jax.random.split(key)
        return jax.random.uniform(key_coin, shape, jnp.float32), self.draw_choices(key_choice, shape)

    def explore(
        self, agent: RainbowAgent, obs: jax.Array, noise: Any, hyper: Hyperparams, steps: jax.Array
    ) -> jax.Array:
        if self.config.noisy:
            return self._greedy(agent.online.params, obs, noise)
        coin, choice = noise
        random = self.allowed(choice, obs)
        return jnp.where(coin < epsilon(hyper, steps), random, self._greedy(agent.online.params, obs, None))

    def _greedy(self, params: jax.Array, obs: jax.Array, noise: jax.Array | None) -> jax.Array:
        # Which value is the highest does not depend on where the atoms are, only that they are evenly spaced.
        logits = self._outputs(self._unravel(params), obs, noise)
        return self._best(self._values(logits, jnp.float32(0.0), jnp.float32(1.0)), obs)

    def _best(self, values: jax.Array, obs: jax.Array) -> jax.Array:
        """[*batch] int32: of values [*batch, n_actions] the allowed action with the highest."""
        return jnp.argmax(masked(values, self.env.action_mask(obs)), axis=-1).astype(jnp.int32)

    # -- learning ------------------------------------------------------------------------------------------

    def init_agent(self, key: jax.Array, hyper: Hyperparams) -> RainbowAgent:
        online = flat_adam.start(self._network.init(key))
        return RainbowAgent(online, online.params)

    def draw_updates(self, key: jax.Array, count: int) -> Any:
        return draw_noise(key, (count, 3, self._noise_size)) if self.config.noisy else ()

    def update(
        self, agent: RainbowAgent, batch: Transitions, noise: Any, hyper: Hyperparams, updates: jax.Array
    ) -> tuple[RainbowAgent, jax.Array, dict[str, jax.Array]]:
        """One gradient step. The errors [B] are what is minimised: KL divergences, or absolute errors of values."""
        noise_online, noise_target, noise_choice = noise if self.config.noisy else (None, None, None)
        target = self._target(agent, batch, noise_target, noise_choice, hyper)
        loss = self._distribution_loss if self.config.distributional else self._value_loss
        params = self._unravel(agent.online.params)
        grads, (error, losses) = jax.grad(loss, has_aux=True)(params, batch, target, noise_online, hyper)
        online = flat_adam.step(agent.online, grads, hyper["learning_rate"], hyper["adam_eps"], hyper["max_grad_norm"])
        return RainbowAgent(online, self._followed(agent.target, online.params, hyper, updates)), error, losses

    def values(self, params: jax.Array, obs: jax.Array, hyper: Hyperparams) -> jax.Array:
        """[*batch, n_actions] float32: values by the mean weights of flat parameters [P] for [*batch, *obs].

        Those of actions that are not allowed are `action_mask.NEVER`.
        """
        values = self._values(self._outputs(self._unravel(params), obs, None), *self._range(hyper))
        return masked(values, self.env.action_mask(obs))

    def _target(
        self,
        agent: RainbowAgent,
        batch: Transitions,
        noise_target: jax.Array | None,
        noise_choice: jax.Array | None,
        hyper: Hyperparams,
    ) -> jax.Array:
        """What the action's output should be: probabilities [B, n_atoms], or values [B]."""
        v_min, v_max = self._range(hyper)
        following = self._outputs(self._unravel(agent.target), batch.next_obs, noise_target)
        chooser = following
        if self.config.double:
            chooser = self._outputs(self._unravel(agent.online.params), batch.next_obs, noise_choice)
        best = self._best(self._values(chooser, v_min, v_max), batch.next_obs)
        taken = of_action(following, best)
        if not self.config.distributional:
            return batch.reward + batch.discount * taken[..., 0]
        return categorical_projection.project(
            jax.nn.softmax(taken, axis=-1), batch.reward, batch.discount, v_min, v_max
        )

    def _distribution_loss(
        self, params: Any, batch: Transitions, target: jax.Array, noise: jax.Array | None, hyper: Hyperparams
    ) -> tuple[jax.Array, Any]:
        """Cross-entropy; its rows less the targets' entropies are the divergences that priorities go by."""
        log_probs = jax.nn.log_softmax(of_action(self._outputs(params, batch.obs, noise), batch.action), axis=-1)
        cross_entropy = -jnp.sum(target * log_probs, axis=-1)
        divergence = jnp.maximum(cross_entropy + jnp.sum(jax.scipy.special.xlogy(target, target), axis=-1), 0.0)
        loss = (batch.weight * cross_entropy).mean()
        value = categorical_projection.mean(jnp.exp(log_probs), *self._range(hyper))
        return loss, (divergence, {"loss": loss, "q_mean": value.mean(), "td_error_mean": divergence.mean()})

    def _value_loss(
        self, params: Any, batch: Transitions, target: jax.Array, noise: jax.Array | None, hyper: Hyperparams
    ) -> tuple[jax.Array, Any]:
        """Huber loss of the temporal-difference error."""
        value = of_action(self._outputs(params, batch.obs, noise), batch.action)[..., 0]
        size = jnp.abs(value - target)
        huber = jnp.where(size < 1, jnp.float32(0.5) * jnp.square(size), size - jnp.float32(0.5))
        loss = (batch.weight * huber).mean()
        return loss, (size, {"loss": loss, "q_mean": value.mean(), "td_error_mean": size.mean()})

    def _followed(self, target: jax.Array, online: jax.Array, hyper: Hyperparams, updates: jax.Array) -> jax.Array:
        if not self.config.target_period:
            return flat_adam.follow(target, online, hyper["tau"])
        due = (updates + 1) % self.config.target_period == 0
        return jnp.where(due, online, target)

    # -- the network ---------------------------------------------------------------------------------------

    def _outputs(self, params: Any, obs: jax.Array, noise: jax.Array | None) -> jax.Array:
        """[*batch, n_actions, n_atoms] logits, or values with 1 atom; by the mean weights without noise."""
        return self._network.apply(params, obs, *(() if noise is None else (noise,)))

    def _values(self, logits: jax.Array, v_min: jax.Array, v_max: jax.Array) -> jax.Array:
        """[..., n_actions] from the network's output [..., n_actions, n_atoms]."""
        if not self.config.distributional:
            return logits[..., 0]
        return categorical_projection.mean(jax.nn.softmax(logits, axis=-1), v_min, v_max)

    def _range(self, hyper: Hyperparams) -> tuple[jax.Array, jax.Array]:
        zero, one = jnp.float32(0.0), jnp.float32(1.0)
        return hyper.get("v_min", zero), hyper.get("v_max", one)  # not there, nor read, where values are plain

    @cached_property
    def _network(self) -> Network:
        return Network(self._build)

    def _build(self, rngs: Any) -> CategoricalValues:
        config = self.config
        return CategoricalValues(
            self.env.obs_shape,
            self.env.n_actions,
            config.n_atoms if config.distributional else 1,
            config.hidden_sizes,
            config.activation,
            config.dueling,
            config.noisy,
            rngs,
        )

    @cached_property
    def _noise_size(self) -> int:
        return nnx.eval_shape(lambda: self._build(nnx.Rngs(0))).noise_size

    @cached_property
    def _unravel(self) -> Any:
        return flat_adam.unraveler(self._network.init)


def of_action(outputs: jax.Array, action: jax.Array) -> jax.Array:
    """[B, n_atoms]: of outputs [B, n_actions, n_atoms] those of action [B]."""
    return chosen(jnp.swapaxes(outputs, -1, -2), action[..., None])
