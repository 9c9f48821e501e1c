"""From a `TrainConfig` to the agent, the pipeline and the `RLOptimizer` that it describes. One seed is in all."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tensor_optix.algorithms import host_ppo
from tensor_optix.config import ConfigError, config_to_dict
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.types import EvalMetrics, HyperparamSet
from tensor_optix.default_networks import ACTOR_GAIN, CRITIC_GAIN, keras_mlp, torch_mlp
from tensor_optix.host_config import AGENTS, TrainConfig, agent_for
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.optimizers.spsa import SPSAOptimizer
from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline

RECORD = "train_config"  # the entry of a run's manifest that holds its `TrainConfig`
_ADAM_EPS = 1e-5


class Spaces(NamedTuple):
    """What an agent must fit."""

    obs_shape: tuple[int, ...]
    n_actions: int  # 0: the actions are continuous
    low: np.ndarray  # [D], of continuous actions
    high: np.ndarray


def build_agent_from_config(config: TrainConfig, env: Any = None) -> BaseAgent:
    """The agent, with fresh weights. `env`: an environment to take the spaces from; made from `config.env` otherwise.

    Raises:
        ConfigError: the environment is not to be had, or the agent does not fit it; the message names what does.
        ImportError: the framework is missing; the message has the command.
    """
    _check_kind(config)
    spaces = _spaces(config, env)
    name = agent_for(config, "discrete" if spaces.n_actions else "continuous")
    kind = getattr(importlib.import_module(AGENTS[name].module), name)
    agent = (_flax_agent if config.framework == "jax" else _network_agent)(kind, config, spaces)
    if not spaces.n_actions:
        agent.set_action_bounds(spaces.low, spaces.high)
    return agent


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
    params, bounds = agent.get_hyperparams().params, {}
    for name, (low, high) in host_ppo.PARAM_BOUNDS.items():
        wanted = config.tune and name in (host_ppo.TUNED if config.tune is True else config.tune)
        scalable = name not in host_ppo.LOG_PARAMS or params[name] > 0
        if wanted and scalable:
            bounds[name] = (min(low, params[name]), max(high, params[name]))
    if not bounds:
        return _Untuned()
    return SPSAOptimizer(bounds, [name for name in host_ppo.LOG_PARAMS if name in bounds], seed=config.seed)


def _flax_agent(kind: Any, config: TrainConfig, spaces: Spaces) -> Any:
    width = spaces.n_actions or len(spaces.low)
    hyperparams = HyperparamSet(dict(config.agent))
    return kind(spaces.obs_shape, width, hyperparams, hidden_sizes=tuple(config.hidden_sizes), seed=config.seed)


def _network_agent(kind: Any, config: TrainConfig, spaces: Spaces) -> Any:
    """An agent of PyTorch or TensorFlow, with networks and Adam of the framework."""
    if len(spaces.obs_shape) != 1:
        raise ConfigError(
            f"{config.env} shows images of shape {list(spaces.obs_shape)}, which {kind.__name__} needs a network of "
            "your own for: make the agent in Python, or take framework: jax, whose agents have one"
        )
    rate, n_in = config.agent["learning_rate"], spaces.obs_shape[0]
    n_out = spaces.n_actions or 2 * len(spaces.low)  # of a Gaussian: means and logarithms of standard deviations
    sizes = ((n_out, ACTOR_GAIN), (1, CRITIC_GAIN))
    optimizer: Any
    if config.framework == "torch":
        torch = _required("torch", "PyTorch", "torch", kind.__name__)
        networks = [torch_mlp(n_in, n, config.hidden_sizes, g, (config.seed, i)) for i, (n, g) in enumerate(sizes)]
        optimizer = torch.optim.Adam([p for net in networks for p in net.parameters()], lr=rate, eps=_ADAM_EPS)
    else:
        keras = _required("tensorflow", "TensorFlow", "tensorflow", kind.__name__).keras
        networks = [keras_mlp(n_in, n, config.hidden_sizes, g, (config.seed, i)) for i, (n, g) in enumerate(sizes)]
        optimizer = keras.optimizers.Adam(rate, epsilon=_ADAM_EPS)
    shape = () if spaces.n_actions else (len(spaces.low),)
    return kind(*networks, optimizer, *shape, HyperparamSet(dict(config.agent)), seed=config.seed)


def _required(module: str, product: str, extra: str, agent: str) -> Any:
    """The framework; ImportError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{agent} needs {product}: pip install "tensor-optix[{extra}]"') from error


def _spaces(config: TrainConfig, env: Any) -> Spaces:
    own = make_environment(config.env) if env is None else env
    try:
        observation = getattr(own, "single_observation_space", None) or own.observation_space
        action = getattr(own, "single_action_space", None) or own.action_space
    finally:
        if env is None:
            own.close()
    shape = getattr(observation, "shape", None)
    if not hasattr(observation, "low") or shape is None or len(shape) not in (1, 3):
        raise ConfigError(
            f"{config.env} has observations of {observation}, and agents made from a configuration take vectors or "
            "images: register it with gymnasium.wrappers.FlattenObservation around it"
        )
    if hasattr(action, "n") and getattr(action, "shape", None) == () and int(action.start) == 0:
        return Spaces(tuple(shape), int(action.n), np.zeros(0), np.zeros(0))
    vector = hasattr(action, "low") and len(action.shape) == 1 and np.issubdtype(action.dtype, np.floating)
    if not vector:
        raise ConfigError(
            f"{config.env} has actions of {action}, and PPO takes Discrete(n) counted from 0 or a Box [n] of floats: "
            "register it with a wrapper that translates (gymnasium.wrappers.TransformAction)"
        )
    return Spaces(tuple(shape), 0, np.asarray(action.low), np.asarray(action.high))


def _check_kind(config: Any) -> None:
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"config must be a TrainConfig, got {type(config).__name__}: a RunConfig is for the compiled driver, "
            "tensor_optix.training.run_config(config)"
        )


__all__ = ["build_agent_from_config", "build_optimizer_from_config", "build_pipeline_from_config", "make_environment"]
