"""From a `TrainConfig` to the agent, the pipeline and the `RLOptimizer` that it describes. One seed is in all."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tensor_optix import factory
from tensor_optix.config import ConfigError, config_to_dict
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.types import EvalMetrics, HyperparamSet
from tensor_optix.host_config import TrainConfig, agent_for, rules_of
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.optimizers.spsa import SPSAOptimizer
from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline

RECORD = "train_config"  # the entry of a run's manifest that holds its `TrainConfig`


def build_agent_from_config(config: TrainConfig, env: Any = None) -> BaseAgent:
    """The agent, with fresh weights. `env`: an environment to take the spaces from; made from `config.env` otherwise.

    Raises:
        ConfigError: the environment is not to be had, or the agent does not fit it; the message names what does.
        ImportError: the framework is missing; the message has the command.
    """
    _check_kind(config)
    assert config.hidden_sizes is not None
    own = make_environment(config.env) if env is None else env
    try:
        spaces = factory.spaces_of(own, config.env)
        name = agent_for(config, spaces.actions)
        return factory.built_agent(name, spaces, config.agent, config.hidden_sizes, config.seed, env=config.env)
    except factory.UnsupportedSpaceError as error:
        raise ConfigError(str(error)) from None
    finally:
        if env is None:
            own.close()


def build_pipeline_from_config(config: TrainConfig, agent: BaseAgent | None = None) -> BasePipeline:
    """The pipeline. Its environments are made at the first use; ConfigError if one cannot be made."""
    _check_kind(config)
    make = functools.partial(make_environment, config.env)
    if config.pipeline == "BatchPipeline":
        return BatchPipeline(env_fn=make, agent=agent, window_size=config.window_size, seed=config.seed)
    assert config.window_size is not None
    return VectorBatchPipeline([make] * config.n_envs, agent, config.window_size, seed=config.seed)


def build_optimizer_from_config(
    config: TrainConfig, agent: BaseAgent, pipeline: BasePipeline, **settings: Any
) -> RLOptimizer:
    """The run of `agent` on `pipeline`, whose manifest records `config`.

    `settings` are further ones of `RLOptimizer` and win over those of `config`: callbacks, checkpoint_dir, ...
    ConfigError for a setting out of its range.
    """
    _check_kind(config)
    callbacks = list(settings.pop("callbacks", None) or ())
    given = {
        "optimizer": _tuner(config, agent),
        "max_episodes": config.max_episodes,
        "target_score": config.target_score,
        "seed": config.seed,
        "manifest": {RECORD: config_to_dict(config)},
        **config.optimizer,
        **settings,
    }
    try:
        run = RLOptimizer(agent, pipeline, callbacks=callbacks, **given)
    except ValueError as error:
        raise ConfigError(f"optimizer: {error}") from None
    if not config.stop:
        run.add_callback(_Onwards(run))
    return run


def make_environment(env_id: str) -> Any:
    """The Gymnasium environment of an id. ConfigError, one sentence, if it is unknown or lacks a library."""
    import gymnasium

    try:
        return gymnasium.make(env_id)
    except (gymnasium.error.Error, ImportError) as error:
        raise ConfigError(f"Gymnasium cannot make environment {env_id!r}: {' '.join(str(error).split())}") from None


class _Untuned(BaseOptimizer):
    """Leaves every hyperparameter as it is."""

    def suggest(self, current: HyperparamSet, history: Sequence[EvalMetrics]) -> HyperparamSet:
        return current.copy()


class _Onwards:
    """The callback that goes on where learning counts as over."""

    def __init__(self, run: RLOptimizer) -> None:
        self._run = run

    def on_dormant(self, episode_id: int) -> None:
        self._run.keep_going()


def _tuner(config: TrainConfig, agent: BaseAgent) -> BaseOptimizer:
    """SPSA over what is to be tuned; the bounds stretch to take in the values that the run starts with."""
    params, rules, bounds = agent.get_hyperparams().params, rules_of(config), {}
    for name, (low, high) in rules.bounds.items():
        wanted = config.tune and name in (rules.tuned if config.tune is True else config.tune)
        scalable = name not in rules.log or params[name] > 0
        if wanted and scalable:
            bounds[name] = (min(low, params[name]), max(high, params[name]))
    if not bounds:
        return _Untuned()
    return SPSAOptimizer(bounds, [name for name in rules.log if name in bounds], seed=config.seed)


def _check_kind(config: Any) -> None:
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"config must be a TrainConfig, got {type(config).__name__}: a RunConfig is for the compiled driver, "
            "tensor_optix.training.run_config(config)"
        )


__all__ = ["build_agent_from_config", "build_optimizer_from_config", "build_pipeline_from_config", "make_environment"]
