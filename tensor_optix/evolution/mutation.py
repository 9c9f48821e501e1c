"""Other hyperparameters for a variant of an agent, each within the range that the agent names for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from tensor_optix.core.search_space import Parameter, SearchSpace
from tensor_optix.evolution.decisions import spawn, spawn_free


def mutated(key: jax.Array, agent: Any, params: Mapping[str, Any], noise: float) -> dict[str, Any]:
    """`params` with normal noise of standard deviation `noise`; what is not a number stays as it is, flags too.

    A name in the agent's `default_param_bounds` moves by a share of that range (of its logarithm, for
    `default_log_params`), and stays inside; whole numbers stay whole. A value that already lies outside was somebody's
    choice: the range is widened to hold it. Another fractional number is multiplied within the agent's
    `hyperparam_limits` (a mapping, or a method that gives one) if that names it. An agent that has neither attribute
    says nothing of its hyperparameters: all its fractional numbers are multiplied; those between 0 and 1 stay there.

    Args:
        key: consumed.
        agent: whose hyperparameters they are.
        params: by name.
        noise: at least 0 and finite (ValueError).
    """
    if not 0.0 <= noise < math.inf:
        raise ValueError(f"noise is a standard deviation: got {noise!r}, expected at least 0 and finite")
    key_bounded, key_free = jax.random.split(key)
    space = space_of(agent, params)
    result = dict(params)
    if space.dim:
        values = {name: np.float32(params[name]) for name in space.names}
        moved = _spawn(space, key_bounded, values, np.float32(noise))
        for name, parameter in space.entries:
            value = min(max(_decimal(moved[name]), parameter.low), parameter.high)
            result[name] = round(value) if parameter.integer else value
    free = _free(agent, params, space)
    if free:
        low, high = (np.array([bounds[i] for bounds in free.values()], np.float32) for i in (0, 1))
        present = np.array([params[name] for name in free], np.float32)
        for name, value in zip(free, _spawn_free(key_free, present, np.float32(noise), low, high), strict=True):
            result[name] = min(max(_decimal(value), free[name][0]), free[name][1])
    return result


def space_of(agent: Any, params: Mapping[str, Any]) -> SearchSpace:
    """The ranges that the agent's class names, of those of `params` that are numbers, widened to hold them."""
    log = frozenset(getattr(agent, "default_log_params", None) or ())
    entries = []
    for name, (low, high) in sorted((getattr(agent, "default_param_bounds", None) or {}).items()):
        value: Any = params.get(name)
        if not _is_number(value) or (name in log and value <= 0):
            continue
        low, high = min(float(low), float(value)), max(float(high), float(value))
        whole = isinstance(value, int | np.integer) and low.is_integer() and high.is_integer()
        if low < high:
            entries.append((name, Parameter(low, high, log=name in log, integer=whole)))
    return SearchSpace(tuple(entries))


def _free(agent: Any, params: Mapping[str, Any], space: SearchSpace) -> dict[str, tuple[float, float]]:
    """Fractional numbers outside `space` that may be multiplied, and where they must stay."""
    fractional = {
        name: float(value)
        for name, value in params.items()
        if _is_number(value) and isinstance(value, float | np.floating) and name not in space.names
    }
    if not (hasattr(agent, "default_param_bounds") or hasattr(agent, "hyperparam_limits")):
        return dict.fromkeys(fractional, (-math.inf, math.inf))
    limits = getattr(agent, "hyperparam_limits", None) or {}
    limits = limits() if callable(limits) else limits
    return {
        name: (min(limits[name][0], v), max(limits[name][1], v)) for name, v in fractional.items() if name in limits
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def _decimal(value: Any) -> float:
    """The shortest decimal that reads back as the same float32."""
    return float(str(np.float32(value)))


_spawn = partial(jax.jit, static_argnums=0)(lambda space, key, params, noise: spawn(key, space, params, noise))
_spawn_free = jax.jit(spawn_free)
