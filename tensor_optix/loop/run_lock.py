"""One writer per run: an advisory lock that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import warnings
import weakref
from pathlib import Path

from tensor_optix.loop.durable import RunDirError, failure, json_bytes

LOCK_NAME = ".lock"

_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """A held lock on one run directory. Make it with `RunLock.acquire`; `release` may be called twice.

    `taken_over` describes the process that held the lock before and died without releasing it, if there was one.
    """

    def __init__(self, descriptor: int, taken_over: str | None) -> None:
        self._descriptor: int | None = descriptor
        self.taken_over = taken_over
        _held.add(self)

    @classmethod
    def acquire(cls, directory: Path) -> RunLock:
        """Locks `directory`, or raises RunDirError that names the process which holds it."""
        path = directory / LOCK_NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise failure("lock the run", directory, error) from error
        try:
            if not _lock(descriptor):
                raise RunDirError(
                    f"The run at '{directory}' is being written by {_holder(descriptor)}; "
                    "stop that process first, or choose another path."
                )
            previous = _holder(descriptor)
            _sign(descriptor)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise failure("lock the run", directory, error) from error
            raise
        return cls(descriptor, previous or None)

    def release(self) -> None:
        if self._descriptor is None:
            return
        try:
            os.ftruncate(self._descriptor, 0)  # an orderly end leaves no signature behind
        finally:
            self._forget()

    def _forget(self) -> None:
        """Closes this process's handle. The kernel unlocks once no process has the file open through it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> bool:
    """True if the lock is ours now (or cannot exist on this system, which is warned about), False if another's."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        warnings.warn(
            "This file system has no locks: nothing keeps two processes from writing to one run.",
            RuntimeWarning,
            stacklevel=4,
        )
    return True


def _sign(descriptor: int) -> None:
    """Leaves word of who holds the lock. No room for it on a full disk does not weaken the lock."""
    signature = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json_bytes(signature, indent=None), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def _holder(descriptor: int) -> str:
    """Who signed the lock file, in words; empty if nobody did."""
    text = os.pread(descriptor, 4096, 0)
    if not text.strip():
        return ""
    try:
        signature = json.loads(text)
        return f"process {signature['pid']} on {signature['host']} (since {signature['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _close_in_forked_child() -> None:
    # A forked worker that outlives its killed parent would otherwise keep the dead run locked.
    for lock in list(_held):
        lock._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_forked_child)
