"""Several graphs of neurons joined to one: named regions, and pathways between their neurons.

Nothing is computed here: `arrays` and `memory` are what the functions of `tensor_optix.neuroevo.graph.brain` take.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tensor_optix.neuroevo.array_kinds import unwrapped
from tensor_optix.neuroevo.following import Rememberer
from tensor_optix.neuroevo.graph import brain as pure
from tensor_optix.neuroevo.graph.arrays import Capacity, Graph, Memory
from tensor_optix.neuroevo.graph.brain import Brain, BrainWeights, Layout
from tensor_optix.neuroevo.graph.forward import step
from tensor_optix.neuroevo.graph.network import by_regions
from tensor_optix.neuroevo.named_brain import NO_REGIONS, InterRegionEdge, NamedBrain
from tensor_optix.neuroevo.neuron_graph import NeuronGraph
from tensor_optix.neuroevo.parameters import Parameter
from tensor_optix.neuroevo.whole_memory import WholeMemory

FORMAT = 1
_KEYS = ("format", "name", "output_regions", "seed", "regions", "pathways", "weights", "edges", "joined", "used")


class BrainNetwork(NamedBrain):
    """Regions, each a `NeuronGraph` that may grow and prune on its own, and learnable edges between their neurons.

    A step runs all regions as one graph: an edge between regions brings its source's value of `delay` steps ago, 0: of
    this very step. What edges bring to an input is added to its observation. A region that is given no observation
    sees zeros.

    What the brain remembers of an episode lies in the memories of its regions (so a step of a region alone is a step of
    its part), and follows their edits: of a neuron that is split the copy gets the same edges from other regions, and
    both share those to others; on a merge edges go over to the neuron that stays; edges of what is pruned go.

    Args:
        name: for people.
        output_regions: names; the brain's outputs are those of these regions, one after another. None: the regions
            that no pathway leaves, in their order; where there is none, the last.
        seed: of the neurons that pathways join.

    Raises:
        ValueError: output_regions names one twice.
    """

    def __init__(self, name: str = "brain", output_regions: Sequence[str] | None = None, *, seed: int = 0) -> None:
        names = [output_regions] if isinstance(output_regions, str) else output_regions
        super().__init__(None if names is None else list(names), seed)
        self.name = name
        self.gradient: BrainWeights | None = None
        self._handles: dict[Hashable, Parameter] = {}
        self._brain: Brain | None = None  # on the device
        self._whole: Graph | None = None  # of `_brain`

    # As arrays

    @property
    def arrays(self) -> Brain:
        """The pure brain, regions in their order; the same object until something changes. ValueError without regions.

        Pathways are in the order of `all_inter_region_edges`, with places that hold nothing behind them.
        """
        regions = self._regions.values()
        graphs = tuple(region.arrays for region in regions)
        if self._brain is None or any(a is not b for a, b in zip(graphs, self._brain.regions, strict=True)):
            for edge in self._edges.values():  # a source remembers as long as its edges look back
                self._regions[edge.src_region].make_room(delays=edge.delay)
            self._brain, self._whole = self._built(tuple(region.arrays for region in regions)), None
        return self._brain

    def _built(self, graphs: tuple[Graph, ...]) -> Brain:
        names, depth = self.region_names, dict[str, int]()
        outputs = tuple(names.index(name) for name in self.output_regions)
        direct = self._direct()
        for name in self.execution_order():
            before = max((depth[src] for src, dst in direct if dst == name), default=0)
            depth[name] = before + graphs[names.index(name)].capacity.levels + 1  # that of an input's relay
        layout = Layout(tuple(graph.capacity for graph in graphs), outputs, max(depth.values()))
        at = dict(zip(names, layout.places(), strict=True))
        edges = self._edges.values()
        pathways = pure.pathways(
            [at[edge.src_region][self._regions[edge.src_region].slot_of(edge.src_neuron)] for edge in edges],
            [at[edge.dst_region][self._regions[edge.dst_region].slot_of(edge.dst_neuron)] for edge in edges],
            [edge.delay for edge in edges],
            [edge.weight for edge in edges],
        )
        return Brain(graphs, pathways, layout.outputs, layout.levels)

    @property
    def whole(self) -> Graph:
        """All regions and pathways as one graph, for `tensor_optix.neuroevo.graph.forward.step`."""
        brain = self.arrays
        if self._whole is None:
            self._whole = _whole(brain)
        return self._whole

    @property
    def layout(self) -> Layout:
        """Of the regions with the room that they have now; that of `arrays` may have more."""
        names = self.region_names
        outputs = tuple(names.index(name) for name in self.output_regions)
        return Layout(tuple(region.capacity for region in self._regions.values()), outputs, 1)

    @property
    def capacity(self) -> Capacity:
        """That of the whole, but for its levels."""
        return self.layout.capacity

    @property
    def memory(self) -> Memory:
        """Of the whole: what the regions remember of the episode. Can be set, in the shapes that it has."""
        return pure.joined(self.arrays.layout, [region.memory for region in self._regions.values()])

    @memory.setter
    def memory(self, memory: Memory) -> None:
        for region, part in zip(self._regions.values(), pure.divided(self.arrays.layout, memory), strict=True):
            region.memory = part

    def remember(self, rememberer: Rememberer) -> WholeMemory:
        """`rememberer` is told of what changes memories of the whole, for as long as what comes back is kept."""
        return WholeMemory(self, rememberer)

    def set_arrays(self, brain: Brain, memory: Memory | None = None) -> None:
        """Takes over weights, of regions and pathways, and the memory of the whole if there is one.

        Raises:
            ValueError: the layout, the structure or a shape differs.
        """
        own = self.arrays
        if brain.layout != own.layout:
            raise ValueError(f"the brain has {own.layout}, got one with {brain.layout}: take `arrays` anew")
        structures = [_structure(x) for x in (brain, own)]
        if not all(jax.tree.leaves(jax.tree.map(np.array_equal, *structures))):
            raise ValueError(
                "set_arrays takes weights, and these come with other neurons, edges or pathways: edit the regions"
            )
        parts = [None] * len(own.regions) if memory is None else pure.divided(own.layout, memory)
        for region, graph, part in zip(self._regions.values(), brain.regions, parts, strict=True):
            region.set_arrays(graph, part)
        weights = np.asarray(brain.pathways.weight)
        for (name, edge), weight in zip(self._edges.items(), weights, strict=False):
            self._edges[name] = dataclasses.replace(edge, weight=float(weight))
        self._brain = None

    # Learning

    def parameters(self) -> list[Parameter]:
        """Those of the regions in their order, then the weight of each edge between regions."""
        inside = [handle for region in self._regions.values() for handle in region.parameters()]
        return inside + [self.parameter("edge", name) for name in self._edges]

    def parameter(self, field: str, key: Hashable) -> Parameter:
        """The one handle of the edge between regions `key`; field: "edge"."""
        if key not in self._handles:
            self.read(field, key)
            self._handles[key] = Parameter(self, field, key)
        return self._handles[key]

    handed = None

    def weight_in(self, weights: Any, field: str, key: Hashable) -> Any:
        raise NotImplementedError  # nothing is handed over as one tree

    def read(self, field: str, key: Hashable) -> Any:
        """The weight of an edge between regions; ValueError if there is none."""
        if field != "edge" or key not in self._edges:
            raise ValueError(f"there is no {field} {key!r} between regions, see all_inter_region_edges()")
        return np.float32(self._edges[key].weight)

    def write(self, field: str, key: Hashable, value: Any) -> None:
        """A new weight of an edge between regions."""
        self.read(field, key)
        self._edges[key] = dataclasses.replace(self._edges[key], weight=float(value))
        self._brain = None

    def set_gradients(self, gradients: BrainWeights) -> None:
        """Keeps gradients by the weights of `arrays`, and hands them on to the regions and their parameters."""
        self.gradient = gradients
        for region, gradient in zip(self._regions.values(), gradients.regions, strict=True):
            region.set_gradients(gradient)
        for name, gradient in zip(self._edges, np.asarray(gradients.pathways), strict=False):
            self.parameter("edge", name).grad = gradient

    def enforce_dale(self) -> None:
        """Sets weights that Dale's law forbids to 0: of the regions, and of edges between them by their source."""
        self.set_arrays(_enforced(self.arrays))

    # Running

    def forward(self, obs: Mapping[str, Any]) -> Any:
        """One step: float32 [outputs], those of the output regions one after another; see `output_slices`.

        No gradients: these come from `tensor_optix.neuroevo.graph.forward.step` on `graph.brain.whole` of `arrays`.

        Args:
            obs: region -> its observation [inputs]: a list, a NumPy, JAX or PyTorch vector; the outputs are of the same
                kind. Regions that are not named see zeros.

        Raises:
            ValueError: no such region, or wrong obs dim.
            TypeError: obs is no mapping, or called under a transformation of JAX.
        """
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(obs)):
            raise TypeError(
                "forward keeps a memory, so it cannot run under jit, grad or vmap: call "
                "tensor_optix.neuroevo.graph.forward.step(brain.whole, brain.memory, brain.observation(obs)) there"
            )
        seen = self.observation(obs)
        if seen.ndim != 1:
            raise ValueError(f"obs dim: forward takes one observation, not a batch, got the shape {list(seen.shape)}")
        _, back = unwrapped(next(iter(obs.values()), 0.0))
        layout, regions = self.arrays.layout, self._regions.values()
        before = tuple(region.memory for region in regions)
        out, after, values = _forward(layout, self.whole, before, seen)
        for region, old, new, value in zip(regions, before, after, values, strict=True):
            region.memory = new
            region.saw(value, old)
        there = [len(self._regions[name].output_ids) for name in self.output_regions]
        if 0 in there:  # such a region has a slot for one
            out = out[np.repeat(np.array(there) > 0, np.maximum(there, 1))]
        return back(out)

    __call__ = forward

    def observation(self, obs: Mapping[str, Any]) -> np.ndarray:
        """Observations [*batch, inputs] of regions as one float32 [*batch, I], for `forward.step` on `whole`."""
        if not self._regions:
            raise ValueError(NO_REGIONS)
        if not isinstance(obs, Mapping):
            raise TypeError(f"obs must be a dict of regions and their observations, got {type(obs).__name__}")
        given = {name: np.asarray(unwrapped(x)[0]) for name, x in obs.items() if self.get_region(name)}
        batch = next((x.shape[:-1] for x in given.values()), ())
        parts = []
        for name, region in self._regions.items():
            inputs = len(region.input_ids)
            part = given.get(name, np.zeros((*batch, inputs), np.float32))
            if part.shape != (*batch, inputs):
                raise ValueError(
                    f"obs dim of the region {name!r} must be {inputs}, one number for each input neuron, got the shape "
                    f"{list(part.shape)}" + (f", and {list(batch)} in front as for the first" if batch else "")
                )
            parts.append(part if inputs else np.zeros((*batch, 1), np.float32))  # an empty slot
        return np.concatenate(parts, axis=-1)

    def saw(self, values: Any, before: Memory) -> None:
        """Whoever has made a step of the whole tells of it: each region is given its share. See `NeuronGraph.saw`."""
        self.saw_all(by_regions(self.arrays, values, before))

    def saw_all(self, parts: Sequence[tuple[Any, Memory]]) -> None:
        """The same, divided among the regions already."""
        for region, part in zip(self._regions.values(), parts, strict=True):
            region.saw(*part)

    def reset_state(self) -> None:
        """An episode starts: nothing is remembered."""
        for region in self._regions.values():
            region.reset_state()

    # Asking, and on disk

    @property
    def input_ids(self) -> list[tuple[str, Hashable]]:
        """Region and neuron, in the order of an agent's observation: the inputs of all regions."""
        return [(name, neuron) for name, region in self._regions.items() for neuron in region.input_ids]

    @property
    def output_ids(self) -> list[tuple[str, Hashable]]:
        """Region and neuron, in the order of what `forward` gives."""
        return [(name, neuron) for name in self.output_regions for neuron in self._regions[name].output_ids]

    def placed(self, obs: np.ndarray) -> np.ndarray:
        """Observations [*batch, inputs] in the order of `input_ids` as [*batch, I], for `forward.step` on `whole`."""
        sizes = [len(region.input_ids) for region in self._regions.values()]
        parts = np.split(obs, np.cumsum(sizes)[:-1], axis=-1)
        return self.observation(dict(zip(self._regions, parts, strict=True)))

    def summary(self) -> dict[str, Any]:
        """How many neurons and edges there are, in all regions and between them."""
        regions = {
            name: {"n_neurons": region.n_neurons(), "n_edges": region.n_edges()}
            for name, region in self._regions.items()
        }
        return {"inter_region_edges": len(self._edges), "regions": regions}

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain values, ids and NumPy arrays."""
        edges = [dataclasses.asdict(edge) for edge in self._edges.values()]
        return {
            "format": FORMAT,
            "name": self.name,
            "output_regions": None if self._output_regions is None else list(self._output_regions),
            "seed": self.seed,
            "regions": {name: region.state_dict() for name, region in self._regions.items()},
            "pathways": list(self._pathways),
            "weights": np.array([edge.pop("weight") for edge in edges], np.float32),
            "edges": edges,
            "joined": [list(pair) for pair in self._joined],
            "used": {"pathways": list(self._used["p"]), "edges": list(self._used["i"])},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Becomes the brain whose `state_dict` this is, whatever has grown or gone since; regions it lacks are made.

        Raises:
            ValueError: it is no such state, lacks a region that there is, or one is of the other dale_mode.
        """
        missing = [key for key in _KEYS if key not in state]
        if missing or state["format"] != FORMAT:
            raise ValueError(
                f"the state is none of a BrainNetwork of format {FORMAT}: it lacks "
                f"{', '.join(missing) or 'that format'}"
            )
        lacking = [name for name in self._regions if name not in state["regions"]]
        if lacking:
            raise ValueError(f"the state lacks the regions {lacking}: it is that of another brain")
        new = self._regions_of(state["regions"])
        try:
            edges = [
                InterRegionEdge(**edge, weight=float(weight))
                for edge, weight in zip(state["edges"], state["weights"], strict=True)
            ]
            for edge in edges:
                new[edge.src_region].slot_of(edge.src_neuron), new[edge.dst_region].slot_of(edge.dst_neuron)
        except (KeyError, TypeError) as wrong:
            raise ValueError(f"an edge of the state is none between its regions: {wrong}") from None
        self._edges = {}
        for name, region in new.items():
            if name in self._regions:
                self._regions[name].load_state_dict(state["regions"][name])
            else:
                self._regions[name] = region
                self._follow(name)
        self._regions = {name: self._regions[name] for name in new}
        self._edges = {edge.edge_id: edge for edge in edges}
        self.name, self.seed, outputs = state["name"], state["seed"], state["output_regions"]
        self._output_regions = None if outputs is None else list(outputs)
        self._pathways, self._joined = dict.fromkeys(state["pathways"]), dict.fromkeys(map(tuple, state["joined"]))
        self._used["p"].update(dict.fromkeys(state["used"]["pathways"]))
        self._used["i"].update(dict.fromkeys(state["used"]["edges"]))
        self._restructured()

    def _regions_of(self, states: Mapping[str, dict[str, Any]]) -> dict[str, NeuronGraph]:
        """Graphs of these states; errors come before anything has changed."""
        graphs = {}
        for name, state in states.items():
            mode: Any = state.get("dale_mode")
            if name in self._regions and self._regions[name].dale_mode != mode:
                raise ValueError(f"the region {name!r} is in {self._regions[name].dale_mode}, the state's in {mode}")
            graphs[name] = NeuronGraph(mode)
            graphs[name].load_state_dict(state)
        return graphs

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy follows the copies of the regions."""
        self.__dict__.update(state)
        for name in self._regions:
            self._follow(name)

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self._regions)) or "no regions"
        return f"BrainNetwork({self.name!r}: {names}; {len(self._edges)} edges between them)"

    def _restructured(self) -> None:
        super()._restructured()
        self._brain = None


def _structure(brain: Brain) -> list[Any]:
    """All but the weights."""
    p = brain.pathways
    return [*(region.topology for region in brain.regions), p.src, p.dst, p.delay, p.there]


_whole = jax.jit(pure.whole)
_enforced = jax.jit(pure.enforced)


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    layout: Layout, graph: Graph, before: tuple[Memory, ...], obs: jax.Array
) -> tuple[jax.Array, tuple[Memory, ...], tuple[jax.Array, ...]]:
    """Outputs, and of each region its memory and its values."""
    out, memory, values = step(graph, pure.joined(layout, before), obs)
    return out, pure.divided(layout, memory), tuple(values[at] for at in layout.places())
