"""The state of a host run's parts as two files: plain values as JSON, arrays as safetensors.

A part (pipeline, evaluator, tuner, callback) takes part if it has `state_dict()` and `load_state_dict(state)`. What it
gives is a tree of dicts, lists, tuples, numbers, strings, None and NumPy arrays; tuples come back as lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_TREE, _ARRAYS = "state.json", "state.safetensors"
_MARK = "$array"


def write_tree(directory: Path, tree: Any) -> None:
    """Writes `tree` into `directory`. TypeError for what neither JSON nor an array can hold; the message says where."""
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    plain = _split(tree, arrays, "state")
    (directory / _TREE).write_text(json.dumps(plain), encoding="utf-8")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / _ARRAYS)


def read_tree(directory: Path) -> Any:
    """What `write_tree` wrote."""
    from safetensors.numpy import load_file

    plain = json.loads((directory / _TREE).read_text(encoding="utf-8"))
    return _join(plain, load_file(directory / _ARRAYS))


def stateful(named: Mapping[str, Any]) -> dict[str, Any]:
    """Those that take part; one object in two places (a pipeline that is a callback too) under its first name only."""
    parts: dict[str, Any] = {}
    for name, part in named.items():
        if hasattr(part, "state_dict") and not any(part is other for other in parts.values()):
            parts[name] = part
    return parts


def put_back(parts: Mapping[str, Any], states: Mapping[str, Any]) -> list[str]:
    """Give every part its state; sentences about what could not be put back exactly."""
    problems: list[str] = []
    for name, part in parts.items():
        if name in states:
            problems += part.load_state_dict(states[name]) or ()
    return problems


def _split(value: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
    if isinstance(value, np.ndarray) and value.dtype != object:
        name = str(len(arrays))
        shape = list(value.shape)
        # safetensors knows neither strings nor bool of every version; bytes it always knows.
        arrays[name] = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        return {_MARK: name, "dtype": value.dtype.str, "shape": shape}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}, expected text: a state is written as JSON")
        return {key: _split(item, arrays, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, arrays, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which a state cannot hold: use numbers, text and arrays")


def _join(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if _MARK in value:
            data = arrays[value[_MARK]].tobytes()
            return np.frombuffer(data, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
        return {key: _join(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, arrays) for item in value]
    return value
