"""`manifest.json`: what makes a directory a run, and who may start one where."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensor_optix.loop.durable import TEMPORARY, RunDirError, failure, plain
from tensor_optix.loop.run_lock import LOCK_NAME

MANIFEST_NAME = "manifest.json"
FORMAT = "tensor_optix run"
FORMAT_VERSION = 1
_OWN_KEYS = frozenset({"format", "format_version", "versions", "created", "events_dropped"})


def new_manifest(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that starts now: `entries`, a status, the format, versions and the time.

    Raises:
      ValueError, TypeError: an entry that is reserved or that JSON cannot hold.
    """
    content: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "status": "running"}
    content |= {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "versions": versions()}
    return content | user_entries(entries)


def refuse_occupied(path: Path, overwrite: bool) -> None:
    """Raises RunDirError unless a new run may be started in `path`."""
    if not path.exists():
        return
    if not path.is_dir():
        raise RunDirError(f"'{path}' is a file; a run needs a directory of its own, choose another path.")
    if (path / MANIFEST_NAME).exists():
        manifest = read_manifest(path)
        if not overwrite:
            raise RunDirError(
                f"'{path}' holds another run (status: {manifest.get('status')}); "
                "resume it, ask for overwrite, or choose another path."
            )
        return
    foreign = [
        entry.name for entry in path.iterdir() if entry.name != LOCK_NAME and not entry.name.startswith(TEMPORARY)
    ]
    if foreign:
        raise RunDirError(
            f"'{path}' is not empty ('{sorted(foreign)[0]}' is there) and not a run; choose another path."
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the run at `path`. Raises RunDirError if there is none or this version cannot read it."""
    if not path.is_dir():
        raise RunDirError(f"There is no run at '{path}': no such directory; check the path.")
    try:
        manifest = json.loads((path / MANIFEST_NAME).read_bytes())
    except FileNotFoundError:
        raise RunDirError(f"There is no run at '{path}': {MANIFEST_NAME} is missing; check the path.") from None
    except OSError as error:
        raise failure("read the manifest", path, error) from error
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RunDirError(f"'{path / MANIFEST_NAME}' is not the manifest of a run; choose another path.")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise RunDirError(
            f"The run at '{path}' has format version {manifest.get('format_version')} and this tensor_optix reads "
            f"version {FORMAT_VERSION}; use the version of tensor_optix that wrote it."
        )
    return manifest


def user_entries(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as JSON holds them. Raises ValueError if one of them is `RunDir`'s own, TypeError if JSON cannot."""
    reserved = _OWN_KEYS & set(values)
    if reserved:
        raise ValueError(f"The manifest keys {sorted(reserved)} are filled in by RunDir; leave them out.")
    return plain(dict(values), "manifest")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide whether a resumed run can be bit-identical."""
    found = {"python": platform.python_version()}
    for name in ("tensor-optix", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
