"""What the functions that make agents and pipelines take, and how they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tensor_optix.core.types import HyperparamSet

_NAMES = ("params", "hyperparams", "config")  # of an optional argument that means the hyperparameters


def made(factory: Callable[..., Any], params: Mapping[str, Any]) -> Any:
    """The factory's product, with a copy of `params` where it takes them."""
    required, optional = _takes(factory)
    return factory(dict(params)) if required or (optional and params) else factory()


def made_agent(factory: Callable[..., Any], params: Mapping[str, Any], pipeline: Any) -> Any:
    """An agent with `params` in force, whatever its factory takes.

    A factory without argument makes the agent, and the parameters are put in force afterwards; the library's own
    `make_agent` gets the environment of the pipeline.
    """
    from tensor_optix.factory import make_agent

    if factory is make_agent:
        return make_agent(_env_of(pipeline), hyperparams=dict(params))
    agent = made(factory, params)
    if params and not any(_takes(factory)):
        agent.set_hyperparams(HyperparamSet({**agent.get_hyperparams().params, **params}))
    return agent


def _env_of(pipeline: Any) -> Any:
    """The environment of a pipeline, or of the one that it wraps."""
    part = pipeline
    while getattr(part, "env", None) is None:
        part = getattr(part, "pipeline", None)
        if part is None:
            raise TypeError(
                f"make_agent needs an environment to fit, and {type(pipeline).__name__} has none (env): give an "
                "agent_factory that makes its own, such as lambda params: make_agent(env, hyperparams=params)"
            )
    return part.env


def check_factory(name: str, factory: Any) -> None:
    """TypeError unless it can be called."""
    if not callable(factory):
        raise TypeError(f"{name} must be a function, got {factory!r}: give the function itself, not what it makes")


def _takes(factory: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether the hyperparameters must be given to the factory, and whether they may."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not tell
        return True, True
    given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return any(p.default is p.empty for p in given), any(p.name in _NAMES for p in given[:1])
