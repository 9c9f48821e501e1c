"""From an environment, its id or a maker of it to the pipeline of a host run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.pipeline.batch import BatchPipeline
from tensor_optix.pipeline.vector import VectorBatchPipeline


def pipeline_for(agent: BaseAgent, env: Any, n_envs: int, window_size: int | None, seed: int) -> BasePipeline:
    """The pipeline of an agent in `n_envs` environments. Arguments as those of `Optimizer`.

    Raises:
        TypeError: `env` is none, or not enough of it can be made.
    """
    from tensor_optix.factory import algorithm_of, optimal_window_size

    make = _maker(env, n_envs)
    first = env if _is_environment(env) else make()
    size = window_size or optimal_window_size(first, algorithm_of(agent))
    if n_envs == 1:
        return BatchPipeline(env=first, agent=agent, window_size=size, seed=seed)
    if first is not env:
        first.close()
    return VectorBatchPipeline([make] * n_envs, agent=agent, window_size=max(1, size // n_envs), seed=seed)


def _maker(env: Any, n_envs: int) -> Callable[[], Any]:
    """A function that makes one more of `env`."""
    import gymnasium

    if isinstance(env, str):
        return lambda: gymnasium.make(env)
    if not _is_environment(env):
        if not callable(env):
            raise TypeError(f"env must be a Gymnasium environment, its id or a function that makes one, got {env!r}")
        return env
    spec = getattr(env, "spec", None)
    if n_envs > 1 and spec is None:
        raise TypeError(f"n_envs={n_envs} needs more of the environment: give a function that makes one instead of it")
    return lambda: gymnasium.make(spec)  # type: ignore[arg-type]


def _is_environment(env: Any) -> bool:
    """It can be stepped; a class makes what can."""
    return hasattr(env, "step") and not isinstance(env, type)
