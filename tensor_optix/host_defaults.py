"""What a host run takes where the caller says nothing: the rule that stops it, and its tuner."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from tensor_optix.core.backoff_scheduler import BackoffConfig
from tensor_optix.core.backoff_shell import HOST_DEFAULT
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.loop.agent_numbers import numeric
from tensor_optix.optimizers.spsa import SPSAOptimizer

_log = logging.getLogger(__name__)


def rule_for(agent: BaseAgent | None, settings: Mapping[str, Any]) -> BackoffConfig:
    """The measured rule, with what the caller gives in place of its parts, and what the agent's class wants."""
    given = {name: value for name, value in settings.items() if value is not None}
    if agent is not None and "min_evaluations_before_dormant" not in given:
        given["min_evaluations_before_dormant"] = getattr(agent, "default_min_episodes_before_dormant", 0)
    if agent is not None and not agent.is_on_policy:
        given.setdefault("detect_degradation", False)  # a replay holds what other policies did
    return BackoffConfig(**{**vars(HOST_DEFAULT), **given})


def tuner_for(agent: BaseAgent) -> SPSAOptimizer:
    """SPSA within the bounds that the agent names, over those hyperparameters that it has.

    Of those the ones in `default_tuned`, where the agent's class says which. A value outside the bounds was somebody's
    choice: they are widened to hold it.
    """
    params = agent.get_hyperparams().params
    named = {k: v for k, v in (getattr(agent, "default_param_bounds", None) or {}).items() if k in params}
    tuned = getattr(agent, "default_tuned", named)
    named = {name: bounds for name, bounds in named.items() if name in tuned}
    log = {name for name in getattr(agent, "default_log_params", None) or () if name in named}
    bounds = {}
    for name, (low, high) in named.items():
        value = float(params[name])
        if name not in log or value > 0:
            bounds[name] = (min(low, value), max(high, value))
    return SPSAOptimizer(param_bounds=bounds, log_params=[name for name in log if name in bounds])


def default_tuner(agent: BaseAgent) -> BaseOptimizer | None:
    """The default one; None for an agent that does not say what may be tuned."""
    if getattr(agent, "default_param_bounds", None):
        return tuner_for(agent)
    first = next(iter(numeric(agent.get_hyperparams().params)), None)
    if first is not None:
        _log.warning(
            "%s names no default_param_bounds, so no hyperparameter is tuned; give the class some, "
            "default_param_bounds = {%r: (lowest, highest)}, or give optimizer=SPSAOptimizer({%r: (lowest, highest)})",
            type(agent).__name__,
            first,
            first,
        )
    return None
