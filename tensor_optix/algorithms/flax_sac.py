"""SAC in JAX as a host agent, and what it shares with TD3: continuous actions between bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tensor_optix.adapters.jax.modules import ModuleNetwork, check_output
from tensor_optix.algorithms import host_off_policy
from tensor_optix.algorithms.flax_off_policy import FlaxOffPolicy, Layout
from tensor_optix.algorithms.flax_ppo import Spaces, shape_of, whole
from tensor_optix.algorithms.host_actions import ActionBounds
from tensor_optix.algorithms.host_off_policy import Table
from tensor_optix.algorithms.sac import SAC, SACAgent, SACConfig
from tensor_optix.core.types import EpisodeData, HyperparamSet


class FlaxActorCritic(FlaxOffPolicy):
    """What `FlaxSACAgent` and `FlaxTD3Agent` share: actions [action_dim], an actor and two critics."""

    default_param_bounds: ClassVar = {"learning_rate": (1e-4, 1e-3), "gamma": (0.97, 0.999), "tau": (1e-3, 1e-1)}
    default_log_params = frozenset({"learning_rate", "tau"})
    default_min_episodes_before_dormant = 30
    outputs: ClassVar[int]  # of the actor, for each action dimension
    critic_targets: ClassVar[str]  # the name of the critics' targets

    def __init__(
        self,
        obs_dim: int | tuple[int, ...],
        action_dim: int,
        hyperparams: HyperparamSet,
        hidden_sizes: tuple[int, ...],
        activation: str,
        seed: int,
        actor: nnx.Module | None,
        critics: Sequence[nnx.Module] | None,
        settings: Mapping[str, Any],
    ) -> None:
        spaces = Spaces(shape_of(obs_dim), "continuous", action_dim=whole("action_dim", action_dim))
        self._bounds = ActionBounds(spaces.action_dim)
        networks = {}
        if actor is not None:
            networks["actor"] = network = ModuleNetwork(actor)
            width = self.outputs * spaces.action_dim
            check_output("the actor", network.apply, network.init(), spaces.obs_shape, width)
        pair = None if critics is None else _critic_pair(critics, spaces)
        if pair is not None:
            networks["critic"] = pair[0]
        settings = {"hidden_sizes": tuple(hidden_sizes), "activation": activation, **settings}
        super().__init__(spaces, hyperparams, settings, networks, seed, {"action_bounds": self._bounds})
        if pair is not None:
            self._params = {**self._params, "critics": tuple(network.init() for network in pair)}
            targets = tuple(network.init() for network in pair)
            self._opt = {**self._opt, "targets": {**self._opt["targets"], self.critic_targets: targets}}

    def set_action_bounds(self, low: Any, high: Any) -> None:
        """What -1 and 1 stand for, [action_dim] each; an infinite bound leaves its dimension unscaled."""
        self._bounds.set(low, high)

    def act(self, observation: Any) -> np.ndarray:
        """An action float32 [D] to learn from; random until `learning_starts` steps were seen."""
        return self.act_batch(np.asarray(observation)[None])[0]

    def act_batch(self, observations: Any) -> np.ndarray:
        """Actions float32 [N, D] to learn from, for observations [N, *obs]."""
        return self._bounds.to_action(self._explored(observations))

    def act_deterministic(self, observation: Any) -> np.ndarray:
        """The policy's middle action float32 [D]; no random number is used."""
        return self.act_batch_deterministic(np.asarray(observation)[None])[0]

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """The policy's middle actions float32 [N, D]."""
        return self._bounds.to_action(self._modes(observations))

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        actions = np.asarray(episode_data.actions, np.float64)
        actions = actions.reshape(len(episode_data.rewards), self._spaces.action_dim)
        # What the environment got; an action of another agent may lie outside the bounds.
        return self._learn(episode_data, np.clip(self._bounds.to_unit(actions), -1.0, 1.0).astype(np.float32))

    def _random_actions(self, count: int) -> np.ndarray:
        return self._rng.uniform(-1.0, 1.0, (count, self._spaces.action_dim)).astype(np.float32)


class FlaxSACAgent(FlaxActorCritic):
    """SAC with actions [action_dim]: a squashed Gaussian, twin critics, a tuned temperature, and a replay.

    The policy's range is -1 to 1; `set_action_bounds` says what that stands for.

    Args:
        obs_dim: shape of an observation, an int for a vector; [H, W, C] takes a CNN. Networks get float32, unscaled.
        action_dim: number of action dimensions.
        hyperparams: any of `FlaxSACAgent.table.defaults`; "target_entropy" is in nats for each action dimension,
            "per_alpha" above 0 prioritises the replay. Other names are kept.
        hidden_size: width of two hidden layers; `hidden_sizes` says each.
        seed: of the first weights, acting and drawing.
        hidden_sizes, activation: of the default networks, actor and critics alike; see `networks.torsos`.
        tune_temperature: False: it stays at exp(log_alpha_init).
        actor: an nnx module of the user's own instead: [N, *obs] -> [N, 2 action_dim], means and logarithms of
            standard deviations (clipped to -5..2), before the tanh.
        critics: two nnx modules, alike but for their weights: ([N, *obs], [N, action_dim]) -> [N, 1]. Read once.

    `learn` stores the window and does "updates_per_step" gradient steps for each of its rows, once "learning_starts"
    transitions are there; until then actions are random. It returns actor_loss, critic_loss, alpha, entropy (nats, of
    the squashed policy) and q_mean, means over the updates (absent where there was none), buffer_size and n_updates. A
    window with a NaN or an infinity is not stored, and the losses are NaN. {} for a window without rows. Observations
    are not normalised.
    """

    table = Table(
        {**host_off_policy.DEFAULTS, **SAC.defaults},
        {**host_off_policy.LIMITS, **SAC.limits},
    )
    outputs = 2
    critic_targets = "target"
    continuous = True  # its entropy is differential: no floor in nats applies

    def __init__(
        self,
        obs_dim: int | tuple[int, ...],
        action_dim: int,
        hyperparams: HyperparamSet,
        hidden_size: int = 256,
        seed: int = 0,
        *,
        hidden_sizes: tuple[int, ...] | None = None,
        activation: str = "relu",
        tune_temperature: bool = True,
        actor: nnx.Module | None = None,
        critics: Sequence[nnx.Module] | None = None,
    ) -> None:
        sizes = (hidden_size, hidden_size) if hidden_sizes is None else tuple(hidden_sizes)
        settings = {"tune_temperature": tune_temperature}
        super().__init__(obs_dim, action_dim, hyperparams, sizes, activation, seed, actor, critics, settings)

    @staticmethod
    def _algorithm(spaces: Any, settings: Mapping[str, Any], networks: Mapping[str, Any]) -> SAC:
        return SAC(spaces, SACConfig(replay_size=1 << 30, **settings), **networks)

    @staticmethod
    def _layout(algorithm: SAC) -> tuple[Any, Layout]:
        critics = algorithm._critics.unravel
        unravel = {"actor": algorithm._unravel_actor, "critics": critics, "log_alpha": lambda flat: flat}
        return SACAgent, Layout(unravel, {"target": "critics"})


def _critic_pair(critics: Sequence[nnx.Module], spaces: Spaces) -> tuple[ModuleNetwork, ModuleNetwork]:
    """Both as networks. ValueError unless they are two, alike, and give one value for each row."""
    if isinstance(critics, nnx.Module) or len(critics) != 2:
        raise ValueError("critics must be two nnx modules, alike but for their weights: critics=(one, other)")
    pair = ModuleNetwork(critics[0]), ModuleNetwork(critics[1])
    first, second = (network.init() for network in pair)
    if jax.tree.map(jnp.shape, first) != jax.tree.map(jnp.shape, second):
        raise ValueError("the two critics must have parameters of the same names and shapes: make them alike")
    action = jax.ShapeDtypeStruct((2, spaces.action_dim), jnp.float32)
    check_output(
        "a critic", lambda params, obs: pair[0].apply(params, obs, jnp.zeros(action.shape)), first, spaces.obs_shape, 1
    )
    return pair
