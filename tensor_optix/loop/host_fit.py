"""Whether an agent fits what its pipelines show and take: said in a sentence before anything is learned.

Agents of this library say what they act on, or one look at what they do says it. Classes of the user's own, also those
that build on one of this library, are left alone: they may see and act in a way of theirs.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_OURS = ("tensor_optix.algorithms.", "tensor_optix.adapters.")
_ACTING = ("act", "act_batch", "act_deterministic", "act_batch_deterministic", "act_recurrent")
_LONGEST = 200  # characters of another library's error
_MEND = "make_agent(env) makes an agent that fits"


class ActsOn(NamedTuple):
    """What an agent is made for."""

    discrete: bool
    width: int | None  # number of choices, or of an action's dimensions; None: its networks say
    obs_shape: tuple[int, ...] | None  # None: its networks say


def check_fit(agent: Any, *pipelines: Any) -> None:
    """ValueError, one sentence, unless `agent` fits the spaces of all pipelines that tell theirs (`spaces`)."""
    known = acts_on(agent)
    if known is None:
        return
    for pipeline in pipelines:
        spaces = getattr(pipeline, "spaces", None)
        observation, action = spaces if isinstance(spaces, tuple) and len(spaces) == 2 else (None, None)
        shape = getattr(observation, "shape", None)
        if action is not None:
            _check_kind(agent, known, action)
        if shape is not None and known.obs_shape is not None and tuple(shape) != tuple(known.obs_shape):
            raise ValueError(
                f"{_name(agent)} takes observations of shape {list(known.obs_shape)}, and the environment shows "
                f"{list(shape)}, {observation}: make the agent with obs_dim={_plain(shape)}; {_MEND}"
            )
        width = known.width
        if width is None:
            seen = _an_observation(observation)
            width = None if seen is None else _width_of_networks(agent, known, seen)
        if action is not None and width is not None:
            _check_width(agent, known.discrete, width, action)


def acts_on(agent: Any) -> ActsOn | None:
    """None for an agent that does not say, or that is not this library's as it comes."""
    if not type(agent).__module__.startswith(_OURS):
        return None
    methods = [getattr(agent, name) for name in _ACTING if hasattr(agent, name)]
    if not all(str(getattr(method, "__module__", "")).startswith(_OURS) for method in methods):
        return None
    spaces = getattr(agent, "_spaces", None)  # of agents in JAX, whose networks are made for them
    if spaces is not None:
        obs_shape = (agent.obs_dim,) if hasattr(agent, "obs_dim") else spaces.obs_shape
        return ActsOn(spaces.action_kind == "discrete", spaces.n_actions or spaces.action_dim, obs_shape)
    if hasattr(agent, "action_probs"):
        return ActsOn(True, None, None)
    return ActsOn(False, None, None) if getattr(agent, "continuous", False) else None


def _check_kind(agent: Any, known: ActsOn, action: Any) -> None:
    name = _name(agent)
    if known.discrete and not _is_discrete(action) and not _is_one_whole_number(action):
        has = "continuous ones" if _is_box(action) else "others"
        raise ValueError(
            f"{name} needs discrete actions, and the environment has {has}, {action}: take an agent for these; {_MEND}"
        )
    if not known.discrete and not _is_box(action):
        has = "discrete ones" if _is_discrete(action) else "others"
        raise ValueError(
            f"{name} needs continuous actions, and the environment has {has}, {action}: take an agent for these; "
            f"{_MEND}"
        )
    if known.discrete and int(getattr(action, "start", 0)) != 0:
        raise ValueError(
            f"{name} counts its actions from 0, and the environment from {int(action.start)}, {action}: put "
            "gymnasium.wrappers.TransformAction around it"
        )


def _check_width(agent: Any, discrete: bool, width: int, action: Any) -> None:
    name, from_networks = _name(agent), getattr(agent, "_spaces", None) is None
    if discrete and _is_discrete(action) and width != int(action.n):
        mend = f"give its network {action.n} outputs" if from_networks else f"make it with n_actions={action.n}"
        raise ValueError(
            f"{name} chooses among {width} actions, and the environment has {action.n}, {action}: {mend}; {_MEND}"
        )
    if not discrete and _is_box(action) and width != (size := int(np.prod(action.shape))):
        raise ValueError(
            f"the actions of {name} have {width} dimensions, and the environment takes {size}, {action}: make the "
            f"agent with {'n_actions' if hasattr(agent, 'n_actions') else 'action_dim'}={size}; {_MEND}"
        )


def _width_of_networks(agent: Any, known: ActsOn, observation: np.ndarray) -> int:
    """From one forward of its own; no random number is drawn."""
    look: Callable[[Any], Any] = agent.action_probs if known.discrete else agent.act_deterministic
    try:
        return int(np.size(look(observation)))
    except Exception as error:
        if isinstance(error, ValueError) and _is_ours(error):
            raise
        raise ValueError(
            f"the network of {_name(agent)} does not take what the environment shows, observations of shape "
            f"{list(observation.shape)} ({_one_line(error)}): make its first layer for that shape; {_MEND}"
        ) from error


def _an_observation(space: Any) -> np.ndarray | None:
    """One that the space contains; None where that is not known."""
    shape = getattr(space, "shape", None)
    if shape is None:
        return None
    start = np.clip(0.0, space.low, space.high) if _is_box(space) else getattr(space, "start", 0)
    return np.broadcast_to(np.asarray(start), shape).astype(space.dtype)


def _is_discrete(space: Any) -> bool:
    return hasattr(space, "n") and getattr(space, "shape", None) == ()


def _is_box(space: Any) -> bool:
    return hasattr(space, "low") and hasattr(space, "high")


def _is_one_whole_number(space: Any) -> bool:
    """A Box of one whole number takes a choice, too."""
    return _is_box(space) and int(np.prod(space.shape)) == 1 and np.issubdtype(space.dtype, np.integer)


def _is_ours(error: Exception) -> bool:
    """Raised by this library, whose sentences say what to do."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("tensor_optix.")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]


def _name(agent: Any) -> str:
    return type(agent).__name__


def _plain(shape: tuple[int, ...]) -> Any:
    """As an agent takes it: an int for a vector."""
    return int(shape[0]) if len(shape) == 1 else tuple(shape)
