"""An ensemble on disk: `ensemble.json`, and the files of each member beside it.

ensemble.json   who is in it: uid and weight of each member, which of them is the primary
member_<uid>*   whatever that agent wrote
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INDEX, _FORMAT = "ensemble.json", 1


def member_path(directory: str | Path, uid: int) -> str:
    """Where the member's files are."""
    return str(Path(directory) / f"member_{uid}")


def write_index(directory: Path, record: Mapping[str, Any]) -> None:
    """Write `ensemble.json`."""
    (directory / _INDEX).write_text(json.dumps({"format": _FORMAT, **record}), encoding="utf-8")


def read_index(directory: str | Path) -> dict[str, Any]:
    """What `write_index` wrote. FileNotFoundError or ValueError if it cannot be read."""
    path = Path(directory) / _INDEX
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is missing: expected a directory that an EnsembleAgent saved")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']} instead of {_FORMAT}")
        record["primary"] = int(record["primary"])
        record["members"] = {int(member["uid"]): float(member["weight"]) for member in record["members"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' cannot be read: {error}") from error
    return dict(record)


def primary_weights(path: str) -> str:
    """The primary's part of an ensemble's weights; of any other agent's weights all."""
    return member_path(path, read_index(path)["primary"]) if (Path(path) / _INDEX).is_file() else path
