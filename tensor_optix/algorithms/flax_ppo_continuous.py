"""PPO in JAX as a host agent, for continuous actions: a Gaussian whose spread does not depend on the observation."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from tensor_optix.algorithms.flax_ppo import FlaxPPOBase, Spaces, normalizers_of, shape_of, whole
from tensor_optix.algorithms.host_actions import ActionBounds
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet


class FlaxGaussianPPOAgent(FlaxPPOBase):
    """PPO with actions [action_dim].

    The policy is a Gaussian in the range -1 to 1: the actor gives its mean, and the logarithm of its standard deviation
    is one learned number for each dimension, 0 at first. `set_action_bounds` says what -1 and 1 stand for. Actions are
    not clipped here: pipelines clip what the environment gets and record what the policy meant. The entropy that
    `learn` reports is the exact differential entropy in that range, and may be negative.

    Args:
        action_dim: number of action dimensions.
        actor: of the user's own: [N, *obs] -> [N, action_dim] means.

    The other arguments are those of `FlaxPPOAgent`.
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
        hidden_sizes: tuple[int, ...] | None = None,
        activation: str = "tanh",
        actor: nnx.Module | None = None,
        critic: nnx.Module | None = None,
        reward_normalizer: RewardNormalizer | None = None,
        obs_normalizer: ObsNormalizer | None = None,
        normalize_observations: bool = False,
    ) -> None:
        spaces = Spaces(shape_of(obs_dim), "continuous", action_dim=whole("action_dim", action_dim))
        self._bounds = ActionBounds(spaces.action_dim)
        parts = normalizers_of(spaces, reward_normalizer, obs_normalizer, normalize_observations)
        sizes = (hidden_size, hidden_size) if hidden_sizes is None else tuple(hidden_sizes)
        super().__init__(
            spaces, hyperparams, sizes, activation, seed, actor, critic, {**parts, "action_bounds": self._bounds}
        )

    def set_action_bounds(self, low: Any, high: Any) -> None:
        """What -1 and 1 stand for, [action_dim] each; an infinite bound leaves its dimension unscaled."""
        self._bounds.set(low, high)

    def act(self, observation: Any) -> np.ndarray:
        return self.act_batch(np.asarray(observation)[None])[0]

    def act_batch(self, observations: Any) -> np.ndarray:
        """Sampled actions float32 [N, D] for observations [N, *obs]."""
        return self._bounds.to_action(self._sampled(observations))

    def act_deterministic(self, observation: Any) -> np.ndarray:
        """The mean action; no random number is used."""
        return self.act_batch_deterministic(np.asarray(observation)[None])[0]

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """The mean actions float32 [N, D]."""
        return self._bounds.to_action(self._modes(observations))

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        actions = np.asarray(episode_data.actions, np.float64)
        actions = actions.reshape(len(episode_data.rewards), self._spaces.action_dim)
        return self._learn(episode_data, self._bounds.to_unit(actions).astype(np.float32))
