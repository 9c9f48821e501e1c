"""Host trials side by side, each in a process of its own; one that dies is replaced, the others go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from tensor_optix.trials import worker
from tensor_optix.trials.host_trial import HostTrial
from tensor_optix.trials.ledger import Ledger, Outcome

_PATIENCE_S = 3.0  # seconds for processes to end by themselves
_MAX_DEATHS = 3  # in a row, without a trial done: more processes would not help
_POLL_S = 0.2  # seconds between looks at whether to stop


class Crew:
    """Runs the trials of a ledger in `n_jobs` processes.

    Args:
      ended: called when a trial has ended.
      stopped: asked between messages; True ends the search.

    Raises:
      TypeError: the trial cannot be sent to another process.
    """

    def __init__(
        self,
        trial: HostTrial,
        n_jobs: int,
        directory_of: Callable[[int], Path],
        ended: Callable[[int], None],
        stopped: Callable[[], bool],
    ) -> None:
        check_sendable(trial)
        self._trial, self._n_jobs = trial, n_jobs
        self._directory_of, self._ended, self._stopped = directory_of, ended, stopped
        self._workers: list[_Worker] = []
        self._deaths = 0

    def run(self, ledger: Ledger) -> None:
        """Until the ledger has no more trials to take. RuntimeError if no process stays alive."""
        try:
            while not self._stopped():
                self._hand_out(ledger)
                busy = [each for each in self._workers if each.number is not None]
                if not busy:
                    return
                ready = connection.wait([each.pipe for each in busy], timeout=_POLL_S)
                for each in busy:
                    if each.pipe in ready:
                        self._hear(each, ledger)
        finally:
            self._end()

    def _hand_out(self, ledger: Ledger) -> None:
        for place in range(self._n_jobs):
            each = self._workers[place] if place < len(self._workers) else None
            if each is not None and each.number is not None:
                continue
            taken = ledger.take()
            if taken is None:
                return
            number, params = taken
            if each is None:
                each = _Worker(self._trial)
                self._workers.append(each)
            each.begin(number, params, self._directory_of(number))

    def _hear(self, each: _Worker, ledger: Ledger) -> None:
        assert each.number is not None
        try:
            kind, *rest = each.pipe.recv()
        except (EOFError, OSError):
            self._lost(each, ledger)
            return
        if kind == worker.READY:
            each.is_ready = True
        elif kind == worker.REPORT:
            prune = ledger.report(each.number, *rest)
            with contextlib.suppress(OSError):
                each.pipe.send(prune)
        else:
            number, each.number = each.number, None
            self._deaths = 0
            ledger.finish(number, rest[0])
            self._ended(number)

    def _lost(self, each: _Worker, ledger: Ledger) -> None:
        """Its process is gone: the trial failed, is queued once more, and another process takes the place."""
        assert each.number is not None
        number, why = each.number, each.death()
        self._workers.remove(each)
        self._deaths += 1
        ledger.finish(number, Outcome(TrialState.FAIL, error=why, lost=True))
        self._ended(number)
        if self._deaths >= _MAX_DEATHS:
            raise RuntimeError(f"{self._deaths} processes for trials died in a row, the last one: {why}")

    def _end(self) -> None:
        for each in self._workers:
            each.end()
        for each in self._workers:
            each.kill()
        self._workers = []


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, trial: HostTrial) -> None:
        # JAX and PyTorch run threads, and a forked copy of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=worker.serve, args=(theirs, trial), name="tensor_optix-trials")
        self.number: int | None = None  # of the trial that it runs
        self.is_ready = False
        try:
            with _environment(worker.ENVIRONMENT):
                self.process.start()
        finally:
            theirs.close()

    def begin(self, number: int, params: dict[str, Any], directory: Path) -> None:
        """Hand it a trial; a process that is dead shows when it is heard."""
        self.number = number
        with contextlib.suppress(OSError):
            self.pipe.send((params, str(directory)))

    def death(self) -> str:
        """What there is to say of a process that is gone."""
        self.process.join(_PATIENCE_S)
        code = f"exit code {self.process.exitcode}"
        self.kill()
        if self.is_ready:
            return f"its process ended unexpectedly ({code})"
        return (
            f"its process ended while starting ({code}, see above); the factories must be importable from a module, "
            'and a script that uses n_jobs must keep its code under `if __name__ == "__main__":`'
        )

    def end(self) -> None:
        """Ask an idle process to end; one that is at work is killed."""
        if self.number is None and self.is_ready:
            with contextlib.suppress(OSError):
                self.pipe.send(None)
            self.process.join(_PATIENCE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def check_sendable(trial: HostTrial) -> None:
    """TypeError, in a sentence that names the part, unless other processes can be given the trial."""
    parts: dict[str, Any] = {
        "agent_factory": trial.agent_factory,
        "pipeline_factory": trial.pipeline_factory,
        "val_pipeline_factory": trial.val_pipeline_factory,
        "checkpoint_score_fn": trial.checkpoint_score_fn,
        **{f"rloptimizer_kwargs[{name!r}]": value for name, value in trial.settings.items()},
    }
    for name, part in parts.items():
        try:
            ForkingPickler.dumps(part)
        except Exception as error:
            raise TypeError(
                f"{name} cannot be sent to another process ({error}): with n_jobs above 1 it must be defined at the "
                "top level of a module, not a lambda or a function inside another; or use n_jobs=1"
            ) from None


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for a process that is just being started; what the user has set stays."""
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
