"""The compiled run in one call: `train("CartPole-v1", "ppo", seeds=8)`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensor_optix.compiled_run import CompiledRun
from tensor_optix.config import ConfigError, RunConfig
from tensor_optix.finished import NETWORKS, planned
from tensor_optix.loop import runtime
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.run_dir import RunDir
from tensor_optix.plan import make_plan
from tensor_optix.results import TrainResult

SAVE_EVERY_S = 30.0  # seconds of training that a crash may cost


def train(
    env: Any,
    algorithm: str = "ppo",
    *,
    seeds: int | Sequence[int] = 1,
    total_steps: int | None = None,
    target_score: float | None = None,
    tune: bool | Sequence[str] = True,
    tuner: str = "spsa",
    stop: bool = True,
    config: Mapping[str, Any] | None = None,
    hyperparams: Mapping[str, float] | None = None,
    variants: Sequence[Mapping[str, float]] = (),
    population: int = 1,
    exchange: Mapping[str, Any] | None = None,
    max_spawns: int = 0,
    evolution: Mapping[str, Any] | None = None,
    networks: Mapping[str, Any] | None = None,
    search_space: Mapping[str, Any] | None = None,
    autonomy: Mapping[str, Any] | None = None,
    eval_every: int | None = None,
    eval_episodes: int | None = None,
    eval_max_steps: int | None = None,
    final_episodes: int = 100,
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    save_every: float = SAVE_EVERY_S,
    callbacks: Sequence[LoopCallback] = (),
    progress: bool = True,
    block: int | None = None,
) -> TrainResult:
    """Train every seed (times every variant) in one compiled program until each has stopped by itself.

    Args:
        env: the id of an environment, or an object that follows `tensor_optix.envs.contract`.
        algorithm: its name.
        seeds: how many (0, 1, ...), or which ones.
        total_steps: training budget of each member, environment steps; None: 10 million.
        target_score: stop a member whose score stays at or above it.
        tune: tune hyperparameters online: True: the learning rate (members of a population and spawned variants differ
            in all that the algorithm names); or those named here; or none. Those in `search_space` come on top.
        tuner: by which rule: "spsa", "momentum", "backoff", "pbt" (of one learner's own history) or "adaptive".
        stop: False uses the whole budget instead of stopping at convergence.
        config: the algorithm's static settings, for example {"n_envs": 8, "hidden_sizes": [64, 64]}.
        hyperparams: starting values of its hyperparameters, for example {"learning_rate": 3e-4}.
        variants: further hyperparameters; every seed runs once with each.
        population: members of each seed that learn side by side: after evaluations the worst go on as changed copies
            of the best. A seed's result is then its best member's. The budget is each member's.
        exchange: how they do: {"rule": "pbt"} with settings of `evolution.population.PopulationPBT`, or
            {"rule": "spsa"}: one vector of hyperparameters for all, with a slope averaged over them.
        max_spawns: variants of its best policy that each seed may make. Where learning has come to a plateau the next
            one is spawned instead of stopping; `total_steps` is then the budget of a seed with its variants. In the
            end all of them act as one policy, too: `result.ensemble`.
        evolution: how they are spawned: settings of `evolution.spawning.SpawnConfig`.
        networks: modules of your own in the algorithm's places, {"actor": make}, where make(rngs) gives an nnx.Module.
            hidden_sizes and activation are for the places that are left.
        search_space: bounds of the tuned hyperparameters: name -> (low, high) or ("log", low, high).
        autonomy: settings of the scheduler and the brain, for example {"dormant_threshold": 30}.
        eval_every: environment steps of a member between evaluations.
        eval_episodes: episodes of one evaluation. eval_max_steps: where one is cut.
        final_episodes: fresh episodes behind the reported score.
        run_dir: keep the run here (checkpoints, events, policy, result); None keeps nothing.
        overwrite: replace the run that is in `run_dir`.
        save_every: seconds between checkpoints.
        callbacks: `LoopCallback`s, called between chunks.
        progress: show a live display where standard error is a terminal.
        block: members under one vmap; None chooses for the backend.

    Raises:
        ConfigError (a ValueError): what was asked for cannot be run. Nothing has been written.
        RunDirError: `run_dir` cannot be used.
    """
    run = RunConfig(
        env=env if isinstance(env, str) else _name(env),
        algorithm=algorithm,
        seeds=_listed(seeds),
        total_steps=total_steps,
        target_score=target_score,
        tune=_listed(tune),
        tuner=tuner,
        stop=stop,
        config=_copied(config),
        hyperparams=_copied(hyperparams),
        variants=_listed(variants, _copied),
        population=population,
        exchange=_copied(exchange),
        max_spawns=max_spawns,
        evolution=_copied(evolution),
        search_space=_copied(search_space),
        autonomy=_copied(autonomy),
        eval_every=eval_every,
        eval_episodes=eval_episodes,
        eval_max_steps=eval_max_steps,
        final_episodes=final_episodes,
    )
    return run_config(
        run,
        env=None if isinstance(env, str) else env,
        networks=networks,
        run_dir=run_dir,
        overwrite=overwrite,
        save_every=save_every,
        callbacks=callbacks,
        progress=progress,
        block=block,
    )


def run_config(
    run: RunConfig,
    *,
    env: Any = None,
    networks: Mapping[str, Any] | None = None,
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    save_every: float = SAVE_EVERY_S,
    callbacks: Sequence[LoopCallback] = (),
    progress: bool = True,
    block: int | None = None,
) -> TrainResult:
    """`train` for a `RunConfig`, such as one read from YAML."""
    began = time.perf_counter()
    runtime.start()
    plan = make_plan(run, env, networks)
    directory = None
    if run_dir is not None:
        manifest = {"config": plan.run.to_dict(), "seeds": plan.run.seed_list(), NETWORKS: sorted(networks or {})}
        directory = RunDir.create(run_dir, manifest, overwrite=overwrite)
    with directory or contextlib.nullcontext():
        return CompiledRun(plan, directory, callbacks, progress, save_every, block, began).run()


def resume(
    run_dir: str | Path,
    *,
    env: Any = None,
    networks: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    save_every: float = SAVE_EVERY_S,
    callbacks: Sequence[LoopCallback] = (),
    progress: bool = True,
    block: int | None = None,
) -> TrainResult:
    """Go on with a run from its newest checkpoint, exactly as if it had not been interrupted.

    env, networks: what the run was started with, if it was objects of your own. total_steps: a larger budget; members
    that only the old one had stopped run on. (The end of a budget is always evaluated; where the old one was no
    multiple of `eval_every`, that is one evaluation more than a run with the larger budget would have had.)

    Where every member has stopped already the result is the one that is there.
    """
    began = time.perf_counter()
    runtime.start()
    with RunDir.open(run_dir) as directory:
        settings = dict(directory.manifest["config"])
        if total_steps is not None:
            if total_steps < settings["total_steps"]:
                raise ConfigError(
                    f"total_steps={total_steps} is below the run's budget of {settings['total_steps']}: a run can only "
                    "be given more"
                )
            settings["total_steps"] = total_steps
        plan = planned(directory.manifest, settings, env, networks)
        run = CompiledRun(plan, directory, callbacks, progress, save_every, block, began)
        run.restore()
        finished = run.already_finished(env, networks)
        if finished is not None:
            return finished
        if total_steps is not None:
            directory.update_manifest(config=plan.run.to_dict())
        return run.run()


def _copied(given: Any) -> Any:
    """A mapping as a dict of its own, {} for None; anything else is left for `RunConfig` to refuse."""
    return dict(given or {}) if given is None or isinstance(given, Mapping) else given


def _listed(given: Any, each: Callable[[Any], Any] = lambda x: x) -> Any:
    """What comes one after the other as a list; anything else is left for `RunConfig` to refuse."""
    if not isinstance(given, Iterable) or isinstance(given, str | Mapping):
        return given
    return [each(x) for x in given]


def _name(env: Any) -> str:
    name = getattr(env, "name", None)
    return name if isinstance(name, str) else getattr(env, "__name__", type(env).__name__)


__all__ = ["ConfigError", "RunConfig", "resume", "run_config", "train"]
