"""The host driver: window -> learn -> evaluate if due -> brain -> obey, for any BaseAgent on any BasePipeline.

The same steps as `compiled.py`, and the same brain. Nothing is decided here: `HostBrain` says what to do, this file
does it by calling the agent, the registry and the callbacks.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tensor_optix.core.autonomy import KEPT_BY_GROWTH, NO_LIMIT, AutonomyConfig
from tensor_optix.core.backoff_shell import HOST_DEFAULT, BackoffScheduler
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_evaluator import BaseEvaluator
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.search_space import SearchSpace
from tensor_optix.core.types import (
    EpisodeData,
    EvalMetrics,
    Event,
    LoopState,
    PolicySnapshot,
    StopReason,
)
from tensor_optix.loop.agent_numbers import all_finite, diagnostics_of, numeric
from tensor_optix.loop.best_policy import BestPolicy
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.collection import Collection
from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.loop.events import CallbackList
from tensor_optix.loop.host_brain import HostBrain, Verdict
from tensor_optix.loop.host_checks import check_arguments, check_callback
from tensor_optix.loop.host_end import concluded
from tensor_optix.loop.host_faults import FaultCount
from tensor_optix.loop.host_fit import check_fit
from tensor_optix.loop.host_result import HostResult
from tensor_optix.loop.host_state import put_back, stateful
from tensor_optix.loop.hyperparams import Hyperparams
from tensor_optix.loop.judging import Judge, smoothed
from tensor_optix.loop.keeper import Keeper
from tensor_optix.loop.optional_parts import call_if_there, release, set_up
from tensor_optix.loop.signals import asking_on_signals
from tensor_optix.loop.verbose import VerboseLog
from tensor_optix.optimizers.shell import TunerOptimizer

_log = logging.getLogger(__name__)


class LoopController:
    """Trains `agent` on `pipeline` until the brain says that learning is over.

    Args:
        agent: any `BaseAgent`.
        pipeline: where windows come from.
        evaluator: scores windows; `EpisodeEvaluator` by default.
        optimizer: tunes hyperparameters; none by default.
        checkpoint_registry: where snapshots go.
        backoff_scheduler: its `config` is the scheduler's; a default one otherwise.
        rollback_on_degradation: put the best weights back when the score fell below them by more than the noise. Never
            for agents that are not on-policy, whose replay is of other policies.
        improvement_margin: score units that a new best must exceed the old one by.
        max_episodes: budget in windows.
        callbacks: `LoopCallback`s, or anything with some of their hooks; after them those in `agent.callbacks`, each
            once. One that has `set_loop` is handed this controller before the run begins, to stop it or keep it going.
        val_pipeline: windows that are not learned from; where given they decide.
        checkpoint_score_fn: agent -> score; where given it decides.
        score_smoothing: evaluations whose mean is told to the brain.
        target_score: stop after `convergence_patience` evaluations in a row at it.
        min_consecutive_degradations: evaluations in a row that make a degradation.
        diagnostic_controller: has `step(window, agent, diagnostics)`; called after each window that was learned from.
            What it changes in the hyperparameters reaches the brain, and the tuner goes on from there.
        cv_threshold: a plateau whose scores vary by more (standard deviation over mean) is noted as unsteady.
        gap_threshold: a best policy whose training score exceeds its validation score by more (as a share of the
            latter) is noted as overfitted.
        verbose: print a line for each evaluation. verbose_log_file: append the lines to this file.
        seed: of the tuner's probes.
        keeper: keeps the run on disk. Given by `RLOptimizer`.
    """

    def __init__(
        self,
        agent: BaseAgent,
        evaluator: BaseEvaluator | None = None,
        optimizer: BaseOptimizer | None = None,
        pipeline: BasePipeline | None = None,
        checkpoint_registry: CheckpointRegistry | None = None,
        backoff_scheduler: BackoffScheduler | None = None,
        rollback_on_degradation: bool = False,
        improvement_margin: float = 0.0,
        max_episodes: int | None = None,
        callbacks: Sequence[Any] | None = None,
        val_pipeline: BasePipeline | None = None,
        score_smoothing: int = 1,
        checkpoint_score_fn: Callable[[Any], float] | None = None,
        verbose: bool = False,
        verbose_log_file: str | None = None,
        diagnostic_controller: Any = None,
        min_consecutive_degradations: int | None = None,
        convergence_patience: int = 5,
        cv_threshold: float = 0.05,
        gap_threshold: float = 0.20,
        target_score: float | None = None,
        seed: int = 0,
        keeper: Keeper | None = None,
    ) -> None:
        check_arguments(agent, pipeline, callbacks, max_episodes, score_smoothing, checkpoint_registry)
        assert pipeline is not None
        self.agent, self.pipeline, self.val_pipeline = agent, pipeline, val_pipeline
        self.evaluator = evaluator if evaluator is not None else EpisodeEvaluator()
        self.optimizer = optimizer
        self.registry = checkpoint_registry or CheckpointRegistry("./tensor_optix_checkpoints")
        self.scheduler = backoff_scheduler or BackoffScheduler()
        if backoff_scheduler is None:  # the rule whose error rates are measured, not the class's older defaults
            self.scheduler.configure(HOST_DEFAULT)
        if min_consecutive_degradations is not None:
            self.scheduler.config = dataclasses.replace(
                self.scheduler.config, min_consecutive_degradations=min_consecutive_degradations
            )
        self.callbacks = CallbackList(callbacks or (), getattr(agent, "callbacks", ()))
        self.diagnostic_controller, self.score_smoothing = diagnostic_controller, score_smoothing
        self._judge = Judge(agent, self.evaluator, val_pipeline, checkpoint_score_fn)
        self.cv_threshold, self.gap_threshold = cv_threshold, gap_threshold
        self._verbose = VerboseLog(verbose, verbose_log_file)
        self._keeper = keeper
        self._collection, self._faults = Collection(), FaultCount(pipeline, val_pipeline)
        self._kept = False  # the keeper has what it needs to go on from the end
        self._newest: tuple[EpisodeData, dict[str, Any]] | None = None  # window and what learning from it reported
        self._whole = False  # agent, brain and history belong to the same instant
        self.seconds = dict.fromkeys(("collect", "learn", "evaluate", "total"), 0.0)
        self.history: list[EvalMetrics] = []
        self.notes: list[str] = []
        self.result: HostResult | None = None
        self._begun = self._stop_asked = False
        self._stop_as: StopReason | None = None  # why somebody called `stop`, where that was said
        self._policies = BestPolicy(agent, self.registry, self._note)

        params, tuner, space = agent.get_hyperparams().params, None, SearchSpace()
        key = jax.random.key(seed)
        if isinstance(optimizer, TunerOptimizer) and optimizer.is_pure:  # it runs inside the brain, another beside it
            tuner, space, key = optimizer.tuner, optimizer.space_of(params), optimizer.key_in(key)
        config = AutonomyConfig(
            scheduler=self.scheduler.config,
            tuner=tuner if space.dim else None,
            space=space,
            rollback_on_degradation=rollback_on_degradation and agent.is_on_policy,
            improvement_margin=float(improvement_margin),
            target_patience=convergence_patience,
        )
        self.brain = HostBrain(
            config,
            numeric(params),
            key,
            NO_LIMIT if max_episodes is None else max_episodes,
            math.inf if target_score is None else float(target_score),
        )
        self.scheduler.state = self.brain.state.scheduler
        self._outside = optimizer if tuner is None else None
        self._hyperparams = Hyperparams(agent, self.brain, self._outside, self.callbacks)

    @property
    def state(self) -> LoopState:
        return self.brain.loop_state

    @property
    def best_snapshot(self) -> PolicySnapshot | None:
        """The best policy of this run, None before the first evaluation."""
        return self._policies.best

    def stop(self, reason: StopReason | None = None) -> None:
        """Stop after the window in progress. Safe to call from callbacks and other threads, also before `run`.

        reason: what the result says, and that the run is over for good. Without one it counts as interrupted.
        """
        self._stop_as = self._stop_as if reason is None else reason
        self._stop_asked = True

    def add_callback(self, callback: Any) -> None:
        """One more, called after the others, from now on; an agent's own are called anyway."""
        check_callback(callback)
        if self.callbacks.add(callback) and self._begun:
            call_if_there(callback, "set_loop", self)

    def policy_changed(self) -> None:
        """Called by who put another policy into the agent: what was gathered under the old one says nothing of it."""
        self._forget(reset_envs=False)

    def keep_going(self) -> None:
        """Answer a DORMANT from `on_dormant`: it was handled, learning goes on, unless the budget stops it."""
        self.brain.resume()

    def renew(self, keep: float = KEPT_BY_GROWTH) -> None:
        """What learns has grown: a fresh patience, and `keep` of the interval between evaluations."""
        self.brain.renew(keep)
        self.scheduler.state = self.brain.state.scheduler

    def run(self) -> HostResult:
        """Train until the brain, `stop`, the end of the source or Ctrl-C stops it; then the best policy is in place."""
        reason = StopReason.INTERRUPTED  # unless something below ends the run: so also after an error
        began = time.perf_counter()
        try:
            with asking_on_signals(self._interrupt):
                try:
                    self._set_up()
                    self._whole = True
                    if not self._stop_asked:
                        reason = self._windows()
                except KeyboardInterrupt:
                    pass
            if self._keeper is not None and self._whole and not self._kept:
                self._keeper.end(self.brain.state)
            if self._whole and reason in (StopReason.INTERRUPTED, StopReason.EXHAUSTED):
                self._judge_early_end()
        finally:
            try:
                self._tear_down()
            finally:
                self.seconds["total"] += time.perf_counter() - began
                self.seconds["collect"] += self._collection.seconds
                run_dir = getattr(self._keeper, "run_dir", None)
                self.result = concluded(self, reason, self._faults.notes(), run_dir)
                self.callbacks.call("on_loop_stop")
        return self.result

    def _interrupt(self) -> None:
        self._stop_asked = True
        self._collection.interrupt()

    # -- one window ----------------------------------------------------------------------------------------

    def _windows(self) -> StopReason:
        if self.brain.stop_reason != StopReason.RUNNING:  # put back as it was
            return self.brain.stop_reason
        if self.brain.window >= int(self.brain.state.max_windows):
            return StopReason.BUDGET
        for data in self._collected():
            self._whole = False
            reason = self._window(data)
            self._whole = True
            if reason != StopReason.RUNNING:
                return reason
            if self._keeper is not None:
                self._keeper.between_windows()
        return StopReason.EXHAUSTED

    def _collected(self) -> Iterator[EpisodeData]:
        windows = iter(self.pipeline.episodes())
        while True:
            with self._collection:
                data = next(windows, None)
            if data is None:
                return
            yield data

    def _window(self, data: EpisodeData) -> StopReason:
        """Learn from a window and do what the brain says; why to stop, or RUNNING."""
        window = self.brain.window
        began = time.perf_counter()
        self._newest = None  # while learning goes on
        diagnostics = diagnostics_of(self.agent.learn(data))
        self.seconds["learn"] += time.perf_counter() - began
        if self.diagnostic_controller is not None:
            with self._hyperparams.others_may_change():
                self.diagnostic_controller.step(window, self.agent, diagnostics)
        self.evaluator.observe(data)
        metrics = self._judged(data, diagnostics, window, patient=True) if self.brain.scheduled else None
        finite = all_finite(diagnostics)
        self._newest = (data, diagnostics) if finite else None
        if metrics is None and self.brain.last:  # the budget's last policy is judged in any case
            if self._keeper is not None and finite:  # a run that goes on with a larger budget would not have judged it
                self._keeper.end(self.brain.unjudged())
                self._kept = True
            metrics = self._judged(data, diagnostics, window, patient=False)
        verdict = self.brain.finish_window(None if metrics is None else self._score, finite)
        self.scheduler.state = self.brain.state.scheduler
        if verdict.save_best and metrics is not None:
            self._policies.keep(metrics, window, is_tie=Event.BEST not in verdict.events)
        if verdict.rollback:  # before the callbacks: what one of them changes (a graph that grows) is to stay
            self._roll_back(verdict.reset_envs)
            call_if_there(self._keeper, "rolled_back", window)
        with self._hyperparams.others_may_change():
            self._tell(verdict, metrics, window)
        stop = self.brain.stop_reason  # after the callbacks: one of them may have handled a DORMANT
        if self._stop_as is not None and stop in (StopReason.RUNNING, StopReason.CONVERGED):
            stop = self._conclude(self._stop_as)
        if metrics is not None or verdict.rollback:
            self._hyperparams.owe(verdict.events, metrics is not None)
        if stop == StopReason.RUNNING:
            self._hyperparams.next(self.history)
        return StopReason.INTERRUPTED if stop == StopReason.RUNNING and self._stop_asked else stop

    def _judged(self, data: EpisodeData, diagnostics: dict[str, Any], window: int, patient: bool) -> EvalMetrics | None:
        began = time.perf_counter()
        metrics = self._judge.metrics(data, diagnostics, window, patient)
        self.seconds["evaluate"] += time.perf_counter() - began
        if metrics is not None:
            self.history.append(metrics)
        return metrics

    def _judge_early_end(self) -> None:
        """A run that ends before its first score was due keeps its last policy, by what there is to judge it by.

        Neither the brain nor what the keeper kept knows of it: a run that goes on waits for its first score.
        """
        if self.history or self._newest is None:
            return
        window = self.brain.window - 1
        metrics = self._judged(*self._newest, window, patient=False)
        if metrics is None or not math.isfinite(metrics.primary_score):
            return
        self._policies.keep(metrics, window, is_tie=False)
        if self.best_snapshot is not None:
            self.callbacks.call("on_improvement", self.best_snapshot)

    @property
    def _score(self) -> float:
        """What the brain is told of the newest evaluation."""
        return smoothed(self.history, self.score_smoothing)

    # -- obeying -------------------------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        _log.warning(text)
        self.notes.append(text)

    def _conclude(self, reason: StopReason) -> StopReason:
        """The brain ends for a reason that it does not know of itself; a run that is put back says so too."""
        state = self.brain.state
        self.brain.restore(state.replace(done=jnp.bool_(True), stop_reason=jnp.int32(reason)))
        return reason

    def _roll_back(self, reset_envs: bool) -> None:
        self._policies.put_back()
        self._forget(reset_envs)

    def _forget(self, reset_envs: bool) -> None:
        """What was gathered under a discarded policy says nothing of the next one."""
        for part, method in (
            (self.agent, "reset_cache"),
            (self.evaluator, "forget"),
            (self.diagnostic_controller, "forget"),
            *([(self.pipeline, "reset")] if reset_envs else []),
        ):
            call_if_there(part, method)

    def _tell(self, verdict: Verdict, metrics: EvalMetrics | None, window: int) -> None:
        """Callbacks in the order in which a compiled run tells them."""
        call, events = self.callbacks.call, verdict.events
        if metrics is not None:
            self._verbose.line(window, metrics.primary_score, self._score, self.state, self.brain.interval, events)
        self.callbacks.tell_state(window, self.state)
        call("on_episode_end", window, metrics)
        if Event.BEST in events and self.best_snapshot is not None:
            call("on_improvement", self.best_snapshot)
        if Event.PLATEAU in events:
            call("on_plateau", window, self.state)
        if Event.DORMANT in events:
            call("on_dormant", window)
        if Event.DEGRADED in events and metrics is not None:
            call("on_degradation", window, metrics)

    # -- what a keeper keeps -------------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        return stateful(
            {
                "policies": self._policies,
                "evaluator": self.evaluator,
                "pipeline": self.pipeline,
                "val_pipeline": self.val_pipeline,
                "optimizer": self._outside,
                "diagnostic_controller": self.diagnostic_controller,
                **self.callbacks.named(),
            }
        )

    @property
    def snapshots_in_use(self) -> set[str]:
        """Ids of the snapshots that this run may go back to."""
        return self._policies.in_use

    def host_state(self) -> dict[str, Any]:
        """All but the brain's arrays, the agent and the history; plain values and NumPy arrays."""
        return {
            "owed": self._hyperparams.owed,
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
            "faults": self._faults.state_dict(),
            "parts": {name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_host_state(self, state: Mapping[str, Any], history: Sequence[EvalMetrics]) -> None:
        """Take over a saved `host_state`; the agent and the brain are put back by the keeper.

        history: the evaluations up to then; the keeper has them from the run's events.
        """
        self.history[:], self.notes[:] = history, state["notes"]
        self.seconds.update(state["seconds"])
        for problem in put_back(self._parts(), state["parts"]):
            self._note(problem)
        self._faults.load_state_dict(state.get("faults", {}))
        self.scheduler.state = self.brain.state.scheduler
        self._hyperparams.owed = None if state["owed"] is None else tuple(state["owed"])
        self._hyperparams.next(self.history)

    def load_ended(self, state: Mapping[str, Any], history: Sequence[EvalMetrics], best: str | None) -> None:
        """As `load_host_state`, of a run that has ended and gets no larger budget: nothing is collected any more.

        best: id of its best snapshot.
        """
        self.history[:], self.notes[:] = history, state["notes"]
        self.seconds.update(state["seconds"])
        self.scheduler.state = self.brain.state.scheduler
        self._faults.load_state_dict(state.get("faults", {}))
        self._policies.find(best)
        self._kept = True

    # -- start and end -------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self._faults.begin()
        set_up(self.agent, self.pipeline, self.val_pipeline)
        check_fit(self.agent, self.pipeline, self.val_pipeline)
        self._begun = True
        for callback in self.callbacks.callbacks:
            call_if_there(callback, "set_loop", self)
        self.callbacks.call("on_loop_start")
        if self._keeper is not None and self._keeper.begin():
            return
        self._policies.begin()
        self._hyperparams.begin()

    def _tear_down(self) -> None:
        """The best policy comes back; sources are released, also after an error."""
        try:
            if self.best_snapshot is not None:
                self._policies.put_back()
        finally:
            release(self.pipeline, self.val_pipeline)
