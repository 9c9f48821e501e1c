"""REINFORCE over any PyTorch policy network, or any loss of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms._torch_agent import ModuleAgent, require_torch
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.core.window_returns import discounted_returns

if TYPE_CHECKING:
    import torch

_KNOWN = ("learning_rate", "gamma", "max_grad_norm")
_NO_CLIP = float("inf")
_NO_BASELINE = {"baseline_type": "none", "explained_variance": 0.0}


class TorchAgent(ModuleAgent):
    """A policy network over discrete actions, trained by REINFORCE (Williams 1992), one step of the optimizer a window.

    The weight of a row is its discounted return to go, which stops at the ends of episodes and segments, less
    `data.values` where they are given; weights are normalised over the window.

    Args:
        model: [N, *obs] -> logits [N, A].
        optimizer: over its parameters.
        hyperparams: learning_rate (default: the optimizer's), gamma (0.99), max_grad_norm (none); others are kept.
        compute_loss_fn: (model, EpisodeData) -> scalar tensor, a loss of the caller's own; the model is in training
            mode for it. Otherwise it is always in evaluation mode, so that acting and learning are the same forward.
        device: "auto" (a GPU if there is one), "cpu", "cuda", ...
        seed: of sampling and perturbing.

    Raises:
        ImportError: PyTorch is missing; the message has the command.
        TypeError, ValueError: an argument does not fit; the message says which and how to mend it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        hyperparams: HyperparamSet,
        compute_loss_fn: Callable[[Any, EpisodeData], Any] | None = None,
        device: Any = "auto",
        *,
        seed: int = 0,
    ) -> None:
        require_torch(type(self).__name__)
        from tensor_optix.algorithms._torch_networks import Networks
        from tensor_optix.algorithms._torch_update import Categorical

        super().__init__(Networks({"model": model}, optimizer, device, None), hyperparams, _complete, {}, seed)
        self._model, self._compute_loss_fn, self._categorical = model, compute_loss_fn, Categorical()

    def act(self, observation: Any) -> int:
        """One observation -> one action, sampled."""
        return int(self.act_batch(np.asarray(observation)[None])[0])

    def act_batch(self, observations: Any) -> np.ndarray:
        """[N, ...] -> int64 [N], sampled."""
        return self._categorical.sample(self._logits(observations), self._generators["act"])

    def act_deterministic(self, observation: Any) -> int:
        """One observation -> the most likely action."""
        return int(self.act_batch_deterministic(np.asarray(observation)[None])[0])

    def act_batch_deterministic(self, observations: Any) -> np.ndarray:
        """[N, ...] -> the most likely actions; draws no random numbers."""
        return self._categorical.mode(self._logits(observations))

    def action_probs(self, observation: Any) -> np.ndarray:
        """float32 [A] for one observation."""
        return self._categorical.probabilities(self._logits(np.asarray(observation)[None]))[0]

    def _logits(self, observations: Any) -> np.ndarray:
        batch = np.asarray(observations, np.float32)
        with self._networks.threads():
            logits = self._networks.forward("model", batch)
        if logits.ndim != 2 or len(logits) != len(batch):
            raise ValueError(
                f"the model must give a row of logits for each of {len(batch)} observations, "
                f"got an output of shape {list(logits.shape)}"
            )
        return logits

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        """One step on a window: loss, grad_norm (before clipping), baseline_type ("none" or "value"),
        explained_variance (of the returns by `data.values`, 0 without). {} for a window of no rows.
        """
        if not len(episode_data.rewards):
            return {}
        with self._networks.threads():
            if self._compute_loss_fn is None:
                loss, facts = self._reinforce(episode_data)
            else:
                self._model.train()
                loss, facts = self._compute_loss_fn(self._model, episode_data), _NO_BASELINE
            try:
                limit = self._hyperparams.params.get("max_grad_norm", _NO_CLIP)
                norm = self._networks.descend([_scalar(loss)], [None], limit)
            finally:
                self._model.eval()
        return {"loss": float(loss.detach()), "grad_norm": float(norm), **facts}

    def _reinforce(self, data: EpisodeData) -> tuple[Any, dict[str, Any]]:
        from tensor_optix.algorithms._torch_update import normalized

        tensor = self._networks.tensor
        returns, facts = discounted_returns(data, self._hyperparams.params["gamma"]), _NO_BASELINE
        weights = returns
        if data.values is not None:
            values = np.asarray(data.values, np.float64).reshape(-1)
            if len(values) != len(returns):
                raise ValueError(f"values must be one number for each of {len(returns)} rows, got {len(values)}")
            weights = returns - values
            explained = host_ppo.explained_variance(values, returns)
            facts = {"baseline_type": "value", "explained_variance": explained}
        logits = self._model(tensor(np.asarray(data.observations, np.float32)))
        targets = tensor(self._categorical.targets(data.actions, logits.shape[-1]))
        log_probs, _ = self._categorical.log_prob_and_entropy(logits, targets)
        return -(log_probs * normalized(tensor(weights.astype(np.float32)))).mean(), facts


def _complete(params: Mapping[str, Any]) -> dict[str, Any]:
    """gamma's default; what PPO knows too has its limits."""
    result = {"gamma": 0.99, **params}
    known: dict[str, Any] = {name: result[name] for name in _KNOWN if name in result}
    checked = host_ppo.complete(known)
    return {**result, **{name: checked[name] for name in known}}


def _scalar(loss: Any) -> Any:
    if getattr(loss, "shape", None) != () or not getattr(loss, "requires_grad", False):
        raise TypeError(f"compute_loss_fn must give a scalar tensor with gradients, got {loss!r}")
    return loss
