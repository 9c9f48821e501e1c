"""An exported policy: named arrays in a safetensors file that carries its own description and checksum.

policy.safetensors   everything: arrays, and in its header the description and a SHA-256 over both
policy.json          the description and the arrays' dtypes and shapes again, for people and other programs
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tensor_optix.loop.durable import RunDirError, failure, json_bytes, plain, write_file

ARRAYS_NAME = "policy.safetensors"
DESCRIPTION_NAME = "policy.json"
_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_DTYPES = _INTEGERS | {"bool", "float16", "float32", "float64", "complex64"}  # what safetensors reads back into NumPy


def write_policy(directory: Path, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Writes both files into `directory`, which is made if missing.

    Args:
      arrays: name -> array of any shape.
      meta: what is needed to act with them; anything `durable.plain` takes.

    Raises:
      TypeError: a dtype that safetensors readers do not share, or a `meta` JSON cannot hold.
      RunDirError: the files cannot be written; an older policy stands.
    """
    from safetensors.numpy import save

    # safetensors writes the memory as it lies: anything but C order would come back scrambled.
    tensors = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in tensors.items():
        if array.dtype.name not in _DTYPES:
            raise TypeError(f"Policy array '{name}' has dtype {array.dtype}; convert it to float32 before exporting.")
    description = json.dumps(plain(dict(meta), "meta"), allow_nan=False)
    header = {"meta": description, "sha256": _digest(tensors, description)}
    layout = {name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in tensors.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / ARRAYS_NAME, save(tensors, metadata=header))
        write_file(
            directory / DESCRIPTION_NAME, json_bytes({"meta": meta, "arrays": layout, "sha256": header["sha256"]})
        )
    except OSError as error:
        raise failure("save the policy", directory, error) from error


def read_policy(directory: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description; only `policy.safetensors` is read.

    Raises:
      RunDirError: there is no policy, or it is not as it was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = directory / ARRAYS_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RunDirError(f"There is no policy at '{directory}'; the run has not exported one yet.") from None
    except OSError as error:
        raise failure("read the policy", directory, error) from error
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        intact = header["sha256"] == _digest(arrays, header["meta"])
    except (SafetensorError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise RunDirError(f"The policy at '{path}' is damaged (checksum mismatch); export it again from a checkpoint.")
    return arrays, json.loads(header["meta"])


def _digest(arrays: Mapping[str, np.ndarray], description: str) -> str:
    digest = hashlib.sha256(description.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
