"""Asking an agent for the actions of several environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensor_optix.pipeline.conversion import act_batch_function, act_function, as_action

# (observations of all environments, the environments that will step) -> (what is recorded, what is sent) for each
Choose = Callable[[Sequence[np.ndarray], Sequence[int]], list[tuple[Any, Any]]]


def choose_alone(agent: Any, deterministic: bool, space: Any, obs: Sequence[np.ndarray], live: Sequence[int]) -> list:
    """The pairs of `Choose`, from the agent's method for one observation."""
    act = act_function(agent, deterministic)
    return [as_action(act(obs[i]), space) for i in live]


def choose(agent: Any, deterministic: bool, space: Any, obs: Sequence[np.ndarray], live: Sequence[int]) -> list:
    """The pairs of `Choose`; an agent's method for many observations is given all [N, ...], so shapes stay constant."""
    batch = act_batch_function(agent, deterministic)
    if batch is None:
        return choose_alone(agent, deterministic, space, obs, live)
    actions = batch(np.stack(obs))
    if hasattr(actions, "__array__"):
        actions = np.asarray(actions)
        if actions.ndim == 1 and actions.dtype.kind in "iu":
            actions = actions.tolist()  # Python's own numbers are the fast ones one by one
    if len(actions) != len(obs):
        raise ValueError(f"act_batch gave {len(actions)} actions for {len(obs)} environments")
    return [as_action(actions[i], space) for i in live]
