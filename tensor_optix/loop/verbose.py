"""A line for each evaluation of a host run, on standard output and in a file."""

from __future__ import annotations

import logging
from pathlib import Path

from tensor_optix.core.types import Event, LoopState

_log = logging.getLogger(__name__)
_TOLD = Event.BEST | Event.PLATEAU | Event.DORMANT | Event.DEGRADED | Event.ROLLBACK | Event.NON_FINITE


class VerboseLog:
    """Prints if `verbose`; appends to `path` if given. A file that cannot be written is reported once."""

    def __init__(self, verbose: bool, path: str | None) -> None:
        self._verbose = verbose
        self._path = None if path is None else Path(path)

    def line(self, window: int, raw: float, smoothed: float, state: LoopState, interval: int, events: Event) -> None:
        """Tell one evaluation; scores in score units, the interval in windows."""
        if not self._verbose and self._path is None:
            return
        told = ", ".join(
            str(event.name).lower().replace("_", "-") for event in Event if event and event & events & _TOLD
        )
        text = f"  [loop] ep={window:4d}  raw={raw:8.1f}  smoothed={smoothed:8.1f}"
        text += f"  state={state.name}  interval={interval}"
        text += f"  <- {told}" if told else ""
        if self._verbose:
            print(text, flush=True)
        if self._path is not None:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
            except OSError as error:
                _log.warning("%s cannot be written (%s); verbose lines are no longer kept", self._path, error.strerror)
                self._path = None
