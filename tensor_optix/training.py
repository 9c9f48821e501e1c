"""The compiled run in one call: `train("CartPole-v1", "ppo", seeds=8)`."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensor_optix.config import ConfigError, RunConfig
from tensor_optix.core.types import StopReason
from tensor_optix.curves import CurveRecorder
from tensor_optix.finished import NETWORKS, planned
from tensor_optix.loop import runtime
from tensor_optix.loop.events import CallbackList, LoopCallback, event_rows
from tensor_optix.loop.meeting import Copies
from tensor_optix.loop.run_dir import ENSEMBLE, NoCheckpointError, RunDir, RunDirError
from tensor_optix.loop.signals import asking_on_signals
from tensor_optix.plan import Plan, make_plan
from tensor_optix.reporting import megabytes
from tensor_optix.results import Lineage, TrainResult, member_result

logger = logging.getLogger(__name__)

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
        seeds=seeds if isinstance(seeds, int) else list(seeds),
        total_steps=total_steps,
        target_score=target_score,
        tune=tune if isinstance(tune, bool) else list(tune),
        tuner=tuner,
        stop=stop,
        config=dict(config or {}),
        hyperparams=dict(hyperparams or {}),
        variants=[dict(variant) for variant in variants],
        population=population,
        exchange=dict(exchange or {}),
        max_spawns=max_spawns,
        evolution=dict(evolution or {}),
        search_space=dict(search_space or {}),
        autonomy=dict(autonomy or {}),
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
        return _Run(plan, directory, callbacks, progress, save_every, block, began).run()


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
        run = _Run(plan, directory, callbacks, progress, save_every, block, began)
        run.restore()
        if total_steps is not None:
            directory.update_manifest(config=plan.run.to_dict())
        return run.run()


class _Run:
    """One run from first window to result: a session wrapped in files, display, callbacks and signals."""

    def __init__(
        self,
        plan: Plan,
        directory: RunDir | None,
        callbacks: Sequence[LoopCallback],
        progress: bool,
        save_every: float,
        block: int | None,
        began: float,
    ) -> None:
        import jax

        from tensor_optix.callbacks.progress import ProgressDisplay
        from tensor_optix.growth_watch import GrowthWatch
        from tensor_optix.loop.session import MAX_CHUNK, Session, default_block

        grows = getattr(plan.program.algorithm, "grows", False)
        self.plan = plan
        self.directory = directory
        self.callbacks = CallbackList(callbacks)
        self.save_every = save_every
        self.began = began
        self.notes: list[str] = []
        self.steps_per_window = plan.program.algorithm.steps_per_window
        self.session = Session(
            plan.program,
            plan.members,
            devices=jax.local_devices(),
            block=block or default_block(jax.default_backend()),
            max_windows=plan.max_windows,
            target_score=plan.target_score,
            final_episodes=plan.run.final_episodes,
            meeting=plan.meeting,
            chunk_windows=GrowthWatch.chunk_windows(plan.max_windows) if grows else MAX_CHUNK,
        )
        self.growing = GrowthWatch(plan.program.algorithm, len(plan.members)) if grows else None
        self.lineage: list[Copies] = []
        self.recorder = CurveRecorder(len(plan.members), self.steps_per_window)
        self.display = ProgressDisplay(
            len(plan.members),
            [member.seed for member in plan.members],
            plan.run.env,
            plan.run.algorithm,
            plan.run.total_steps,
            quiet=not progress,
            env_steps_per_window=self.steps_per_window,
        )
        self.interrupted = threading.Event()
        self._fresh = True
        self._last_save = time.perf_counter()
        self._save_failed = False

    def restore(self) -> None:
        """Take the newest checkpoint that is whole; a run that never got to one starts from the beginning."""
        assert self.directory is not None
        try:
            loaded = self.directory.load_checkpoint(self.session.template())
        except NoCheckpointError:
            if self.directory.checkpoint_steps():
                raise
            self.directory.truncate_events(0)
            return
        self.notes.extend(loaded.skipped)
        self.directory.truncate_events(loaded.events_offset)
        self.session.load(loaded.state)
        self.session.run_s = float(loaded.meta.get("run_s", 0.0))
        rows = self.directory.read_events()
        self.lineage = [Copies(row["window"], np.asarray(row["parents"], np.int64)) for row in rows if "parents" in row]
        rows = [row for row in rows if "parents" not in row]
        self.recorder = CurveRecorder.from_rows(rows, len(self.plan.members), self.steps_per_window)
        self.recorder.windows[:] = self.session.windows
        self.recorder.stop_reasons[:] = self.session.stop_reasons
        if self.growing is not None:
            self.growing.load(loaded.files)
        self.display.resumed(self.session.windows, self.session.stop_reasons)
        self._fresh = False

    def run(self) -> TrainResult:
        with self.display, asking_on_signals(self.interrupted.set):
            try:
                self.display.phase("compiling (a few seconds the first time)" + _memory(self.plan))
                self.session.compile()
                if self._fresh:
                    self.session.start()
                    self.display.resumed(self.session.windows, self.session.stop_reasons)
                self.callbacks.call("on_loop_start")
                self.display.phase("training")
                while not self.session.done and not self.interrupted.is_set():
                    self._chunk()
                self._save(force=True)
                self.display.phase("final evaluation")
                result = self._result()
            finally:
                self.callbacks.call("on_loop_stop")
                self.session.close()
        self._keep(result)
        return result

    def _chunk(self) -> None:
        report = self.session.step()
        self.recorder.add(report)
        if self.directory is not None:
            self.directory.append_events(event_rows(report, self.steps_per_window))
            copies = [{"window": c.window, "parents": c.parents.tolist()} for c in self.session.copies]
            self.directory.append_events(copies)
        self.lineage += self.session.copies
        self.session.copies = []
        if self.growing is not None:
            self.growing.look(self.session, np.unique(report.member_ids[report.active.any(axis=0)]))
        self.callbacks.replay(report)
        steps = int(self.session.windows.sum()) * self.steps_per_window
        self.display.update(report, steps / max(self.session.run_s, 1e-9), time.perf_counter() - self.began)
        self._save()

    def _save(self, force: bool = False) -> None:
        if self.directory is None or (not force and time.perf_counter() - self._last_save < self.save_every):
            return
        try:
            self.directory.save_checkpoint(
                int(self.session.windows.sum()), self.session.state(), {"run_s": self.session.run_s},
                None if self.growing is None else self.growing.save,
            )  # fmt: skip
        except RunDirError as error:
            if not self._save_failed:  # the run goes on; said once here and once in the report
                logger.warning("%s", error)
                self.notes.append(f"a checkpoint could not be saved: {error}")
            self._save_failed = True
        self._last_save = time.perf_counter()

    def _result(self) -> TrainResult:
        from tensor_optix.policy import Policy

        policies, episodes = self.session.final()
        curves = self.recorder.curves()
        self.recorder.stop_reasons[:] = self.session.stop_reasons
        # A place where no variant was spawned has no policy to be judged.
        spawned = self.session.stop_reasons != StopReason.UNSPAWNED
        returns = [x if there else x[:0] for x, there in zip(episodes.returns, spawned, strict=True)]
        members = [
            member_result(self.recorder, curves[i], i, returns[i], seed=spec.seed, variant=spec.variant)
            for i, spec in enumerate(self.plan.members)
        ]
        for member in members:
            if member.stop_reason == StopReason.RUNNING:
                member.stop_reason = StopReason.INTERRUPTED
        space = self.plan.space
        result = TrainResult(
            env=self.plan.run.env,
            algorithm=self.plan.run.algorithm,
            members=members,
            env_steps=int(self.session.windows.sum()) * self.steps_per_window,
            compile_s=self.session.compile_s,
            run_s=self.session.run_s,
            wall_s=time.perf_counter() - self.began,
            run_dir=None if self.directory is None else str(self.directory.path),
            config=self.plan.run.to_dict(),
            notes=self.notes + [f"callback {f.callback}.{f.hook} raised {f.error}" for f in self.callbacks.failures],
            log_hyperparams=tuple(name for name, parameter in space.entries if parameter.log),
            lineage=Lineage.of(self.lineage, len(members)),
        )
        if self.growing is not None:
            self.growing.look(self.session, np.flatnonzero(spawned), last=True)
            result.growth = self.growing.growth
        best = members.index(result.best)
        result.policy = Policy(self.plan.program.algorithm, _member(policies, best))
        if self.plan.run.max_spawns:
            self._judge_ensembles(result, policies)
        result.wall_s = time.perf_counter() - self.began
        return result

    def _judge_ensembles(self, result: TrainResult, policies: Any) -> None:
        """Let every seed's policies act as one, and say what spawning came to."""
        from tensor_optix.ensembles import judged
        from tensor_optix.evolution.ensemble_policy import Ensemble
        from tensor_optix.policy import Policy

        size, largest = result.population, int(self.plan.run.evolution.get("max_ensemble_size", 0))
        groups = [result.members[i : i + size] for i in range(0, len(result.members), size)]
        variants = [spec.variant for spec in self.plan.members[::size]]
        result.ensembles, params = judged(self.plan.program, policies, groups, largest, variants)
        best = int(np.argmax([np.nan_to_num(ensemble.score, nan=-np.inf) for ensemble in result.ensembles]))
        result.ensemble = Policy(Ensemble(self.plan.program.algorithm, size), _member(params, best))
        ensemble, count = result.ensembles[best], len(result.ensembles)
        which = f"seed {ensemble.seed}, the best of {count}; the others are in result.ensembles\n" if count > 1 else ""
        # At a level that is seen without setting up logging: who gives a budget is promised a report.
        logger.warning("%s%s", which, ensemble.report_text)

    def _keep(self, result: TrainResult) -> None:
        if self.directory is None or result.policy is None:
            return
        try:
            self.directory.save_result(*result.to_payload())
            self.directory.save_policy(
                result.policy.arrays(), {"algorithm": result.algorithm, "env": result.env, "seed": result.best.seed}
            )
            if result.ensemble is not None:
                about = {"algorithm": result.algorithm, "env": result.env, "size": result.population}
                self.directory.save_policy(result.ensemble.arrays(), about, ENSEMBLE)
            reasons = {
                str(m.seed) if not m.variant else f"{m.seed}/{m.variant}": m.stop_reason.label for m in result.members
            }
            status = "interrupted" if StopReason.INTERRUPTED.label in reasons.values() else "finished"
            self.directory.update_manifest(status=status, stop_reasons=reasons)
        except RunDirError as error:
            logger.warning("%s", error)
            result.notes.append(f"the result could not be saved: {error}")


def _memory(plan: Plan) -> str:
    """What is about to be allocated for replays, in words; nothing where there are none."""
    each, count = plan.program.algorithm.replay_bytes(), len(plan.members)
    if not each:
        return ""
    return f", then {megabytes(each * count)} of replay" + (f" ({count} of {megabytes(each)})" if count > 1 else "")


def _member(tree: Any, index: int) -> Any:
    import jax

    return jax.tree.map(lambda x: x[index], tree)


def _name(env: Any) -> str:
    name = getattr(env, "name", None)
    return name if isinstance(name, str) else getattr(env, "__name__", type(env).__name__)


__all__ = ["ConfigError", "RunConfig", "resume", "run_config", "train"]
