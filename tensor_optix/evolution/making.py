"""Agents of the kind of one that is trained, by a function of the user's, whatever that takes."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ENVIRONMENT = ("env", "algorithm_or_env")  # names of a first argument that means the environment
_MAKE_AGENT = ("tensor_optix.factory", "make_agent")  # which lies above this layer


def another(agent: Any, factory: Callable[..., Any], pipeline: Any) -> Any:
    """An agent of `agent`'s kind, whose weights do not matter.

    A factory that must be given something is given the environment of `pipeline` if that is what its first argument is
    called, else `agent`'s hyperparameters. The library's own `make_agent` is told neither networks nor normalisers of
    `agent`: instead of calling it, `agent` is copied as it is, replay and all. One that cannot be copied
    (TensorFlow's) is made anew, of the same class, with the networks that `make_agent` gives by default.

    Raises:
        TypeError: an environment is asked for, and the pipeline has none.
    """
    if (getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)) == _MAKE_AGENT:
        twin = _copy(agent)
        return factory(type(agent).__name__, environment_of(pipeline)) if twin is None else twin
    first = _first_argument(factory)
    if first is None:
        return factory()
    return factory(environment_of(pipeline) if first in _ENVIRONMENT else dict(agent.get_hyperparams().params))


def environment_of(pipeline: Any) -> Any:
    """The environment that a pipeline collects from, also behind wrappers such as `RNDPipeline`; TypeError if none."""
    inner = pipeline
    while getattr(inner, "env", None) is None and getattr(inner, "pipeline", None) is not None:
        inner = inner.pipeline
    env = getattr(inner, "env", None)
    if env is None:
        where = "there is no pipeline" if pipeline is None else f"{type(inner).__name__} has none"
        raise TypeError(
            f"agent_factory asks for an environment, and {where}: give a function that takes none, for example "
            "lambda: make_agent(env)"
        )
    return env


def _first_argument(factory: Callable[..., Any]) -> str | None:
    """Its name, if the factory must be given it; an environment's also where it is None by default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not tell
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if positional and positional[0].name in _ENVIRONMENT and positional[0].default is None:
        return positional[0].name
    return next((p.name for p in positional if p.default is p.empty), None)


def _copy(agent: Any) -> Any:
    """A copy that remembers nothing of acting, or None. What cannot read the agent's weights is no copy."""
    try:
        twin = copy.deepcopy(agent)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "weights")
            agent.save_weights(path)
            twin.load_weights(path)
    except Exception:  # whatever somebody else's object raises
        return None
    reset = getattr(twin, "reset_cache", None)
    if reset is not None:
        reset()
    return twin
