"""Searches over independent runs: `TrialOrchestrator(agent_factory, pipeline_factory, space).run()`, on Optuna.

`tune` of `tensor_optix.trials.compiled` does the same for the algorithms that compile, many trials at a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensor_optix.config_checks import unknown, whole
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.trials.result import BestTrial
from tensor_optix.trials.space import TrialSpace, trial_space

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from tensor_optix.trials.host_trial import HostTrial
    from tensor_optix.trials.ledger import Ledger

_STEPS = 50_000  # environment steps of a trial
# What a search decides for itself, and does not let be set in rloptimizer_kwargs.
_OWN = {
    "agent": "agent_factory",
    "agent_factory": "agent_factory",
    "pipeline": "pipeline_factory",
    "pipeline_factory": "pipeline_factory",
    "val_pipeline": "val_pipeline_factory",
    "val_pipeline_factory": "val_pipeline_factory",
    "max_episodes": "trial_episodes",
    "checkpoint_dir": "checkpoint_dir",
    "param_space": "param_space",
    "n_trials": "n_trials",
    "trial_steps_fraction": "trial_steps",
    "trial_agent_factory": "agent_factory",
    "resume_from": "storage and study_name",
}


class TrialOrchestrator:
    """Runs independent trials, each a short `RLOptimizer` run with hyperparameters that Optuna's TPE proposes.

    Args:
        agent_factory: makes an agent; takes the hyperparameters, or nothing (they are put in force afterwards).
        pipeline_factory, val_pipeline_factory: make a pipeline; take the hyperparameters, or nothing.
        param_space: name -> ("float" | "log_float" | "int" | "log_int", low, high) or ("categorical", *values); None:
            numbers within the bounds that the agent's class names, whole ones where value and bounds are whole.
        n_trials: in total, those that the study already has included.
        trial_steps: budget of a trial in environment steps, of all its environments together. A trial ends with the
            window that reaches it.
        direction: "maximize" or "minimize" the score.
        n_startup_trials: trials drawn at random, and before the first is pruned.
        pruner_warmup_steps, pruner_interval: windows before a trial may be pruned, and between two looks. A trial is
            pruned when its best score so far is below the median of the complete trials at the same window.
        optuna_verbosity: a level of Optuna's logging; None: warnings only.
        rloptimizer_kwargs: further arguments of each trial's `RLOptimizer`. Within a trial nothing is tuned unless
            "optimizer" is given here, and then not what is searched. Each trial has copies of the optimizer and the
            evaluator; callbacks are shared and hear of every trial (with `n_jobs` above 1 each process has its own
            copies). To minimise, "target_score" is what the score must fall to; callbacks hear scores with the sign
            changed.
        checkpoint_score_fn: agent -> score; where given it decides, in place of the mean return of training episodes.
        study_name, storage: where the study is kept, and goes on: None (memory), a journal file ("study.journal"), a
            URL ("sqlite:///study.db"), or a storage of Optuna's. Several processes may share one.
        seed: of the proposals. The same seed gives the same trials where they run one after the other and the
            factories are deterministic.
        n_jobs: trials side by side, each in a process of its own; factories must then be importable.
        trial_episodes: budget of a trial in windows, instead of `trial_steps`.
        checkpoint_dir: keeps every trial's files, under the study's name. None: a temporary directory that keeps the
            best trial's weights, and goes with this object.
        callbacks: called as `callback(study, trial)` when a trial has ended.

    A trial's score is that of its best policy. With the training score, which decides by default, it is the highest of
    several noisy ones; a `checkpoint_score_fn` or a `val_pipeline_factory` makes it less so.

    A trial whose factory, agent or source raises is recorded as failed, with the error as its user attribute "error".
    One whose process was killed is recorded as failed and run once more.

    Raises:
        ImportError: Optuna is missing.
        TypeError, ValueError: arguments that cannot be run, in a sentence.
    """

    def __init__(
        self,
        agent_factory: Callable[..., BaseAgent],
        pipeline_factory: Callable[..., BasePipeline],
        param_space: Mapping[str, Any] | None = None,
        n_trials: int = 20,
        trial_steps: int = _STEPS,
        direction: str = "maximize",
        n_startup_trials: int = 10,
        pruner_warmup_steps: int = 5,
        pruner_interval: int = 1,
        optuna_verbosity: int | None = None,
        rloptimizer_kwargs: Mapping[str, Any] | None = None,
        val_pipeline_factory: Callable[..., BasePipeline] | None = None,
        checkpoint_score_fn: Callable[[Any], float] | None = None,
        study_name: str | None = None,
        storage: Any = None,
        *,
        seed: int = 0,
        n_jobs: int = 1,
        trial_episodes: int | None = None,
        checkpoint_dir: str | Path | None = None,
        callbacks: Sequence[Callable[[Study, FrozenTrial], None]] = (),
    ) -> None:
        require_optuna()
        from tensor_optix.trials.factories import check_factory
        from tensor_optix.trials.host_trial import HostTrial

        check_factory("agent_factory", agent_factory)
        check_factory("pipeline_factory", pipeline_factory)
        if direction not in ("maximize", "minimize"):
            raise ValueError(f'direction must be "maximize" or "minimize", got {direction!r}')
        if trial_episodes is not None and trial_steps != _STEPS:
            raise TypeError(
                f"trial_steps={trial_steps} and trial_episodes={trial_episodes} are two budgets: give one of them"
            )
        settings = dict(rloptimizer_kwargs or {})
        _check_settings(settings)
        self.n_trials, self.n_jobs = whole("n_trials", n_trials), whole("n_jobs", n_jobs)
        self.seed = whole("seed", seed, 0)
        self.direction, self._storage, self._study_name = direction, storage, study_name
        self._n_startup = whole("n_startup_trials", n_startup_trials, 0)
        self._warmup = whole("pruner_warmup_steps", pruner_warmup_steps, 0)
        self._interval = whole("pruner_interval", pruner_interval)
        self._verbosity, self._callbacks = optuna_verbosity, list(callbacks)
        self.trial: HostTrial = HostTrial(
            agent_factory,
            pipeline_factory,
            val_pipeline_factory,
            checkpoint_score_fn,
            steps=None if trial_episodes is not None else whole("trial_steps", trial_steps),
            windows=None if trial_episodes is None else whole("trial_episodes", trial_episodes),
            minimize=direction == "minimize",
            settings=settings,
        )
        if self.n_jobs > 1:
            from tensor_optix.trials.workers import check_sendable

            check_sendable(self.trial)
        if param_space is None:
            self.space = _space_of_agent(agent_factory, pipeline_factory)
        else:
            self.space = trial_space(param_space)
        self._given_directory = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.run_ckpt_dir: Path | None = None  # from `run` on: where the trials' files are
        self.study: Study | None = None  # from `run` on
        self._kept: int | None = None  # the trial whose files are kept in a temporary directory
        self._running: RLOptimizer | None = None
        self._opened: Any = None  # the storage
        self._stop_asked = False

    @property
    def best_params(self) -> dict[str, Any] | None:
        """Of the best complete trial; None before there is one."""
        best = self._best()
        return None if best is None else self.space.decoded(best.params)

    @property
    def best_score(self) -> float | None:
        """Of the best complete trial; None before there is one."""
        best = self._best()
        return None if best is None else float(best.value or 0.0)

    @property
    def best_weights_path(self) -> str | None:
        """For `agent.load_weights`: the best trial's best policy. None where another process ran it, and kept none."""
        from tensor_optix.trials.host_trial import WEIGHTS

        best = self._best()
        path = None if best is None else best.user_attrs.get(WEIGHTS)
        return str(path) if path is not None and Path(path).exists() else None

    def trials_dataframe(self) -> Any:
        """The study as a table of pandas, one row for each trial."""
        if importlib.util.find_spec("pandas") is None:
            raise ImportError("trials_dataframe() needs pandas: pip install pandas")
        if self.study is None:
            raise RuntimeError("there are no trials yet: run() comes first")
        return self.study.trials_dataframe()

    def stop(self) -> None:
        """End the search; trials in progress are given up. Safe to call from callbacks and other threads."""
        self._stop_asked = True
        if self._running is not None:
            self._running.stop()

    def close(self) -> None:
        """Remove the temporary directory, and with it the best weights; otherwise done when this object goes."""
        if self._given_directory is None and self.run_ckpt_dir is not None:
            shutil.rmtree(self.run_ckpt_dir, ignore_errors=True)

    def run(self) -> BestTrial:
        """Search until the study has `n_trials`.

        Returns (params, score) of the best complete trial; also a mapping over the params.

        Raises:
            RuntimeError: no trial is complete; the sentence has the first error.
            KeyboardInterrupt: interrupted. What is finished is in the study.
        """
        from tensor_optix.trials.ledger import Ledger, best_of
        from tensor_optix.trials.study import talking

        try:
            with talking(self._verbosity):
                study, storage = self._open()
                self.study = study
                self._make_directory()
                with Ledger(study, storage, self.space, self.n_trials, self._callbacks) as ledger:
                    self._trials(ledger)
                best = best_of(study)
            if best is None:
                raise RuntimeError(self._why_none(ledger))
        finally:
            self._stop_asked = False  # it was for this search
        return BestTrial(self.space.decoded(best.params), float(best.value or 0.0))

    def _trials(self, ledger: Ledger) -> None:
        if self.n_jobs == 1:
            self._one_after_the_other(ledger)
            return
        from tensor_optix.trials.workers import Crew

        Crew(self.trial, self.n_jobs, self._directory_of, self._tidy, lambda: self._stop_asked).run(ledger)

    def _one_after_the_other(self, ledger: Ledger) -> None:
        from optuna.trial import TrialState

        from tensor_optix.trials.host_trial import Interrupted, describe, run_trial
        from tensor_optix.trials.ledger import Outcome

        def watch(optimizer: RLOptimizer) -> None:
            self._running = optimizer
            if self._stop_asked:
                optimizer.stop()

        while not self._stop_asked:
            taken = ledger.take()
            if taken is None:
                return
            number, params = taken

            def report(step: int, score: float, number: int = number) -> bool:
                return ledger.report(number, step, score)

            try:
                outcome = run_trial(self.trial, params, self._directory_of(number), report, watch)
            except Interrupted:
                if self._stop_asked:
                    return  # the ledger gives it up
                raise KeyboardInterrupt from None
            except Exception as error:
                outcome = Outcome(TrialState.FAIL, error=describe(error))
            finally:
                self._running = None
            ledger.finish(number, outcome)
            self._tidy(number)

    def _open(self) -> tuple[Study, Any]:
        import optuna

        from tensor_optix.trials.storage import open_storage
        from tensor_optix.trials.study import open_study

        if self._opened is None:
            self._opened = open_storage(self._storage)
        storage = self._opened
        facts = {"param_space": self.space.facts(), "score": self.trial.score_source}
        budget = {"trial_steps": self.trial.steps, "trial_episodes": self.trial.windows}
        study = open_study(
            storage,
            self._study_name if self.study is None else self.study.study_name,
            direction="minimize" if self.trial.minimize else "maximize",
            seed=self.seed,
            n_startup_trials=self._n_startup,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=self._n_startup,
                n_warmup_steps=self._warmup,
                interval_steps=self._interval,
                n_min_trials=1,
            ),
            facts=facts | {k: v for k, v in budget.items() if v is not None},
        )
        return study, storage

    def _make_directory(self) -> None:
        assert self.study is not None
        if self._given_directory is not None:
            self.run_ckpt_dir = self._given_directory / self.study.study_name
            self.run_ckpt_dir.mkdir(parents=True, exist_ok=True)
        elif self.run_ckpt_dir is None or not self.run_ckpt_dir.exists():
            from tensor_optix.trials.temporary import temporary_directory

            self.run_ckpt_dir = temporary_directory()
            weakref.finalize(self, shutil.rmtree, self.run_ckpt_dir, ignore_errors=True)

    def _directory_of(self, number: int) -> Path:
        assert self.run_ckpt_dir is not None
        return self.run_ckpt_dir / f"trial-{number:05d}"

    def _tidy(self, number: int) -> None:
        """A temporary directory keeps the best trial's files only."""
        if self._given_directory is not None:
            return
        best = self._best()
        if best is not None and best.number == number:
            number, self._kept = -1 if self._kept is None else self._kept, number
        shutil.rmtree(self._directory_of(number), ignore_errors=True)

    def _best(self) -> FrozenTrial | None:
        from tensor_optix.trials.ledger import best_of

        return None if self.study is None else best_of(self.study)

    def _why_none(self, ledger: Ledger) -> str:
        from tensor_optix.trials.ledger import failures
        from tensor_optix.trials.retry import ERROR

        assert self.study is not None
        failed = failures(self.study)
        first = ledger.first_error or next((str(t.user_attrs[ERROR]) for t in failed if ERROR in t.user_attrs), None)
        if self._stop_asked and first is None:  # a trial that was given up is no failure of its own
            return "the search was stopped before a trial was complete"
        if first is None:
            return (
                f"none of the {len(self.study.trials)} trials of study {self.study.study_name!r} is complete: others "
                "may still be running in another process"
            )
        return (
            f"no trial is complete, {len(failed)} of {len(self.study.trials)} failed; the first with {first}: mend "
            "agent_factory or pipeline_factory, which work for no parameters of param_space so far"
        )


def require_optuna() -> None:
    """ImportError with the command that mends it."""
    if importlib.util.find_spec("optuna") is None:
        raise ImportError('a search over trials needs Optuna: pip install "tensor-optix[tune]"')


def _check_settings(settings: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(RLOptimizer.__init__).parameters if name != "self"]
    for name in settings:
        if name in _OWN:
            raise ValueError(
                f"rloptimizer_kwargs cannot set {name!r}: a search sets it for each trial, use {_OWN[name]} of "
                "TrialOrchestrator"
            )
        if name not in known:
            raise ValueError(unknown("argument of RLOptimizer in rloptimizer_kwargs", name, set(known) - set(_OWN)))


def _space_of_agent(agent_factory: Callable[..., Any], pipeline_factory: Callable[..., Any]) -> TrialSpace:
    """Numbers within the bounds that the agent's class names."""
    from tensor_optix.trials.factories import made, made_agent
    from tensor_optix.trials.host_trial import describe, released

    with contextlib.ExitStack() as stack:
        try:
            pipeline = released(made(pipeline_factory, {}), stack)
            agent = released(made_agent(agent_factory, {}, pipeline), stack)
        except Exception as error:
            raise ValueError(
                "param_space is missing, and agent_factory makes no agent without hyperparameters "
                f"({describe(error)}): give param_space"
            ) from error
        bounds = getattr(agent, "default_param_bounds", None) or {}
        log = getattr(agent, "default_log_params", None) or ()
        params = dict(agent.get_hyperparams().params)
    specs = {name: (_scale(params[name], pair, name in log), *pair) for name, pair in bounds.items() if name in params}
    if not specs:
        raise ValueError(
            f"param_space is missing, and {type(agent).__name__} names no bounds (default_param_bounds): give "
            'param_space, for example {"learning_rate": ("log_float", 1e-4, 3e-3)}'
        )
    return trial_space(specs)


def _scale(value: Any, bounds: tuple[float, float], log: bool) -> str:
    """What is proposed within bounds: whole numbers where the value and both bounds are whole."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    kind = "int" if is_int and all(float(bound).is_integer() for bound in bounds) else "float"
    return f"log_{kind}" if log else kind
