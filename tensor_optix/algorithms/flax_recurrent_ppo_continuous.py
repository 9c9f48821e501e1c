"""Recurrent PPO in JAX as a host agent, for continuous actions."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensor_optix.algorithms.flax_ppo import Spaces, normalizers_of, shape_of, whole
from tensor_optix.algorithms.flax_recurrent_ppo import FlaxRecurrentPPOBase
from tensor_optix.algorithms.host_actions import ActionBounds
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet


class FlaxRecurrentGaussianPPOAgent(FlaxRecurrentPPOBase):
    """Recurrent PPO with actions [action_dim]; the policy is that of `FlaxGaussianPPOAgent`.

    Args:
        action_dim: number of action dimensions.

    The other arguments are those of `FlaxRecurrentPPOAgent`.
    """

    continuous = True  # its entropy is differential: no floor in nats applies

    def __init__(
        self,
        obs_dim: int | tuple[int, ...],
        action_dim: int,
        hyperparams: HyperparamSet,
        hidden_size: int = 64,
        seed: int = 0,
        *,
        cell: str = "lstm",
        hidden_sizes: tuple[int, ...] = (64,),
        activation: str = "tanh",
        reward_normalizer: RewardNormalizer | None = None,
        obs_normalizer: ObsNormalizer | None = None,
        normalize_observations: bool = False,
    ) -> None:
        spaces = Spaces(shape_of(obs_dim), "continuous", action_dim=whole("action_dim", action_dim))
        self._bounds = ActionBounds(spaces.action_dim)
        parts = normalizers_of(spaces, reward_normalizer, obs_normalizer, normalize_observations)
        settings = {
            "cell": cell, "hidden_size": hidden_size, "hidden_sizes": tuple(hidden_sizes), "activation": activation
        }  # fmt: skip
        super().__init__(spaces, hyperparams, settings, seed, {**parts, "action_bounds": self._bounds})

    def set_action_bounds(self, low: Any, high: Any) -> None:
        """What -1 and 1 stand for, [action_dim] each; an infinite bound leaves its dimension unscaled."""
        self._bounds.set(low, high)

    def act(self, observation: Any) -> np.ndarray:
        """The next action of the episode that the agent remembers; `reset_hidden` where another begins."""
        return self.act_batch(np.asarray(observation)[None])[0]

    def act_deterministic(self, observation: Any) -> np.ndarray:
        """The mean action; no random number is used. Its episode is another than that of `act`."""
        return self.act_batch_deterministic(np.asarray(observation)[None])[0]

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        actions = np.asarray(episode_data.actions, np.float64)
        actions = actions.reshape(len(episode_data.rewards), self._spaces.action_dim)
        return self._learn(episode_data, self._bounds.to_unit(actions).astype(np.float32))

    def _as_actions(self, chosen: np.ndarray) -> np.ndarray:
        return self._bounds.to_action(chosen)
