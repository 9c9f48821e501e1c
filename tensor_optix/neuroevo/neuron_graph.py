"""A graph of neurons that can be changed while it runs.

Nothing is computed here: `arrays` and `memory` are what the functions of `tensor_optix.neuroevo.graph` take, and what
these give comes back through `set_arrays`; so the graph that acts is the graph that learns.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo import graph_state
from tensor_optix.neuroevo.array_kinds import unwrapped
from tensor_optix.neuroevo.graph import dale, edits
from tensor_optix.neuroevo.graph.arrays import (
    Activation,
    Capacity,
    Graph,
    Kind,
    Memory,
    Role,
    Weights,
    empty,
    fresh_memory,
    on_host,
)
from tensor_optix.neuroevo.graph.cells import fresh_gates
from tensor_optix.neuroevo.graph.forward import step
from tensor_optix.neuroevo.named_graph import NamedGraph, Place
from tensor_optix.neuroevo.neurons import ACTIVATIONS, CELL_TYPES, CLASSES, Neuron, checked, counted, n_gates
from tensor_optix.neuroevo.parameters import Parameter

ROLES = {role.name.lower(): role for role in (Role.INPUT, Role.HIDDEN, Role.OUTPUT)}
DALE_MODES = {"clamp": False, "softplus": True}


@dataclass(frozen=True)
class Edge:
    """An edge as it was when it was asked for. `weight` is the weight as it acts, `delay` in steps."""

    edge_id: Hashable
    src: Hashable
    dst: Hashable
    weight: float
    delay: int


class NeuronGraph(NamedGraph):
    """A directed graph of neurons, joined by edges that bring their source's value of `delay` steps ago.

    Observations go to the inputs in the order in which these were added, and outputs come in theirs. Edges without
    delay may not run in a circle. Ids never change, and none is given twice.

    Args:
        dale_mode: how neurons with a sign keep it. "clamp": `enforce_dale` sets weights of the wrong sign to 0.
            "softplus": a weight is softplus(parameter) with the neuron's sign.
        seed: of the gates of neurons that are added.

    Raises:
        ValueError: unknown dale_mode.
    """

    def __init__(self, dale_mode: str = "clamp", *, seed: int = 0) -> None:
        super().__init__(softplus=checked("dale_mode", dale_mode, DALE_MODES))
        self.dale_mode = dale_mode
        self.seed = counted("seed", seed, 0)
        self._acting: tuple[Graph, np.ndarray] | None = None  # weights as they act, and of which arrays
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
            neuron: a description, in the place of activation and cell_type. Its parameters are copied, its past is not.

        Raises:
            ValueError, TypeError: an argument is none of these, or the id is taken.
        """
        new = neuron if neuron is not None else Neuron(activation, None, max_delay, cell_type)
        if not isinstance(new, Neuron):
            raise TypeError(f"neuron must be a Neuron or of a class of theirs, such as GRUNeuron(), got {neuron!r}")
        code, sign = checked("role", role, ROLES), checked("cell_type", cell_type, CELL_TYPES)
        if new.cell_type != cell_type and "any" not in (new.cell_type, cell_type):
            raise ValueError(
                f"cell_type is {cell_type!r}, but the neuron handed in is {new.cell_type}: give one of them"
            )
        if code == Role.INPUT and new.kind != Kind.POINT:
            raise ValueError(f"an input hands on its observation and cannot be a {type(new).__name__}: make it hidden")
        keep = max(counted("max_delay", max_delay, 1), new.max_delay)
        function = Activation.LINEAR if code == Role.INPUT else ACTIVATIONS[new.activation]
        name = self._name("n", new.wanted_id if neuron_id is None else neuron_id)
        gates = new.gates_given
        if gates is None:
            noise = np.random.default_rng([self.seed, len(self._used["n"])]).standard_normal()
            gates = fresh_gates(new.kind, float(noise))

        slot = self._vacant(code, keep, new.kind != Kind.POINT, function)
        topology, weights = self._graph.topology, self._graph.weights
        topology.role[slot], topology.kind[slot], topology.activation[slot] = code, new.kind, function
        topology.cell_type[slot] = sign or CELL_TYPES[new.cell_type]
        weights.bias[slot], weights.gates[slot] = new.bias.data, gates
        self._record_neuron(name, slot, keep)
        self._restructured()
        return name

    def add_edge(
        self, src: Hashable, dst: Hashable, weight: float = 0.0, delay: int = 0, edge_id: Hashable = None
    ) -> Hashable:
        """An edge from `src` to `dst`. Returns its id.

        Args:
            src, dst: ids of neurons.
            weight: as it acts. A sign that Dale's law forbids is refused under softplus, and stays until
                `enforce_dale` otherwise. Under softplus a 0 acts as 8e-7.
            delay: steps, at least 0.
            edge_id: anything hashable that was not an id before; None: "e0", "e1", ...

        Raises:
            ValueError: no such neuron; into an input; there already; a circle without delay; the wrong sign.
        """
        self.slot_of(src), self.slot_of(dst)
        place = Place(src, dst, counted("delay", delay, 0))
        if dst in self._roles[Role.INPUT]:
            raise ValueError(
                f"an edge into {dst!r} would do nothing, for it is an input and its value its observation: lead it to "
                "a hidden or output neuron"
            )
        if place in self._names:
            raise ValueError(
                f"{src!r} and {dst!r} are joined with delay {delay} already, by the edge {self._names[place]!r}: "
                "change its weight, or give another delay"
            )
        circle = self.chain(dst, src) if place.delay == 0 else None
        if circle:
            raise ValueError(
                f"edges without delay must not run in a circle, and {' -> '.join(map(repr, [src, *circle]))} would: "
                "give one of them a delay of 1 or more"
            )
        raw, name = self._raw(src, float(weight)), self._name("e", edge_id)
        self.make_room(delays=place.delay)
        self._record_edge(name, place)
        self._graph.topology.edges[self.index_of(name)] = True
        self._graph.weights.edges[self.index_of(name)] = raw
        self._deep_enough = self._deep_enough and place.delay > 0
        self._restructured()
        return name

    def remove_edge(self, edge_id: Hashable) -> None:
        """The edge goes; nothing happens if there is none."""
        self.remove_edges([edge_id])

    def remove_edges(self, edge_ids: Iterable[Hashable]) -> None:
        """Those of the edges that there are go, all at once."""
        gone, before = [name for name in edge_ids if name in self._edges], self.arrays
        if not gone:
            return
        for name in gone:
            at = self.index_of(name)
            self._graph.topology.edges[at], self._graph.weights.edges[at] = False, 0.0
            self._forget_edge(name)
        self._restructured()
        self._edited(None, (), before, edits.unchanged(self.arrays))

    def remove_neuron(self, neuron_id: Hashable) -> None:
        """The neuron goes, with its edges; nothing happens if there is none."""
        if neuron_id not in self._slots:
            return
        self._forget_neuron(neuron_id)
        self._close_up()
        self._restructured()

    def _vacant(self, role: Role, delays: int, gated: bool, function: Activation) -> int:
        """A slot for one more neuron."""
        there = len(self._roles[role])
        room = {Role.INPUT: "inputs", Role.OUTPUT: "outputs", Role.HIDDEN: "hidden"}[role]
        self.make_room(**{room: there + 1}, delays=delays, gated=gated, activations=[function])
        capacity = self._graph.capacity
        first = {Role.INPUT: there, Role.OUTPUT: capacity.inputs + there, Role.HIDDEN: capacity.first_hidden}[role]
        return first + int(np.argmax(self._graph.topology.role[first:] == Role.ABSENT))

    def _restructured(self) -> None:
        self.version += 1
        self._arrays = self.last_step = self.gradient = None

    def _raw(self, src: Hashable, weight: float) -> float:
        """The parameter of an edge from `src` that acts as `weight`."""
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")
        sign = CELL_TYPES[self.cell_type_of(src)]
        if self.dale_mode == "clamp" or sign == 0:
            return weight
        if sign * weight < 0:
            bound = "at least" if sign > 0 else "at most"
            raise ValueError(
                f"weights from {src!r} must be {bound} 0, for it is {self.cell_type_of(src)}, got {weight}: under "
                "softplus a weight has its neuron's sign from the start"
            )
        return float(_raw(np.int8(sign), np.float32(weight)))

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

    def placed(self, obs: np.ndarray) -> np.ndarray:
        """Observations [*batch, inputs] in the order of `input_ids` as `forward.step` takes them: as they are."""
        return obs

    def all_neuron_ids(self) -> list[Hashable]:
        """In the order in which they came."""
        return list(self._slots)

    def all_edges(self) -> list[Edge]:
        """In the order in which they came."""
        return self._views_of(self._edges)

    def edges_into(self, neuron_id: Hashable) -> list[Edge]:
        """ValueError if there is no such neuron."""
        self.slot_of(neuron_id)
        return self._views_of(name for name, place in self._edges.items() if place.dst == neuron_id)

    def edges_from(self, neuron_id: Hashable) -> list[Edge]:
        """ValueError if there is no such neuron."""
        self.slot_of(neuron_id)
        return self._views_of(name for name, place in self._edges.items() if place.src == neuron_id)

    def get_edge(self, edge_id: Hashable) -> Edge:
        """ValueError if there is none."""
        self.place_of(edge_id)
        return self._views_of([edge_id])[0]

    def get_neuron(self, neuron_id: Hashable) -> Neuron:
        """A view of the neuron, of its class; ValueError if there is none."""
        cls = CLASSES[self._kind(neuron_id)]
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
        return self.get_edge(edge_id).weight

    def _views_of(self, edge_ids: Iterable[Hashable]) -> list[Edge]:
        arrays = self.arrays
        if self._acting is None or self._acting[0] is not arrays:
            self._acting = arrays, np.asarray(_acting(arrays))
        weights, slots, edges = self._acting[1], self._slots, []
        for name in edge_ids:
            src, dst, delay = self._edges[name]
            edges.append(Edge(name, src, dst, float(weights[delay, slots[dst], slots[src]]), delay))
        return edges

    def parameters(self) -> list[Parameter]:
        """Of each neuron its bias, of each edge its raw weight, of each gated neuron its gates, in this order."""
        keys = [("bias", name) for name in self._slots] + [("edge", name) for name in self._edges]
        keys += [("gates", name) for name in self._slots if n_gates(self._kind(name))]
        return [self.parameter(*key) for key in keys]

    def parameter(self, field: str, key: Hashable) -> Parameter:
        """The one handle of "bias", "edge" or "gates" of a neuron or edge."""
        if (field, key) not in self._handles:
            self.read(field, key)
            self._handles[field, key] = Parameter(self, field, key)
        return self._handles[field, key]

    def set_gradients(self, gradients: Weights) -> None:
        """Gradients by `arrays.weights`: `gradient`, and the `grad` of the parameters, until the structure changes."""
        self.gradient = jax.tree.map(np.asarray, gradients)

    @property
    def handed(self) -> Weights | None:
        """What `set_gradients` was given."""
        return self.gradient

    # Running

    def forward(self, obs: Any) -> Any:
        """One step: float32 [outputs], of the kind of `obs`: a list, a NumPy, JAX or PyTorch vector [inputs].

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
        inputs, outputs = len(self._roles[Role.INPUT]), len(self._roles[Role.OUTPUT])
        if array.shape != (inputs,):
            raise ValueError(
                f"obs dim must be {inputs}, one number for each input neuron, got the shape {list(array.shape)}"
            )
        before = self.memory
        out, self._memory, values = _forward(self.arrays, before, array if inputs else np.zeros(1, np.float32))
        self.saw(values, before)
        return back(out if outputs else out[:0])

    __call__ = forward

    def reset_state(self) -> None:
        """An episode starts: nothing is remembered."""
        self._memory = on_host(fresh_memory, self._graph.capacity)

    def enforce_dale(self) -> None:
        """Sets weights that Dale's law forbids to 0; under softplus there are none."""
        if self.dale_mode == "clamp":
            self.set_arrays(_enforced(self.arrays))

    def compile_forward(self) -> None:
        """Compiles the forward pass now instead of at the next step; it runs compiled in any case."""
        graph = self.arrays
        _forward(graph, fresh_memory(graph.capacity), np.zeros(graph.capacity.inputs, np.float32))

    def invalidate_compile(self) -> None:
        """Nothing to do: programs depend on the capacity alone, and look at the graph at every step."""

    # On disk

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain values, ids and NumPy arrays."""
        return graph_state.state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Becomes the graph whose `state_dict` this is, whatever has grown or gone since. Ids are those of the state.

        Raises:
            ValueError: it is no such state, or of the other dale_mode.
        """
        graph_state.load(self, state)

    def __repr__(self) -> str:
        roles = ", ".join(f"{len(names)} {role.name.lower()}" for role, names in self._roles.items())
        return f"NeuronGraph({roles}; {self.n_edges()} edges; {self.dale_mode})"


_acting = jax.jit(dale.effective)
_enforced = jax.jit(dale.enforced)


@jax.jit
def _forward(graph: Graph, memory: Memory, obs: jax.Array) -> tuple[jax.Array, Memory, jax.Array]:
    return step(graph, memory, obs)


@jax.jit
def _raw(sign: jax.Array, weight: jax.Array) -> jax.Array:
    """The parameter under softplus of a weight from a neuron with the sign."""
    alone = empty(Capacity(1, 1, 0, softplus=True))
    topology = alone.topology.replace(cell_type=jnp.broadcast_to(sign, alone.topology.cell_type.shape))
    return dale.raw_of(alone.capacity, topology, jnp.broadcast_to(weight, alone.topology.cell_type.shape))[0]
