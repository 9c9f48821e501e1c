"""Names for the slots of a pure graph, room where it lacks, and the edits by which names come and go."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.following import Followed
from tensor_optix.neuroevo.graph.arrays import (
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
    on_host,
)
from tensor_optix.neuroevo.graph.capacity import grown, relocated, relocated_memory, relocated_neurons
from tensor_optix.neuroevo.graph.edits import Edited, carried
from tensor_optix.neuroevo.graph.levels import levels
from tensor_optix.neuroevo.neurons import n_gates

_KINDS = {"n": "neuron", "e": "edge"}
_HIDDEN, _LEVELS = 8, 2  # room to start with


class Place(NamedTuple):
    """Where an edge runs, by ids."""

    src: Hashable
    dst: Hashable
    delay: int


class NamedGraph(Followed):
    """A pure graph and memory whose neurons and edges have ids.

    Arrays are kept on the host, where they can be written to, and copied to the device when they are asked for.

    Attributes:
        version: how often the structure has changed.
    """

    def __init__(self, softplus: bool) -> None:
        capacity = Capacity(1, 1, _HIDDEN, levels=_LEVELS, activations=(Activation.LINEAR,), softplus=softplus)
        super().__init__()
        self.version = 0
        self._graph: Graph = on_host(empty, capacity)
        self._memory: Memory = on_host(fresh_memory, capacity)
        self._arrays: Graph | None = None  # `_graph` on the device
        self._deep_enough = True  # the capacity's levels are known to do
        self._slots: dict[Hashable, int] = {}  # in the order in which they came
        self._delays: dict[Hashable, int] = {}  # max_delay of each neuron
        self._roles: dict[Role, list[Hashable]] = {role: [] for role in (Role.INPUT, Role.HIDDEN, Role.OUTPUT)}
        self._edges: dict[Hashable, Place] = {}
        self._names: dict[Place, Hashable] = {}
        self._used: dict[str, dict[Hashable, None]] = {"n": {}, "e": {}}  # ids that there are or were
        self._numbers = {"n": 0, "e": 0}  # where to look for the next

    @property
    def arrays(self) -> Graph:
        """The pure graph, with as many inputs and outputs as there are (at least one each)."""
        if not self._deep_enough:
            self.make_room(levels=int(_depth(self._graph.topology.edges[0], self._graph.capacity.inputs)))
            self._deep_enough = True
        if self._arrays is None:
            self._arrays = jax.tree.map(jnp.array, self._graph)
        return self._arrays

    @property
    def capacity(self) -> Capacity:
        """That of `arrays`."""
        return self.arrays.capacity

    @property
    def memory(self) -> Memory:
        """What is remembered of the episode. Can be set, in the shapes that it has; ValueError for others."""
        if isinstance(self._memory.past, np.ndarray):
            self._memory = jax.tree.map(jnp.array, self._memory)
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        if _forms(memory) != _forms(self._memory):
            raise ValueError(
                f"the memory of one graph must have these shapes and dtypes: {_forms(self._memory)}, got "
                f"{_forms(memory)}"
            )
        self._memory = jax.tree.map(jnp.array, memory)

    def set_arrays(self, graph: Graph, memory: Memory | None = None) -> None:
        """Takes over weights, and the memory if there is one, of the same structure at the same capacity.

        Raises:
            ValueError: the capacity, the structure or a shape differs; neurons and edges come and go by methods and
                `operations`.
        """
        own = self.arrays
        if graph.capacity != own.capacity:
            raise ValueError(f"the graph has {own.capacity}, got one with {graph.capacity}: take `arrays` anew")
        if _forms(graph) != _forms(own):
            raise ValueError(f"arrays must have these shapes and dtypes: {_forms(own)}, got {_forms(graph)}")
        before = self._memory
        if memory is not None:
            self.memory = memory
        new = _on_host(graph)
        same = jax.tree.map(np.array_equal, new.topology, self._graph.topology)
        if not all(jax.tree.leaves(same)):
            self._memory = before
            raise ValueError("set_arrays takes weights, and these come with other neurons or edges: use `operations`")
        self._graph = new
        self._arrays = None

    # Names

    def slot_of(self, neuron_id: Hashable) -> int:
        """Its place in `arrays`, until the structure changes; ValueError if there is no such neuron."""
        if neuron_id not in self._slots:
            raise ValueError(self._missing("n", neuron_id) + "; all_neuron_ids() has those that there are")
        return self._slots[neuron_id]

    def place_of(self, edge_id: Hashable) -> Place:
        """The ids it joins, and its delay; ValueError if there is no such edge."""
        if edge_id not in self._edges:
            raise ValueError(self._missing("e", edge_id) + "; all_edges() has those that there are")
        return self._edges[edge_id]

    def index_of(self, edge_id: Hashable) -> tuple[int, int, int]:
        """Delay, to, from: its place in `arrays`, until the structure changes; ValueError if there is no such edge."""
        src, dst, delay = self.place_of(edge_id)
        return delay, self._slots[dst], self._slots[src]

    def neuron_at(self, slot: int) -> Hashable:
        """The id of the neuron in a slot; ValueError if there is none."""
        for name, place in self._slots.items():
            if place == slot:
                return name
        raise ValueError(f"there is no neuron in slot {slot}")

    def edge_at(self, delay: int, dst: int, src: int) -> Hashable:
        """The id of the edge between two slots; ValueError if there is none."""
        place = Place(self.neuron_at(src), self.neuron_at(dst), delay)
        if place not in self._names:
            raise ValueError(f"there is no edge from {place.src!r} to {place.dst!r} with delay {delay}")
        return self._names[place]

    def chain(self, start: Hashable, end: Hashable) -> list[Hashable] | None:
        """The neurons on a shortest way from `start` to `end` along edges without delay, both included; or None."""
        edges, goal = self._graph.topology.edges[0], self.slot_of(end)
        came: dict[int, int | None] = {self.slot_of(start): None}
        queue = list(came)
        for here in queue:  # grows
            if here == goal:
                names = {slot: name for name, slot in self._slots.items()}
                way: list[Hashable] = []
                at = came[here]
                while at is not None:
                    way, at = [names[at], *way], came[at]
                return [*way, end]
            for after in np.flatnonzero(edges[:, here]).tolist():
                if after not in came:
                    came[after] = here
                    queue.append(after)
        return None

    def retired_ids(self) -> dict[str, list[Hashable]]:
        """Ids of what there was: "neurons" and "edges"."""
        return {
            "neurons": [name for name in self._used["n"] if name not in self._slots],
            "edges": [name for name in self._used["e"] if name not in self._edges],
        }

    def retire(self, neurons: Iterable[Hashable] = (), edges: Iterable[Hashable] = ()) -> None:
        """Ids that are not to be given."""
        self._used["n"].update(dict.fromkeys(neurons))
        self._used["e"].update(dict.fromkeys(edges))

    def check_free(self, neuron_id: Hashable) -> None:
        """ValueError if a neuron has or had the id; None never is one."""
        self._name("n", neuron_id)

    def _missing(self, prefix: str, name: Hashable) -> str:
        past = " any more" if name in self._used[prefix] else ""
        return f"there is no {_KINDS[prefix]} {name!r}{past}"

    def _name(self, prefix: str, wanted: Hashable) -> Hashable:
        """`wanted` if it is free, or the next number if it is None."""
        used = self._used[prefix]
        if wanted is None:
            while (name := f"{prefix}{self._numbers[prefix]}") in used:
                self._numbers[prefix] += 1
            return name
        if wanted in used:
            raise ValueError(
                f"{wanted!r} is or was the id of a {_KINDS[prefix]} of this graph, and none is given twice: "
                "choose another, or none"
            )
        return wanted

    def _record_neuron(self, name: Hashable, slot: int, max_delay: int) -> None:
        self._slots[name], self._delays[name] = slot, max_delay
        self._roles[Role(int(self._graph.topology.role[slot]))].append(name)
        self._used["n"][name] = None

    def _record_edge(self, name: Hashable, place: Place) -> None:
        self._edges[name], self._names[place] = place, name
        self._used["e"][name] = None
        self._delays[place.src] = max(self._delays[place.src], place.delay)

    def _forget_neuron(self, name: Hashable) -> None:
        """Its edges go with it."""
        for edge in [edge for edge, place in self._edges.items() if name in (place.src, place.dst)]:
            self._forget_edge(edge)
        for names in self._roles.values():
            if name in names:
                names.remove(name)
        del self._slots[name], self._delays[name]

    def _forget_edge(self, name: Hashable) -> None:
        del self._names[self._edges.pop(name)]

    # Room

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
        """Room for at least so much; beyond inputs and outputs in powers of two. Where it grows programs are new."""
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

    def _close_up(self) -> None:
        """No slots for inputs and outputs that are no more."""
        inputs, outputs = (max(1, len(self._roles[role])) for role in (Role.INPUT, Role.OUTPUT))
        self._arrange(dataclasses.replace(self._graph.capacity, inputs=inputs, outputs=outputs))

    def arrange(self, capacity: Capacity, slots: Sequence[int]) -> None:
        """Puts the neurons into these slots of another capacity.

        Raises:
            ValueError: it has too little room, or a neuron's slot is not one for its role or taken.
        """
        least = grown(self._graph.capacity, delays=max((place.delay for place in self._edges.values()), default=0))
        roles = [Role(int(self._graph.topology.role[slot])) for slot in self._slots.values()]
        starts = {Role.INPUT: 0, Role.OUTPUT: capacity.inputs, Role.HIDDEN: capacity.first_hidden}
        ends = {Role.INPUT: capacity.inputs, Role.OUTPUT: capacity.first_hidden, Role.HIDDEN: capacity.neurons}
        fits = len(slots) == len(roles) == len(set(slots))
        fits = fits and all(starts[role] <= slot < ends[role] for role, slot in zip(roles, slots, strict=True))
        fits = fits and capacity.delays >= least.delays and capacity.gated >= least.gated
        if not fits or not set(least.activations) <= set(capacity.activations):
            raise ValueError(f"the graph's neurons and edges do not fit into {capacity} at the slots {list(slots)}")
        self._relocate(capacity, dict(zip(self._slots, slots, strict=True)))

    def _arrange(self, capacity: Capacity) -> None:
        """Puts what has a name into the slots of another capacity, and leaves the rest behind."""
        hidden = capacity.first_hidden - self._graph.capacity.first_hidden
        slots = {name: slot + hidden for name, slot in self._slots.items()}
        slots |= {name: i for i, name in enumerate(self._roles[Role.INPUT])}
        slots |= {name: capacity.inputs + i for i, name in enumerate(self._roles[Role.OUTPUT])}
        self._relocate(capacity, slots)

    def _relocate(self, capacity: Capacity, slots: dict[Hashable, int]) -> None:
        source, target = (np.asarray(list(places), np.int64) for places in (self._slots.values(), slots.values()))
        self._graph = relocated(self._graph, source, target, capacity)
        self._memory = relocated_memory(self._memory, source, target, capacity)
        if self.values is not None:
            self._values = relocated_neurons(self.values, source, target, capacity)
        self._slots, self._arrays = slots, None
        self._moved(source, target, capacity)

    def become(self, other: NamedGraph) -> None:
        """Takes over all that `other` is; ids that this one has given stay given."""
        before = self._slots
        for field in ("_graph", "_memory", "_slots", "_delays", "_roles", "_edges", "_names"):
            setattr(self, field, getattr(other, field))
        self.retire(other._used["n"], other._used["e"])
        self._arrays, self._deep_enough = None, False
        self.version += 1
        shared = [name for name in before if name in self._slots]
        source, target = (np.asarray([slots[name] for name in shared], np.int64) for slots in (before, self._slots))
        self._replaced(source, target)

    # Edits

    def edit(
        self, pure: Callable[..., Edited], *slots: float, neuron_id: Hashable = None
    ) -> tuple[list[Hashable], list[Hashable]]:
        """Runs an edit of `tensor_optix.neuroevo.graph.edits`; ids, memory and values follow. For `operations`.

        Args:
            pure: a function of the module; (graph, *slots) -> Edited.
            slots: its other arguments.
            neuron_id: of the neuron that comes; None: the graph's choice.

        Returns:
            Ids of the neurons and the edges that came.

        Raises:
            ValueError: the id is taken, or the edit cannot be done.
        """
        wanted = self._name("n", neuron_id)
        arguments = [np.float32(x) if isinstance(x, float) else np.int32(x) for x in slots]
        done = self._tried(pure, arguments, self.arrays)
        if not done[0].ok:
            more = self._graph.capacity.levels + 1
            deeper = self.arrays.replace(capacity=grown(self._graph.capacity, levels=more))
            if self._tried(pure, arguments, deeper)[0].ok:  # levels are all that it lacks
                self.make_room(levels=more)
                done = self._tried(pure, arguments, self.arrays)
        edited, memory, values = done
        if not edited.ok:
            raise ValueError(f"{pure.__name__} cannot be done in this graph at {slots}")
        before = self.arrays
        self._graph, self._arrays, self._memory = _on_host(edited.graph), edited.graph, memory
        self._values = None if self.values is None else np.asarray(values)
        self.version += 1
        names = self._renamed(wanted)
        self._edited(pure, slots, before, edited)
        return names

    def _tried(
        self, pure: Callable[..., Edited], arguments: list[Any], graph: Graph
    ) -> tuple[Edited, Memory, jax.Array]:
        values = np.zeros(graph.capacity.neurons, np.float32) if self.values is None else self.values
        return _done(pure, graph, self.memory, jnp.array(values), *arguments)

    def _renamed(self, neuron_id: Hashable) -> tuple[list[Hashable], list[Hashable]]:
        """Forgets the names of what is gone, and gives names to what is new, in the order of the neurons."""
        topology = self._graph.topology
        for name in [name for name in self._edges if not topology.edges[self.index_of(name)]]:
            self._forget_edge(name)
        for name in [name for name, slot in self._slots.items() if topology.role[slot] == Role.ABSENT]:
            self._forget_neuron(name)
        neurons: list[Hashable] = []
        for slot in sorted(set(np.flatnonzero(topology.role).tolist()) - set(self._slots.values())):
            neurons.append(neuron_id if not neurons else self._name("n", None))
            self._record_neuron(neurons[-1], slot, 1)
        order = {slot: (i, name) for i, (name, slot) in enumerate(self._slots.items())}
        named = {self.index_of(name) for name in self._edges}
        new = [(d, v, u) for d, v, u in np.argwhere(topology.edges).tolist() if (d, v, u) not in named]
        edges = []
        for d, v, u in sorted(new, key=lambda at: (order[at[1]][0], order[at[2]][0], at[0])):
            edges.append(self._name("e", None))
            self._record_edge(edges[-1], Place(order[u][1], order[v][1], d))
        return neurons, edges

    # What neurons and edges are, have and remember; by fields, for views and handles

    def read(self, field: str, key: Hashable) -> Any:
        """bias, gates, edge; activation, cell_type, max_delay; value, past, h, cell.

        ValueError if there is no such neuron or edge.
        """
        if field in ("bias", "gates", "edge"):
            return self.weight_in(self._graph.weights, field, key)
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
        past = np.asarray(self._memory.past)[:, slot]
        return past[0] if field == "h" else past[: self._delays[key]].copy()

    def write(self, field: str, key: Hashable, value: Any) -> None:
        """bias, gates, edge, max_delay, value, past, cell; h is the newest of the past."""
        if field == "edge":
            self._graph.weights.edges[self.index_of(key)] = value
            self._arrays = None
            return
        slot = self.slot_of(key)
        if field in ("bias", "gates"):
            leaf = getattr(self._graph.weights, field)
            leaf[(slot, slice(n_gates(self._kind(key)))) if field == "gates" else slot] = value
            self._arrays = None
        elif field == "max_delay":
            self._delays[key] = max(self._delays[key], value)
            self.make_room(delays=value)
        elif field == "value" and self.values is not None:
            self._values = np.where(np.arange(len(self.values)) == slot, np.float32(value), self.values)
        elif field == "past":
            self._memory = self._memory.replace(past=self.memory.past.at[: len(value), slot].set(value))
        elif field == "cell" and self._graph.capacity.gated:
            self._memory = self._memory.replace(cell=self.memory.cell.at[slot].set(value))

    def weight_in(self, weights: Weights, field: str, key: Hashable) -> Any:
        """Of `weights` at this capacity (parameters or gradients) those of one bias, edge or set of gates."""
        if field == "edge":
            return weights.edges[self.index_of(key)]
        slot = self.slot_of(key)
        return weights.bias[slot] if field == "bias" else weights.gates[slot, : n_gates(self._kind(key))].copy()

    def _kind(self, name: Hashable) -> Kind:
        return Kind(int(self._graph.topology.kind[self.slot_of(name)]))


def _forms(tree: Any) -> list[Any]:
    return [(tuple(np.shape(x)), np.dtype(x.dtype).name) for x in jax.tree.leaves(tree)]


@functools.partial(jax.jit, static_argnums=1)
def _depth(edges: jax.Array, inputs: int) -> jax.Array:
    return jnp.max(levels(edges, edges.shape[0], inputs)[0])


@functools.partial(jax.jit, static_argnums=0)
def _done(
    pure: Callable[..., Edited], graph: Graph, memory: Memory, values: jax.Array, *slots: jax.Array
) -> tuple[Edited, Memory, jax.Array]:
    done = pure(graph, *slots)
    now = carried(done, Memory(values[None], ())).past[0]
    return done, carried(done, memory), now


def _on_host(graph: Graph) -> Graph:
    """The same in NumPy arrays of its own, that can be written to."""
    return jax.tree.map(np.array, graph)
