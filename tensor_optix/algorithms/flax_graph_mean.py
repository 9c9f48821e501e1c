"""The mean of several saved graphs: neuron by neuron and edge by edge, by their ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_NEURON = ("role", "class", "activation", "cell_type")


def structure(state: Mapping[str, Any]) -> Any:
    """Of a graph's or a brain's `state_dict` what must agree for weights to have a mean.

    How it came about, where neurons lie and what they remember may differ.
    """
    if "regions" in state:
        return {
            "regions": [(name, structure(region)) for name, region in state["regions"].items()],
            "outputs": _output_regions(state),
            "edges": {edge["edge_id"]: edge for edge in state["edges"]},
        }
    neurons = state["neurons"]
    return {
        "dale_mode": state["dale_mode"],
        "inputs": [neuron["id"] for neuron in neurons if neuron["role"] == "input"],
        "outputs": [neuron["id"] for neuron in neurons if neuron["role"] == "output"],
        "neurons": {neuron["id"]: [neuron[field] for field in _NEURON] for neuron in neurons},
        "edges": {edge["id"]: edge for edge in state["edges"]},
    }


def mean(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first of several states of one `structure`, with the mean of all their weights."""
    first = dict(states[0])
    if "regions" in first:
        regions = {name: mean([state["regions"][name] for state in states]) for name in first["regions"]}
        return first | {"regions": regions, "weights": _by_id(states, "weights", "edges", "edge_id")}
    weights = {name: _by_id(states, name, "neurons", "id") for name in ("bias", "gates")}
    return first | weights | {"raw": _by_id(states, "raw", "edges", "id")}


def mean_array(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Of arrays of one shape, float32."""
    return np.asarray(np.mean(arrays, axis=0, dtype=np.float64), np.float32)


def _by_id(states: Sequence[Mapping[str, Any]], name: str, whose: str, key: str) -> np.ndarray:
    """The mean of the arrays `name`, whose rows belong to the things listed under `whose`, in the first's order."""
    rows = []
    for state in states:
        place = {each[key]: i for i, each in enumerate(state[whose])}
        rows.append(state[name][np.array([place[each[key]] for each in states[0][whose]], np.int64)])
    return mean_array(rows)


def _output_regions(brain: Mapping[str, Any]) -> list[str]:
    """As `BrainNetwork.output_regions` has them."""
    if brain["output_regions"] is not None:
        return list(brain["output_regions"])
    names, left = list(brain["regions"]), {src for src, _ in brain["joined"]}
    return [name for name in names if name not in left] or names[-1:]
