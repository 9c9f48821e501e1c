"""The host driver: window -> learn -> evaluate if due -> brain -> obey, for any BaseAgent on any BasePipeline.

The same steps as `compiled.py`, and the same brain. Nothing is decided here: `HostBrain` says what to do, this file
does it by calling the agent, the registry and the callbacks.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tensor_optix.core.autonomy import NO_LIMIT, AutonomyConfig
from tensor_optix.core.backoff_scheduler import BackoffConfig
from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_evaluator import BaseEvaluator
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.search_space import SearchSpace, with_integers
from tensor_optix.core.types import (
    EpisodeData,
    EvalMetrics,
    Event,
    HyperparamSet,
    LoopState,
    PolicySnapshot,
    StopReason,
)
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import RunDirError
from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.loop.events import CallbackFailure, CallbackList
from tensor_optix.loop.host_brain import HostBrain, Verdict

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class HostResult:
    """What a host run came to."""

    stop_reason: StopReason
    windows: int
    history: list[EvalMetrics]  # every evaluation, oldest first
    best_snapshot: PolicySnapshot | None
    callback_failures: list[CallbackFailure] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)  # what went wrong without ending the run

    def __str__(self) -> str:
        best = "nothing was saved"
        if self.best_snapshot is not None:
            snapshot = self.best_snapshot
            best = f"best score {snapshot.eval_metrics.primary_score:g} at window {snapshot.episode_id}"
        facts = f"{self.stop_reason.describe()}; {self.windows} windows, {len(self.history)} evaluations, {best}"
        return "\n".join([facts, *self.notes])


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
        callbacks: `LoopCallback`s, or anything with some of their hooks.
        val_pipeline: windows that are not learned from; where given they decide.
        checkpoint_score_fn: agent -> score; where given it decides.
        score_smoothing: evaluations whose mean is told to the brain.
        target_score: stop after `convergence_patience` evaluations in a row at it.
        min_consecutive_degradations: evaluations in a row that make a degradation.
        diagnostic_controller: has `step(window, agent, diagnostics)`; called after each window that was learned from.
        seed: of the tuner's probes.
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
        diagnostic_controller: Any = None,
        min_consecutive_degradations: int | None = None,
        convergence_patience: int = 5,
        target_score: float | None = None,
        seed: int = 0,
    ) -> None:
        if pipeline is None:
            raise TypeError("LoopController got no pipeline: give pipeline=..., for example a BatchPipeline")
        if max_episodes is not None and max_episodes < 1:
            raise ValueError(f"max_episodes must be at least 1 window, got {max_episodes}")
        if score_smoothing < 1:
            raise ValueError(f"score_smoothing must be at least 1 evaluation, got {score_smoothing}")
        if checkpoint_registry is not None and checkpoint_registry.max_snapshots < 2:  # the best, and one being tried
            raise ValueError(f"max_snapshots must be at least 2 for a run, got {checkpoint_registry.max_snapshots}")
        self.agent, self.pipeline, self.val_pipeline = agent, pipeline, val_pipeline
        self.evaluator = evaluator if evaluator is not None else EpisodeEvaluator()
        self.optimizer = optimizer
        self.registry = checkpoint_registry or CheckpointRegistry("./tensor_optix_checkpoints")
        self.scheduler = backoff_scheduler or BackoffScheduler()
        if backoff_scheduler is None:  # the rule whose error rates are measured, not the class's older defaults
            self.scheduler.config = BackoffConfig(max_interval=1)
        if min_consecutive_degradations is not None:
            self.scheduler.config = dataclasses.replace(
                self.scheduler.config, min_consecutive_degradations=min_consecutive_degradations
            )
        self.callbacks = CallbackList(callbacks or ())
        self.checkpoint_score_fn, self.diagnostic_controller = checkpoint_score_fn, diagnostic_controller
        self.score_smoothing = score_smoothing
        self.history: list[EvalMetrics] = []
        self.notes: list[str] = []
        self.result: HostResult | None = None
        self._stop_asked = False
        self._saved: PolicySnapshot | None = None  # the best of this run
        self._beginning: PolicySnapshot | None = None  # what a fault before the first best goes back to
        self._val_windows: Any = None

        tuner = getattr(optimizer, "tuner", None)  # a pure tuner runs inside the brain, another beside it
        params = agent.get_hyperparams().params
        space = with_integers(optimizer.space, params) if tuner is not None else SearchSpace()  # type: ignore[union-attr]
        self._outside = optimizer if tuner is None else None
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
            _numeric(params),
            jax.random.key(seed),
            NO_LIMIT if max_episodes is None else max_episodes,
            math.inf if target_score is None else float(target_score),
        )
        self.scheduler.state = self.brain.state.scheduler

    @property
    def state(self) -> LoopState:
        return self.brain.loop_state

    @property
    def best_snapshot(self) -> PolicySnapshot | None:
        """The best policy of this run, None before the first evaluation."""
        return self._saved

    def stop(self) -> None:
        """Stop after the window in progress. Safe to call from callbacks and other threads, also before `run`."""
        self._stop_asked = True

    def keep_going(self) -> None:
        """Answer a DORMANT from `on_dormant`: it was handled (a spawn, a grown network), learning goes on.

        Nothing happens where learning does not count as over, or the budget is.
        """
        self.brain.resume()

    def run(self) -> HostResult:
        """Train until the brain, `stop`, the end of the source or Ctrl-C stops it; then the best policy is in place."""
        reason = StopReason.INTERRUPTED  # unless something below ends the run: so also after an error
        try:
            self._set_up()
            if not self._stop_asked:
                reason = self._windows()
        except KeyboardInterrupt:
            pass
        finally:
            try:
                self._tear_down()
            finally:
                self.result = HostResult(
                    reason, self.brain.window, self.history, self._saved, self.callbacks.failures, self.notes
                )
                self.callbacks.call("on_loop_stop")
        return self.result

    # -- one window ----------------------------------------------------------------------------------------

    def _windows(self) -> StopReason:
        for data in self.pipeline.episodes():
            reason = self._window(data)
            if reason != StopReason.RUNNING:
                return reason
        return StopReason.EXHAUSTED

    def _window(self, data: EpisodeData) -> StopReason:
        """Learn from a window and do what the brain says; why to stop, or RUNNING."""
        window = self.brain.window
        diagnostics = dict(self.agent.learn(data) or {})
        if self.diagnostic_controller is not None:
            self.diagnostic_controller.step(window, self.agent, diagnostics)
        self.evaluator.observe(data)
        metrics = self._evaluate(data, diagnostics, window) if self.brain.due else None
        verdict = self.brain.finish_window(self._told(metrics), _all_finite(diagnostics))
        self.scheduler.state = self.brain.state.scheduler
        self._keep(verdict, metrics, window)
        self._tell(verdict, metrics, window)
        if verdict.rollback:
            self._roll_back()
        stop = self.brain.stop_reason  # after the callbacks: one of them may have handled a DORMANT
        if stop == StopReason.RUNNING:
            self._retune(verdict, metrics)
        return StopReason.INTERRUPTED if stop == StopReason.RUNNING and self._stop_asked else stop

    def _evaluate(self, data: EpisodeData, diagnostics: dict[str, Any], window: int) -> EvalMetrics | None:
        metrics = self.evaluator.score(data, diagnostics)
        if self.val_pipeline is not None:
            validation = self._validate()
            if metrics is None or validation is None:
                return None
            metrics = self.evaluator.combine(metrics, validation)
        if self.checkpoint_score_fn is not None:
            score = float(self.checkpoint_score_fn(self.agent))
            metrics = EvalMetrics(score, {**(metrics.metrics if metrics else {}), "checkpoint_score": score}, window)
        if self.val_pipeline is not None or self.checkpoint_score_fn is not None:
            reset_cache = getattr(self.agent, "reset_cache", None)  # acting there must not look like experience
            if reset_cache is not None:
                reset_cache()
        return metrics

    def _validate(self) -> EvalMetrics | None:
        if self._val_windows is None:
            self._val_windows = iter(self.val_pipeline.episodes())  # type: ignore[union-attr]
        window = next(self._val_windows, None)
        return None if window is None else self.evaluator.score_validation(window)

    def _told(self, metrics: EvalMetrics | None) -> float | None:
        if metrics is None:
            return None
        self.history.append(metrics)
        newest = [m.primary_score for m in self.history[-self.score_smoothing :]]
        if not math.isfinite(newest[-1]):
            return newest[-1]  # a fault now; in later means it has no part
        return float(np.mean([score for score in newest if math.isfinite(score)]))

    # -- obeying -------------------------------------------------------------------------------------------

    def _keep(self, verdict: Verdict, metrics: EvalMetrics | None, window: int) -> None:
        if verdict.save_best and metrics is not None:
            hyperparams = HyperparamSet(dict(self.agent.get_hyperparams().params), window)
            try:
                self._saved = self.registry.save(self.agent, metrics, hyperparams)
            except RunDirError as error:  # a full disk costs this snapshot, not the run
                self._note(f"window {window} was the best so far and is lost: {error}")

    def _load(self, snapshot: PolicySnapshot) -> None:
        """The snapshot, or the best one left where it is damaged."""
        try:
            self.registry.load(self.agent, snapshot.snapshot_id)
        except (RunDirError, ValueError) as error:
            other = self.registry.load_best(self.agent)
            instead = "nothing is left" if other is None else f"snapshot {other.snapshot_id} is in its place"
            self._note(f"{error} Of the others {instead}.")

    def _note(self, text: str) -> None:
        _log.warning(text)
        self.notes.append(text)

    def _roll_back(self) -> None:
        snapshot = self._saved or self._beginning
        if snapshot is not None:
            self._load(snapshot)
        reset_cache = getattr(self.agent, "reset_cache", None)
        if reset_cache is not None:
            reset_cache()

    def _tell(self, verdict: Verdict, metrics: EvalMetrics | None, window: int) -> None:
        """Callbacks in the order in which a compiled run tells them."""
        call, events = self.callbacks.call, verdict.events
        call("on_episode_end", window, metrics)
        if Event.BEST in events and self._saved is not None:
            call("on_improvement", self._saved)
        if Event.PLATEAU in events:
            call("on_plateau", window, self.state)
        if Event.DORMANT in events:
            call("on_dormant", window)
        if Event.DEGRADED in events and metrics is not None:
            call("on_degradation", window, metrics)

    def _retune(self, verdict: Verdict, metrics: EvalMetrics | None) -> None:
        """Put the next hyperparameters in force: the brain's, or those of a tuner outside it."""
        if metrics is None and not verdict.rollback:
            return
        before = dict(self.agent.get_hyperparams().params)
        if self._outside is None:
            after = {**before, **self.brain.hyperparams()}
        else:
            if metrics is not None and Event.IMPROVING in verdict.events:
                self._outside.on_improvement(metrics)
            if metrics is not None and self.state in (LoopState.COOLING, LoopState.DORMANT):
                self._outside.on_plateau(self.history)
            after = dict(self._outside.suggest(HyperparamSet(before, self.brain.window), self.history).params)
        self._put_in_force(before, after)

    def _put_in_force(self, before: Mapping[str, Any], after: dict[str, Any]) -> None:
        if after == before:
            return
        self.agent.set_hyperparams(HyperparamSet(dict(after), self.brain.window))
        self.callbacks.call("on_hyperparam_update", dict(before), dict(after))

    # -- start and end -------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        self.pipeline.setup()
        if self.val_pipeline is not None:
            self.val_pipeline.setup()
        for pipeline in (self.pipeline, self.val_pipeline):
            set_agent = getattr(pipeline, "set_agent", None)
            if set_agent is not None:
                set_agent(self.agent)
        self.callbacks.call("on_loop_start")
        before = dict(self.agent.get_hyperparams().params)
        # Never the best: a score of minus infinity is below every other, and it goes when there is something better.
        self._beginning = self.registry.save(self.agent, EvalMetrics(-math.inf, {}, 0), HyperparamSet(dict(before)))
        if self._outside is None:
            self._put_in_force(before, {**before, **self.brain.hyperparams()})

    def _tear_down(self) -> None:
        """The best policy comes back; sources are released, also after an error."""
        try:
            if self._saved is not None:
                self._load(self._saved)
        finally:
            for pipeline in (self.pipeline, self.val_pipeline):
                if pipeline is not None:
                    pipeline.teardown()


def _numeric(params: Mapping[str, Any]) -> dict[str, float]:
    """Those that are numbers, and not flags."""
    return {
        k: float(v) for k, v in params.items() if isinstance(v, int | float | np.number) and not isinstance(v, bool)
    }


def _all_finite(diagnostics: Mapping[str, Any]) -> bool:
    return all(math.isfinite(value) for value in _numeric(diagnostics).values())
