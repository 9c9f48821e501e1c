"""A thread that reads a live source into a bounded buffer and outlives the source's disconnects.

The reader never waits for the learner longer than the buffer lasts, and never invents anything: items come out in the
order in which they went in, and the first item after a gap says so. A reader that is stuck inside the source cannot be
stopped from outside; it is left to itself (a daemon thread), and whatever it still brings is ignored.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import GeneratorType
from typing import Any

import numpy as np

_TO_STOP = 0.2  # seconds for a reader to end by itself
_TO_STOP_CLOSED = 2.0  # seconds for the same once the source is closed


@dataclass(slots=True)
class Item:
    """What a source yields, checked and copied."""

    obs: np.ndarray
    reward: float | None  # of the action chosen for the observation before
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    begins: bool = False  # the item before it, if there was one, is not what it followed from
    tail: bool = False  # ... and it is in the middle of an episode whose beginning was dropped
    connection: int = 0  # disconnects before it

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


@dataclass(frozen=True)
class Retry:
    """What to do about a lost connection."""

    enabled: bool
    wait_s: float  # before the first attempt; doubled before each further one
    max_wait_s: float
    max_in_a_row: int  # attempts without an item

    def delay(self, failures: int) -> float:
        """Seconds to wait after `failures` connections in a row that were lost or never made."""
        return min(self.max_wait_s, self.wait_s * 2.0 ** min(failures - 1, 60)) if failures else 0.0


@dataclass
class Counts:
    """Whatever goes wrong without ending anything."""

    disconnects: int = 0
    dropped: int = 0  # items


@dataclass(eq=False)
class Feed:
    """Items of one source, from `start` to `stop`; one thread calls `get`."""

    connect: Callable[[], Iterable[Any]]  # a new stream of the source's items
    parse: Callable[[Any], Item]  # its errors end the feed and reach whoever calls `get`
    size: int  # items in the buffer
    drop_oldest: bool  # when it is full; otherwise the reader waits
    retry: Retry
    item_timeout_s: float | None
    counts: Counts
    closed: bool = False
    broken: bool = False  # the connection was lost after the newest item
    _items: deque[Item] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)  # guards all but the settings
    _reader: int = 0  # number of the reader in charge; others end when they notice
    _threads: list[threading.Thread] = field(default_factory=list)
    _listening: float = math.inf  # since when the reader has waited for the source
    _failures: int = 0  # in a row without an item
    _failure: Exception | None = None
    _ended: bool = False

    def start(self) -> None:
        """Start a reader; whichever was there before is no longer in charge."""
        self._reader += 1
        thread = threading.Thread(
            target=self._read, args=(self._reader,), daemon=True, name=f"tensor-optix-live-{self._reader}"
        )
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def get(self) -> Item | None:
        """The next item, after as long a wait as it takes; None once the source has ended or `stop` was called.

        RuntimeError if the source is lost for good; errors of `parse` as they are.
        """
        began = time.monotonic()
        with self._changed:
            while not self.closed:
                if self._items:
                    self._changed.notify_all()
                    return self._items.popleft()
                if self._failure is not None:
                    raise self._failure
                if self._ended:
                    return None
                self._wait_for_source(began)
        return None

    def lost(self, connection: int, error: Exception) -> None:
        """Give up a connection and what it brought because of `error`, and try another; unless it is over anyway."""
        with self._changed:
            if connection != self.counts.disconnects or self._ended:
                return
            self.counts.dropped += len(self._items)
            self._items.clear()
            self._replace_reader(error)

    def stop(self, close_source: Callable[[], Any] | None) -> None:
        """End the reader, and close the source in passing, which may be what a stuck reader waits for."""
        with self._changed:
            self.closed = True
            self._reader += 1
            self._items.clear()
            self._changed.notify_all()
        self._join(_TO_STOP)
        if close_source is not None:
            try:
                close_source()
            finally:
                self._join(_TO_STOP_CLOSED)

    def _join(self, patience: float) -> None:
        until = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _wait_for_source(self, began: float) -> None:
        """Wait for a change, or for the source to have been silent too long. With the lock held."""
        if self.item_timeout_s is None:
            self._changed.wait()
            return
        silent = time.monotonic() - max(began, self._listening)  # below 0 while the reader backs off
        if silent >= self.item_timeout_s:
            self._replace_reader(TimeoutError(f"no item within {self.item_timeout_s} s"))
        else:
            self._changed.wait(self.item_timeout_s - max(silent, 0.0))

    def _replace_reader(self, error: Exception) -> None:
        if not self.closed:
            self._reader += 1
            if self._may_retry(error):
                self.start()

    # -- the reader's thread -------------------------------------------------------------------------------

    def _read(self, reader: int) -> None:
        try:
            while self._back_off(reader) and self._read_connection(reader):
                pass
        except BaseException as error:  # also a SystemExit: `get` would wait forever
            with self._changed:
                if reader == self._reader:
                    self._fail(error if isinstance(error, Exception) else _caused(f"the data source: {error!r}", error))

    def _back_off(self, reader: int) -> bool:
        """Wait as long as the failures so far ask for; False if another reader has taken over meanwhile."""
        with self._changed:
            if self._changed.wait_for(lambda: reader != self._reader, self.retry.delay(self._failures)):
                return False
            self._listening = time.monotonic()
            return True

    def _read_connection(self, reader: int) -> bool:
        """Read one connection until it is over; True if it was lost and another may be tried."""
        stream: Iterator[Any] | None = None
        begins = True
        try:
            while True:
                try:
                    if stream is None:
                        stream = iter(self.connect())
                    raw = next(stream)
                except StopIteration:
                    return self._end(reader)
                except Exception as error:
                    with self._changed:
                        return reader == self._reader and self._may_retry(error)
                # Copied before the source goes on: it may yield one buffer again and again.
                item = self.parse(raw)
                item.begins, begins = begins, False
                if not self._put(reader, item):
                    return False
        finally:
            if isinstance(stream, GeneratorType):  # its own clean-up; other streams may be the source itself
                with contextlib.suppress(Exception):
                    stream.close()

    def _put(self, reader: int, item: Item) -> bool:
        """Add an item; False if another reader has taken over."""
        with self._changed:
            if not self.drop_oldest:
                self._changed.wait_for(lambda: reader != self._reader or len(self._items) < self.size)
            if reader != self._reader:
                return False
            item.connection = self.counts.disconnects
            self._items.append(item)
            if len(self._items) > self.size:
                self._drop()
            self._failures, self.broken = 0, False
            self._listening = time.monotonic()
            self._changed.notify_all()
            return True

    def _drop(self) -> None:
        gone = self._items.popleft()
        self.counts.dropped += 1
        head = self._items[0]
        if not head.begins:
            head.begins, head.tail = True, not gone.ended

    def _end(self, reader: int) -> bool:
        with self._changed:
            if reader == self._reader:
                self._ended = True
                self._changed.notify_all()
        return False

    def _may_retry(self, error: Exception) -> bool:
        """Account for a lost connection; False if it was one too many. With the lock held."""
        self.counts.disconnects += 1
        self._failures += 1
        self.broken, self._listening = True, math.inf
        what = f"{type(error).__name__}: {error}"
        if not self.retry.enabled:
            self._fail(_caused(f"the data source disconnected ({what}) and reconnect_on_disconnect is False", error))
        elif self._failures > self.retry.max_in_a_row:
            text = f"the data source gave no item in {self.retry.max_in_a_row} reconnects in a row, at last {what}"
            self._fail(_caused(text, error))
        return self._failure is None

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._changed.notify_all()


def _caused(text: str, cause: BaseException) -> RuntimeError:
    error = RuntimeError(text)
    error.__cause__ = cause
    return error
