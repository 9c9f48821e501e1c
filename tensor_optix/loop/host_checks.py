"""What the arguments of a host run must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.events import LoopCallback

# One of these makes an object a callback; `set_loop` is called before the run with what drives it.
_HOOKS = (*(name for name in vars(LoopCallback) if name.startswith("on_")), "set_loop")


def check_arguments(
    agent: Any,
    pipeline: Any,
    callbacks: Any,
    max_episodes: Any,
    score_smoothing: int,
    registry: CheckpointRegistry | None,
) -> None:
    """TypeError or ValueError unless a `LoopController` can begin with them."""
    check_agent(agent)
    if pipeline is None:
        raise TypeError("LoopController got no pipeline: give pipeline=..., for example a BatchPipeline")
    if not callable(getattr(pipeline, "episodes", None)):
        raise TypeError(f"pipeline must be a BasePipeline, got {pipeline!r}: wrap an environment in BatchPipeline")
    check_callbacks(callbacks)
    check_budget(max_episodes)
    if score_smoothing < 1:
        raise ValueError(f"score_smoothing must be at least 1 evaluation, got {score_smoothing}")
    if registry is not None and registry.max_snapshots < 2:  # the best, and one being tried
        raise ValueError(f"max_snapshots must be at least 2 for a run, got {registry.max_snapshots}")


def check_agent(agent: Any) -> None:
    """TypeError unless it has the methods of a `BaseAgent`, and hyperparameters of the right kind."""
    if isinstance(agent, type):
        raise TypeError(f"agent must be an agent, got the class {agent.__name__}: make one of it first")
    missing = [name for name in sorted(BaseAgent.__abstractmethods__) if not callable(getattr(agent, name, None))]
    if missing:
        raise TypeError(
            f"agent must be a BaseAgent, got {agent!r}, which has no {', no '.join(missing)}: make_agent(env) makes one"
        )
    hyperparams = agent.get_hyperparams()
    if not isinstance(getattr(hyperparams, "params", None), Mapping):
        raise TypeError(
            f"get_hyperparams() of {type(agent).__name__} must return a HyperparamSet, got {hyperparams!r}: return "
            "HyperparamSet({...})"
        )


def check_callbacks(callbacks: Any) -> None:
    """TypeError unless it is a list of callbacks, or None."""
    if isinstance(callbacks, LoopCallback | str) or not isinstance(callbacks, Sequence | None):
        raise TypeError(f"callbacks must be a list of callbacks, got {callbacks!r}")
    for callback in callbacks or ():
        check_callback(callback)


def check_callback(callback: Any) -> None:
    """TypeError unless it is an object with at least one of the hooks of `LoopCallback`."""
    if isinstance(callback, type):
        raise TypeError(f"a callback must be an object, got the class {callback.__name__}: give {callback.__name__}()")
    if not any(callable(getattr(callback, hook, None)) for hook in _HOOKS):
        raise TypeError(
            f"{callback!r} is no callback: it has none of {', '.join(_HOOKS)}; make a class of LoopCallback with the "
            "one that you need"
        )


def check_budget(max_episodes: int | None) -> None:
    """TypeError or ValueError unless it is a number of windows, or None."""
    if max_episodes is None:
        return
    if isinstance(max_episodes, bool) or not isinstance(max_episodes, int | np.integer):
        raise TypeError(f"max_episodes must be a whole number of windows, got {max_episodes!r}")
    if max_episodes < 1:
        raise ValueError(f"max_episodes must be at least 1 window, got {max_episodes}")
