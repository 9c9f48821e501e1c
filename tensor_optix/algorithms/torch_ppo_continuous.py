"""PPO for continuous actions over PyTorch networks of the user's own."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from tensor_optix.algorithms._torch_actor_critic import ActorCriticAgent, networks_of
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import HyperparamSet

if TYPE_CHECKING:
    import torch


class TorchGaussianPPOAgent(ActorCriticAgent):
    """Clipped PPO (Schulman et al. 2017) with generalised advantages, independent normal actions.

    The distribution lives in unit range, -1..1; `set_action_bounds` says what that is in the environment. Actions are
    not clipped here: pipelines record them as they are and clip what the environment gets. Recorded `log_probs` of
    other policies are densities in unit range.

    Args:
        actor: [N, *obs] -> [mean || log_std], [N, 2 * action_dim]; log_std is clipped to -5..2.
        critic: [N, *obs] -> values [N, 1] or [N].
        optimizer: over the parameters of both.
        action_dim: numbers of an action.
        hyperparams: names and defaults are those of `host_ppo.DEFAULTS`; a missing learning_rate is the optimizer's.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...
        reward_normalizer: sees every window's rewards, then scales them. Optional.
        obs_normalizer: brings observations to mean 0, variance 1. Optional.
        squash: actions are tanh of the normal ones, so within the bounds; the entropy is that before tanh.
        seed: of sampling, shuffling and perturbing.
        n_threads: of the CPU, while the networks run; by default 1 below a million parameters.

    Raises:
        ImportError: PyTorch is missing; the message has the command.
        TypeError, ValueError: an argument does not fit; the message says which and how to mend it.
    """

    continuous = True  # its entropy is differential: no floor in nats applies

    def __init__(
        self,
        actor: torch.nn.Module,
        critic: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        action_dim: int,
        hyperparams: HyperparamSet,
        device: Any = "auto",
        reward_normalizer: RewardNormalizer | None = None,
        *,
        obs_normalizer: ObsNormalizer | None = None,
        squash: bool = False,
        seed: int = 0,
        n_threads: int | None = None,
    ) -> None:
        networks = networks_of(type(self).__name__, actor, critic, optimizer, device, n_threads)
        from tensor_optix.algorithms._torch_update import Gaussian

        if operator.index(action_dim) < 1:
            raise ValueError(f"action_dim must be at least 1, got {action_dim}")
        distribution = Gaussian(operator.index(action_dim), bool(squash))
        self._bounds = distribution.bounds
        super().__init__(
            networks, distribution, hyperparams, reward_normalizer, obs_normalizer, seed, action_bounds=self._bounds
        )

    def set_action_bounds(self, low: Any, high: Any) -> None:
        """Arrays [D]: unit range becomes low..high; a dimension with an infinite bound stays unscaled.

        ValueError for other shapes, or a low that is not below its high.
        """
        self._bounds.set(low, high)
