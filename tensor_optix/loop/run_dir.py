"""A run on disk: all that it needs to be resumed, and all that is worth keeping of it.

    manifest.json          what was asked for and how it stands: configuration, versions, seeds, status, stop reasons
    events.jsonl           what happened, one JSON object per line
    checkpoints/<step>/    the whole state of the run, checksummed (see `checkpoint_files`)
    policy/                the exported policy (see `policy_file`)
    ensemble/              the same of several policies that act as one, in a run that spawned variants
    result.json curves.npz what came out

Everything but `events.jsonl` is written under a temporary name, synced and renamed; nothing is a pickle and no
path is stored, so a run may be moved. One process writes at a time (see `run_lock`); any number may read.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tensor_optix.loop import checkpoint_files, policy_file, result_file
from tensor_optix.loop.durable import (
    TEMPORARY,
    RunDirError,
    discard,
    failure,
    json_bytes,
    plain,
    publish_directory,
    remove,
    retire_directory,
    sync_directory,
    temporaries,
    write_file,
)
from tensor_optix.loop.event_log import EventLog, read_events
from tensor_optix.loop.run_lock import RunLock
from tensor_optix.loop.run_manifest import MANIFEST_NAME, new_manifest, read_manifest, refuse_occupied, user_entries

__all__ = ["LoadedCheckpoint", "NoCheckpointError", "RunDir", "RunDirError"]

KEPT_CHECKPOINTS = 2
_EVENTS, _CHECKPOINTS, _POLICY = "events.jsonl", "checkpoints", "policy"
ENSEMBLE = "ensemble"
_FILES = "files"  # in a checkpoint: what the caller wrote
_RECORD_VERSION = 1
_LOOKS = 3  # times a reader looks again when a writer exchanged the checkpoints under its eyes

logger = logging.getLogger(__name__)


class NoCheckpointError(RunDirError):
    """The run has no checkpoint that can be loaded: it never saved one, or every one is damaged."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The newest whole checkpoint of a run."""

    step: int
    state: Any  # in the structure, array types and shardings of the template
    meta: dict[str, Any]  # as given to `save_checkpoint`, after a round trip through JSON
    events_offset: int  # byte length of events.jsonl when the checkpoint was taken, for `truncate_events`
    files: Path  # what `save_checkpoint(files=...)` wrote; it may not exist
    skipped: list[str] = field(default_factory=list)  # newer checkpoints that are damaged, and how


class RunDir:
    """One run's directory. Get it from `create` (new run), `open` (resume) or `read` (look only).

    Every failing write raises RunDirError, one sentence that says what to do, and leaves what was there before
    whole, so a caller may report the error and train on. Writers hold a lock until `close` (or the end of the
    `with` block, or of the process).

    Attributes:
      path: the directory.
      manifest: content of manifest.json; change it with `update_manifest`.
      keep: number of newest checkpoints that `save_checkpoint` leaves.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], lock: RunLock | None, keep: int = KEPT_CHECKPOINTS
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.keep = keep
        self._lock = lock
        self._events = EventLog(path / _EVENTS)
        self._dropped_before = int(manifest.get("events_dropped", 0))
        self._damaged: list[Path] = []  # seen by load_checkpoint; removed once a newer save is durable

    # ---- opening and closing ----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | Path, manifest: Mapping[str, Any], *, overwrite: bool = False, keep: int = KEPT_CHECKPOINTS
    ) -> RunDir:
        """Starts a new run in `path`, which is made (parents too) or must be empty.

        Args:
          manifest: configuration, seeds and the like; anything JSON can hold. `status` is "running" unless given;
            the format, the versions of the main packages and the time of creation are added.
          overwrite: remove the run that is there. Only files of this layout go; a non-empty directory that is
            no run is refused all the same.
          keep: number of newest checkpoints to leave.

        Raises:
          RunDirError: the directory is another's, locked, or cannot be written.
          ValueError, TypeError: a bad `keep` or `manifest`.
        """
        path = Path(path)
        content = new_manifest(manifest)
        _check_keep(keep)
        with _failing_as("create the run", path):
            refuse_occupied(path, overwrite)
            path.mkdir(parents=True, exist_ok=True)
            lock = RunLock.acquire(path)
            try:
                refuse_occupied(path, overwrite)  # another process may have come in between
                _refuse_links(path)
                for owned in _owned(path):
                    remove(owned)
                write_file(path / MANIFEST_NAME, json_bytes(content))
                (path / _CHECKPOINTS).mkdir(exist_ok=True)
                sync_directory(path)
            except BaseException:
                lock.release()
                raise
        return cls(path, content, lock, keep)

    @classmethod
    def open(cls, path: str | Path, *, keep: int = KEPT_CHECKPOINTS) -> RunDir:
        """Opens an existing run for writing and clears what a killed writer left unfinished.

        Raises:
          RunDirError: there is no run, another process writes to it, or it cannot be written.
        """
        path = Path(path)
        _check_keep(keep)
        read_manifest(path)  # before the lock: nothing is written into a directory that is no run
        with _failing_as("open the run", path):
            lock = RunLock.acquire(path)
            try:
                manifest = read_manifest(path)
                _refuse_links(path)
                for leftover in _leftovers(path):
                    discard(leftover)
                (path / _CHECKPOINTS).mkdir(exist_ok=True)
            except BaseException:
                lock.release()
                raise
        if lock.taken_over:
            logger.warning("The run at '%s' was left by %s, which ended without closing it.", path, lock.taken_over)
        return cls(path, manifest, lock, keep)

    @classmethod
    def read(cls, path: str | Path) -> RunDir:
        """Opens an existing run for reading, also while another process writes to it. Raises RunDirError."""
        path = Path(path)
        return cls(path, read_manifest(path), lock=None)

    def close(self) -> None:
        """Releases the lock. Calling it twice is fine."""
        if self._lock is None:
            return
        with contextlib.suppress(RunDirError):
            self._note_dropped_events()
        self._events.close()
        self._lock.release()
        self._lock = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- manifest ---------------------------------------------------------------------------------------------------

    def update_manifest(self, **changes: Any) -> None:
        """Sets top-level keys of the manifest, e.g. `status="finished"`. Raises RunDirError, ValueError, TypeError."""
        self._write_manifest(user_entries(changes))

    def _write_manifest(self, changes: Mapping[str, Any]) -> None:
        self._require_writable()
        manifest = {**self.manifest, **changes}
        with _failing_as("update the manifest", self.path):
            write_file(self.path / MANIFEST_NAME, json_bytes(manifest))
        self.manifest = manifest

    # ---- events -----------------------------------------------------------------------------------------------------

    @property
    def events_offset(self) -> int:
        """Byte length of the whole lines in events.jsonl."""
        return self._events.offset

    def append_events(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line per row. NaN and infinities become the strings "NaN", "Infinity", "-Infinity".

        A full disk does not raise: it is warned about once, the rows are dropped, their number goes into the
        manifest (`events_dropped`), and the next call tries again.

        Raises:
          TypeError: a row holds what JSON cannot.
        """
        self._require_writable()
        if self._events.append(rows):
            with contextlib.suppress(RunDirError):
                self._note_dropped_events()

    def truncate_events(self, offset: int) -> None:
        """Drops the lines written after byte `offset` (a checkpoint's `events_offset`), and a torn last line."""
        self._require_writable()
        with _failing_as("truncate the events", self.path):
            self._events.truncate(offset)

    def read_events(self) -> list[dict[str, Any]]:
        """Every event in order; a torn last line is left out. Raises RunDirError."""
        try:
            return read_events(self.path / _EVENTS)
        except ValueError as error:
            raise RunDirError(str(error)) from error
        except OSError as error:
            raise failure("read the events", self.path, error) from error

    def _note_dropped_events(self) -> None:
        dropped = self._dropped_before + self._events.dropped
        if dropped != int(self.manifest.get("events_dropped", 0)):
            self._write_manifest({"events_dropped": dropped})

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def checkpoint_steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending, whole or damaged."""
        return sorted(int(path.name) for path in _checkpoint_directories(self.path))

    def save_checkpoint(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any] | None = None,
        files: Callable[[Path], None] | None = None,
    ) -> None:
        """Saves the whole `state`; durable on return. A checkpoint of the same step is replaced.

        Args:
          step: what orders checkpoints, at least 0; say the number of windows done.
          state: pytree of numeric arrays (on any devices of this process), typed PRNG keys, ints, floats, bools.
          meta: host-side facts that belong to the same instant; anything JSON can hold.
          files: writes whatever else belongs to it into the empty directory that it is given.

        Raises:
          RunDirError: it cannot be written. Older checkpoints stand, and nothing half-written is to be seen.
          TypeError, ValueError: a bad step, state or meta.
        """
        self._require_writable()
        self._check_step(step)
        specs, arrays = checkpoint_files.flatten(state)
        record = {"format_version": _RECORD_VERSION, "step": int(step), "events_offset": self._events.offset}
        record["meta"] = plain(dict(meta or {}), "meta")
        final = self.path / _CHECKPOINTS / str(int(step))
        staging = final.with_name(f"{TEMPORARY}{final.name}")
        try:
            self._events.sync()  # the lines below events_offset must outlive a power cut if the checkpoint does
            remove(staging)
            staging.mkdir(parents=True)
            if files is not None:
                (staging / _FILES).mkdir()
                files(staging / _FILES)
            checkpoint_files.write(staging, record, specs, arrays)
            publish_directory(staging, final)
        except Exception as error:  # Orbax reports a full disk as ValueError, among others
            raise failure(f"save checkpoint {step}", self.path, error) from error
        finally:
            discard(staging)
        self._retire_checkpoints(final)

    def load_checkpoint(self, template: Any) -> LoadedCheckpoint:
        """The newest checkpoint whose every byte is as it was written.

        Args:
          template: a state of the same structure, whose values are not used; `jax.ShapeDtypeStruct` leaves will do.
            Arrays come back on the template's shardings, NumPy arrays as NumPy arrays.

        Raises:
          NoCheckpointError: there is none, or all are damaged.
          ValueError: the template's structure, shapes or dtypes are not those saved; the message names the leaves.
        """
        for _ in range(_LOOKS):
            steps = self.checkpoint_steps()
            loaded, skipped = self._newest_whole(steps, template)
            if loaded is not None:
                return loaded
            if self.checkpoint_steps() == steps:
                break
        if skipped:
            raise NoCheckpointError(f"Every checkpoint of the run at '{self.path}' is damaged: {'; '.join(skipped)}.")
        raise NoCheckpointError(f"The run at '{self.path}' has no checkpoint: it ended before its first save.")

    def _newest_whole(self, steps: list[int], template: Any) -> tuple[LoadedCheckpoint | None, list[str]]:
        skipped: list[str] = []
        self._damaged = []
        for step in reversed(steps):
            directory = self.path / _CHECKPOINTS / str(step)
            loaded = _load(directory, template, skipped)
            if isinstance(loaded, LoadedCheckpoint):
                if skipped:
                    logger.warning("Went back to checkpoint %d of '%s': %s.", step, self.path, "; ".join(skipped))
                return loaded, skipped
            if directory.exists():  # else a writer retired it while we looked
                skipped.append(f"checkpoint {step}: {loaded}")
                self._damaged.append(directory)
        return None, skipped

    def _check_step(self, step: int) -> None:
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0:
            raise ValueError(f"A checkpoint's step counts from 0: got {step!r}; pass a non-negative integer.")
        newest = max((int(path.name) for path in self._standing_checkpoints()), default=0)
        if step < newest:
            raise ValueError(f"Checkpoint {newest} is newer than step {step}; load it and go on from there.")

    def _standing_checkpoints(self) -> list[Path]:
        """The checkpoints that `load_checkpoint` did not find damaged, oldest first."""
        paths = [path for path in _checkpoint_directories(self.path) if path not in self._damaged]
        return sorted(paths, key=lambda path: int(path.name))

    def _retire_checkpoints(self, newest: Path) -> None:
        """Removes the damaged checkpoints that were stepped over, and all but the newest `keep`."""
        doomed = [path for path in self._damaged if path != newest]
        doomed += [path for path in self._standing_checkpoints()[: -self.keep] if path != newest]
        self._damaged = []
        for path in doomed:
            retire_directory(path)
        for leftover in temporaries(self.path / _CHECKPOINTS):  # of earlier saves that could not tidy up
            discard(leftover)

    # ---- policy and result ------------------------------------------------------------------------------------------

    def save_policy(self, arrays: Mapping[str, Any], meta: Mapping[str, Any], kind: str = _POLICY) -> None:
        """Exports named arrays and what is needed to act with them; kind: "policy", or `ENSEMBLE`.

        Raises RunDirError, TypeError.
        """
        self._require_writable()
        policy_file.write_policy(self.path / kind, arrays, meta)

    def load_policy(self, kind: str = _POLICY) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The exported arrays and their description. Raises RunDirError if there is none or it is damaged."""
        return policy_file.read_policy(self.path / kind)

    def save_result(self, result: Mapping[str, Any], curves: Mapping[str, Any]) -> None:
        """Saves a summary (anything JSON can hold; non-finite numbers as strings) and named numeric arrays."""
        self._require_writable()
        with _failing_as("save the result", self.path):
            result_file.write_result(self.path, result, curves)

    def load_result(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The summary and the curves. Raises RunDirError if there are none or they are damaged."""
        return result_file.read_result(self.path)

    # ---- helpers ----------------------------------------------------------------------------------------------------

    def _require_writable(self) -> None:
        if self._lock is None:
            raise RunDirError(
                f"The run at '{self.path}' is closed or open for reading only; get a writer with RunDir.open."
            )


@contextlib.contextmanager
def _failing_as(action: str, path: Path) -> Iterator[None]:
    """Turns an OSError into the RunDirError that says what could not be done, and why."""
    try:
        yield
    except OSError as error:
        raise failure(action, path, error) from error


def _load(directory: Path, template: Any, skipped: list[str]) -> LoadedCheckpoint | str:
    """The checkpoint in `directory`, or what is wrong with its files. Raises ValueError if it does not fit."""
    problem = checkpoint_files.damage(directory)
    if problem is not None:
        return problem
    try:
        record = checkpoint_files.read_record(directory)
        if record["step"] != int(directory.name):
            return f"it is checkpoint {record['step']} under another name"
        state = checkpoint_files.read(directory, record["leaves"], template)
    except (RunDirError, OSError) as error:  # whole, yet unreadable: retired by a writer meanwhile, or another Orbax
        return str(error)
    return LoadedCheckpoint(record["step"], state, record["meta"], record["events_offset"], directory / _FILES, skipped)


def _checkpoint_directories(path: Path) -> Iterator[Path]:
    directory = path / _CHECKPOINTS
    for entry in directory.iterdir() if directory.is_dir() else ():
        if entry.name.isdecimal() and entry.name == str(int(entry.name)) and entry.is_dir() and not entry.is_symlink():
            yield entry


def _refuse_links(path: Path) -> None:
    """Raises RunDirError where writing or overwriting would reach out of the run's directory."""
    for name in (_EVENTS, _CHECKPOINTS, _POLICY, ENSEMBLE):
        if (path / name).is_symlink():
            raise RunDirError(
                f"'{path / name}' is a link; a run keeps its files in its own directory, remove the link."
            )


def _leftovers(path: Path) -> Iterator[Path]:
    """What a killed writer left under temporary names."""
    for directory in (path, path / _CHECKPOINTS, path / _POLICY, path / ENSEMBLE):
        yield from temporaries(directory)


def _owned(path: Path) -> Iterator[Path]:
    """What an overwritten run leaves behind, and no one else's files. Its manifest is replaced, so it stays a run."""
    yield from _leftovers(path)
    yield from _checkpoint_directories(path)
    for kind in (_POLICY, ENSEMBLE):
        yield from (path / kind / name for name in (policy_file.ARRAYS_NAME, policy_file.DESCRIPTION_NAME))
    yield from (path / name for name in (_EVENTS, result_file.RESULT_NAME, result_file.CURVES_NAME))


def _check_keep(keep: int) -> None:
    if keep < 1:
        raise ValueError(f"keep is the number of checkpoints to leave: got {keep}, expected at least 1.")
