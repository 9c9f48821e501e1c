"""Between agent and environment: observations to arrays, actions to what a space takes.

Spaces are told apart by their attributes, so nothing here imports Gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def check_observation_space(space: Any) -> None:
    """TypeError for a space whose observations are not one array (Dict, Tuple, ...)."""
    if space is not None and getattr(space, "shape", None) is None:
        raise TypeError(
            f"observations of {type(space).__name__} spaces are not one array; "
            "wrap the environment in gymnasium.wrappers.FlattenObservation"
        )


def as_observation(obs: Any, space: Any) -> np.ndarray:
    """A copy with the space's dtype: environments may reuse the buffer they hand out."""
    return np.array(obs, dtype=getattr(space, "dtype", None))


def as_action(action: Any, space: Any) -> tuple[Any, Any]:
    """(what is recorded, what the environment gets).

    Discrete: an int. Box: an array of the space's dtype and shape, clipped to its bounds for the environment only.
    Other spaces get the agent's action as it is. ValueError if it does not fit the space's shape.
    """
    if _is_discrete(space):
        number = _as_int(action)
        return number, number
    if _is_box(space):
        values = np.asarray(action)
        if values.size != int(np.prod(space.shape)):
            raise ValueError(f"the action space has shape {space.shape}, but the agent's action has {values.shape}")
        values = values.reshape(space.shape)
        # Clipped before the cast: an integer space would wrap what lies outside.
        sent = np.asarray(np.clip(values, space.low, space.high)).astype(space.dtype)
        return values.astype(space.dtype), sent
    # An environment may write into the action that it is given.
    return (np.array(action) if isinstance(action, np.ndarray) else action), action


def check_action(space: Any, action: Any) -> None:
    """ValueError for an action, as it is sent, that the space does not contain, whatever its dtype.

    What is clipped (a Box) and what consists of others (Dict, Tuple) counts as contained.
    """
    composite = getattr(space, "shape", None) is None
    if composite or _is_box(space) or not hasattr(space, "contains") or space.contains(action):
        return
    values = np.asarray(action)
    if values.dtype.kind not in "biuf" or not space.contains(values.astype(space.dtype)):
        raise ValueError(
            f"the agent's first action is {action!r}, and the environment takes {space}: return one of those from act()"
        )


def tell_action_bounds(agent: Any, space: Any) -> None:
    """Let an agent that asks (`set_action_bounds`) know the bounds of a Box; those beyond 1e30 count as infinite."""
    if hasattr(agent, "set_action_bounds") and _is_box(space):
        low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
        agent.set_action_bounds(np.where(low <= -1e30, -np.inf, low), np.where(high >= 1e30, np.inf, high))


def act_function(agent: Any, deterministic: bool) -> Callable[[Any], Any]:
    """`agent.act`, or `agent.act_deterministic` where that is asked for and exists."""
    if deterministic and hasattr(agent, "act_deterministic"):
        return agent.act_deterministic
    return agent.act


def act_batch_function(agent: Any, deterministic: bool) -> Callable[[Any], Any] | None:
    """The agent's method for [N, ...] observations at once, or None if rows must be asked one by one."""
    if deterministic:
        if hasattr(agent, "act_batch_deterministic"):
            return agent.act_batch_deterministic
        if hasattr(agent, "act_deterministic"):
            return None
    return getattr(agent, "act_batch", None)


def _is_discrete(space: Any) -> bool:
    return hasattr(space, "n") and getattr(space, "shape", None) == ()


def _is_box(space: Any) -> bool:
    return hasattr(space, "low") and hasattr(space, "high") and getattr(space, "shape", None) is not None


def _as_int(action: Any) -> int:
    if isinstance(action, int):
        return int(action)
    values = np.asarray(action)
    if values.size != 1 or values.item() != int(values.item()):
        raise ValueError(f"the action space is Discrete, but the agent's action is {action!r}")
    return int(values.item())
