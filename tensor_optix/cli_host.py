"""What the command line does with runs of the host driver."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensor_optix import building
from tensor_optix.config import ConfigError, config_from_dict, config_to_dict
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import StopReason
from tensor_optix.host_config import TrainConfig, windows_for
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.run_dir import RunDir, RunDirError
from tensor_optix.loop.run_manifest import MANIFEST_NAME
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.pipeline.conversion import as_action, as_observation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST = 100_000  # steps of an evaluation's episode, where the environment sets no limit


def train(config: TrainConfig, args: argparse.Namespace) -> bool:
    """Run it as the options say; False if it was interrupted."""
    began = time.perf_counter()
    if args.no_run_dir:
        with tempfile.TemporaryDirectory() as temporary:
            return _run(config, _assembled(config, args, checkpoint_dir=temporary), args, began)
    chosen = args.run_dir or config.optimizer.get("checkpoint_dir")
    return _run(config, _assembled(config, args, checkpoint_dir=chosen), args, began)


def resume(run_dir: str, args: argparse.Namespace) -> bool:
    """Go on with the run; False if it was interrupted again."""
    began = time.perf_counter()
    config = recorded(run_dir)
    if args.steps is not None:
        budget = windows_for(config, args.steps)
        if config.max_episodes is not None and budget < config.max_episodes:
            raise ConfigError(
                f"--steps {args.steps} is {budget} windows, below the run's budget of {config.max_episodes}: a run can "
                "only be given more"
            )
        config = dataclasses.replace(config, max_episodes=budget)
    return _run(config, _assembled(config, args, resume_from=run_dir), args, began)


def validate(config: TrainConfig) -> dict[str, Any]:
    """Make everything that a run needs, run nothing; the configuration with the agent's class found."""
    agent, pipeline = _parts(config)
    building.build_optimizer_from_config(config, agent, pipeline)
    facts = config_to_dict(config) | {"algorithm": type(agent).__name__}
    agent.teardown()
    return facts


def evaluate(run_dir: str, episodes: int, seed: int) -> dict[str, Any]:
    """Score the run's best snapshot on fresh episodes, acting deterministically; the facts as JSON values."""
    from tensor_optix.statistics import bootstrap_interval

    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}")
    config = recorded(run_dir)
    agent = _agent(config)
    registry = CheckpointRegistry(Path(run_dir) / "snapshots")
    if registry.best is None or registry.load_best(agent) is None:
        raise ConfigError(f"the run at '{run_dir}' has no scored snapshot yet, so there is no best policy to evaluate")
    returns = _returns(agent, config, episodes, seed)
    return {
        "env": config.env,
        "algorithm": type(agent).__name__,
        "driver": "host",
        "seed": config.seed,
        "episodes": episodes,
        "score": float(returns.mean()),
        "score_interval": list(bootstrap_interval(returns)),
    }


def is_host_run(run_dir: str) -> bool:
    """Whether the run there is one of the host driver. RunDirError if there is none."""
    try:
        settings = RunDir.read(run_dir).manifest.get("config")
    except RunDirError:
        inside = sorted(path.parent.name for path in Path(run_dir).glob(f"*/{MANIFEST_NAME}"))
        if not inside:
            raise
        newest = Path(run_dir) / inside[-1]
        raise RunDirError(f"'{run_dir}' holds runs and is none itself: name one of them, such as '{newest}'") from None
    return isinstance(settings, dict) and settings.get("driver") == "host"


def figure_of(run_dir: str | Path, title: str = "") -> Figure:
    """The figure of the run there, of what has happened so far."""
    from tensor_optix.loop.host_figures import events_figure

    directory = RunDir.read(run_dir)
    facts, record = directory.manifest, directory.manifest.get(building.RECORD)
    config = None if record is None else config_from_dict(record)
    if not title and config is not None:
        title = f"{config.env}   {facts['config'].get('agent', '')}"
    return events_figure(
        directory.read_events(),
        title=title.strip(),
        hyperparams=facts["config"].get("hyperparams"),
        windows=facts.get("windows"),
        steps_per_window=config.rows_per_window if isinstance(config, TrainConfig) else None,
    )


def recorded(run_dir: str) -> TrainConfig:
    """What the run was asked to do. ConfigError for one that was put together in Python."""
    record = RunDir.read(run_dir).manifest.get(building.RECORD)
    if record is None:
        raise ConfigError(
            f"the run at '{run_dir}' was started from Python, and only the program that made its agent and pipeline "
            f"can make them again: go on with it there, RLOptimizer(agent, pipeline, resume_from={run_dir!r}).run()"
        )
    config = config_from_dict(record)
    assert isinstance(config, TrainConfig)
    return config


def _assembled(
    config: TrainConfig, args: argparse.Namespace, checkpoint_dir: str | None = None, resume_from: str | None = None
) -> RLOptimizer:
    agent, pipeline = _parts(config)
    name, callbacks = type(agent).__name__, []
    if not args.quiet:
        from tensor_optix.callbacks import RichDashboardCallback

        callbacks.append(RichDashboardCallback(title=f"{config.env} {name}"))
    return building.build_optimizer_from_config(
        config,
        agent,
        pipeline,
        callbacks=callbacks,
        checkpoint_dir=checkpoint_dir or Path("runs") / f"{_in_a_path(config.env)}-{name}",
        resume_from=resume_from,
    )


def _parts(config: TrainConfig) -> tuple[BaseAgent, Any]:
    agent = _agent(config)
    return agent, building.build_pipeline_from_config(config, agent)


def _agent(config: TrainConfig) -> BaseAgent:
    try:
        return building.build_agent_from_config(config)
    except ImportError as error:  # the framework is missing: its message has the command
        raise ConfigError(str(error)) from None


def _run(config: TrainConfig, run: RLOptimizer, args: argparse.Namespace, began: float) -> bool:
    """Train, and say what came out."""
    result = run.run()
    if args.plot:
        figure_of(run.run_dir or "", f"{config.env}   {type(run.agent).__name__}").savefig(args.plot, dpi=150)
    if getattr(args, "no_run_dir", False):
        result.run_dir = None
    if not args.quiet:
        print(result)
    if args.json:
        best = result.best_snapshot
        facts = {
            "env": config.env,
            "algorithm": type(run.agent).__name__,
            "driver": "host",
            "stop_reason": result.stop_reason.label,
            "windows": result.windows,
            "env_steps": result.windows * config.rows_per_window,
            "best_score": None if best is None else best.eval_metrics.primary_score,
            "run_dir": result.run_dir,
            "wall_s": time.perf_counter() - began,
        }
        print(json.dumps(facts, allow_nan=False))
    return result.stop_reason != StopReason.INTERRUPTED


def _returns(agent: Any, config: TrainConfig, episodes: int, seed: int) -> np.ndarray:
    """float64 [episodes]; the environment draws from a stream that no training draws from."""
    env = building.make_environment(config.env)
    limit = getattr(env.spec, "max_episode_steps", None) or _LONGEST
    first_seed: int | None = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    returns = np.zeros(episodes)
    try:
        for episode in range(episodes):
            obs, _ = env.reset(seed=first_seed)
            first_seed = None
            if hasattr(agent, "reset_hidden"):
                agent.reset_hidden()
            for _ in range(limit):
                action = agent.act_deterministic(as_observation(obs, env.observation_space))
                _, sent = as_action(action, env.action_space)
                obs, reward, terminated, truncated, _ = env.step(sent)
                returns[episode] += float(reward)
                if terminated or truncated:
                    break
    finally:
        env.close()
    return returns


def _in_a_path(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
