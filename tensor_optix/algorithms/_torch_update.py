"""The PyTorch side of PPO: action distributions and the clipped update.

A distribution has two sides. In NumPy (`host_actions`) it turns an actor's output into actions, at every step of an
environment; in PyTorch it gives log-probabilities and entropies with gradients, of what `targets` made of the recorded
actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tensor_optix.algorithms import host_actions
from tensor_optix.algorithms._torch_networks import Networks

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class Distribution(Protocol):
    """What acting and learning ask of a kind of action. N observations, A outputs of the actor."""

    output_name: str

    def sample(self, outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[N, A] -> N actions; never fails, whatever the numbers."""

    def mode(self, outputs: np.ndarray) -> np.ndarray:
        """[N, A] -> the N most likely actions."""

    def targets(self, actions: Any, n_outputs: int) -> np.ndarray:
        """N recorded actions -> what `log_prob_and_entropy` takes."""

    def log_prob_and_entropy(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """[N] each."""

    def exported(self, outputs: Tensor) -> Tensor:
        """What an ONNX file gives of the actor's output."""


class Categorical(host_actions.Categorical):
    """Actions 0..A-1 with probabilities softmax(logits)."""

    output_name = "logits"

    def log_prob_and_entropy(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = functional.log_softmax(outputs, dim=-1)
        chosen = log_probs.gather(1, targets[:, None].long())[:, 0]
        # An action that is ruled out (logit -inf) adds 0 to the entropy, not 0 * -inf.
        return chosen, -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)

    def exported(self, outputs: Tensor) -> Tensor:
        return outputs


class Gaussian(host_actions.Gaussian):
    """Independent normal distributions in unit range; the actor gives [mean || log_std].

    With `squash`, u = tanh(z) of a normal z: log p(u) = log p(z) - sum 2 (log 2 - z - softplus(-2 z)), and the entropy
    is that of z. Log-probabilities are densities in unit range.
    """

    output_name = "mean"

    def log_prob_and_entropy(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = outputs.split(self.width(outputs), dim=-1)
        log_std = log_std.clamp(*host_actions.LOG_STD_RANGE)
        log_prob = -0.5 * ((targets - mean) * torch.exp(-log_std)).square() - log_std - _HALF_LOG_2PI
        if self.squash:
            log_prob = log_prob - 2.0 * (math.log(2.0) - targets - functional.softplus(-2.0 * targets))
        return log_prob.sum(-1), (log_std + (0.5 + _HALF_LOG_2PI)).sum(-1)

    def exported(self, outputs: Tensor) -> Tensor:
        mean = outputs[:, : self.width(outputs)]
        return torch.tanh(mean) if self.squash else mean


@dataclass(frozen=True)
class Batch:
    """Rows to learn from, on the device, B of them."""

    observations: Tensor  # [B, ...]
    targets: Tensor  # [B] int64, or [B, D] float32; of the recorded actions
    log_probs: Tensor  # [B] of the behaviour policy
    advantages: Tensor  # [B], not normalised
    returns: Tensor  # [B], targets of the value

    @cached_property
    def normalized_advantages(self) -> Tensor:
        """[B], over these rows."""
        return normalized(self.advantages)

    def take(self, index: np.ndarray) -> Batch:
        """Some rows; all of them as they lie, since their order has no meaning."""
        if len(index) == len(self.returns):
            return self
        rows = torch.from_numpy(index).to(self.returns.device)
        columns = (self.observations, self.targets, self.log_probs, self.advantages, self.returns)
        return Batch(*(column[rows] for column in columns))


def update(
    networks: Networks, distribution: Distribution, batch: Batch, params: Mapping[str, Any], order: Iterable[np.ndarray]
) -> dict[str, float]:
    """A step of the optimizer for each of `order`'s index arrays; means of the losses over all of them.

    Clipped surrogate + value + entropy, equation 9 of Schulman et al. 2017; approx_kl is Schulman's k3 estimator.
    """
    seen = []
    for index in order:
        outputs, gradients, terms = ppo_gradients(networks.modules, distribution, batch.take(index), params)
        networks.descend(outputs, gradients, params["max_grad_norm"])
        seen.append(terms)
    means = torch.stack(seen).mean(dim=0).tolist()
    named = dict(zip(("policy_loss", "value_loss", "entropy", "approx_kl"), means, strict=True))
    return {**named, "n_updates": float(len(seen))}


def ppo_gradients(
    modules: Mapping[str, nn.Module], distribution: Distribution, rows: Batch, params: Mapping[str, Any]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Log-probabilities, values and entropies of B rows, the loss's gradients by them, and [4] parts of the loss.

    The parts are policy loss, value loss, entropy and approximate KL. What lies above the networks' outputs is
    differentiated by hand: autograd's bookkeeping for it costs a sixth of an update of small networks.
    """
    log_prob, entropies = distribution.log_prob_and_entropy(modules["actor"](rows.observations), rows.targets)
    values = modules["critic"](rows.observations).reshape(-1)
    clip, share = params["clip_ratio"], 1.0 / len(values)
    with torch.no_grad():
        log_ratio = log_prob - rows.log_probs
        ratio = log_ratio.exp()
        gain = ratio * rows.normalized_advantages
        clipped = ratio.clamp(1.0 - clip, 1.0 + clip) * rows.normalized_advantages
        error = values - rows.returns
        parts = [-torch.minimum(gain, clipped), 0.5 * error.square(), entropies, ratio - 1.0 - log_ratio]
        terms = torch.stack(parts).mean(dim=1)
        # The ratio's derivative by its logarithm is itself; where the clipped side is the smaller one, it is constant.
        by_log_prob = torch.where(gain <= clipped, gain, 0.0) * -share
        pairs = [(log_prob, by_log_prob), (values, error * (params["vf_coef"] * share))]
        if params["entropy_coef"]:
            pairs.append((entropies, torch.full_like(entropies, -params["entropy_coef"] * share)))
    pairs = [pair for pair in pairs if pair[0].requires_grad]  # a frozen network has none
    return [output for output, _ in pairs], [gradient for _, gradient in pairs], terms


def normalized(x: Tensor) -> Tensor:
    """Mean 0, standard deviation 1; a single number stays as it is."""
    return (x - x.mean()) / (x.std(correction=0) + 1e-8) if len(x) > 1 else x


class Exported(nn.Module):
    """Observation as the environment gives it -> what the distribution exports, for an ONNX file."""

    mean: Tensor
    scale: Tensor

    def __init__(self, actor: nn.Module, distribution: Distribution, normalizer: Any) -> None:
        super().__init__()
        self.actor, self._distribution, self._clip = actor, distribution, None
        if normalizer is not None:
            self._clip = normalizer.clip
            mean, scale = normalizer.rms.mean, 1.0 / np.sqrt(normalizer.rms.var + 1e-8)
            device = next(iter(actor.parameters())).device
            self.register_buffer("mean", _float32(mean, device))
            self.register_buffer("scale", _float32(scale, device))

    def forward(self, observation: Tensor) -> Tensor:
        if self._clip is not None:
            observation = ((observation - self.mean) * self.scale).clamp(-self._clip, self._clip)
        return self._distribution.exported(self.actor(observation))


def _float32(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32, device=device)
