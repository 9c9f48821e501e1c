"""A process that runs host trials, one after the other, for the process that started it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import connection
from pathlib import Path
from typing import Any

# One thread for each trial: several trials share the machine's cores. XLA's own pool stays as large as it must be.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "JAX_NUM_CPU_DEVICES": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # of a GPU's memory, by each of them
}
READY, REPORT, DONE = "ready", "report", "done"


def serve(pipe: connection.Connection, trial: Any) -> None:
    """Run the trials that come through the pipe: (parameters, directory) each; None ends the process.

    Sends (READY,) at first, then for each trial (REPORT, window, score), answered by True to prune it, and at last
    (DONE, outcome).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from tensor_optix.loop import runtime

    runtime.start()
    if "torch" in sys.modules:  # by the factories' modules
        sys.modules["torch"].set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        pipe.send((READY,))
        while (request := pipe.recv()) is not None:
            params, directory = request
            pipe.send((DONE, _outcome(pipe, trial, params, Path(directory))))


def _outcome(pipe: connection.Connection, trial: Any, params: Any, directory: Path) -> Any:
    from optuna.trial import TrialState

    from tensor_optix.trials.host_trial import describe, run_trial
    from tensor_optix.trials.ledger import Outcome

    def report(window: int, score: float) -> bool:
        pipe.send((REPORT, window, score))
        return bool(pipe.recv())

    try:
        return run_trial(trial, params, directory, report)
    except Exception as error:
        return Outcome(TrialState.FAIL, error=describe(error))


def _end_with_parent() -> None:
    """A trial does not outlive the one who waits for it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
