"""Rainbow in JAX as a host agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tensor_optix.algorithms import host_off_policy
from tensor_optix.algorithms.flax_dqn import FlaxValueBased
from tensor_optix.algorithms.flax_off_policy import Layout
from tensor_optix.algorithms.flax_ppo import Spaces, shape_of, whole
from tensor_optix.algorithms.host_off_policy import Table
from tensor_optix.algorithms.rainbow import Rainbow, RainbowAgent, RainbowConfig
from tensor_optix.core.types import HyperparamSet

_OWN = ("learning_rate", "gamma", "tau", "v_min", "v_max", "max_grad_norm", "adam_eps")


@dataclass(frozen=True)
class _RainbowTable(Table):
    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        result = super().complete(params)
        if not result["v_min"] < result["v_max"]:
            raise ValueError(f"v_min must be below v_max, got {result['v_min']:g} and {result['v_max']:g}")
        return result


class FlaxRainbowAgent(FlaxValueBased):
    """Rainbow with a choice among `n_actions`: noisy, dueling, distributional, double, n-step and prioritised.

    It explores by the noise of its layers; `act_deterministic` takes their mean weights.

    Args:
        hyperparams: any of `FlaxRainbowAgent.table.defaults`; returns below "v_min" or above "v_max" are taken for
            these, so they must suit the rewards. Other names are kept.
        hidden_size: width of two hidden layers; `hidden_sizes` says each, at least two.
        n_atoms: of a distribution of returns.
        v_min, v_max: the hyperparameters, in place of those in `hyperparams`.

    The other arguments are those of `FlaxDQNAgent`, and so is `learn`, but for epsilon; td_error_mean is a mean of
    divergences in nats.
    """

    table = _RainbowTable(
        {
            **host_off_policy.DEFAULTS,
            **{name: Rainbow.defaults[name] for name in _OWN},
            "batch_size": 32,
            "updates_per_step": 0.25,
            "n_step": 3,
            "per_alpha": 0.5,
            "target_update_freq": 1000,
        },
        {**host_off_policy.LIMITS, **Rainbow.limits},
    )
    statics: ClassVar = {"batch_size": "batch_size", "target_update_freq": "target_period"}
    default_min_episodes_before_dormant = 60

    def __init__(
        self,
        obs_dim: int | tuple[int, ...],
        n_actions: int,
        hyperparams: HyperparamSet,
        hidden_size: int = 128,
        seed: int = 0,
        *,
        n_atoms: int = 51,
        v_min: float | None = None,
        v_max: float | None = None,
        hidden_sizes: tuple[int, ...] | None = None,
        activation: str = "relu",
    ) -> None:
        spaces = Spaces(shape_of(obs_dim), "discrete", n_actions=whole("n_actions", n_actions))
        sizes = (hidden_size, hidden_size) if hidden_sizes is None else tuple(hidden_sizes)
        given = {name: value for name, value in (("v_min", v_min), ("v_max", v_max)) if value is not None}
        hyperparams = HyperparamSet({**hyperparams.params, **given}, hyperparams.episode_id, hyperparams.timestamp)
        settings = {"hidden_sizes": sizes, "activation": activation, "n_atoms": whole("n_atoms", n_atoms)}
        super().__init__(spaces, hyperparams, settings, {}, seed, {})

    @staticmethod
    def _algorithm(spaces: Any, settings: Mapping[str, Any], networks: Mapping[str, Any]) -> Rainbow:
        return Rainbow(spaces, RainbowConfig(prioritized=False, replay_size=1 << 30, **settings))

    @staticmethod
    def _layout(algorithm: Rainbow) -> tuple[Any, Layout]:
        return RainbowAgent, Layout({"online": algorithm._unravel}, {"target": "online"})

    def action_probs(self, observation: Any) -> np.ndarray:
        """float32 [n_actions] for one observation: 1 for the action of the highest value by mean weights."""
        probs = np.zeros(self._spaces.n_actions, np.float32)
        probs[self.act_deterministic(observation)] = 1.0
        return probs
