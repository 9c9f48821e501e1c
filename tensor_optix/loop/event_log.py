"""`events.jsonl`: one JSON object per line, appended and never rewritten, and no reason for training to stop."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensor_optix.loop.durable import json_bytes, write_all


class EventLog:
    """Appends to `path`, which is opened at the first append.

    A write that fails (disk full) is undone to the last whole line, its rows are dropped and counted in `dropped`,
    and a warning is given once per outage. The next append tries again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = 0  # rows lost to failed writes since this object was made
        self._failing = False
        self._descriptor: int | None = None
        self._end = 0  # byte length of the whole lines in the file

    @property
    def offset(self) -> int:
        """Bytes of whole lines in the file: what a checkpoint remembers."""
        return self._end if self._descriptor is not None else whole_lines(self.path)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Adds one line per row; True if they were written, False if they were dropped.

        Raises:
          TypeError: a row holds what JSON cannot.
        """
        lines = [json_bytes(dict(row), indent=None) for row in rows]
        if not lines:
            return True
        data = b"".join(lines)
        try:
            self._write(data)
        except OSError as error:
            self._drop(len(lines), error)
            return False
        self._failing = False
        return True

    def truncate(self, offset: int) -> None:
        """Drops every line that starts at or after byte `offset`, and a torn last line. Raises OSError."""
        descriptor = self._open()
        end = whole_lines(self.path, limit=offset)
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
        self._end = end

    def sync(self) -> None:
        """Makes what was appended durable. Raises OSError."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o666)
            self._end = whole_lines(self.path)
            os.ftruncate(self._descriptor, self._end)
        return self._descriptor

    def _write(self, data: bytes) -> None:
        descriptor = self._open()
        try:
            write_all(descriptor, data)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._end)
            self.close()  # the next append opens the file anew and cuts whatever torn line is still there
            raise
        self._end += len(data)

    def _drop(self, count: int, error: OSError) -> None:
        self.dropped += count
        if not self._failing:
            self._failing = True
            warnings.warn(
                f"Events cannot be written to '{self.path}' ({error.strerror}); "
                "training goes on and they are dropped until writing works again.",
                RuntimeWarning,
                stacklevel=4,
            )


def whole_lines(path: Path, limit: int | None = None) -> int:
    """Length in bytes of the whole lines of `path`, counting only its first `limit` bytes. A missing file has 0."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            end = end if limit is None else min(end, max(limit, 0))
            block = 1 << 16
            while end > 0:
                start = max(0, end - block)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    return start + newline + 1
                end = start
    except FileNotFoundError:
        pass
    return 0


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every event of the file in order; a torn last line is left out, a missing file has none.

    Raises:
      ValueError: a whole line that is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is torn, or nothing
    except FileNotFoundError:
        return []
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise ValueError(f"Line {number} of '{path}' is not a JSON object; the file was damaged or edited.")
        events.append(event)
    return events
