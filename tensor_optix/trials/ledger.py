"""The trials of one study as one process takes, reports and finishes them.

Other processes may do the same at the same time on the same storage, and any of them may be killed at any instant:
a trial is then either still waiting, and somebody takes it, or it carries the mark of a process that is gone.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from tensor_optix.trials import owner
from tensor_optix.trials.retry import ERROR, LOST, PROCESS, counted, queue_lost
from tensor_optix.trials.space import TrialSpace
from tensor_optix.trials.storage import HEARTBEAT_S, has_heartbeat

_GOOD = (TrialState.COMPLETE,)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: TrialState  # COMPLETE, PRUNED or FAIL
    score: float | None = None  # of a complete one
    error: str | None = None  # of a failed one, one line
    lost: bool = False  # failed because it was interrupted: it is run once more
    facts: Mapping[str, Any] | None = None  # JSON values to be kept with the trial


class Ledger:
    """Takes trials of `study` until it has `n_trials` in total.

    A trial that is repeated because its process was killed does not count twice. A context: signs of life are given
    in it, and what is unfinished at its end counts as lost.
    """

    def __init__(
        self,
        study: Study,
        storage: BaseStorage,
        space: TrialSpace,
        n_trials: int,
        callbacks: Sequence[Callable[[Study, FrozenTrial], None]] = (),
    ) -> None:
        self.study, self.space, self.n_trials = study, space, n_trials
        self._callbacks = list(callbacks)
        self._running: dict[int, Trial] = {}
        self._mark = owner.mark()
        self._heart = _Heart(storage, study) if has_heartbeat(storage) else None
        self.first_error: str | None = None  # of the trials of this process

    def __enter__(self) -> Ledger:
        if self._heart is not None:
            self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._running):
            self.finish(number, Outcome(TrialState.FAIL, error="interrupted", lost=True))
        if self._heart is not None:
            self._heart.stop()

    def take(self) -> tuple[int, dict[str, Any]] | None:
        """Number and parameters of a trial to run now; None if the study has all it wants, or others run the rest."""
        self._fail_lost()
        trials = self.study.get_trials(deepcopy=False)
        known = counted(trials)
        if not any(trial.state == TrialState.WAITING for trial in known[: self.n_trials]):
            if len(known) >= self.n_trials:
                return None
            # In one write with its mark: a process may be killed between any two.
            self.study.enqueue_trial({}, user_attrs={PROCESS: self._mark})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna expects heartbeats of Study.optimize only
            trial = self.study.ask()
        if trial.user_attrs.get(PROCESS) != self._mark:
            trial.set_user_attr(PROCESS, self._mark)
        self._running[trial.number] = trial
        if self._heart is not None:
            self._heart.running = set(self._running)
        try:
            for name, entry in self.space.entries:
                entry.suggest(trial, name)
        except ValueError as error:  # a queued trial that lies outside the space
            self.finish(trial.number, Outcome(TrialState.FAIL, error=str(error)))
            raise
        return trial.number, self.space.decoded(trial.params)

    def report(self, number: int, step: int, value: float) -> bool:
        """An intermediate score; True: the trial is not worth going on with."""
        trial = self._running[number]
        try:
            trial.report(float(value), step)
            return bool(trial.should_prune())
        except UpdateFinishedTrialError:  # somebody took this process for dead
            return True

    def finish(self, number: int, outcome: Outcome) -> FrozenTrial:
        """Record how a trial ended."""
        trial = self._running.pop(number)
        if self._heart is not None:
            self._heart.running = set(self._running)
        state = outcome.state
        error = outcome.error
        if state == TrialState.COMPLETE and (outcome.score is None or not math.isfinite(outcome.score)):
            state, error = TrialState.FAIL, f"its score is {outcome.score}, expected a finite number"
        if state == TrialState.FAIL and not outcome.lost:
            self.first_error = self.first_error or error
        failed = {LOST if outcome.lost else ERROR: error} if state == TrialState.FAIL else {}
        facts = dict(outcome.facts or {}) | failed
        with contextlib.suppress(UpdateFinishedTrialError, ValueError):
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, outcome.score if state == TrialState.COMPLETE else None, state=state)
        frozen = self._frozen(number)
        for callback in self._callbacks:
            callback(self.study, frozen)
        return frozen

    def _fail_lost(self) -> None:
        """Trials whose process is gone, here or elsewhere: failed, and queued once more."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            marked = trial.user_attrs.get(PROCESS)
            if marked is not None and owner.is_gone(marked):
                with contextlib.suppress(UpdateFinishedTrialError, ValueError):  # another process was first
                    self.study.tell(trial.number, state=TrialState.FAIL)
        if self._heart is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                fail_stale_trials(self.study)
        queue_lost(self.study, self._mark)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]


class _Heart:
    """Signs of life for the trials of this process, in the storage."""

    def __init__(self, storage: BaseStorage, study: Study) -> None:
        assert isinstance(storage, RDBStorage)
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="tensor_optix-heartbeat", daemon=True)
        self.running: set[int] = set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        known: set[int] = set()
        while True:
            due = self.running
            for number in due:
                # The storage may be away for a moment; a trial may just have ended.
                with contextlib.suppress(Exception):
                    trial = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
                    self._storage.record_heartbeat(trial)
            known = due
            waited = 0.0
            while waited < HEARTBEAT_S and self.running <= known:  # a new trial is told of at once
                if self._over.wait(1.0):
                    return
                waited += 1.0


def completed(study: Study) -> list[FrozenTrial]:
    """Those that ended with a score."""
    return study.get_trials(deepcopy=False, states=_GOOD)


def failures(study: Study) -> list[FrozenTrial]:
    """Those that ended without one."""
    return study.get_trials(deepcopy=False, states=(TrialState.FAIL,))


def best_of(study: Study) -> FrozenTrial | None:
    """The complete trial with the best score, the first of equals; None if none is complete."""
    done = completed(study)
    if not done:
        return None
    sign = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
    return max(done, key=lambda trial: (sign * float(trial.value or 0.0), -trial.number))
