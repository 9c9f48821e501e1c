"""PPO for discrete actions over Keras models of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensor_optix.algorithms._tf_ppo import TFActorCriticAgent
from tensor_optix.algorithms.host_actions import Categorical
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import HyperparamSet


class TFPPOAgent(TFActorCriticAgent):
    """Clipped PPO (Schulman et al. 2017) with generalised advantages, discrete actions.

    Args:
        actor: tf.keras.Model, [N, *obs] -> logits [N, A].
        critic: tf.keras.Model, [N, *obs] -> values [N, 1].
        optimizer: tf.keras optimizer of both, its learning rate a number; clipping of its own is kept.
        hyperparams: names and defaults are those of `host_ppo.DEFAULTS`; a missing learning_rate is the optimizer's.
        reward_normalizer: sees every window's rewards, then scales them. Optional.
        obs_normalizer: brings observations to mean 0, variance 1. Optional.
        seed: of sampling, shuffling and perturbing.
        device: has no effect: the models are where TensorFlow made them.

    Networks run in inference mode also while learning (no dropout, batch statistics fixed), so that the policy that is
    improved is the one that acted.

    Raises:
        ImportError: TensorFlow is missing; the message has the command.
        TypeError, ValueError: an argument does not fit; the message says which and how to mend it.
    """

    def __init__(
        self,
        actor: Any,
        critic: Any,
        optimizer: Any,
        hyperparams: HyperparamSet,
        reward_normalizer: RewardNormalizer | None = None,
        *,
        obs_normalizer: ObsNormalizer | None = None,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self._categorical = Categorical()
        super().__init__(
            actor, critic, optimizer, hyperparams, self._categorical, reward_normalizer, obs_normalizer, seed
        )

    def action_probs(self, observation: Any) -> np.ndarray:
        """float32 [A] for one observation."""
        return self._categorical.probabilities(self._outputs(np.asarray(observation)[None]))[0]
