"""SIGINT and SIGTERM as a wish to stop in good order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def asking_on_signals(ask: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls `ask`; the second ends the process as usual. In the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Callable[..., Any] | int | None] = {}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def handle(number: int, frame: Any) -> None:
        put_back()
        ask()

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        put_back()
