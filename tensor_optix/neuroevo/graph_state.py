"""A graph of neurons as plain values and arrays, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.graph.arrays import Capacity, Memory
from tensor_optix.neuroevo.neurons import CLASSES, n_gates

if TYPE_CHECKING:
    from tensor_optix.neuroevo.neuron_graph import NeuronGraph

FORMAT = 1
_BY_NAME = {cls.__name__: cls for cls in CLASSES.values()}
_KEYS = ("format", "dale_mode", "seed", "neurons", "edges", "bias", "gates", "raw", "past", "cell", "retired")


def state_of(graph: NeuronGraph) -> dict[str, Any]:
    """Lists and numbers, ids as they are, and float32 arrays in the order of neurons [n] and edges [m].

    bias [n], gates [n, 12], raw [m]; past [D, n] and cell [n], the memory.
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
        "neurons": neurons,
        "edges": [{"id": edge, **graph.place_of(edge)._asdict()} for edge in edges],
        "bias": np.asarray(arrays.weights.bias)[slots],
        "gates": np.asarray(arrays.weights.gates)[slots],
        "raw": np.array([graph.read("edge", edge) for edge in edges], np.float32),
        "past": np.asarray(graph.memory.past)[:, slots],
        "cell": cell,
        "retired": graph.retired_ids(),
    }


def load(graph: NeuronGraph, state: dict[str, Any]) -> None:
    """`graph` becomes that of the state; it keeps its room, and its ids are not given again."""
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
        _fill(new, graph.arrays.capacity, state)
    except KeyError as missing:
        raise ValueError(f"a neuron or edge of the state lacks {missing}: it is none of a NeuronGraph") from None
    graph.become(new)
    graph.seed = new.seed


def _fill(new: NeuronGraph, room: Capacity, state: dict[str, Any]) -> None:
    past, cell = np.asarray(state["past"], np.float32), np.asarray(state["cell"], np.float32)
    new.make_room(
        hidden=room.hidden,
        delays=max(room.delays, len(past)),
        levels=room.levels,
        gated=room.gated,
        activations=room.activations,
    )
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
    slots = np.array([new.slot_of(row["id"]) for row in state["neurons"]], np.int64)
    capacity = new.arrays.capacity
    values = np.zeros((capacity.delays, capacity.neurons), np.float32)
    values[: len(past), slots] = past
    cells = np.zeros(capacity.neurons, np.float32)
    cells[slots] = cell
    new.set_arrays(new.arrays, Memory(jnp.asarray(values), jnp.asarray(cells) if capacity.gated else ()))
    new.retire(**state["retired"])
