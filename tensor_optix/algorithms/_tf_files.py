"""A TensorFlow agent on disk.

<network>.weights.h5    each network, as Keras writes it
optimizer.safetensors   the optimizer's variables; names are "<place>:<path>", for paths differ between processes
agent.json              everything else, and the shapes of the networks; written last, so that half a save has none
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

RECORD, OPTIMIZER = "agent.json", "optimizer.safetensors"
_FORMAT = 1


def write(path: Path, networks: Mapping[str, Any], optimizer: Any, record: Mapping[str, Any]) -> None:
    """Write all files into `path`, made if missing. NotADirectoryError if it is a file."""
    from safetensors.numpy import save_file

    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"'{path}' is a file, and an agent is saved as a directory; choose another path")
    path.mkdir(parents=True, exist_ok=True)
    (path / RECORD).unlink(missing_ok=True)
    for name, network in networks.items():
        network.save_weights(str(_weights(path, name)), overwrite=True)
    # safetensors writes the memory as it lies: anything but C order would come back scrambled.
    variables = {f"{i}:{v.path}": np.asarray(v.value.numpy(), order="C") for i, v in enumerate(optimizer.variables)}
    save_file(variables, str(path / OPTIMIZER))
    shapes = {name: [list(v.shape) for v in network.weights] for name, network in networks.items()}
    text = json.dumps({"format": _FORMAT, "shapes": shapes, **record}, indent=1, default=_plain)
    (path / RECORD).write_text(text, encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    """agent.json. FileNotFoundError if there is none, ValueError if it is broken or of another format."""
    file = _existing(path / RECORD)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        missing = {"format", "shapes", "hyperparams", "episode_id", "parts"} - set(record)
    except (ValueError, TypeError) as error:
        raise ValueError(f"'{file}' is broken: {error}") from error
    if missing or record["format"] != _FORMAT:
        raise ValueError(f"'{file}' is not a save of a TensorFlow agent of format {_FORMAT}")
    return record


def read_networks(path: Path, record: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
    """Load every network; all shapes are checked before. The caller undoes a load that fails half-way."""
    for name, network in networks.items():
        _existing(_weights(path, name))
        own = [(v.path, tuple(v.shape)) for v in network.weights]
        _check_shapes(f"{name} at '{path}'", own, [tuple(shape) for shape in record["shapes"].get(name, ())])
    for name, network in networks.items():
        file = _weights(path, name)
        try:
            network.load_weights(str(file))
        except Exception as error:  # h5py and Keras raise what they like
            raise ValueError(f"'{file}' cannot be read: {error}") from error


def read_optimizer(path: Path, optimizer: Any) -> None:
    """Load the optimizer's variables; all shapes are checked before."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = _existing(path / OPTIMIZER)
    try:
        stored = load_file(str(file))
        arrays = [stored[name] for name in sorted(stored, key=lambda name: int(name.partition(":")[0]))]
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"'{file}' cannot be read: {error}") from error
    own = [(v.path, tuple(v.shape)) for v in optimizer.variables]
    _check_shapes(f"the optimizer at '{path}'", own, [array.shape for array in arrays])
    for variable, array in zip(optimizer.variables, arrays, strict=True):
        variable.assign(array)


def _weights(path: Path, network: str) -> Path:
    return path / f"{network}.weights.h5"


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"'{file}' is missing: '{file.parent}' is no complete save of this agent")
    return file


def _check_shapes(what: str, own: list[tuple[str, tuple[int, ...]]], saved: Iterable[tuple[int, ...]]) -> None:
    saved = list(saved)
    for (name, shape), other in zip(own, saved, strict=False):
        if shape != other:
            raise ValueError(f"{what} is of another network: {name} has shape {shape} here and {other} there")
    if len(own) != len(saved):
        raise ValueError(f"{what} is of another network: it has {len(saved)} arrays, and {len(own)} are expected")


def _plain(value: Any) -> Any:
    """NumPy as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")
