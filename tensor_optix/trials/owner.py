"""Which process runs a trial, and whether it still does.

A killed process cannot say so. Each trial carries the mark of its process; on the same machine the mark is enough to
see that the process is gone. Of other machines the heartbeat tells, where the storage has one.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def mark() -> str:
    """This process: machine, process id, and when it started, as ids are used again."""
    return f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(marked: str) -> bool:
    """True if the process with this `mark` certainly runs no more; False also where that cannot be told."""
    host, _, rest = marked.partition("/")
    number, _, started = rest.partition("/")
    if host != socket.gethostname() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return _started(int(number)) != started


def _started(process: int) -> str:
    """When a process started, in the kernel's clock ticks; "" where that is not told, or it is dead already."""
    try:
        # The name may hold spaces and brackets; state and the numbers follow its last bracket.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
