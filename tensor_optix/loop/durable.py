"""Files and directories that are either whole or not there, whatever kills the process or fills the disk.

Everything is written under a temporary name, flushed to the device, and renamed. Readers see the old content
or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEMPORARY = ".tmp-run-"  # prefix of every unfinished name; whoever holds the run's lock may remove them

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space or choose another path",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another path",
    errno.EFBIG: "the file size limit of this process is reached; raise it with `ulimit -f`",
    errno.EROFS: "the file system is read-only; choose another path",
    errno.EACCES: "this user may not write there; change the permissions or choose another path",
    errno.EPERM: "this user may not write there; change the permissions or choose another path",
    errno.EEXIST: "a file of that name is in the way; choose another path",
    errno.ENOTDIR: "a part of the path is a file, not a directory; choose another path",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter one",
}


class RunDirError(Exception):
    """A run's directory cannot be written, read or entered; the message is one sentence that says what to do."""


def failure(action: str, path: Path, error: BaseException) -> RunDirError:
    """The one-sentence error for `error`, which happened while doing `action` ("save a checkpoint") at `path`."""
    code = getattr(error, "errno", None)
    if code is None:  # tensorstore reports the system's error as text only
        code = next((known for known in _CAUSES if os.strerror(known) in str(error)), None)
    cause = _CAUSES.get(code) if code is not None else None
    if cause is None:
        text = " ".join(str(error).split())
        cause = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return RunDirError(f"Could not {action} at '{path}': {cause}.")


def plain(value: Any, where: str = "value") -> Any:
    """`value` as what strict JSON can hold. Non-finite floats become "NaN", "Infinity" and "-Infinity".

    Arrays become nested lists, enums their value, dataclasses and mappings dicts with string keys.

    Raises:
      TypeError: something without a JSON form; the message says where it sits.
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _name_of_non_finite(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__") and hasattr(value, "dtype") and np.asarray(value).dtype.kind in "biufV":
        return plain(np.asarray(value).tolist(), where)
    raise TypeError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold; pass numbers, strings, lists, dicts."
    )


def _name_of_non_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def json_bytes(value: Any, indent: int | None = 2) -> bytes:
    """Strict JSON (see `plain`) as UTF-8 bytes that end in a newline."""
    return (json.dumps(plain(value), indent=indent, allow_nan=False) + "\n").encode()


def write_all(descriptor: int, data: bytes) -> None:
    """`os.write` until nothing is left. Raises OSError, possibly after a part of `data` was written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`; durable on return. On an OSError the old file stands and nothing is left over."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Makes the names in `path` durable (a rename alone may be lost in a power cut)."""
    if os.name == "nt":  # directories cannot be opened there, and renames are journalled
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Makes every file and name below `path` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(folder))


def publish_directory(staging: Path, final: Path) -> None:
    """Gives the finished directory `staging` its final name, durably. An older `final` is replaced as a whole."""
    sync_tree(staging)
    replaced = final.with_name(f"{TEMPORARY}replaced-{final.name}")
    if final.exists():
        remove(replaced)
        os.rename(final, replaced)
    try:
        os.rename(staging, final)
    except BaseException:
        if replaced.exists():
            os.rename(replaced, final)
        raise
    sync_directory(final.parent)
    discard(replaced)


def remove(path: Path) -> None:
    """Removes a file, a link (never what it points at) or a whole directory; nothing there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def discard(path: Path) -> None:
    """`remove` where failing does no harm: what is left over has a temporary name and goes at the next opening."""
    with contextlib.suppress(OSError):
        remove(path)


def retire_directory(path: Path) -> None:
    """Removes a directory so that no half of it is ever seen under its own name. Failing does no harm."""
    doomed = path.with_name(f"{TEMPORARY}retired-{path.name}")
    with contextlib.suppress(OSError):
        remove(doomed)
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def temporaries(directory: Path) -> Iterator[Path]:
    """What an earlier process left unfinished directly below `directory`."""
    if directory.is_dir():
        yield from sorted(directory.glob(f"{TEMPORARY}*"))
