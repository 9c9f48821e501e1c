"""PPO for continuous actions over Keras models of the user's own."""

from __future__ import annotations

import operator
from typing import Any

from tensor_optix.algorithms._tf_ppo import TFActorCriticAgent
from tensor_optix.algorithms.host_actions import Gaussian
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import HyperparamSet


class TFGaussianPPOAgent(TFActorCriticAgent):
    """Clipped PPO (Schulman et al. 2017) with generalised advantages, independent normal actions.

    The distribution lives in unit range, -1..1; `set_action_bounds` says what that is in the environment. Actions are
    not clipped here: pipelines record them as they are and clip what the environment gets. Recorded `log_probs` of
    other policies are densities in unit range.

    Args:
        actor: tf.keras.Model, [N, *obs] -> [mean || log_std], [N, 2 * action_dim]; log_std is clipped to -5..2.
        critic: tf.keras.Model, [N, *obs] -> values [N, 1].
        optimizer: tf.keras optimizer of both, its learning rate a number; clipping of its own is kept.
        action_dim: numbers of an action.
        hyperparams: names and defaults are those of `host_ppo.DEFAULTS`; a missing learning_rate is the optimizer's.
        reward_normalizer: sees every window's rewards, then scales them. Optional.
        obs_normalizer: brings observations to mean 0, variance 1. Optional.
        squash: actions are tanh of the normal ones, so within the bounds; the entropy is that before tanh.
        seed: of sampling, shuffling and perturbing.
        device: has no effect: the models are where TensorFlow made them.

    Networks run in inference mode also while learning (no dropout, batch statistics fixed), so that the policy that is
    improved is the one that acted.

    Raises:
        ImportError: TensorFlow is missing; the message has the command.
        TypeError, ValueError: an argument does not fit; the message says which and how to mend it.
    """

    continuous = True  # its entropy is differential: no floor in nats applies

    def __init__(
        self,
        actor: Any,
        critic: Any,
        optimizer: Any,
        action_dim: int,
        hyperparams: HyperparamSet,
        reward_normalizer: RewardNormalizer | None = None,
        *,
        obs_normalizer: ObsNormalizer | None = None,
        squash: bool = False,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        if operator.index(action_dim) < 1:
            raise ValueError(f"action_dim must be at least 1, got {action_dim}")
        self._gaussian = Gaussian(operator.index(action_dim), bool(squash))
        super().__init__(actor, critic, optimizer, hyperparams, self._gaussian, reward_normalizer, obs_normalizer, seed)

    def set_action_bounds(self, low: Any, high: Any) -> None:
        """Arrays [D]: unit range becomes low..high; a dimension with an infinite bound stays unscaled.

        ValueError for other shapes, or a low that is not below its high.
        """
        self._gaussian.bounds.set(low, high)
