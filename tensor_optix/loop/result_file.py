"""What came out of a run: a summary as JSON and curves as NumPy arrays, checksummed as a pair."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tensor_optix.loop.durable import RunDirError, failure, json_bytes, write_file

RESULT_NAME = "result.json"
CURVES_NAME = "curves.npz"


def write_result(directory: Path, result: Mapping[str, Any], curves: Mapping[str, Any]) -> None:
    """Writes both files; result.json comes last and holds the checksum of curves.npz.

    Raises:
      TypeError: a summary that JSON cannot hold, or a curve that npz cannot hold without pickle.
      OSError: the files cannot be written.
    """
    arrays = {name: np.asarray(curve) for name, curve in curves.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufcU":
            raise TypeError(f"Curve '{name}' has dtype {array.dtype}, which npz cannot hold without pickle.")
    packed = _npz(arrays)
    text = json_bytes({"result": dict(result), "curves_sha256": hashlib.sha256(packed).hexdigest()})
    write_file(directory / CURVES_NAME, packed)
    write_file(directory / RESULT_NAME, text)


def read_result(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The summary and the curves. Raises RunDirError if there are none or they do not belong together."""
    try:
        content = json.loads((directory / RESULT_NAME).read_bytes())
        packed = (directory / CURVES_NAME).read_bytes()
    except FileNotFoundError:
        raise RunDirError(f"The run at '{directory}' has no result yet; finish or resume it.") from None
    except OSError as error:
        raise failure("read the result", directory, error) from error
    except ValueError:
        content, packed = {}, b""
    if content.get("curves_sha256") != hashlib.sha256(packed).hexdigest():
        raise RunDirError(f"The result at '{directory}' is damaged (checksum mismatch); resume the run to redo it.")
    with np.load(io.BytesIO(packed), allow_pickle=False) as curves:
        return content["result"], dict(curves)


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """What `np.savez` writes, for any names: as keyword arguments some ("file") would mean something else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()
