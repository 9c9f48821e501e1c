"""The directory that an agent in JAX is saved to.

model.safetensors       network weights, each leaf under its path, such as "actor/hidden/0/kernel"
optimizer.safetensors   the optimiser's state, likewise
agent.json              hyperparameters, normalisers, and where asked for the state of the random generator
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.loop import durable
from tensor_optix.loop.durable import RunDirError, failure, json_bytes
from tensor_optix.policy import from_named_arrays, named_arrays

MODEL, OPTIMIZER, RECORD = "model.safetensors", "optimizer.safetensors", "agent.json"
_FORMAT = 1


@dataclass(frozen=True)
class Saved:
    """What `read` found: two pytrees and the record."""

    params: Any
    opt: Any
    record: dict[str, Any]


def write(path: str, params: Any, opt: Any, record: Mapping[str, Any]) -> None:
    """Make the directory `path`, or replace one that holds nothing but an agent. It is whole or not there.

    Raises:
      RunDirError: it cannot be written.
      ValueError: `path` is a file, or a directory of something else.
      TypeError: a hyperparameter that JSON cannot hold, or a dtype that safetensors readers do not share.
    """
    from safetensors.numpy import save

    final = Path(path).absolute()
    foreign = sorted({p.name for p in final.iterdir()} - {MODEL, OPTIMIZER, RECORD}) if final.is_dir() else []
    if foreign or (final.exists() and not final.is_dir()):
        what = f"holds {foreign[0]} too" if foreign else "is a file"
        raise ValueError(f"an agent is saved to a directory of its own, but '{final}' {what}: give another path")
    contents = {
        MODEL: save(_storable(params)),
        OPTIMIZER: save(_storable(opt)),
        RECORD: json_bytes({"format": _FORMAT, **record}),
    }
    staging = final.with_name(f"{durable.TEMPORARY}{final.name}")
    try:
        durable.remove(staging)
        staging.mkdir(parents=True)
        for name, data in contents.items():
            (staging / name).write_bytes(data)
        durable.publish_directory(staging, final)
    except OSError as error:
        raise failure("save the agent", final, error) from error
    finally:
        durable.discard(staging)


def read(path: str, params: Any, opt: Any) -> Saved:
    """What `write` left; `params` and `opt` are templates with the shapes and dtypes that are expected.

    Raises:
      RunDirError: a file is missing or damaged.
      ValueError: it is of another network or optimiser; the message names the leaf and both shapes.
    """
    folder, record = Path(path), _record(path)
    return Saved(_tree(folder / MODEL, params), _tree(folder / OPTIMIZER, opt), record)


def read_arrays(path: str) -> Saved:
    """What `write` left, whatever its shapes: two dicts from names such as "actor/hidden" to arrays, and the record.

    RunDirError: a file is missing or damaged.
    """
    return Saved(_arrays(Path(path) / MODEL), _arrays(Path(path) / OPTIMIZER), _record(path))


def _record(path: str) -> dict[str, Any]:
    folder = Path(path)
    try:
        record = json.loads(_bytes(folder / RECORD))
    except ValueError:
        raise RunDirError(f"'{folder / RECORD}' is damaged: it is not JSON.") from None
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise RunDirError(f"'{folder / RECORD}' was not written by this version: expected format {_FORMAT}.")
    return record


def read_params(path: str, params: Any) -> Any:
    """The network weights alone; raises as `read`."""
    return _tree(Path(path) / MODEL, params)


def on_device(tree: Any) -> Any:
    """Copies of NumPy arrays as JAX arrays, which may be donated."""
    return jax.tree.map(jnp.array, tree)


def _storable(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(array, order="C") for name, array in named_arrays(tree).items()}


def _arrays(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(_bytes(file))
    except (SafetensorError, ValueError, KeyError) as error:
        raise RunDirError(f"'{file}' is damaged: {error}.") from None


def _tree(file: Path, template: Any) -> Any:
    arrays = _arrays(file)
    extra = sorted(arrays.keys() - named_arrays(template).keys())
    if extra:
        array = arrays[extra[0]]
        raise ValueError(f"'{file}' has {extra[0]} {list(array.shape)}, which this agent has not: another network")
    return from_named_arrays(template, arrays)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise RunDirError(f"There is no '{file}'; give the path that save_weights was given.") from None
        raise failure("read the agent", file, error) from error
