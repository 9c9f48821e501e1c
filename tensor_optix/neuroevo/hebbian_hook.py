"""Hebbian plasticity beside whatever else trains a graph; the rule is in `tensor_optix.neuroevo.graph.hebbian`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.neuroevo.beside import Beside
from tensor_optix.neuroevo.graph import hebbian
from tensor_optix.neuroevo.graph.arrays import Graph, Memory
from tensor_optix.neuroevo.graph.hebbian import Coactivity
from tensor_optix.neuroevo.neuron_graph import NeuronGraph


class Regions(Protocol):
    """A network of graphs, such as a `BrainNetwork`."""

    @property
    def regions(self) -> Mapping[str, NeuronGraph]:
        """By name."""


class HebbianHook:
    """Weights follow what fires together: dw = hebbian_lr * mean_t(h_pre * h_post) - weight_decay * w.

    h_pre is what the edge delivered: its source's value of `delay` steps before. The raw parameter moves; under
    softplus that is not the weight as it acts. The mean is over the steps since the edge is what it is: one that an
    edit brings or touches begins anew, the others keep what they have, in the middle of an episode, too.

    By hand: `record()` after each step of the graphs, `apply_and_reset()` after learning. In a run: one of its
    `callbacks`; then every step that the agent makes is recorded, and each window ends with an update.

    Args:
        graphs: one `NeuronGraph`, or several.
        hebbian_lr: eta, at least 0; can be set at any time. Also called `lr`; by default 1e-3.
        weight_decay: lambda, at least 0; can be set, too. Also called `decay`; by default 1e-4.
        clip_weight: parameters stay in [-clip_weight, clip_weight]; None: free.
        respect_dale: set to 0 what Dale's law forbids. Under softplus nothing can be forbidden.

    Raises:
        TypeError: graphs are none.
        ValueError: there are none, a number is out of its range, or is given by both of its names.
    """

    def __init__(
        self,
        graphs: NeuronGraph | Sequence[NeuronGraph],
        hebbian_lr: float | None = None,
        weight_decay: float | None = None,
        clip_weight: float | None = None,
        respect_dale: bool = True,
        *,
        lr: float | None = None,
        decay: float | None = None,
    ) -> None:
        given = [graphs] if isinstance(graphs, NeuronGraph) else graphs
        if not isinstance(given, Sequence) or not all(isinstance(graph, NeuronGraph) for graph in given):
            raise TypeError(
                f"graphs must be a NeuronGraph or a list of them, got {graphs!r}: for a brain there is "
                "HebbianHook.from_brain(brain)"
            )
        if not given:
            raise ValueError("graphs must name at least one NeuronGraph, got none")
        hebbian_lr, weight_decay = (
            either("hebbian_lr", hebbian_lr, "lr", lr),
            either("weight_decay", weight_decay, "decay", decay),
        )
        if clip_weight is not None and not clip_weight > 0:
            raise ValueError(f"clip_weight must be positive, or None, got {clip_weight}")
        self.hebbian_lr = 1e-3 if hebbian_lr is None else hebbian_lr
        self.weight_decay = 1e-4 if weight_decay is None else weight_decay
        self.clip_weight, self.respect_dale = clip_weight, respect_dale
        self._traces = [_Trace(graph) for graph in dict.fromkeys(given)]

    @classmethod
    def from_brain(cls, brain: Regions, **settings: Any) -> HebbianHook:
        """A hook on all regions that the brain has now; `settings` as of the class."""
        return cls(list(brain.regions.values()), **settings)

    @property
    def graphs(self) -> list[NeuronGraph]:
        """Those it works on."""
        return [trace.graph for trace in self._traces]

    @property
    def hebbian_lr(self) -> float:
        """Eta."""
        return self._hebbian_lr

    @hebbian_lr.setter
    def hebbian_lr(self, value: float) -> None:
        self._hebbian_lr = _rate("hebbian_lr", value)

    @property
    def weight_decay(self) -> float:
        """Lambda."""
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value: float) -> None:
        self._weight_decay = _rate("weight_decay", value)

    @property
    def n_steps_recorded(self) -> int:
        """Steps since the last reset, of every environment; of edges and graphs that differ the most."""
        return max(trace.steps for trace in self._traces)

    @property
    def mean_coactivation(self) -> float:
        """The mean over all edges of mean_t(h_pre * h_post); 0 as long as nothing is recorded."""
        means = np.concatenate([trace.means() for trace in self._traces])
        return float(means.mean()) if means.size else 0.0

    def record(self) -> None:
        """Takes down the last step of each graph. A step counts once, however often this is called.

        Raises:
            ValueError: no graph has made one, or all have been edited since.
        """
        if all(trace.graph.last_step is None for trace in self._traces):
            raise ValueError(
                "record() found no step: none of its graphs has run since it was built, loaded or edited, so call it "
                "after act() or forward(), with the graphs that act"
            )
        for trace in self._traces:
            trace.record()

    def apply(self) -> None:
        """One update of all weights; edges of which nothing is recorded stay as they are."""
        for trace in self._traces:
            trace.apply(self.hebbian_lr, self.weight_decay, self.clip_weight, self.respect_dale)

    def reset(self) -> None:
        """Forgets what was recorded."""
        for trace in self._traces:
            trace.reset()

    def apply_and_reset(self) -> None:
        """`apply`, then `reset`."""
        self.apply()
        self.reset()

    # As a callback of a run: any object with some of the hooks will do

    def on_loop_start(self) -> None:
        """From now on every step is recorded, by itself."""
        for trace in self._traces:
            trace.graph.subscribe(trace)

    def on_loop_stop(self) -> None:
        """No longer; a window that did not end is forgotten."""
        for trace in self._traces:
            trace.graph.unsubscribe(trace)
        self.reset()

    def on_episode_end(self, episode_id: int, eval_metrics: Any = None) -> None:
        """The agent has learned from a window: time for the update."""
        if self.n_steps_recorded:
            self.apply_and_reset()

    # On disk

    def state_dict(self) -> dict[str, Any]:
        """What was recorded and not applied, by slots: it goes with the graphs' own states."""
        return {"traces": [dict(trace.recorded) for trace in self._traces]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, of the graphs as they are now; ValueError if it is of others.

        What had been recorded is applied: a run that is saved is saved at the end of a window, before or after its
        callbacks.
        """
        traces = state["traces"]
        if len(traces) != len(self._traces):
            raise ValueError(f"the state is of {len(traces)} graphs, and the hook has {len(self._traces)}")
        for trace, recorded in zip(self._traces, traces, strict=True):
            trace.load(recorded)
        if self.n_steps_recorded:
            self.apply_and_reset()


class _Trace:
    """What the edges of one graph have carried. A listener of the graph."""

    def __init__(self, graph: NeuronGraph) -> None:
        self.graph = graph
        # Steps are counted by edge, since edges come and go.
        self._beside = Beside(graph, edges={"total": np.float32, "steps": np.int32})
        self._last: Any = None  # the step recorded last

    @property
    def _seen(self) -> Coactivity:
        edges: dict[str, Any] = {**self._beside.edges}
        return Coactivity(**edges)

    @property
    def steps(self) -> int:
        return int(self._beside.edges["steps"].max())

    def means(self) -> np.ndarray:
        """[edges of which something is recorded] float32."""
        total, steps = self._beside.edges["total"], self._beside.edges["steps"]
        return total[steps > 0] / steps[steps > 0].astype(np.float32)

    def record(self) -> None:
        step = self.graph.last_step
        if step is None or step is self._last:
            return
        self._last = step
        seen = _recorded(self._seen, self.graph.arrays.topology.edges, *step)
        self._beside.edges.update(total=np.asarray(seen.total), steps=np.asarray(seen.steps))

    def apply(self, lr: float, decay: float, clip: float | None, respect_dale: bool) -> None:
        if self.steps:
            bound = None if clip is None else np.float32(clip)
            rates = np.float32(lr), np.float32(decay)
            self.graph.set_arrays(_applied(self.graph.arrays, self._seen, *rates, bound, respect_dale))

    @property
    def recorded(self) -> dict[str, np.ndarray]:
        return self._beside.edges

    def load(self, recorded: Mapping[str, Any]) -> None:
        found = {name: np.asarray(recorded[name], x.dtype) for name, x in self.recorded.items()}
        for name, x in self.recorded.items():
            if found[name].shape != x.shape:
                raise ValueError(
                    f"traces of shape {list(found[name].shape)} do not fit a graph with {list(x.shape)}: load the "
                    "graph first"
                )
        self._beside.edges = found

    def reset(self) -> None:
        self._beside.edges.update({name: np.zeros_like(x) for name, x in self._beside.edges.items()})


def either(name: str, value: Any, alias: str, other: Any) -> Any:
    """Of an argument with two names the one that is given; ValueError if both are."""
    if value is not None and other is not None:
        raise ValueError(f"{name} and {alias} are two names of one argument, got both: give one of them")
    return other if value is None else value


def _rate(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of at least 0, got {value}")
    return float(value)


@jax.jit
def _recorded(seen: Coactivity, edges: jax.Array, values: jax.Array, before: Memory) -> Coactivity:
    """One more step; nothing where there is no edge, so that one that comes later finds nothing."""
    after = hebbian.record(seen, values, before)
    return jax.tree.map(lambda new, old: jnp.where(edges, new, old), after, seen)


@functools.partial(jax.jit, static_argnames="respect_dale")
def _applied(graph: Graph, seen: Coactivity, lr: Any, decay: Any, clip: Any, respect_dale: bool) -> Graph:
    return hebbian.apply(graph, seen, lr, decay, clip, respect_dale)
