"""The time in which a window is being collected, and what an interrupt does in it."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import TracebackType

PATIENCE_S = 5.0  # a window that takes longer is not waited for at an interrupt


class Collection:
    """A context that is entered for each window. A simulator may be slow and a feed silent for ever."""

    def __init__(self) -> None:
        self.seconds = 0.0  # in it so far
        self.slowest_s = 0.0  # of one window
        self._since: float | None = None

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._since is not None
        taken = time.perf_counter() - self._since
        self._since = None
        self.seconds += taken
        self.slowest_s = max(self.slowest_s, taken)

    def interrupt(self) -> None:
        """Called in a signal handler: KeyboardInterrupt at once if this window takes long, or as soon as it does.

        Nothing between windows, and nothing where the window is over in time.
        """
        since = self._since
        if since is None:
            return
        if max(self.slowest_s, time.perf_counter() - since) > PATIENCE_S:
            raise KeyboardInterrupt
        timer = threading.Timer(PATIENCE_S, self._give_up, args=(since,))
        timer.daemon = True
        timer.start()

    def _give_up(self, since: float) -> None:
        if self._since == since:  # still the same window: as a second Ctrl-C would
            os.kill(os.getpid(), signal.SIGINT)
