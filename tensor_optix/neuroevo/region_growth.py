"""The growth of one graph on the host: what its neurons do is recorded, and `growth` decides what is done by ids."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo import operations
from tensor_optix.neuroevo.beside import Beside
from tensor_optix.neuroevo.graph import growth
from tensor_optix.neuroevo.graph.arrays import N_GATES, Graph, Weights
from tensor_optix.neuroevo.graph.growth import Activity, Growth, GrowthConfig, Told
from tensor_optix.neuroevo.neuron_graph import NeuronGraph

# Thresholds that may move at any time; all else is compiled in.
MOVABLE = (
    "grow_grad_threshold", "grad_eps", "prune_edge_threshold", "prune_neuron_threshold", "merge_similarity_threshold"
)  # fmt: skip
_GROWN, _PRUNED, _MERGED = 0, 1, 2  # places in `counts`
_DEFAULT = GrowthConfig()
_SUMS = ("mean", "size", "product")  # fields of `Activity`
_SCALARS = ("scores", "n_scores", "since_grown", "evaluations", "utilisation", "counts")

_log = logging.getLogger(__name__)


class Recorded(NamedTuple):
    """What the neurons did since the evaluation before."""

    sums: Activity
    steps: int


class RegionGrowth:
    """Grows, prunes and merges in one graph. It is a companion and a listener of it.

    Args:
        graph: the region.
        config: what is decided by; may be replaced at any time.
        seed: of the places where free edges are added.
        enough_steps: steps that must have been recorded before neurons are merged for what they did.

    Attributes:
        growth: what is remembered; its arrays by slot are those of `beside`.
    """

    def __init__(self, graph: NeuronGraph, config: GrowthConfig, seed: int, enough_steps: int) -> None:
        self.graph, self.config, self.enough_steps = graph, config, enough_steps
        self._key = jax.random.key(seed)
        self._beside = Beside(graph, {"age": np.int32, "importance": np.float32}, {"weak": np.int16}, stay=True)
        fresh = growth.init(config, graph.capacity)
        self._scalars: dict[str, Any] = {name: np.asarray(getattr(fresh, name)) for name in _SCALARS}
        self._recorded: Recorded | None = None
        self._last: Any = None  # the step recorded last
        self._over = False  # what is recorded was decided on: the next step starts anew
        graph.accompany(self)

    # -- following -----------------------------------------------------------------------------------------

    def record(self) -> None:
        """A step of the graph."""
        if self.graph.last_step is None or self.graph.last_step is self._last:
            return
        self._last = self.graph.last_step
        if self._over:
            self._recorded, self._over = None, False
        values = self.graph.last_step[0]
        steps = int(np.prod(np.shape(values)[:-1], dtype=np.int64))
        if self._recorded is None:
            self._recorded = Recorded(_sums(values), steps)
        else:
            self._recorded = Recorded(_added(self._recorded.sums, values), self._recorded.steps + steps)

    def moved(self, *_: Any) -> None:
        self._recorded = None

    def edited(self, *_: Any) -> None:
        self._recorded = None

    def replaced(self, *_: Any) -> None:
        self._recorded = None

    @property
    def growth(self) -> Growth:
        """On the device."""
        beside = {**self._beside.neurons, **self._beside.edges}
        return Growth(**jax.tree.map(jnp.array, {**self._scalars, **beside}))

    @growth.setter
    def growth(self, new: Growth) -> None:
        for name in _SCALARS:
            self._scalars[name] = np.asarray(getattr(new, name))
        self._beside.neurons = {name: np.array(getattr(new, name)) for name in self._beside.neurons}
        self._beside.edges = {name: np.array(getattr(new, name)) for name in self._beside.edges}

    # -- deciding ------------------------------------------------------------------------------------------

    def evaluated(self, score: float, grow: bool | None = None) -> bool:
        """Tell of an evaluation: remember it, prune, merge, grow. Whether it has grown.

        All is decided on the graph as it is, then done by ids, as far as it can still be done.

        grow: True or False decides in the place of the signals, within cooldown and room.
        """
        graph, told = self.graph, self._told(score)
        recorded, taught = self._recorded is not None, graph.gradient is not None or self._has_grads()
        settled = self._recorded is not None and self._recorded.steps >= self.enough_steps
        before = self.growth
        after = _remembered(*self._static(), graph.arrays, before, told)
        if not recorded:  # of what nobody saw nothing is known: the mean stays
            scale = after.age / jnp.maximum(before.age, 1)
            after = after.replace(importance=before.importance * scale.astype(jnp.float32))
        self.growth = after
        decided = jax.device_get(self._decided(score))
        weak = [graph.edge_at(*place) for place in np.argwhere(decided.weak).tolist()]
        idle = graph.neuron_at(int(decided.idle[0])) if decided.idle[1] and recorded and taught else None
        twins = [graph.neuron_at(int(slot)) for slot in decided.twins[:2]] if decided.twins[2] and settled else []
        grows = bool(decided.grows) if grow is None else grow and self._may_grow
        act = self._growing(decided.place) if grows and decided.there else None
        self._over = True
        if weak:
            graph.remove_edges(weak)
            self._counted(_PRUNED, len(weak))
        if idle is not None:
            self._done(_PRUNED, partial(operations.prune_neuron, graph, idle, redistribute=False))
        if twins and len(graph.hidden_ids) > self.config.min_hidden_neurons:
            one, other = twins
            self._done(_MERGED, partial(operations.merge_neurons, graph, one, other, inherit=False))
        return act is not None and self._done(_GROWN, act)

    def grow(self, unasked: bool = False) -> bool:
        """Grow, whatever the signals say; False where there is no place for it.

        unasked: whatever cooldown and room say, too.
        """
        if not (unasked or self._may_grow):
            return False
        decided = jax.device_get(self._decided(0.0))
        return bool(decided.there) and self._done(_GROWN, self._growing(decided.place))

    def _decided(self, score: float) -> _Decided:
        if self.config.grow_op == "add_edge":
            self.graph.make_room(delays=1)
        key = jax.random.fold_in(self._key, int(self._scalars["evaluations"]))
        return _decided(*self._static(), self.graph.arrays, self.growth, self._told(score), key)

    @property
    def _may_grow(self) -> bool:
        rested = int(self._scalars["since_grown"]) >= self.config.grow_cooldown
        return rested and self.graph.n_neurons() < self.config.max_neurons

    def _growing(self, place: tuple[Any, ...]) -> Callable[[], Any]:
        """What grows the graph at a place, by ids."""
        graph, at = self.graph, [int(index) for index in place]
        if self.config.grow_op == "split_neuron":
            return partial(operations.split_neuron, graph, graph.neuron_at(at[0]), share=growth.SPLIT_SHARE)
        if self.config.grow_op == "insert_edge":
            return partial(operations.insert_neuron_on_edge, graph, graph.edge_at(*at))
        return partial(operations.add_free_edge, graph, graph.neuron_at(at[2]), graph.neuron_at(at[1]), delay=at[0])

    def _done(self, what: int, edit: Callable[[], Any]) -> bool:
        """Makes an edit and counts it; False where an edit before has made it impossible."""
        try:
            edit()
        except ValueError as error:
            _log.debug("an edit was left: %s", error)
            return False
        self._counted(what, 1)
        if what == _GROWN:
            self._scalars["since_grown"] = np.int32(0)
        return True

    def _counted(self, what: int, times: int) -> None:
        counts = np.array(self._scalars["counts"])
        counts[what] += times
        self._scalars["counts"] = counts

    def _static(self) -> tuple[GrowthConfig, dict[str, np.float32]]:
        """The configuration in two parts: what is compiled in, and what may move."""
        movable = {name: np.float32(getattr(self.config, name)) for name in MOVABLE}
        return dataclasses.replace(self.config, **{name: getattr(_DEFAULT, name) for name in MOVABLE}), movable

    def _told(self, score: float) -> Told:
        n = self.graph.capacity.neurons
        nothing = jnp.zeros(n, jnp.float32)
        activity = Activity(nothing, nothing, jnp.zeros((n, n), jnp.float32))
        if self._recorded is not None and self._recorded.sums.mean.shape == (n,):
            steps = np.float32(self._recorded.steps)
            activity = jax.tree.map(lambda x: x / steps, self._recorded.sums)
        gradient = self.graph.gradient if self.graph.gradient is not None else self._handed()
        return Told(jnp.float32(score), activity, gradient)

    def _has_grads(self) -> bool:
        return any(handle.grad is not None for handle in self.graph.parameters())

    def _handed(self) -> Weights:
        """Gradients from the `grad` of the graph's parameters, 0 where there is none."""
        capacity = self.graph.capacity
        n = capacity.neurons
        edges, bias = np.zeros((1 + capacity.delays, n, n), np.float32), np.zeros(n, np.float32)
        for handle in self.graph.parameters():
            if handle.grad is None:
                continue
            if handle.field == "bias":
                bias[self.graph.slot_of(handle.key)] = handle.grad
            elif handle.field == "edge":
                edges[self.graph.index_of(handle.key)] = handle.grad
        return Weights(jnp.asarray(edges), jnp.asarray(bias), jnp.zeros((n, N_GATES), jnp.float32))

    # -- asking and keeping --------------------------------------------------------------------------------

    @property
    def counts(self) -> tuple[int, int, int]:
        """How often it has grown, pruned and merged."""
        grown, pruned, merged = np.asarray(self._scalars["counts"]).tolist()
        return grown, pruned, merged

    @property
    def n_scores(self) -> int:
        """Evaluations remembered."""
        return int(min(self._scalars["n_scores"], growth.SCORES))

    @property
    def utilisation(self) -> float:
        """Mean share of hidden neurons with gradients, of the newest evaluations; 0 before the first."""
        n = int(min(self._scalars["evaluations"], growth.HISTORY))
        return float(np.mean(self._scalars["utilisation"][-n:])) if n else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain values and arrays, by slots: they go with the graph's own state."""
        sums: dict[str, Any] = {}
        if self._recorded is not None and not self._over:
            sums = {name: np.asarray(getattr(self._recorded.sums, name)) for name in _SUMS}
            sums["steps"] = self._recorded.steps
        return {"growth": {**self._scalars, **self._beside.neurons, **self._beside.edges}, "recorded": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, of the graph as it is now. ValueError if it is of another."""
        now, found, sums = self.growth, state["growth"], state["recorded"]
        for name, value in found.items():
            if np.shape(value) != np.shape(getattr(now, name)):
                raise ValueError(
                    f"the growth of a graph with {name} {list(np.shape(value))} does not fit one with "
                    f"{list(np.shape(getattr(now, name)))}: load the graph first"
                )
        self.growth = now.replace(
            **{name: np.asarray(value, np.asarray(getattr(now, name)).dtype) for name, value in found.items()}
        )
        self._recorded, self._over = None, False
        if sums:
            parts = (jnp.asarray(np.asarray(sums[name], np.float32)) for name in _SUMS)
            self._recorded = Recorded(Activity(*parts), int(sums["steps"]))


class _Decided(NamedTuple):
    weak: jax.Array
    idle: tuple[jax.Array, jax.Array]
    twins: tuple[jax.Array, jax.Array, jax.Array]
    grows: jax.Array
    place: tuple[jax.Array, ...]
    there: jax.Array


@partial(jax.jit, static_argnums=0)
def _remembered(config: GrowthConfig, movable: Any, graph: Graph, state: Growth, told: Told) -> Growth:
    return growth.remembered(dataclasses.replace(config, **movable), graph, state, told)


@partial(jax.jit, static_argnums=0)
def _decided(config: GrowthConfig, movable: Any, graph: Graph, state: Growth, told: Told, key: jax.Array) -> _Decided:
    config = dataclasses.replace(config, **movable)
    return _Decided(
        growth.weak_edges(config, state),
        growth.idle_neuron(config, graph, state, told),
        growth.twins(config, graph, state, told),
        growth.wants_growth(config, graph, state),
        *growth.growing_place(config, graph, told, key),
    )


@jax.jit
def _sums(values: jax.Array) -> Activity:
    rows = values.reshape(-1, values.shape[-1])
    return Activity(rows.sum(axis=0), jnp.abs(rows).sum(axis=0), rows.T @ rows)


@jax.jit
def _added(sums: Activity, values: jax.Array) -> Activity:
    return jax.tree.map(jnp.add, sums, _sums(values))
