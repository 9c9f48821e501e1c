"""Temporary directories that say in their names whose they are, so that those of killed processes are found."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tensor_optix.trials import owner

_PREFIX = "tensor-optix-trials-"


def temporary_directory() -> Path:
    """A new one. Those of processes that run no more, on this machine, are removed."""
    host, process, started = owner.mark().split("/")
    machine = f"{_PREFIX}{host}-{_namespace()}-"
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        marked = path.name.removeprefix(machine).split("-")
        if len(marked) == 3 and not path.is_symlink() and owner.is_gone(f"{host}/{marked[0]}/{marked[1]}"):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{machine}{process}-{started}-"))


def _namespace() -> str:
    """In which ids of processes mean the same: containers may share a directory, but no processes."""
    try:
        return "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    except OSError:
        return ""
