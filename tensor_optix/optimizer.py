"""The host run in one call: `RLOptimizer(agent=..., pipeline=...).run()`, or `Optimizer(agent, env).run()`.

Both put together what `LoopController` needs: the default tuner from the bounds that the agent names, a scheduler, a
directory of the run's own, diagnostics. Nothing is decided here.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_evaluator import BaseEvaluator
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.diagnostic_controller import DiagnosticController
from tensor_optix.core.types import LoopState, PolicySnapshot, StopReason
from tensor_optix.host_defaults import default_tuner, rule_for
from tensor_optix.host_pipeline import pipeline_for
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.host import LoopController
from tensor_optix.loop.host_checks import check_agent, check_budget, check_callback, check_callbacks
from tensor_optix.loop.host_fit import check_fit
from tensor_optix.loop.host_result import HostResult
from tensor_optix.loop.host_run import SAVE_EVERY_S, HostRun
from tensor_optix.loop.optional_parts import release
from tensor_optix.loop.run_dir import RunDir
from tensor_optix.loop.run_manifest import user_entries
from tensor_optix.trials.factories import made, made_agent

if TYPE_CHECKING:
    from tensor_optix.trials.first import TrialsFirst

# Arguments of a run that are not handed on to the trials of its search: theirs alone, or the search's own.
_NOT_OF_TRIALS = {
    "agent", "pipeline", "val_pipeline", "agent_factory", "pipeline_factory", "val_pipeline_factory", "max_episodes",
    "checkpoint_dir", "param_space", "n_trials", "trial_steps_fraction", "trial_agent_factory", "resume_from",
    "callbacks", "verbose", "verbose_log_file", "max_snapshots", "save_every", "manifest", "seed",
}  # fmt: skip


class RLOptimizer:
    """Trains `agent` on `pipeline` until learning is over: tunes, keeps the best, restores it, stops, and says why.

    Args:
        agent: any `BaseAgent`. pipeline: any `BasePipeline`.
        agent_factory, pipeline_factory, val_pipeline_factory: make them when `run` is called, instead of `agent`,
            `pipeline`, `val_pipeline`; each takes no argument, or one mapping of hyperparameters.
        param_space: search over trials first (`TrialOrchestrator`, which says the forms): `n_trials` of them, each with
            `trial_steps_fraction` of `max_episodes`. The run then begins with the best trial's configuration and
            weights. Needs the factories; `trial_agent_factory` makes the agents of the trials where it is given.
        evaluator: scores windows; by default the mean return of whole episodes (`EpisodeEvaluator`).
        optimizer: tunes hyperparameters; by default SPSA within the agent's `default_param_bounds`, of those the ones
            in its `default_tuned` (for PPO the learning rate alone; give an `SPSAOptimizer` to tune more).
        checkpoint_dir: every run gets a directory of its own in here (`run_dir`).
        max_snapshots: policies kept: the best, the newest, and some between.
        rollback_on_degradation: put the best weights back when the score fell below them by more than the noise.
        improvement_margin: score units by which a new best must exceed the old one.
        max_episodes: budget in windows.
        base_interval, backoff_factor, max_interval_episodes: windows between evaluations: at first, growth, at most.
        plateau_threshold, dormant_threshold: evaluations without improvement before COOLING and DORMANT.
        degradation_threshold: a fall must lose at least 1 - this of the rise so far.
        min_degradation_drop: smallest fall that counts, score units.
        noise_k, score_window, trend_window: of the noise estimate and the trend test.
        min_episodes_before_dormant, min_episodes_before_degradation: evaluations.
        callbacks: `LoopCallback`s; more with `add_callback`.
        val_pipeline: windows that are not learned from; where given their score decides.
        score_smoothing: evaluations whose mean is told to the brain.
        checkpoint_score_fn: agent -> score; where given it decides.
        verbose, verbose_log_file: a line for each evaluation, printed or appended to a file.
        diagnostics, diag_*: a `DiagnosticController` watches if it is asked for, or one of its thresholds is given.
            By default none does: on CartPole its rules cost more than they gave (`benchmarks/RESULTS.md`).
        min_consecutive_degradations: evaluations in a row that make a degradation.
        convergence_patience, target_score: stop after so many evaluations in a row at the score.
        cv_threshold, gap_threshold: when the result notes an unsteady plateau, or overfitting.
        seed: of the tuner's probes.
        resume_from: the directory of an earlier run (its `run_dir`) to go on with, exactly where it was.
        save_every: seconds between checkpoints.
        manifest: further entries of the run's `manifest.json`; anything JSON can hold.

    None for a setting of the scheduler is the default rule, whose error rates are measured (`benchmarks/RESULTS.md`);
    None for `min_episodes_before_dormant` is what the agent's class says in `default_min_episodes_before_dormant`.

    Raises:
        TypeError, ValueError: a combination that cannot be run; nothing has been written yet.
        RunDirError: the directory cannot be used.
    """

    def __init__(
        self,
        agent: BaseAgent | None = None,
        pipeline: BasePipeline | None = None,
        evaluator: BaseEvaluator | None = None,
        optimizer: BaseOptimizer | None = None,
        checkpoint_dir: str | Path = "./tensor_optix_checkpoints",
        max_snapshots: int = 10,
        rollback_on_degradation: bool = False,
        improvement_margin: float = 0.0,
        max_episodes: int | None = None,
        base_interval: int | None = None,
        backoff_factor: float | None = None,
        max_interval_episodes: int | None = None,
        plateau_threshold: int | None = None,
        dormant_threshold: int | None = None,
        degradation_threshold: float | None = None,
        min_degradation_drop: float | None = None,
        noise_k: float | None = None,
        score_window: int | None = None,
        trend_window: int | None = None,
        min_episodes_before_dormant: int | None = None,
        min_episodes_before_degradation: int | None = None,
        callbacks: Sequence[Any] | None = None,
        val_pipeline: BasePipeline | None = None,
        score_smoothing: int = 1,
        checkpoint_score_fn: Callable[[Any], float] | None = None,
        verbose: bool = False,
        verbose_log_file: str | None = None,
        diag_loss_spike_factor: float | None = None,
        diag_entropy_floor: float | None = None,
        diag_target_kl: float | None = None,
        diag_epsilon_patience: int | None = None,
        diag_epsilon_reset_value: float | None = None,
        diag_epsilon_score_threshold: float | None = None,
        diag_min_episodes: int | None = None,
        min_consecutive_degradations: int | None = None,
        convergence_patience: int = 5,
        cv_threshold: float = 0.05,
        gap_threshold: float = 0.20,
        target_score: float | None = None,
        agent_factory: Callable[..., BaseAgent] | None = None,
        pipeline_factory: Callable[..., BasePipeline] | None = None,
        param_space: Mapping[str, Any] | None = None,
        n_trials: int = 20,
        trial_steps_fraction: float = 0.01,
        val_pipeline_factory: Callable[..., BasePipeline] | None = None,
        trial_agent_factory: Callable[..., BaseAgent] | None = None,
        *,
        diagnostics: bool | None = None,
        seed: int = 0,
        resume_from: str | Path | None = None,
        save_every: float = SAVE_EVERY_S,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}  # for the trials of a search
        _one_of("agent", agent, "agent_factory", agent_factory)
        _one_of("pipeline", pipeline, "pipeline_factory", pipeline_factory)
        if agent is not None:
            check_agent(agent)
        if val_pipeline is not None and val_pipeline_factory is not None:
            raise TypeError("RLOptimizer takes either val_pipeline or val_pipeline_factory, not both")
        if param_space is None and trial_agent_factory is not None:
            raise TypeError("trial_agent_factory makes the agents of a search over trials: give param_space too")
        if max_snapshots < 2:
            raise ValueError(
                f"max_snapshots must be at least 2 for a run (the best and the newest), got {max_snapshots}"
            )
        self.agent, self.pipeline, self.val_pipeline = agent, pipeline, val_pipeline
        self.evaluator, self.optimizer = evaluator, optimizer
        self._scheduler_settings: dict[str, Any] = {
            "min_degradation_drop": min_degradation_drop,
            "base_interval": base_interval,
            "backoff_factor": backoff_factor,
            "max_interval": max_interval_episodes,
            "plateau_threshold": plateau_threshold,
            "dormant_threshold": dormant_threshold,
            "degradation_share": None if degradation_threshold is None else 1.0 - degradation_threshold,
            "noise_k": noise_k,
            "score_window": score_window,
            "trend_window": trend_window,
            "min_evaluations_before_dormant": min_episodes_before_dormant,
            "min_evaluations_before_degradation": min_episodes_before_degradation,
            "min_consecutive_degradations": min_consecutive_degradations,
        }
        self.scheduler = BackoffScheduler()
        self.scheduler.configure(rule_for(agent, self._scheduler_settings))
        rules = {
            "loss_spike_factor": diag_loss_spike_factor,
            "entropy_floor": diag_entropy_floor,
            "target_kl": diag_target_kl,
            "epsilon_patience": diag_epsilon_patience,
            "epsilon_reset_value": diag_epsilon_reset_value,
            "epsilon_score_threshold": diag_epsilon_score_threshold,
            "min_episodes": diag_min_episodes,
        }
        given = {name: value for name, value in rules.items() if value is not None}
        self.diagnostics: DiagnosticController | None = None
        if diagnostics or (diagnostics is None and given):
            self.diagnostics = DiagnosticController(**given, verbose=verbose)
        self.checkpoint_dir, self._max_snapshots = Path(checkpoint_dir), max_snapshots
        self._factories = agent_factory, pipeline_factory, val_pipeline_factory
        self._resume_from, self._save_every = resume_from, save_every
        self._manifest = user_entries(manifest or {})
        check_callbacks(callbacks)
        check_budget(max_episodes)
        self._callbacks: list[Any] = list(callbacks or ())
        self._loop_arguments: dict[str, Any] = {
            "rollback_on_degradation": rollback_on_degradation,
            "improvement_margin": improvement_margin,
            "max_episodes": max_episodes,
            "score_smoothing": score_smoothing,
            "checkpoint_score_fn": checkpoint_score_fn,
            "verbose": verbose,
            "verbose_log_file": verbose_log_file,
            "convergence_patience": convergence_patience,
            "cv_threshold": cv_threshold,
            "gap_threshold": gap_threshold,
            "target_score": target_score,
            "seed": seed,
        }
        self._search: TrialsFirst | None = None
        if param_space is not None:
            from tensor_optix.trials.first import TrialsFirst

            self._search = TrialsFirst(
                param_space,
                n_trials,
                trial_steps_fraction,
                max_episodes,
                trial_agent_factory or agent_factory,
                pipeline_factory,
                val_pipeline_factory,
                {name: value for name, value in given.items() if name not in _NOT_OF_TRIALS},
                seed,
            )
        self._run_dir: Path | None = None
        self._unbegun: HostResult | None = None  # of a run whose search was stopped
        self._controller: LoopController | None = None
        self._stop_asked = False

    @property
    def _scheduler(self) -> BackoffScheduler:
        return self.scheduler

    @property
    def state(self) -> LoopState:
        """ACTIVE before the run."""
        return self.scheduler.current_state

    @property
    def best_snapshot(self) -> PolicySnapshot | None:
        """The best policy so far, None before the first evaluation."""
        return None if self._controller is None else self._controller.best_snapshot

    @property
    def result(self) -> HostResult | None:
        """What the run came to, None before its end."""
        return self._unbegun if self._controller is None else self._controller.result

    @property
    def run_dir(self) -> Path | None:
        """The run's own directory in `checkpoint_dir`: what `resume_from` takes to go on with it. None before `run`."""
        return self._run_dir

    @property
    def registry(self) -> CheckpointRegistry | None:
        """The run's snapshots, None before `run`."""
        return None if self._controller is None else self._controller.registry

    def add_callback(self, callback: Any) -> None:
        """One more, called after the others; from the next run on, or at once in a running one."""
        check_callback(callback)
        self._callbacks.append(callback)
        if self._controller is not None:
            self._controller.add_callback(callback)

    def stop(self) -> None:
        """Stop after the window in progress. Safe to call from callbacks and other threads, also before `run`.

        A search over trials ends with the trial in progress given up; the run then ends as it begins, with the best
        trial's policy, or without any where no trial was complete.
        """
        self._stop_asked = True
        if self._search is not None:
            self._search.stop()
        if self._controller is not None:
            self._controller.stop()

    def end_after_this_window(self) -> None:
        """The window that is being collected or learned from is the budget's last, and its policy is judged."""
        if self._controller is not None:
            self._controller.brain.extend(self._controller.brain.window + 1)

    def keep_going(self) -> None:
        """Answer a DORMANT from `on_dormant`: it was handled, learning goes on."""
        if self._controller is not None:
            self._controller.keep_going()

    def run(self) -> HostResult:
        """Train to the end; the best policy is in the agent afterwards. What happened is in the result.

        Raises:
            ValueError: agent and pipeline do not fit each other; nothing has been written yet.
        """
        try:
            self._make_what_is_missing()
        except RuntimeError as error:
            if not self._stop_asked or self._search is None or self._search.manifest:
                raise
            return self._without_begin(error)
        assert self.agent is not None
        try:
            check_fit(self.agent, self.pipeline, self.val_pipeline)
        except BaseException:
            release(self.pipeline, self.val_pipeline)
            raise
        if self.optimizer is None:
            self.optimizer = default_tuner(self.agent)
        directory, result = self._open_directory(), None
        keeper = HostRun(directory, self._max_snapshots, self._save_every, resuming=self._resume_from is not None)
        try:
            self._controller = self._new_controller(keeper)
            if self._stop_asked:
                self._controller.stop()
            result = self._controller.run()
        finally:
            self._stop_asked = False  # it was for this run
            keeper.finish(result)
        return result

    def _without_begin(self, error: RuntimeError) -> HostResult:
        """The result of a run whose search was stopped before it had anything to begin with."""
        self._stop_asked, self._controller = False, None
        notes = ["the search was stopped before a trial was complete: there is no policy"]
        notes += [str(error)] if " failed; " in str(error) else []  # of the trials until then
        self._unbegun = HostResult(StopReason.INTERRUPTED, 0, [], None, notes=notes)
        return self._unbegun

    def _new_controller(self, keeper: HostRun) -> LoopController:
        assert self.agent is not None
        controller = LoopController(
            agent=self.agent,
            pipeline=self.pipeline,
            evaluator=self.evaluator,
            optimizer=self.optimizer,
            checkpoint_registry=keeper.registry,
            backoff_scheduler=self.scheduler,
            callbacks=[keeper.recorder, *self._callbacks],
            val_pipeline=self.val_pipeline,
            diagnostic_controller=self.diagnostics,
            keeper=keeper,
            **self._loop_arguments,
        )
        keeper.attach(controller)
        return controller

    def _make_what_is_missing(self) -> None:
        make_agent, make_pipeline, make_validation = self._factories
        params: dict[str, Any] = {}
        if self._search is not None:
            params = self._search.params(self._resume_from)
            self._manifest |= self._search.manifest
        if self.pipeline is None and make_pipeline is not None:
            self.pipeline = made(make_pipeline, params)
        if self.agent is None and make_agent is not None:
            self.agent = made_agent(make_agent, params, self.pipeline)
            check_agent(self.agent)
            self.scheduler.configure(rule_for(self.agent, self._scheduler_settings))
            if self._search is not None:
                self._search.warm_start(self.agent)
        if self.val_pipeline is None and make_validation is not None:
            self.val_pipeline = made(make_validation, params)

    def _open_directory(self) -> RunDir:
        if self._resume_from is not None:
            directory = RunDir.open(self._resume_from)
            directory.update_manifest(**self._manifest)
        else:
            entries = {**self._manifest, "config": self._facts(), "seeds": []}
            directory = RunDir.create(_fresh(self.checkpoint_dir), entries)
        self._run_dir = directory.path
        return directory

    def _facts(self) -> dict[str, Any]:
        """What the manifest says about the run; names and numbers only."""
        plain = {k: v for k, v in self._loop_arguments.items() if isinstance(v, int | float | str) or v is None}
        return {
            "driver": "host",
            "agent": type(self.agent).__name__,
            "pipeline": type(self.pipeline).__name__,
            "hyperparams": {k: _plain(v) for k, v in self.agent.get_hyperparams().params.items()} if self.agent else {},
            **plain,
        }


class Optimizer(RLOptimizer):
    """`RLOptimizer` for an agent and an environment.

    Args:
        agent: any `BaseAgent`.
        env: a Gymnasium environment, its id, or a function (or class) that makes one.
        n_envs: environments side by side; above 1 each is made by the function (or by the environment's own spec).
        window_size: steps of all environments together in a window; by default as long as the task needs
            (`optimal_window_size`).
        max_episodes: budget in windows.
        callbacks, rollback_on_degradation, checkpoint_dir, **settings: as in `RLOptimizer`.
    """

    def __init__(
        self,
        agent: BaseAgent,
        env: Any,
        n_envs: int = 1,
        window_size: int | None = None,
        max_episodes: int | None = None,
        callbacks: Sequence[Any] | None = None,
        rollback_on_degradation: bool = False,
        checkpoint_dir: str | Path = "./tensor_optix_checkpoints",
        **settings: Any,
    ) -> None:
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}")
        check_agent(agent)
        seed = settings.get("seed", 0)
        super().__init__(
            agent=agent,
            pipeline=settings.pop("pipeline", None) or pipeline_for(agent, env, n_envs, window_size, seed),
            max_episodes=max_episodes,
            callbacks=callbacks,
            rollback_on_degradation=rollback_on_degradation,
            checkpoint_dir=checkpoint_dir,
            **settings,
        )


def _one_of(name: str, given: Any, factory_name: str, factory: Any) -> None:
    if (given is None) == (factory is None):
        raise TypeError(f"RLOptimizer takes either {name} or {factory_name}, one of them and not both")


def _fresh(parent: Path) -> Path:
    return parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)
