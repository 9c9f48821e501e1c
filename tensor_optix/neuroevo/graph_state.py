"""A graph of neurons as plain values and arrays, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.graph.arrays import Capacity, Memory
from tensor_optix.neuroevo.neurons import ACTIVATIONS, CLASSES, n_gates

if TYPE_CHECKING:
    from tensor_optix.neuroevo.neuron_graph import NeuronGraph

FORMAT = 1
_ARRAY = "$array"  # stands for one where only JSON is kept
_BY_NAME = {cls.__name__: cls for cls in CLASSES.values()}
_KEYS = (
    "format", "dale_mode", "seed", "capacity", "neurons", "edges", "slots", "bias", "gates", "raw", "past", "cell",
    "retired",
)  # fmt: skip


def state_of(graph: NeuronGraph) -> dict[str, Any]:
    """Lists and numbers, ids as they are, and float32 arrays in the order of neurons [n] and edges [m].

    bias [n], gates [n, 12], raw [m]; past [D, n] and cell [n], the memory. slots int64 [n]: where neurons lie in
    `arrays`, at the capacity.
    """
    names, edges = graph.all_neuron_ids(), [edge.edge_id for edge in graph.all_edges()]
    arrays = graph.arrays
    slots = np.array([graph.slot_of(name) for name in names], np.int64)
    roles = dict.fromkeys(graph.input_ids, "input") | dict.fromkeys(graph.output_ids, "output")
    neurons = []
    for name in names:
        neuron = graph.get_neuron(name)
        fields = {"id": name, "role": roles.get(name, "hidden"), "class": type(neuron).__name__}
        fields |= {field: getattr(neuron, field) for field in ("activation", "cell_type", "max_delay")}
        neurons.append(fields)
    cell = np.asarray(graph.memory.cell)[slots] if arrays.capacity.gated else np.zeros(len(slots), np.float32)
    return {
        "format": FORMAT,
        "dale_mode": graph.dale_mode,
        "seed": graph.seed,
        "capacity": {
            field.name: getattr(arrays.capacity, field.name)
            for field in dataclasses.fields(Capacity)
            if field.name not in ("activations", "softplus")
        }
        | {"activations": [each.name.lower() for each in arrays.capacity.activations]},
        "neurons": neurons,
        "edges": [{"id": edge, **graph.place_of(edge)._asdict()} for edge in edges],
        "slots": slots,
        "bias": np.asarray(arrays.weights.bias)[slots],
        "gates": np.asarray(arrays.weights.gates)[slots],
        "raw": np.array([graph.read("edge", edge) for edge in edges], np.float32),
        "past": np.asarray(graph.memory.past)[:, slots],
        "cell": cell,
        "retired": graph.retired_ids(),
    }


def load(graph: NeuronGraph, state: dict[str, Any]) -> None:
    """`graph` becomes that of the state, slot by slot and at its capacity; ids it has given are not given again."""
    missing = [key for key in _KEYS if key not in state]
    if missing or state["format"] != FORMAT:
        raise ValueError(
            f"the state is none of a NeuronGraph of format {FORMAT}: it lacks {', '.join(missing) or 'that format'}"
        )
    if state["dale_mode"] != graph.dale_mode:
        raise ValueError(
            f"the graph's dale_mode is {graph.dale_mode!r}, the state's {state['dale_mode']!r}: weights mean something "
            "else there, so make the graph with the same"
        )
    new = type(graph)(graph.dale_mode, seed=state["seed"])
    try:
        _fill(new, state)
    except KeyError as missing:
        raise ValueError(
            f"a neuron, an edge or the capacity of the state lacks {missing}: it is none of a NeuronGraph"
        ) from None
    graph.become(new)
    graph.seed = new.seed


def _fill(new: NeuronGraph, state: dict[str, Any]) -> None:
    for row, bias, gates in zip(state["neurons"], state["bias"], state["gates"], strict=True):
        cls = _BY_NAME[row["class"]]
        point = {"activation": row["activation"]} if cls.__name__ == "Neuron" else {}
        neuron = cls(neuron_id=row["id"], max_delay=row["max_delay"], cell_type=row["cell_type"], **point)
        neuron.bias.data = bias
        if neuron.gates is not None:
            neuron.gates.data = gates[: n_gates(cls.kind)]
        new.add_neuron(row["role"], neuron=neuron)
    for row, raw in zip(state["edges"], state["raw"], strict=True):
        edge = new.add_edge(row["src"], row["dst"], 0.0, row["delay"], row["id"])
        new.parameter("edge", edge).data = raw
    room = dict(state["capacity"])
    activations = tuple(sorted(ACTIVATIONS[name] for name in room.pop("activations")))
    capacity = Capacity(**room, activations=activations, softplus=new.arrays.capacity.softplus)
    new.arrange(capacity, [int(slot) for slot in state["slots"]])
    slots = np.asarray(state["slots"], np.int64)
    past, cell = np.asarray(state["past"], np.float32), np.asarray(state["cell"], np.float32)
    values = np.zeros((capacity.delays, capacity.neurons), np.float32)
    values[:, slots] = past
    cells = np.zeros(capacity.neurons, np.float32)
    cells[slots] = cell
    new.memory = Memory(jnp.asarray(values), jnp.asarray(cells) if capacity.gated else ())
    new.retire(**state["retired"])


def taken_apart(state: Any, at: str = "") -> tuple[Any, dict[str, np.ndarray]]:
    """A state as what JSON can hold, and its arrays by their paths in it.

    TypeError for ids that are neither strings nor whole numbers.
    """
    if isinstance(state, np.ndarray):
        return {_ARRAY: at}, {at: state}
    if isinstance(state, dict):
        pairs = {key: taken_apart(value, f"{at}.{key}" if at else str(key)) for key, value in state.items()}
        return {key: plain for key, (plain, _) in pairs.items()}, _united(arrays for _, arrays in pairs.values())
    if isinstance(state, list):
        items = [taken_apart(value, f"{at}.{i}") for i, value in enumerate(state)]
        return [plain for plain, _ in items], _united(arrays for _, arrays in items)
    if state is not None and not isinstance(state, str | int | float):
        raise TypeError(f"ids of neurons and edges that are saved must be strings or whole numbers, got {state!r}")
    return state, {}


def put_together(plain: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The state that was `taken_apart`. KeyError if an array is missing."""
    if isinstance(plain, dict):
        if plain.keys() == {_ARRAY}:
            return arrays[plain[_ARRAY]]
        return {key: put_together(value, arrays) for key, value in plain.items()}
    return [put_together(value, arrays) for value in plain] if isinstance(plain, list) else plain


def _united(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: x for part in parts for key, x in part.items()}
