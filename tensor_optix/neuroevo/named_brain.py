"""Regions of a brain by name, the edges between them by id, and how these follow the regions' edits."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensor_optix.neuroevo.graph import edits
from tensor_optix.neuroevo.graph.arrays import Capacity, Graph
from tensor_optix.neuroevo.graph.edits import Edited
from tensor_optix.neuroevo.neuron_graph import NeuronGraph
from tensor_optix.neuroevo.neurons import counted

NO_REGIONS = "the brain has no regions: give it some with add_region"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InterRegionEdge:
    """An edge between two regions as it was when it was asked for; `delay` in steps.

    pathway_id: of the pathway it belongs to; None: it came alone.
    """

    edge_id: Hashable
    src_region: str
    src_neuron: Hashable
    dst_region: str
    dst_neuron: Hashable
    weight: float
    delay: int
    pathway_id: Hashable = None

    @property
    def ends(self) -> tuple[str, Hashable, str, Hashable, int]:
        """What no two edges share."""
        return self.src_region, self.src_neuron, self.dst_region, self.dst_neuron, self.delay


class NamedBrain:
    """Regions and edges between their neurons, with names; see `BrainNetwork`."""

    def __init__(self, output_regions: list[str] | None, seed: int) -> None:
        if output_regions is not None and (not output_regions or len(set(output_regions)) < len(output_regions)):
            raise ValueError(f"output_regions must name one or several regions once each, got {output_regions}")
        self.seed = counted("seed", seed, 0)
        self._output_regions = output_regions
        self._regions: dict[str, NeuronGraph] = {}
        self._followers: dict[str, _Follower] = {}
        self._edges: dict[Hashable, InterRegionEdge] = {}
        self._pathways: dict[Hashable, None] = {}
        self._joined: dict[tuple[str, str], None] = {}  # pairs of regions, whatever edits have left of their edges
        self._used: dict[str, dict[Hashable, None]] = {"p": {}, "i": {}}  # ids that there are or were
        self._changes = 0

    @property
    def version(self) -> int:
        """How often the structure of the brain or of a region has changed."""
        return self._changes + sum(region.version for region in self._regions.values())

    # Regions

    def add_region(self, name: str, graph: NeuronGraph) -> None:
        """The graph is a region from now on.

        Raises:
            ValueError: there is a region of that name, or the graph is one.
            TypeError: it is no NeuronGraph.
        """
        if not isinstance(graph, NeuronGraph):
            raise TypeError(f"a region is a NeuronGraph, got {graph!r}")
        if name in self._regions:
            raise ValueError(f"there is a region {name!r} already: choose another name")
        for other, region in self._regions.items():
            if region is graph:
                raise ValueError(f"the graph is the region {other!r} already: a region needs a graph of its own")
        self._regions[name] = graph
        self._follow(name)
        self._restructured()

    def get_region(self, name: str) -> NeuronGraph:
        """ValueError if there is none."""
        if name not in self._regions:
            raise ValueError(f"there is no region {name!r}: there are {', '.join(map(repr, self._regions)) or 'none'}")
        return self._regions[name]

    @property
    def region_names(self) -> list[str]:
        """In the order in which they came."""
        return list(self._regions)

    @property
    def regions(self) -> dict[str, NeuronGraph]:
        """By name, in the order in which they came."""
        return dict(self._regions)

    @property
    def output_regions(self) -> list[str]:
        """Whose outputs are the brain's; ValueError if one has not been added, or there are no regions."""
        if not self._regions:
            raise ValueError(NO_REGIONS)
        if self._output_regions is not None:
            for name in self._output_regions:
                self.get_region(name)
            return list(self._output_regions)
        left = {src for src, _ in self._joined}
        return [name for name in self._regions if name not in left] or [self.region_names[-1]]

    @property
    def output_slices(self) -> dict[str, slice]:
        """Where each output region's outputs are in what `forward` gives."""
        slices, first = {}, 0
        for name in self.output_regions:
            slices[name] = slice(first, first + len(self._regions[name].output_ids))
            first = slices[name].stop
        return slices

    def execution_order(self) -> list[str]:
        """Regions in an order that edges without delay respect; otherwise in the order in which they came."""
        direct = self._direct()
        order: list[str] = []
        while len(order) < len(self._regions):
            free = (name for name in self._regions if name not in order)
            order.append(next(n for n in free if all(src in order for src, dst in direct if dst == n)))
        return order

    # Edges between regions

    def add_pathway(
        self,
        src: str,
        dst: str,
        n_connections: int = 4,
        delay: int = 1,
        weight_init: float = 0.0,
        pathway_id: Hashable = None,
    ) -> Hashable:
        """Edges between random neurons of two regions. Returns the pathway's id.

        They start from hidden and output neurons, from inputs only where a region has nothing else, and lead to the
        inputs, where a graph is made to be entered; to hidden and output neurons where a region has no inputs.

        Args:
            src, dst: names of regions.
            n_connections: pairs of neurons. Where there are fewer that are not joined yet all are taken, and a warning
                is logged.
            delay: steps, at least 0; all edges without delay together may not lead from region to region in a circle.
            weight_init: of each edge. 0 leaves what the brain does as it is, and has a gradient.
            pathway_id: anything hashable that was not an id before; None: "p0", "p1", ...

        Raises:
            ValueError: no such region; twice the same; a circle; the id is taken.
        """
        sources, targets = self.get_region(src), self.get_region(dst)
        wanted, delay = counted("n_connections", n_connections, 1), counted("delay", delay, 0)
        self._check(src, dst, delay, weight_init)
        pathway = self._name("p", pathway_id)
        starts = sources.hidden_ids + sources.output_ids or sources.input_ids
        ends = targets.input_ids or targets.hidden_ids + targets.output_ids
        taken = {edge.ends for edge in self._edges.values()}
        pairs = [(u, v) for u in starts for v in ends if (src, u, dst, v, delay) not in taken]
        if len(pairs) < wanted:
            _log.warning(
                "the pathway %r from %r to %r gets %d connections of the %d asked for: there are no more pairs of "
                "neurons that are not joined yet",
                pathway, src, dst, len(pairs), wanted,
            )  # fmt: skip
        drawn = np.random.default_rng([self.seed, len(self._used["p"])])
        self._used["p"][pathway] = self._pathways[pathway] = None
        for i in drawn.choice(len(pairs), min(wanted, len(pairs)), replace=False) if pairs else ():
            self._join(src, pairs[i][0], dst, pairs[i][1], float(weight_init), delay, pathway)
        self._joined[src, dst] = None
        self._restructured()
        return pathway

    def add_inter_region_edge(
        self,
        src_region: str,
        src_neuron: Hashable,
        dst_region: str,
        dst_neuron: Hashable,
        weight: float = 0.0,
        delay: int = 1,
        edge_id: Hashable = None,
    ) -> Hashable:
        """One edge. Returns its id.

        Args:
            src_region, src_neuron, dst_region, dst_neuron: names of regions, ids of neurons in them; of any role.
            weight: as it acts, in both forms of Dale's law. A sign that the law forbids stays until `enforce_dale`.
            delay: steps, at least 0.
            edge_id: anything hashable that was not an id before; None: "i0", "i1", ...

        Raises:
            ValueError: no such region or neuron; within one region; there already; a circle of regions without delay;
                the id is taken.
        """
        for region, neuron in ((src_region, src_neuron), (dst_region, dst_neuron)):
            if neuron not in self.get_region(region).all_neuron_ids():
                raise ValueError(
                    f"there is no neuron {neuron!r} in the region {region!r}; its all_neuron_ids() has those there are"
                )
        self._check(src_region, dst_region, counted("delay", delay, 0), weight)
        for edge in self._edges.values():
            if edge.ends == (src_region, src_neuron, dst_region, dst_neuron, delay):
                raise ValueError(
                    f"{src_neuron!r} of {src_region!r} and {dst_neuron!r} of {dst_region!r} are joined with delay "
                    f"{delay} already, by the edge {edge.edge_id!r}: change its weight, or give another delay"
                )
        name = self._join(src_region, src_neuron, dst_region, dst_neuron, float(weight), delay, None, edge_id)
        self._joined[src_region, dst_region] = None
        self._restructured()
        return name

    def remove_inter_region_edge(self, edge_id: Hashable) -> None:
        """The edge goes; nothing happens if there is none."""
        if edge_id not in self._edges:
            return
        gone = self._edges.pop(edge_id)
        pair = gone.src_region, gone.dst_region
        if not any((edge.src_region, edge.dst_region) == pair for edge in self._edges.values()):
            self._joined.pop(pair, None)
        self._restructured()

    def get_pathway(self, pathway_id: Hashable) -> list[InterRegionEdge]:
        """Its edges that there are still; ValueError if there is no such pathway."""
        if pathway_id not in self._pathways:
            raise ValueError(
                f"there is no pathway {pathway_id!r}: there are {', '.join(map(repr, self._pathways)) or 'none'}"
            )
        return [edge for edge in self._edges.values() if edge.pathway_id == pathway_id]

    def all_inter_region_edges(self) -> list[InterRegionEdge]:
        """In the order in which they came."""
        return list(self._edges.values())

    def _check(self, src: str, dst: str, delay: int, weight: float) -> None:
        """Whether an edge may lead from the region `src` to `dst`."""
        if src == dst:
            raise ValueError(f"an edge within the region {src!r} is its own: add it with get_region({src!r}).add_edge")
        if not math.isfinite(weight):
            raise ValueError(f"weights must be finite, got {weight}")
        way = _way(self._direct(), dst, src) if delay == 0 else None
        if way:
            raise ValueError(
                "edges without delay must not lead from region to region in a circle, and "
                f"{' -> '.join(map(repr, [src, *way]))} would: give one of the pathways a delay of 1 or more"
            )

    def _join(
        self, src: str, u: Hashable, dst: str, v: Hashable, weight: float, delay: int, pathway: Hashable,
        edge_id: Hashable = None,
    ) -> Hashable:  # fmt: skip
        name = self._name("i", edge_id)
        self._used["i"][name] = None
        self._edges[name] = InterRegionEdge(name, src, u, dst, v, weight, delay, pathway)
        return name

    def _direct(self) -> set[tuple[str, str]]:
        """Pairs of regions joined without delay."""
        return {(edge.src_region, edge.dst_region) for edge in self._edges.values() if edge.delay == 0}

    def _name(self, prefix: str, wanted: Hashable) -> Hashable:
        used = self._used[prefix]
        if wanted in used:
            raise ValueError(f"{wanted!r} is or was an id of this brain, and none is given twice: choose another")
        number = len(used)
        while wanted is None and (name := f"{prefix}{number}") in used:
            number += 1
        return name if wanted is None else wanted

    # Following the regions

    def _follow(self, name: str) -> None:
        self._followers[name] = _Follower(self, name)
        self._regions[name].accompany(self._followers[name])

    def _restructured(self) -> None:
        self._changes += 1

    def gone(self, region: str) -> set[Hashable]:
        """Neurons that edges lead to or from, and that the region has no more."""
        there = set(self._regions[region].all_neuron_ids())
        ends = {edge.src_neuron for edge in self._edges.values() if edge.src_region == region}
        ends |= {edge.dst_neuron for edge in self._edges.values() if edge.dst_region == region}
        return ends - there

    def forget_gone(self, region: str) -> None:
        """Edges to and from neurons that the region has no more go."""
        gone = {(region, neuron) for neuron in self.gone(region)}
        for name, edge in list(self._edges.items()):
            if gone & {(edge.src_region, edge.src_neuron), (edge.dst_region, edge.dst_neuron)}:
                del self._edges[name]
        if gone:
            self._restructured()

    def split(self, region: str, neuron: Hashable, copy: Hashable, share: float) -> None:
        """`copy` gets the edges of `neuron` from other regions, and all but the share of the weights to others."""
        for name, edge in list(self._edges.items()):
            changes: dict[str, Any] = {}
            if (edge.src_region, edge.src_neuron) == (region, neuron):
                self._edges[name] = dataclasses.replace(edge, weight=share * edge.weight)
                changes = {"src_neuron": copy, "weight": (1 - share) * edge.weight}
            elif (edge.dst_region, edge.dst_neuron) == (region, neuron):
                changes = {"dst_neuron": copy}
            if changes:
                new = self._name("i", None)
                self._used["i"][new] = None
                self._edges[new] = dataclasses.replace(edge, edge_id=new, **changes)
        self._restructured()

    def merge(self, region: str, neuron: Hashable, other: Hashable, inherit: bool = True) -> None:
        """Edges from `other` become `neuron`'s, with their weights; with `inherit` those to it where it has none alike.

        Without, the latter go.
        """
        there = {edge.ends: name for name, edge in self._edges.items()}
        for name, edge in list(self._edges.items()):
            if (edge.src_region, edge.src_neuron) == (region, other):
                moved = dataclasses.replace(edge, src_neuron=neuron)
            elif (edge.dst_region, edge.dst_neuron) == (region, other) and inherit:
                moved = dataclasses.replace(edge, dst_neuron=neuron)
            else:
                continue
            alike = there.get(moved.ends)
            if alike is None:
                self._edges[name] = moved
                continue
            del self._edges[name]
            if moved.src_region == region:
                kept = self._edges[alike]
                self._edges[alike] = dataclasses.replace(kept, weight=kept.weight + edge.weight)
        self._restructured()


class _Follower:
    """Takes a region's edits over to the edges between regions."""

    def __init__(self, brain: NamedBrain, name: str) -> None:
        self._brain, self._name = brain, name

    def moved(self, source: np.ndarray, target: np.ndarray, capacity: Capacity) -> None:
        self._brain.forget_gone(self._name)

    def edited(
        self, pure: Callable[..., Edited] | None, slots: tuple[float, ...], before: Graph, after: Edited
    ) -> None:
        region = self._brain.get_region(self._name)
        if after.graph is not region.arrays:  # of a copy of the region
            return
        names = {region.slot_of(name): name for name in region.all_neuron_ids()}
        if pure is edits.split:
            roles = np.asarray(before.topology.role), np.asarray(after.graph.topology.role)
            copy = int(np.flatnonzero(roles[0] != roles[1])[0])
            share = slots[1] if len(slots) > 1 else 0.5
            self._brain.split(self._name, names[int(slots[0])], names[copy], share)
        elif pure in (edits.merge, edits.absorb):
            for gone in self._brain.gone(self._name):
                self._brain.merge(self._name, names[int(slots[0])], gone, inherit=pure is edits.merge)
        self._brain.forget_gone(self._name)

    def replaced(self, *_: Any) -> None:
        self._brain.forget_gone(self._name)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Follower:
        """A copy of a region alone is no region; a copy of the brain has followers of its own."""
        return self


def _way(pairs: Iterable[tuple[str, str]], start: str, end: str) -> list[str] | None:
    """The regions on a shortest way, both ends included; or None."""
    came: dict[str, str | None] = {start: None}
    queue = [start]
    for here in queue:  # grows
        if here == end:
            way: list[str] = []
            at: str | None = here
            while at is not None:
                way, at = [at, *way], came[at]
            return way
        for src, dst in pairs:
            if src == here and dst not in came:
                came[dst] = here
                queue.append(dst)
    return None
