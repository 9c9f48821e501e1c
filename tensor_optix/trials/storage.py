"""Where a study is kept: in memory, in a journal file, in a database."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

HEARTBEAT_S, GRACE_S = 30, 90  # seconds between signs of life, and after which a trial without one counts as lost
_LOCK_S = 60  # seconds to wait for another process that writes to the same SQLite file
_JOURNALS = (".journal", ".log", ".jsonl")
_ATTEMPTS = 5  # to open a database that another process is just setting up


def open_storage(storage: Any) -> BaseStorage:
    """The storage of a study.

    Args:
      storage: None (memory); the path of a journal file (ends in .journal, .log or .jsonl, or "journal:///path"); the
        URL of a database ("sqlite:///study.db", "postgresql://..."); or a storage of Optuna's.

    Raises:
      TypeError, ValueError: none of these, or a place that cannot be opened.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return storage
    if not isinstance(storage, str | os.PathLike):
        raise TypeError(f"storage must be None, a URL, a journal file or a storage of Optuna's, got {storage!r}")
    text = os.fspath(storage)
    if text.startswith("journal://") or (("://" not in text) and text.endswith(_JOURNALS)):
        return _journal(Path(text.removeprefix("journal://")))
    if "://" not in text:
        raise ValueError(
            f"storage {text!r} is neither a URL nor a journal file: write sqlite:///{text} for a database, or give the "
            f"file a name that ends in {', '.join(_JOURNALS)}"
        )
    return _database(text)


def has_heartbeat(storage: BaseStorage) -> bool:
    """Whether trials of killed processes on other machines are noticed."""
    return isinstance(storage, RDBStorage) and storage.get_heartbeat_interval() is not None


def is_shared(storage: BaseStorage) -> bool:
    """Whether it outlives this process."""
    return not isinstance(storage, InMemoryStorage)


def _journal(path: Path) -> BaseStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise ValueError(f"the journal {path} cannot be opened: {error.strerror or error}") from None


def _database(url: str) -> BaseStorage:
    options: dict[str, Any] = {}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": _LOCK_S}}
    for attempt in range(_ATTEMPTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # of the heartbeat
                return RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=HEARTBEAT_S,
                    grace_period=GRACE_S,
                )
        except ImportError:
            raise
        except Exception as error:
            # Two processes that open a new file at the same time both try to make its tables.
            text = " ".join(str(error).split())
            busy = "already exists" in text or "locked" in text or "UNIQUE constraint" in text
            if not busy or attempt == _ATTEMPTS - 1:
                raise ValueError(f"the storage {url!r} cannot be opened: {text}") from error
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError
