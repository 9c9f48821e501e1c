"""PPO for discrete actions over PyTorch networks of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.algorithms._torch_actor_critic import ActorCriticAgent, networks_of
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import HyperparamSet

if TYPE_CHECKING:
    import torch


class TorchPPOAgent(ActorCriticAgent):
    """Clipped PPO (Schulman et al. 2017) with generalised advantages, discrete actions.

    Args:
        actor: [N, *obs] -> logits [N, A].
        critic: [N, *obs] -> values [N, 1] or [N].
        optimizer: over the parameters of both.
        hyperparams: names and defaults are those of `host_ppo.DEFAULTS`; a missing learning_rate is the optimizer's.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...
        reward_normalizer: sees every window's rewards, then scales them. Optional.
        obs_normalizer: brings observations to mean 0, variance 1. Optional.
        seed: of sampling, shuffling and perturbing.
        n_threads: of the CPU, while the networks run; by default 1 below a million parameters.

    Raises:
        ImportError: PyTorch is missing; the message has the command.
        TypeError, ValueError: an argument does not fit; the message says which and how to mend it.
    """

    def __init__(
        self,
        actor: torch.nn.Module,
        critic: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        hyperparams: HyperparamSet,
        device: Any = "auto",
        reward_normalizer: RewardNormalizer | None = None,
        *,
        obs_normalizer: ObsNormalizer | None = None,
        seed: int = 0,
        n_threads: int | None = None,
    ) -> None:
        networks = networks_of(type(self).__name__, actor, critic, optimizer, device, n_threads)
        from tensor_optix.algorithms._torch_update import Categorical

        self._categorical = Categorical()
        super().__init__(networks, self._categorical, hyperparams, reward_normalizer, obs_normalizer, seed)

    def action_probs(self, observation: Any) -> np.ndarray:
        """float32 [A] for one observation."""
        return self._categorical.probabilities(self._outputs(np.asarray(observation)[None]))[0]
