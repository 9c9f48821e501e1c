"""One compiled run: a session wrapped in files, display, callbacks and signals."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensor_optix.core.types import StopReason
from tensor_optix.curves import CurveRecorder
from tensor_optix.envs.registry import list_environments
from tensor_optix.finished import load_run
from tensor_optix.loop.events import CallbackList, LoopCallback, event_rows
from tensor_optix.loop.meeting import Copies
from tensor_optix.loop.run_dir import ENSEMBLE, NoCheckpointError, RunDir, RunDirError
from tensor_optix.loop.signals import asking_on_signals
from tensor_optix.plan import Plan
from tensor_optix.reporting import megabytes
from tensor_optix.results import Lineage, TrainResult, member_result

logger = logging.getLogger(__name__)


class CompiledRun:
    """One run from first window to result."""

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
        self.session.compile_s = float(loaded.meta.get("compile_s", 0.0))
        self.began -= float(loaded.meta.get("wall_s", 0.0))
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

    def already_finished(self, env: Any, networks: Mapping[str, Any] | None) -> TrainResult | None:
        """The result that is there, if nothing is left to do after `restore`."""
        assert self.directory is not None
        if self._fresh or not self.session.done:
            return None
        try:
            result = load_run(self.directory.path, env, networks)
        except RunDirError:  # killed before it was written
            return None
        if result.env_steps != int(self.session.windows.sum()) * self.steps_per_window:
            return None
        self.callbacks.call("on_loop_start")
        self.callbacks.call("on_loop_stop")
        reasons = sorted({member.stop_reason.label for member in result.members})
        result.notes.append(
            f"every member had stopped already ({', '.join(reasons)}), so nothing was trained: a larger budget is for "
            "members that had used up theirs"
        )
        return result

    def run(self) -> TrainResult:
        with self.display, asking_on_signals(self.interrupted.set):
            try:
                self.display.phase("compiling (a few seconds the first time)" + _memory(self.plan))
                self._compile()
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

    def _compile(self) -> None:
        try:
            self.session.compile()
        except Exception as error:
            if self.plan.run.env not in list_environments():
                error.add_note("check_environment(env) says what is wrong with an environment of one's own")
            raise

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
                int(self.session.windows.sum()), self.session.state(), self._times(),
                None if self.growing is None else self.growing.save,
            )  # fmt: skip
        except RunDirError as error:
            if not self._save_failed:  # the run goes on; said once here and once in the report
                logger.warning("%s", error)
                self.notes.append(f"a checkpoint could not be saved: {error}")
            self._save_failed = True
        self._last_save = time.perf_counter()

    def _times(self) -> dict[str, float]:
        """Seconds, of all processes that worked on the run."""
        wall = time.perf_counter() - self.began
        return {"run_s": self.session.run_s, "compile_s": self.session.compile_s, "wall_s": wall}

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
