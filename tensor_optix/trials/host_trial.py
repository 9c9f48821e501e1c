"""One trial of the host driver: an agent and a pipeline from their factories, a short `RLOptimizer` run, a score."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from tensor_optix.core.autonomy import AutonomyState
from tensor_optix.core.types import EvalMetrics, StopReason
from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.host import LoopController
from tensor_optix.loop.host_run import HostRun
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.trials.budget import StepBudget
from tensor_optix.trials.factories import made, made_agent
from tensor_optix.trials.facts import name_of
from tensor_optix.trials.fixed import without
from tensor_optix.trials.ledger import Outcome
from tensor_optix.trials.lower_is_better import lower_is_better

WEIGHTS = "weights"  # user attribute of a trial: where the weights of its best policy lie
ENV_STEPS = "env_steps"  # user attribute: what its pipeline collected
_FACT_LENGTH = 300  # characters of an error that are kept

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostTrial:
    """What all trials of a search share. Sent to other processes, so every function in it must be importable there."""

    agent_factory: Callable[..., Any]
    pipeline_factory: Callable[..., Any]
    val_pipeline_factory: Callable[..., Any] | None = None
    checkpoint_score_fn: Callable[[Any], float] | None = None
    steps: int | None = None  # budget in environment steps
    windows: int | None = None  # budget in windows
    minimize: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # of RLOptimizer

    @property
    def score_fn(self) -> Callable[[Any], float] | None:
        """The caller's own, which decides where it is given."""
        return self.settings.get("checkpoint_score_fn") or self.checkpoint_score_fn

    @property
    def score_source(self) -> str:
        """What decides a trial's score, in words that tell one study from another."""
        if self.score_fn is not None:
            return f"checkpoint_score_fn {name_of(self.score_fn)}"
        source = "training" if self.val_pipeline_factory is None else "validation"
        evaluator = self.settings.get("evaluator")
        own = getattr(evaluator, "primary_score_fn", None)
        if own is not None:
            return f"{source}, by {name_of(own)}"
        return source if type(evaluator) in (type(None), EpisodeEvaluator) else f"{source}, by {name_of(evaluator)}"


class Interrupted(Exception):
    """Somebody asked the trial to end: it has no score."""


def run_trial(
    trial: HostTrial,
    params: Mapping[str, Any],
    directory: Path,
    report: Callable[[int, float], bool],
    watch: Callable[[RLOptimizer], None] = lambda optimizer: None,
) -> Outcome:
    """Run one trial; its files go into `directory`.

    Args:
      report: (window, score known after it) -> True if the trial should be pruned.
      watch: gets the optimizer before it runs, to be able to stop it.

    Raises:
      Interrupted: the run was stopped from outside. Any other exception is that of a factory, the agent or the source,
        or a ValueError: the tuner that is to act within the trial changes what the trials search.
    """
    # All are made here and torn down here, also where another is not made: another trial must find nothing of this one.
    with contextlib.ExitStack() as sources, contextlib.ExitStack() as agents:
        pipeline = released(made(trial.pipeline_factory, params), sources)
        agent = released(made_agent(trial.agent_factory, params, pipeline), agents)
        validation = None
        if trial.val_pipeline_factory is not None:
            validation = released(made(trial.val_pipeline_factory, params), sources)
        budget = StepBudget(pipeline, trial.steps, lambda: optimizer.end_after_this_window())
        pruner = _Pruner(report, -1.0 if trial.minimize else 1.0)
        optimizer = _TrialRun(
            agent=agent,
            pipeline=budget,
            val_pipeline=validation,
            max_episodes=trial.windows,
            checkpoint_dir=directory,
            **_settings(trial, params, pruner),
        )
        pruner.stop = optimizer.stop
        watch(optimizer)
        try:
            result = optimizer.run()
        finally:
            if optimizer.result is not None:
                sources.pop_all()  # the run has torn them down
    facts: dict[str, Any] = {ENV_STEPS: budget.collected, "windows": result.windows}
    if pruner.pruned:
        return Outcome(TrialState.PRUNED, facts=facts)
    if result.stop_reason == StopReason.INTERRUPTED:
        raise Interrupted
    best = result.best_snapshot
    if best is None:
        return Outcome(TrialState.FAIL, error=f"no finite score in {result.windows} windows", facts=facts)
    score = best.eval_metrics.primary_score
    return Outcome(
        TrialState.COMPLETE, score=-score if trial.minimize else score, facts=facts | {WEIGHTS: str(best.weights_path)}
    )


def describe(error: BaseException) -> str:
    """An exception in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_FACT_LENGTH]


def released(part: Any, stack: contextlib.ExitStack) -> Any:
    """`part`, an agent or a pipeline, torn down when the stack ends. What goes wrong with that hides no other error."""

    def tear_down() -> None:
        try:
            part.teardown()
        except Exception as error:
            _log.warning("%s cannot be torn down: %s", type(part).__name__, describe(error))

    stack.callback(tear_down)
    return part


def _settings(trial: HostTrial, params: Mapping[str, Any], pruner: LoopCallback) -> dict[str, Any]:
    """RLOptimizer's further arguments.

    The tuner and the evaluator are copied, so that trials stay independent; the tuner leaves `params` alone. Callbacks
    are the caller's own, who hears of every trial.
    """
    settings = dict(trial.settings)
    settings["optimizer"] = without(settings.get("optimizer"), params)
    evaluator = copy.deepcopy(settings.get("evaluator"))
    settings["callbacks"] = [pruner, *(settings.get("callbacks") or ())]
    score_fn = trial.score_fn
    if trial.minimize:
        evaluator = lower_is_better(evaluator or EpisodeEvaluator())
        if settings.get("target_score") is not None:
            settings["target_score"] = -settings["target_score"]
    settings["evaluator"] = evaluator
    if score_fn is not None:
        settings["checkpoint_score_fn"] = (lambda agent: -score_fn(agent)) if trial.minimize else score_fn
    return settings


class _TrialRun(RLOptimizer):
    """A run that nobody goes on with: it keeps its policies, and no checkpoint."""

    def _new_controller(self, keeper: HostRun) -> LoopController:
        return super()._new_controller(_PoliciesOnly(keeper.directory, self._max_snapshots))


class _PoliciesOnly(HostRun):
    def between_windows(self) -> None:
        pass

    def end(self, state: AutonomyState) -> None:
        pass


class _Pruner(LoopCallback):
    """Reports after every window the score known by then, so that trials are compared at equal experience."""

    def __init__(self, report: Callable[[int, float], bool], sign: float) -> None:
        self._report, self._sign = report, sign
        self._score: float | None = None
        self.pruned = False
        self.stop: Callable[[], None] = lambda: None

    def on_episode_end(self, episode_id: int, eval_metrics: EvalMetrics | None) -> None:
        if eval_metrics is not None:
            self._score = self._sign * eval_metrics.primary_score
        if self._score is not None and not self.pruned and self._report(episode_id, self._score):
            self.pruned = True
            self.stop()
