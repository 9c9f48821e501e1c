"""A run as TensorBoard curves. Event files are written directly: neither torch nor tensorflow is loaded."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensor_optix.callbacks._records import RecordCallback, require

_FILE_VERSION = "brain.Event:2"  # TensorBoard reads it as: steps may fall, nothing is dropped for that
_numbers = itertools.count()  # of the files of this process


class TensorBoardCallback(RecordCallback):
    """Writes the curves of a run for `tensorboard --logdir runs`.

    A directory that holds event files already belongs to another run, and this one goes to `run-2`, `run-3`, ... in
    it, where TensorBoard shows it beside the first. A resumed run continues the newest curves there, from its first
    window on.

    Args:
        log_dir: where to; "runs/tensor_optix" by default.
        comment: appended to the directory's name.
        flush_secs: records reach the disk at the latest with the first one that is written so many seconds after.
        max_queue: records that may wait for that.
        filename_suffix: appended to the names of files.

    Raises:
      ImportError: the package tensorboard is missing.
      ValueError: a negative `flush_secs` or `max_queue`.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        comment: str = "",
        flush_secs: float = 10,
        *,
        max_queue: int = 10,
        filename_suffix: str = "",
    ) -> None:
        for name, value in (("flush_secs", flush_secs), ("max_queue", max_queue)):
            if value < 0:
                raise ValueError(f"TensorBoardCallback got {name}={value}, expected 0 or more")
        self._record_writer = require("tensorboard.summary.writer.record_writer", "tensorboard", "TensorBoardCallback")
        self._proto = require("tensorboard.compat.proto.event_pb2", "tensorboard", "TensorBoardCallback")
        self.log_dir = Path(os.fspath("runs/tensor_optix" if log_dir is None else log_dir) + comment)
        self.path: Path | None = None  # the event file of the newest run
        self._flush_secs, self._max_queue, self._suffix = float(flush_secs), max_queue, filename_suffix
        self._writer: Any = None
        self._waiting = 0  # records since the last flush
        self._flushed_at = 0.0

    def open(self) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:  # only now it is known whether the run goes on from an earlier one
            self._open_file()
        event = self._proto.Event(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._writer.write(event.SerializeToString())
        self._waiting += 1
        if self._waiting > self._max_queue or time.monotonic() - self._flushed_at >= self._flush_secs:
            self._flush()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _open_file(self) -> None:
        first = self._first or 0
        directory = _directory(self.log_dir, continues=first > 0)
        directory.mkdir(parents=True, exist_ok=True)
        # The name TensorBoard looks for; it reads the files of a directory in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = directory / (name + self._suffix)
        self._writer = self._record_writer.RecordWriter(self.path.open("xb"))
        self._add(file_version=_FILE_VERSION)
        if first > 0:  # points from here on that an earlier file may hold are not shown any more
            self._add(step=first, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))
        self._flush()

    def _add(self, **fields: Any) -> None:
        self._writer.write(self._proto.Event(wall_time=time.time(), **fields).SerializeToString())

    def _flush(self) -> None:
        self._writer.flush()
        self._waiting, self._flushed_at = 0, time.monotonic()


def _directory(parent: Path, continues: bool) -> Path:
    """The first of `parent` and its `run-2`, `run-3`, ... without event files; to continue, the one before it."""
    runs = itertools.chain([parent], (parent / f"run-{number}" for number in itertools.count(2)))
    used = list(itertools.takewhile(lambda path: any(path.glob("events.out.tfevents.*")), runs))
    if used and continues:
        return used[-1]
    return parent / f"run-{len(used) + 1}" if used else parent
