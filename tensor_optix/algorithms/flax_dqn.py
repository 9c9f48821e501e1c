"""DQN in JAX as a host agent, and what it shares with other agents that choose by values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from flax import nnx

from tensor_optix.adapters.jax.modules import ModuleNetwork, check_output
from tensor_optix.algorithms import host_off_policy
from tensor_optix.algorithms.dqn import DQN, DQNAgent, DQNConfig
from tensor_optix.algorithms.flax_off_policy import FlaxOffPolicy, Layout
from tensor_optix.algorithms.flax_ppo import Spaces, shape_of, whole
from tensor_optix.algorithms.host_off_policy import Table
from tensor_optix.core.types import EpisodeData, HyperparamSet

_NAMES = {"epsilon_start": "epsilon", "epsilon_end": "epsilon_min"}


class FlaxValueBased(FlaxOffPolicy):
    """What `FlaxDQNAgent` and `FlaxRainbowAgent` share: a choice among `n_actions`."""

    def act(self, observation: Any) -> int:
        """An action to learn from; random until `learning_starts` steps were seen."""
        return int(self._explored(np.asarray(observation)[None])[0])

    def act_batch(self, observations: Any) -> np.ndarray:
        """Actions int32 [N] to learn from, for observations [N, *obs]."""
        return self._explored(observations)

    def act_deterministic(self, observation: Any) -> int:
        """The action of the highest value; no random number is used."""
        return int(self._modes(np.asarray(observation)[None])[0])

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """The actions of the highest values, int32 [N]."""
        return self._modes(observations)

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        actions = np.asarray(episode_data.actions).reshape(len(episode_data.rewards)).astype(np.int32)
        if actions.size and not 0 <= actions.min() <= actions.max() < self._spaces.n_actions:
            raise ValueError(
                f"actions must be from 0 to {self._spaces.n_actions - 1}, got {actions.min()} to {actions.max()}"
            )
        before = self._updates_done
        report = self._learn(episode_data, actions)
        if not report:
            return {}
        period = self._hyperparams.params["target_update_freq"]
        copied = self._updates_done // period > before // period if period else self._updates_done > before
        own = {"target_updated": float(copied), "episode_reward": self._progress.episode_reward}
        return {**report, **own}

    def _random_actions(self, count: int) -> np.ndarray:
        return self._rng.integers(0, self._spaces.n_actions, count, np.int32)


class FlaxDQNAgent(FlaxValueBased):
    """Double DQN with a choice among `n_actions`, an epsilon-greedy policy and a replay.

    Args:
        obs_dim: shape of an observation, an int for a vector; [H, W, C] takes a CNN. Networks get float32, unscaled.
        n_actions: number of choices.
        hyperparams: any of `FlaxDQNAgent.table.defaults`; the chance of a random action falls from "epsilon" to
            "epsilon_min" over "epsilon_steps" environment steps seen in `learn`, or by the factor "epsilon_decay" for
            each window where that is given. "target_update_freq" is in updates between copies to the target network;
            0: it follows each update by "tau". "per_alpha" above 0 prioritises the replay. Other names are kept.
        hidden_size: width of two hidden layers; `hidden_sizes` says each.
        seed: of the first weights, acting and drawing.
        hidden_sizes, activation: of the default network; see `networks.torsos`.
        double: the online network chooses the next action that the target network values.
        dueling: streams of value and advantage in the default network.
        q_network: an nnx module of the user's own instead: [N, *obs] -> [N, n_actions]. It is read once.

    `learn` stores the window and does "updates_per_step" gradient steps for each of its rows, once "learning_starts"
    transitions are there; until then actions are random. It returns loss, q_mean and td_error_mean, means over the
    updates (absent where there was none), epsilon, buffer_size, n_updates, target_updated (1 if the target network
    moved) and episode_reward (mean return of the newest episodes that ended). A window with a NaN or an infinity is not
    stored, and the losses are NaN. {} for a window without rows. Observations are not normalised.
    """

    table = Table(
        {
            **host_off_policy.DEFAULTS,
            **{_NAMES.get(name, name): value for name, value in DQN.defaults.items()},
            "batch_size": 128,
            "updates_per_step": 0.5,
            "target_update_freq": 0,
        },
        {
            **host_off_policy.LIMITS,
            **{_NAMES.get(name, name): limits for name, limits in DQN.limits.items()},
            "epsilon_decay": (0.0, 1.0),
        },
        optional=("epsilon_decay",),
    )
    names = _NAMES
    statics: ClassVar = {"batch_size": "batch_size", "target_update_freq": "target_period"}
    default_param_bounds: ClassVar = {"learning_rate": (1e-4, 1e-3), "gamma": (0.95, 0.999)}
    default_log_params = frozenset({"learning_rate"})
    default_min_episodes_before_dormant = 60

    def __init__(
        self,
        obs_dim: int | tuple[int, ...],
        n_actions: int,
        hyperparams: HyperparamSet,
        hidden_size: int = 64,
        seed: int = 0,
        *,
        hidden_sizes: tuple[int, ...] | None = None,
        activation: str = "relu",
        double: bool = True,
        dueling: bool = False,
        q_network: nnx.Module | None = None,
    ) -> None:
        spaces = Spaces(shape_of(obs_dim), "discrete", n_actions=whole("n_actions", n_actions))
        sizes = (hidden_size, hidden_size) if hidden_sizes is None else tuple(hidden_sizes)
        settings = {"hidden_sizes": sizes, "activation": activation, "double": double, "dueling": dueling}
        networks = {}
        if q_network is not None:
            networks["q_network"] = network = ModuleNetwork(q_network)
            check_output("the q_network", network.apply, network.init(), spaces.obs_shape, spaces.n_actions)
        super().__init__(spaces, hyperparams, settings, networks, seed, {})

    @staticmethod
    def _algorithm(spaces: Any, settings: Mapping[str, Any], networks: Mapping[str, Any]) -> DQN:
        return DQN(spaces, DQNConfig(replay_size=1 << 30, **settings), **networks)

    @staticmethod
    def _layout(algorithm: DQN) -> tuple[Any, Layout]:
        return DQNAgent, Layout({"online": algorithm._unravel}, {"target": "online"})

    def _current(self) -> dict[str, Any]:
        chance = np.float32(self.epsilon)
        return {**super()._current(), "epsilon_start": chance, "epsilon_end": chance}

    @property
    def epsilon(self) -> float:
        """The present chance of a random action, once learning has started."""
        return self._progress.chance(self._hyperparams.params)

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        self._progress.chance(self._hyperparams.params)  # a fall that was asked for anew begins before this window
        report = super().learn(episode_data)
        return {**report, "epsilon": self.epsilon} if report else {}

    def action_probs(self, observation: Any) -> np.ndarray:
        """float32 [n_actions] for one observation: what `act` does once learning has started."""
        count = self._spaces.n_actions
        probs = np.full(count, self.epsilon / count, np.float32)
        probs[self.act_deterministic(observation)] += np.float32(1.0 - self.epsilon)
        return probs
