"""REINFORCE over any Keras policy network, or any loss of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms._tf_agent import TFNetworkAgent
from tensor_optix.algorithms.host_actions import Categorical
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.core.window_returns import discounted_returns

_KNOWN = ("learning_rate", "gamma", "max_grad_norm")


class TFAgent(TFNetworkAgent):
    """A policy network over discrete actions, trained by REINFORCE (Williams 1992), one step of the optimizer a window.

    The weight of a row is its discounted return to go, which stops at the ends of episodes and segments, less
    `data.values` where they are given; weights are normalised over the window.

    Args:
        model: tf.keras.Model, [N, *obs] -> logits [N, A].
        optimizer: tf.keras optimizer, its learning rate a number.
        hyperparams: learning_rate (default: the optimizer's), gamma (0.99), max_grad_norm (none); others are kept.
        compute_loss_fn: (model, EpisodeData) -> scalar tensor, a loss of the caller's own; run eagerly. Where there is
            none the model is always in inference mode, so that acting and learning are the same forward.
        seed: of sampling and perturbing.
        device: has no effect: the model is where TensorFlow made it.

    Raises:
        ImportError: TensorFlow is missing; the message has the command.
        TypeError, ValueError: an argument does not fit; the message says which and how to mend it.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        hyperparams: HyperparamSet,
        compute_loss_fn: Callable[[Any, EpisodeData], Any] | None = None,
        *,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        super().__init__({"model": model}, optimizer, hyperparams, _complete, {}, seed)
        self._compute_loss_fn, self._categorical = compute_loss_fn, Categorical()

    @property
    def _model(self) -> Any:
        return self._networks["model"]

    def _compile(self, obs_shape: tuple[int, ...]) -> Any:
        from tensor_optix.algorithms._tf_update import ReinforceGraph

        return ReinforceGraph(self._model, self._optimizer, self._variables, obs_shape)

    def act(self, observation: Any) -> int:
        """One observation -> one action, sampled."""
        return int(self.act_batch(np.asarray(observation)[None])[0])

    def act_batch(self, observations: Any) -> np.ndarray:
        """[N, ...] -> int64 [N], sampled."""
        return self._categorical.sample(self._logits(observations), self._generators["acting"])

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
        inputs = self._inputs(observations)
        return self._graph(inputs).model(inputs)

    def learn(self, episode_data: EpisodeData) -> dict[str, Any]:
        """One step on a window: loss, grad_norm (before clipping), baseline_type ("none" or "value"),
        explained_variance (of the returns by `data.values`, 0 without). {} for a window of no rows.
        """
        if not len(episode_data.rewards):
            return {}
        max_norm = np.float32(self._hyperparams.params.get("max_grad_norm", math.inf))
        facts: dict[str, Any] = {"baseline_type": "none", "explained_variance": 0.0}
        if self._compute_loss_fn is None:
            loss, norm = self._reinforce(episode_data, max_norm, facts)
        else:
            from tensor_optix.algorithms._tf_update import descend, gradients_of

            loss, gradients = gradients_of(self._compute_loss_fn, self._model, episode_data, self._variables)
            norm = descend(self._optimizer, self._variables, gradients, max_norm)
        return {"loss": float(loss), "grad_norm": float(norm), **facts}

    def _reinforce(self, data: EpisodeData, max_norm: np.float32, facts: dict[str, Any]) -> tuple[Any, Any]:
        """Loss and gradient norm; says in `facts` what the baseline was."""
        weights = returns = discounted_returns(data, self._hyperparams.params["gamma"])
        if data.values is not None:
            values = np.asarray(data.values, np.float64).reshape(-1)
            if len(values) != len(returns):
                raise ValueError(f"values must be one number for each of {len(returns)} rows, got {len(values)}")
            weights = returns - values
            facts |= {"baseline_type": "value", "explained_variance": host_ppo.explained_variance(values, returns)}
        inputs = self._inputs(data.observations)
        graph = self._graph(inputs)
        targets = self._categorical.targets(data.actions, graph.model.n_outputs)
        return graph.update(inputs, targets, weights.astype(np.float32), max_norm)


def _complete(params: Mapping[str, Any]) -> dict[str, Any]:
    """gamma's default; what PPO knows too has its limits."""
    result = {"gamma": 0.99, **params}
    known: dict[str, Any] = {name: result[name] for name in _KNOWN if name in result}
    checked = host_ppo.complete(known)
    return {**result, **{name: checked[name] for name in known}}
