"""A trial whose process was killed is run once more, under a new number.

What is to be repeated is read from the study each time, so that a kill between any two writes loses nothing: a failed
trial without an error was lost, and a repetition names the trial that it repeats.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

ERROR = "error"  # user attribute: why a trial failed by itself
LOST = "lost"  # user attribute: what is known of the end of one that did not
RETRY_OF = "retry_of"  # user attribute: number of the lost trial that this one repeats
PROCESS = "process"  # user attribute: `owner.mark` of who runs the trial


def queue_lost(study: Study, mark: str) -> None:
    """Queue the parameters of lost trials again, those of repetitions apart. `mark`: of this process."""
    trials = study.get_trials(deepcopy=False)
    known = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    for trial in trials:
        fails_by_itself = ERROR in trial.user_attrs or RETRY_OF in trial.user_attrs
        if trial.state == TrialState.FAIL and not fails_by_itself and trial.number not in known:
            study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number, PROCESS: mark})


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials by number, without those that others repeat; a second repetition does not count either.

    (Two processes may queue the same trial in the same instant.)
    """
    repeated = {trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs}
    first: dict[int, FrozenTrial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.number not in repeated:
            first.setdefault(trial.user_attrs.get(RETRY_OF, trial.number), trial)
    return list(first.values())
