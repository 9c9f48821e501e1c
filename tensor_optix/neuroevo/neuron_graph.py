"""A graph of neurons that can be changed while it runs: names for the slots of the pure graph, and room where it lacks.

Nothing is computed here. `arrays` and `memory` are what the functions of `tensor_optix.neuroevo.graph` take, and what
they give comes back through `set_arrays`; so the graph that acts is the graph that learns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo import graph_state
from tensor_optix.neuroevo.array_kinds import unwrapped
from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import (
    N_GATES,
    Activation,
    Capacity,
    CellType,
    Graph,
    Kind,
    Memory,
    Role,
    Weights,
    empty,
    fresh_memory,
)
from tensor_optix.neuroevo.graph.capacity import grown
from tensor_optix.neuroevo.graph.cells import fresh_gates
from tensor_optix.neuroevo.graph.edits import Edited, carried
from tensor_optix.neuroevo.graph.forward import step
from tensor_optix.neuroevo.graph.levels import levels
from tensor_optix.neuroevo.neurons import ACTIVATIONS, CELL_TYPES, CLASSES, Neuron, checked, counted, n_gates
from tensor_optix.neuroevo.parameters import Parameter
from tensor_optix.neuroevo.relocation import on_host, relocated

ROLES = {role.name.lower(): role for role in (Role.INPUT, Role.HIDDEN, Role.OUTPUT)}
DALE_MODES = {"clamp": False, "softplus": True}
_ROOM = {"hidden": 8, "delays": 1, "levels": 2}  # to start with


@dataclass(frozen=True)
class Edge:
    """An edge as it was when it was asked for. `weight` is the weight as it acts, `delay` in steps."""

    edge_id: Hashable
    src: Hashable
    dst: Hashable
    weight: float
    delay: int


class Place(NamedTuple):
    """Where an edge runs, by ids."""

    src: Hashable
    dst: Hashable
    delay: int


class NeuronGraph:
    """A directed graph of neurons, joined by edges with delays: an edge with delay d brings its source's value of d
    steps ago. Edges without delay may not run in a circle.

    Observations go to the inputs in the order in which these were added, and outputs come in theirs. Ids never change,
    and none is given twice.

    Args:
        dale_mode: how neurons with a sign keep it. "clamp": `enforce_dale` sets weights of the wrong sign to 0.
            "softplus": a weight is softplus(parameter) with the neuron's sign.
        seed: of the gates of neurons that are added.

    Attributes:
        version: how often the structure has changed.
        values: float32 [N] by slot, of all neurons in the last forward pass, 0 of those that were not there; or None.

    Raises:
        ValueError: unknown dale_mode.
    """

    def __init__(self, dale_mode: str = "clamp", *, seed: int = 0) -> None:
        self.dale_mode = dale_mode
        self.seed = counted("seed", seed, 0)
        softplus = checked("dale_mode", dale_mode, DALE_MODES)
        capacity = Capacity(1, 1, **_ROOM, activations=(Activation.LINEAR,), softplus=softplus)
        self.version = 0
        self.values: np.ndarray | None = None
        self._graph = on_host(empty(capacity))
        self._memory = fresh_memory(capacity)
        self._arrays: Graph | None = None  # `_graph` on the device
        self._acting: np.ndarray | None = None  # weights as they act
        self._deep_enough = True  # the capacity's levels are known to do
        self._slots: dict[Hashable, int] = {}
        self._delays: dict[Hashable, int] = {}  # max_delay of each neuron
        self._roles: dict[Role, list[Hashable]] = {role: [] for role in ROLES.values()}
        self._edges: dict[Hashable, Place] = {}
        self._places: dict[Place, Hashable] = {}
        self._used: dict[str, set[Hashable]] = {"n": set(), "e": set()}
        self._views: dict[Hashable, Neuron] = {}
        self._handles: dict[tuple[str, Hashable], Parameter] = {}

    # Building

    def add_neuron(
        self,
        role: str = "hidden",
        activation: str = "tanh",
        neuron_id: Hashable = None,
        max_delay: int = 1,
        cell_type: str = "any",
        neuron: Neuron | None = None,
    ) -> Hashable:
        """A neuron without edges. Returns its id.

        Args:
            role: input, hidden or output. An input's value is its observation, whatever its activation and bias.
            activation: linear, relu, tanh, sigmoid or elu.
            neuron_id: anything hashable that was not an id before; None: "n0", "n1", ...
            max_delay: steps of history to keep from the start; longer edges make it longer.
            cell_type: excitatory, inhibitory or any.
            neuron: a description, in the place of activation and cell_type; it is copied.

        Raises:
            ValueError, TypeError: an argument is none of these, or the id is taken.
        """
        described = neuron if neuron is not None else Neuron(activation, None, max_delay, cell_type)
        if not isinstance(described, Neuron):
            raise TypeError(f"neuron must be a Neuron, a GRUNeuron or another class of theirs, got {neuron!r}")
        code = checked("role", role, ROLES)
        kind, sign = described.kind, checked("cell_type", cell_type, CELL_TYPES) or CELL_TYPES[described.cell_type]
        if described.cell_type not in ("any", CellType(sign).name.lower()):
            raise ValueError(f"cell_type is {cell_type!r}, but the neuron handed in is {described.cell_type}: give one")
        if code == Role.INPUT and kind != Kind.POINT:
            raise ValueError(f"an input hands on its observation, so it cannot be a {type(described).__name__}")
        keep = max(counted("max_delay", max_delay, 1), described.max_delay)
        function = Activation.LINEAR if code == Role.INPUT else ACTIVATIONS[described.activation]
        name = self._name("n", neuron_id if neuron_id is not None else described.neuron_id)

        rank = 1 + len(self._roles[code])
        self.make_room(
            **{role + "s" * (role != "hidden"): rank}, delays=keep, gated=kind != Kind.POINT, activations=[function]
        )
        slot = self._free_slot(code)
        topology, weights = self._graph.topology, self._graph.weights
        for field, value in (("role", code), ("kind", kind), ("activation", function), ("cell_type", sign)):
            getattr(topology, field)[slot] = value
        weights.bias[slot] = described.bias.data
        gates = described.gates_given
        weights.gates[slot] = self._fresh_gates(kind) if gates is None else gates
        self._slots[name], self._delays[name] = slot, keep
        self._roles[code].append(name)
        self._used["n"].add(name)
        self._changed(structure=True)
        return name

    def add_edge(
        self, src: Hashable, dst: Hashable, weight: float = 0.0, delay: int = 0, edge_id: Hashable = None
    ) -> Hashable:
        """An edge from `src` to `dst`. Returns its id.

        Args:
            weight: as it acts. A sign that Dale's law forbids is refused under softplus, and stays until
                `enforce_dale` otherwise. Under softplus 0 becomes 8e-7.
            delay: steps, at least 0.
            edge_id: anything hashable that was not an id before; None: "e0", "e1", ...

        Raises:
            ValueError: no such neuron; into an input; there already; a circle without delay; the wrong sign.
        """
        source, target = self.slot_of(src), self.slot_of(dst)
        delay = counted("delay", delay, 0)
        place = Place(src, dst, delay)
        if dst in self._roles[Role.INPUT]:
            raise ValueError(f"an edge into {dst!r} would do nothing: it is an input, and its value is its observation")
        if place in self._places:
            raise ValueError(
                f"{src!r} and {dst!r} are joined with delay {delay} already, by the edge {self._places[place]!r}: "
                "change its weight, or give another delay"
            )
        chain = self.chain(dst, src) if delay == 0 else None
        if chain:
            raise ValueError(
                f"edges without delay must not run in a circle, as this would: {' -> '.join(map(repr, [src, *chain]))}; "
                "give one of them a delay of 1 or more"
            )
        raw = self._raw(src, float(weight))
        name = self._name("e", edge_id)
        self.make_room(delays=delay)
        source, target = self._slots[src], self._slots[dst]
        self._graph.topology.edges[delay, target, source] = True
        self._graph.weights.edges[delay, target, source] = raw
        self._record(name, place)
        self._deep_enough = self._deep_enough and delay > 0
        self._changed(structure=True)
        return name

    def remove_edge(self, edge_id: Hashable) -> None:
        """The edge goes; nothing happens if there is none."""
        if edge_id not in self._edges:
            return
        at = self._index(edge_id)
        self._graph.topology.edges[at] = False
        self._graph.weights.edges[at] = 0.0
        del self._places[self._edges.pop(edge_id)]
        self._changed(structure=True)

    def remove_neuron(self, neuron_id: Hashable) -> None:
        """The neuron goes, with its edges; nothing happens if there is none."""
        if neuron_id not in self._slots:
            return
        for edge in [*self._names_into(neuron_id), *self._names_from(neuron_id)]:
            self._places.pop(self._edges.pop(edge, Place(None, None, -1)), None)
        for names in self._roles.values():
            if neuron_id in names:
                names.remove(neuron_id)
        del self._slots[neuron_id], self._delays[neuron_id]
        self._arrange(self._graph.capacity)
        self._changed(structure=True)

    # Asking

    @property
    def input_ids(self) -> list[Hashable]:
        """In the order of the observation."""
        return list(self._roles[Role.INPUT])

    @property
    def hidden_ids(self) -> list[Hashable]:
        return list(self._roles[Role.HIDDEN])

    @property
    def output_ids(self) -> list[Hashable]:
        """In the order of what `forward` gives."""
        return list(self._roles[Role.OUTPUT])

    def all_neuron_ids(self) -> list[Hashable]:
        """In the order in which they were added."""
        return list(self._slots)

    def all_edges(self) -> list[Edge]:
        """In the order in which they were added."""
        return [self.get_edge(name) for name in self._edges]

    def edges_into(self, neuron_id: Hashable) -> list[Edge]:
        """ValueError if there is no such neuron."""
        return [self.get_edge(name) for name in self._names_into(neuron_id)]

    def edges_from(self, neuron_id: Hashable) -> list[Edge]:
        """ValueError if there is no such neuron."""
        return [self.get_edge(name) for name in self._names_from(neuron_id)]

    def get_edge(self, edge_id: Hashable) -> Edge:
        """ValueError if there is none."""
        place = self.place_of(edge_id)
        return Edge(edge_id, place.src, place.dst, self.effective_weight(edge_id), place.delay)

    def get_neuron(self, neuron_id: Hashable) -> Neuron:
        """A view of the neuron, of its class; ValueError if there is none."""
        cls = CLASSES[Kind(int(self._graph.topology.kind[self.slot_of(neuron_id)]))]
        if type(self._views.get(neuron_id)) is not cls:
            self._views[neuron_id] = cls.of(self, neuron_id)
        return self._views[neuron_id]

    def n_neurons(self) -> int:
        """Of all roles."""
        return len(self._slots)

    def n_edges(self) -> int:
        """Of all delays."""
        return len(self._edges)

    def cell_type_of(self, neuron_id: Hashable) -> str:
        """excitatory, inhibitory or any."""
        return self.read("cell_type", neuron_id)

    def effective_weight(self, edge_id: Hashable) -> float:
        """The weight as it acts; ValueError if there is no such edge."""
        at = self._index(edge_id)
        if self._acting is None:
            self._acting = np.asarray(_acting(self.arrays))
        return float(self._acting[at])

    def parameters(self) -> list[Parameter]:
        """Of each neuron its bias, of each edge its raw weight, of each gated neuron its gates, in this order."""
        gated = [name for name in self._slots if n_gates(self._kind(name))]
        keys = [("bias", name) for name in self._slots]
        keys += [("edge", name) for name in self._edges] + [("gates", name) for name in gated]
        return [self.parameter(*key) for key in keys]

    def set_gradients(self, gradients: Weights) -> None:
        """Hands the gradients of `arrays.weights` to the parameters' handles."""
        of = jax.tree.map(np.asarray, gradients)
        for handle in self.parameters():
            handle.grad = self._get(of, handle.field, handle.key)

    # Running

    def forward(self, obs: Any) -> Any:
        """One step: float32 [outputs], of the same kind as `obs`: a list, a NumPy, JAX or PyTorch vector [inputs].

        Delayed edges and gated neurons remember the steps since `reset_state`. No gradients: these come from
        `tensor_optix.neuroevo.graph.forward.step` on `arrays` and `memory`.

        Raises:
            ValueError: wrong obs dim.
            TypeError: called under a transformation of JAX.
        """
        if isinstance(obs, jax.core.Tracer):
            raise TypeError(
                "forward keeps a memory, so it cannot run under jit, grad or vmap: call "
                "tensor_optix.neuroevo.graph.forward.step(graph.arrays, graph.memory, obs) there"
            )
        array, back = unwrapped(obs)
        inputs = len(self._roles[Role.INPUT])
        if array.shape != (inputs,):
            raise ValueError(
                f"obs dim must be {inputs}, one number for each input neuron, got the shape {list(array.shape)}"
            )
        outputs, memory, values = _forward(self.arrays, self._memory, array if inputs else np.zeros(1, np.float32))
        self._memory, self.values = memory, np.asarray(values)
        there = len(self._roles[Role.OUTPUT])
        return back(outputs if there else outputs[:0])

    __call__ = forward

    def reset_state(self) -> None:
        """An episode starts: nothing is remembered."""
        self._memory = fresh_memory(self._graph.capacity)

    def enforce_dale(self) -> None:
        """Sets weights that Dale's law forbids to 0; under softplus there are none."""
        self.set_arrays(_enforced(self.arrays))

    def compile_forward(self) -> None:
        """Compiles the forward pass now instead of at the next step; it runs compiled in any case."""
        capacity = self.arrays.capacity
        _forward(self.arrays, fresh_memory(capacity), np.zeros(capacity.inputs, np.float32))

    def invalidate_compile(self) -> None:
        """Nothing to do: programs depend on the capacity alone, and look at the graph at every step."""

    # For what builds on it

    @property
    def arrays(self) -> Graph:
        """The pure graph, with as many inputs and outputs as there are (at least one each)."""
        if not self._deep_enough:
            depth = int(_depth(self._graph.topology.edges[0], self._graph.capacity.inputs))
            self.make_room(levels=depth)
            self._deep_enough = True
        if self._arrays is None:
            self._arrays = jax.tree.map(jnp.array, self._graph)
        return self._arrays

    @property
    def memory(self) -> Memory:
        """What is remembered of the episode, at the capacity of `arrays`."""
        self.arrays  # noqa: B018  may make room
        return jax.tree.map(jnp.array, self._memory)

    def set_arrays(self, graph: Graph, memory: Memory | None = None) -> None:
        """Takes over weights, and the memory if there is one, of the same structure at the same capacity.

        Raises:
            ValueError: the capacity or the structure differs; neurons and edges come and go by the methods here and
                `operations`.
        """
        own = self.arrays
        if graph.capacity != own.capacity:
            raise ValueError(f"the graph has {own.capacity}, got one with {graph.capacity}: take it from `arrays` anew")
        new = on_host(graph)
        same = jax.tree.map(np.array_equal, new.topology, self._graph.topology)
        if not all(jax.tree.leaves(same)):
            raise ValueError("set_arrays takes weights, and these come with other neurons or edges: use `operations`")
        for leaf, expected in zip(jax.tree.leaves(new.weights), jax.tree.leaves(self._graph.weights), strict=True):
            if leaf.shape != expected.shape or leaf.dtype != expected.dtype:
                raise ValueError(
                    f"weights must be {expected.dtype} {list(expected.shape)}, got {leaf.dtype} {list(leaf.shape)}"
                )
        if memory is not None:
            expected = fresh_memory(own.capacity)
            shapes = [jax.tree.map(np.shape, x) for x in (memory, expected)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"the memory of one graph must have the shapes {shapes[1]}, got {shapes[0]}")
            self._memory = memory
        self._graph = new
        self._changed()

    def slot_of(self, neuron_id: Hashable) -> int:
        """Its place in `arrays`, until the structure changes; ValueError if there is no such neuron."""
        if neuron_id not in self._slots:
            raise ValueError(f"no neuron {neuron_id!r} in the graph{self._was('n', neuron_id)}: see all_neuron_ids()")
        return self._slots[neuron_id]

    def place_of(self, edge_id: Hashable) -> Place:
        """The ids it joins, and its delay; ValueError if there is no such edge."""
        if edge_id not in self._edges:
            raise ValueError(f"no edge {edge_id!r} in the graph{self._was('e', edge_id)}: see all_edges()")
        return self._edges[edge_id]

    def chain(self, start: Hashable, end: Hashable) -> list[Hashable] | None:
        """The neurons on a shortest way from `start` to `end` along edges without delay, both included; or None."""
        edges, goal = self._graph.topology.edges[0], self._slots[end]
        came: dict[int, int | None] = {self._slots[start]: None}
        for here in (queue := list(came)):
            if here == goal:
                names = {slot: name for name, slot in self._slots.items()}
                way: list[int] = []
                at: int | None = here
                while at is not None:
                    way, at = [at, *way], came[at]
                return [names[slot] for slot in way]
            for after in np.flatnonzero(edges[:, here]).tolist():
                if after not in came:
                    came[after] = here
                    queue.append(after)
        return None

    def make_room(
        self,
        *,
        inputs: int = 0,
        outputs: int = 0,
        hidden: int = 0,
        delays: int = 0,
        levels: int = 0,
        gated: bool = False,
        activations: Iterable[Activation] = (),
    ) -> None:
        """Room for at least so much; beyond inputs and outputs in powers of two. Makes the programs compile anew."""
        old = self._graph.capacity
        new = dataclasses.replace(
            grown(old, hidden=hidden, delays=delays, levels=levels),
            inputs=max(old.inputs, inputs),
            outputs=max(old.outputs, outputs),
            gated=old.gated or gated,
            activations=tuple(sorted({*old.activations, *activations})),
        )
        if new != old:
            self._arrange(new)

    def edit(
        self, pure: Callable[..., Edited], *slots: float, neuron_id: Hashable = None, edge_id: Hashable = None
    ) -> tuple[list[Hashable], list[Hashable]]:
        """Runs an edit of `tensor_optix.neuroevo.graph.edits`; ids, memory and values follow. For `operations`.

        Args:
            pure: a function of the module; (graph, *slots) -> Edited.
            slots: its other arguments.
            neuron_id, edge_id: of the first neuron and edge that come; None: the graph's choice.

        Returns:
            Ids of neurons and edges that came, in the order of their neurons.

        Raises:
            ValueError: it cannot be done.
        """
        names = self._name("n", neuron_id), self._name("e", edge_id)
        arguments = [np.float32(x) if isinstance(x, float) else np.int32(x) for x in slots]
        values = np.zeros(self._graph.capacity.neurons, np.float32) if self.values is None else self.values
        done = _edited(pure, self.arrays, self._memory, values, *arguments)
        if not done[1]:  # for want of levels, or not at all
            self.make_room(levels=self._graph.capacity.levels + 1)
            values = np.zeros(self._graph.capacity.neurons, np.float32) if self.values is None else self.values
            done = _edited(pure, self.arrays, self._memory, values, *arguments)
        graph, ok, memory, moved = done
        if not ok:
            raise ValueError(f"{pure.__name__} cannot be done in this graph at {slots}")
        self._graph, self._memory = on_host(graph), memory
        self.values = None if self.values is None else np.asarray(moved)
        return self._renamed(*names)

    # The owner of parameters and of what neurons remember

    def parameter(self, field: str, key: Hashable) -> Parameter:
        """The one handle."""
        return self._handles.setdefault((field, key), Parameter(self, field, key))

    def read(self, field: str, key: Hashable) -> Any:
        """What a neuron or edge is, has or remembers; for views and handles."""
        if field in ("bias", "gates", "edge"):
            return self._get(self._graph.weights, field, key)
        slot, topology = self.slot_of(key), self._graph.topology
        if field == "activation":
            return Activation(int(topology.activation[slot])).name.lower()
        if field == "cell_type":
            return CellType(int(topology.cell_type[slot])).name.lower()
        if field == "max_delay":
            return self._delays[key]
        if field == "value":
            return np.float32(0.0) if self.values is None else self.values[slot]
        if field == "cell":
            return np.asarray(self._memory.cell)[slot] if self._graph.capacity.gated else np.float32(0.0)
        past = np.asarray(self._memory.past)[: self._delays[key], slot]
        return past[0] if field == "h" else past.copy()

    def write(self, field: str, key: Hashable, value: Any) -> None:
        """The counterpart of `read`."""
        if field == "edge":
            self._graph.weights.edges[self._index(key)] = value
            return self._changed()
        slot = self.slot_of(key)
        if field == "bias":
            self._graph.weights.bias[slot] = value
            return self._changed()
        if field == "gates":
            self._graph.weights.gates[slot, : n_gates(self._kind(key))] = value
            return self._changed()
        if field == "max_delay":
            self._delays[key] = max(self._delays[key], value)
            return self.make_room(delays=value)
        if field == "value" and self.values is not None:
            self.values = np.array(self.values)
            self.values[slot] = value
        memory = jax.tree.map(np.array, self._memory)
        if field == "past":
            memory.past[: len(value), slot] = value
        elif field == "cell" and self._graph.capacity.gated:
            memory.cell[slot] = value
        self._memory = memory

    # On disk

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain values, ids and NumPy arrays."""
        return graph_state.state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Becomes the graph whose `state_dict` this is, whatever this one has become since.

        Raises:
            ValueError: it is not such a state, or of the other dale_mode.
        """
        loaded = graph_state.graph_of(state, self)
        for field in ("_graph", "_memory", "_slots", "_delays", "_roles", "_edges", "_places", "seed"):
            setattr(self, field, getattr(loaded, field))
        for prefix, names in loaded._used.items():
            self._used[prefix] |= names
        self.values, self._deep_enough = None, False
        self._changed(structure=True)
