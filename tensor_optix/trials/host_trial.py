"""One trial of the host driver: an agent and a pipeline from their factories, a short `RLOptimizer` run, a score."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from tensor_optix.core.types import EvalMetrics, StopReason
from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.loop.events import LoopCallback
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.trials.budget import StepBudget
from tensor_optix.trials.factories import made, made_agent
from tensor_optix.trials.ledger import Outcome
from tensor_optix.trials.lower_is_better import LowerIsBetter

WEIGHTS = "weights"  # user attribute of a trial: where the weights of its best policy lie
ENV_STEPS = "env_steps"  # user attribute: what its pipeline collected
_FACT_LENGTH = 300  # characters of an error that are kept


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
      Interrupted: the run was stopped from outside. Any other exception is that of a factory, the agent or the source.
    """
    # Both are made here and torn down here: another trial must find nothing of this one.
    pipeline = made(trial.pipeline_factory, params)
    agent = None
    try:
        agent = made_agent(trial.agent_factory, params, pipeline)
        validation = None if trial.val_pipeline_factory is None else made(trial.val_pipeline_factory, params)
        budget = StepBudget(pipeline, trial.steps, lambda: optimizer.end_after_this_window())
        pruner = _Pruner(report, -1.0 if trial.minimize else 1.0)
        optimizer = RLOptimizer(
            agent=agent,
            pipeline=budget,
            val_pipeline=validation,
            max_episodes=trial.windows,
            checkpoint_dir=directory,
            **_settings(trial, pruner),
        )
        pruner.stop = optimizer.stop
        watch(optimizer)
        result = optimizer.run()
    finally:
        if agent is not None:
            agent.teardown()
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


def _settings(trial: HostTrial, pruner: LoopCallback) -> dict[str, Any]:
    """RLOptimizer's further arguments; what has a state is copied, so that trials stay independent."""
    settings = dict(trial.settings)
    for name in ("optimizer", "evaluator"):
        if settings.get(name) is not None:
            settings[name] = copy.deepcopy(settings[name])
    settings["callbacks"] = [pruner, *(settings.get("callbacks") or ())]
    score_fn = settings.pop("checkpoint_score_fn", None) or trial.checkpoint_score_fn
    if trial.minimize:
        settings["evaluator"] = LowerIsBetter(settings.get("evaluator") or EpisodeEvaluator())
    if score_fn is not None:
        settings["checkpoint_score_fn"] = (lambda agent: -score_fn(agent)) if trial.minimize else score_fn
    return settings


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
