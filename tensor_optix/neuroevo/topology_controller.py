"""Growth as a loop callback: after every evaluation each region decides whether to grow, prune or merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensor_optix.core import autonomy
from tensor_optix.core.types import EvalMetrics, LoopState
from tensor_optix.neuroevo.graph.growth import GrowthConfig
from tensor_optix.neuroevo.neuron_graph import NeuronGraph
from tensor_optix.neuroevo.region_growth import RegionGrowth

TRIGGERS = ("signals", "plateau")
_ALONE = "graph"  # the name of a region that is all there is


class TopologyController:
    """Decides on the topology of one graph, or of each region of a brain by itself.

    A region grows where three signals agree (see `tensor_optix.neuroevo.graph.growth`): its score does not rise, the
    score's residuals are autocorrelated, and most hidden neurons get gradients. Edges that stay weak, neurons that do
    nothing, and neurons that do the same go. Growing keeps the function; the loop gets a fresh patience after it.

    It is a loop callback. What neurons do it learns from the graph's own steps, gradients from the agent or, without
    one, from the `grad` of the graph's parameters.

    Args:
        regions: a graph, a mapping of names to graphs, several graphs, or what has `regions`, as a `BrainNetwork`.
        scheduler: reset after growth, where no loop has handed itself over: a `BackoffScheduler`.
        grow_op: "insert_edge", "split_neuron" or "add_edge".
        grow_grad_threshold: share of hidden neurons that must get gradients.
        grow_cooldown: evaluations between two growths of a region.
        backoff_reset_factor: share of the interval between evaluations that stays after growth.
        grad_eps: a neuron's gradients together, above which it counts as used.
        maturation_window: evaluations before a neuron or its edges may go.
        prune_edge_threshold, prune_edge_patience: a weight below the first, for so many evaluations, goes.
        prune_neuron_threshold, min_prune_observations: an importance below the first, seen so often, goes.
        merge_similarity_threshold: concordance of two neurons' values above which they merge,
        merge_check_interval: looked at every so many evaluations,
        act_history_len: from at least so many steps.
        min_score_buffer: evaluations before the first growth; the newest twice as many say whether the score rises.
        max_neurons: of a region, of all roles.
        min_hidden_neurons: that stay in each region.
        graph: the same as `regions`.
        trigger: "signals", or "plateau": a region grows when the loop is COOLING and does not overfit.
        grow_gap_threshold: the latter: the gap between training and validation score, as a share of the latter's size,
            above which nothing grows; None: it is not looked at.
        seed: of the places of free edges.

    Thresholds are attributes and may be set at any time.

    Raises:
        TypeError: no graph.
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        regions: Any = None,
        scheduler: Any = None,
        grow_op: str = "insert_edge",
        grow_grad_threshold: float = 0.70,
        grow_cooldown: int = 20,
        backoff_reset_factor: float = autonomy.KEPT_BY_GROWTH,
        grad_eps: float = 1e-6,
        maturation_window: int = 30,
        prune_edge_threshold: float = 1e-3,
        prune_edge_patience: int = 10,
        prune_neuron_threshold: float = 1e-4,
        min_prune_observations: int = 10,
        merge_similarity_threshold: float = 0.95,
        merge_check_interval: int = 50,
        act_history_len: int = 100,
        min_score_buffer: int = 30,
        max_neurons: int = 256,
        min_hidden_neurons: int = 1,
        *,
        graph: Any = None,
        trigger: str = "signals",
        grow_gap_threshold: float | None = 0.15,
        seed: int = 0,
    ) -> None:
        if (regions is None) == (graph is None):
            raise TypeError("TopologyController takes the graph or the regions, one of both")
        if trigger not in TRIGGERS:
            raise ValueError(f"trigger must be one of {', '.join(TRIGGERS)}, got {trigger!r}")
        if not 0 <= backoff_reset_factor <= 1:
            raise ValueError(f"backoff_reset_factor must be in [0, 1], got {backoff_reset_factor}")
        if not 0 <= grow_grad_threshold <= 1:
            raise ValueError(f"grow_grad_threshold is a share, in [0, 1], got {grow_grad_threshold}")
        if grow_gap_threshold is not None and not grow_gap_threshold >= 0:
            raise ValueError(f"grow_gap_threshold must be None or at least 0, got {grow_gap_threshold}")
        for name, count, least in (("act_history_len", act_history_len, 1), ("seed", seed, 0)):
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {count!r}")
        self.scheduler, self.trigger, self.backoff_reset_factor = scheduler, trigger, backoff_reset_factor
        self.grow_op, self.grow_grad_threshold, self.grow_cooldown = grow_op, grow_grad_threshold, grow_cooldown
        self.grad_eps, self.maturation_window = grad_eps, maturation_window
        self.prune_edge_threshold, self.prune_edge_patience = prune_edge_threshold, prune_edge_patience
        self.prune_neuron_threshold, self.min_prune_observations = prune_neuron_threshold, min_prune_observations
        self.merge_similarity_threshold = merge_similarity_threshold
        self.merge_check_interval, self.min_score_buffer = merge_check_interval, min_score_buffer
        self.max_neurons, self.min_hidden_neurons = max_neurons, min_hidden_neurons
        self.grow_gap_threshold, self.act_history_len = grow_gap_threshold, act_history_len
        config, named = self._config(), regions_of(graph if regions is None else regions)
        self._regions = {
            name: RegionGrowth(region, config, seed + i, act_history_len)
            for i, (name, region) in enumerate(named.items())
        }
        self._whole = graph if regions is None else regions
        self._plateaus = 0
        self._newest: EvalMetrics | None = None
        self._state: LoopState | None = None  # unless the loop has told it
        self._loop: Any = None

    @classmethod
    def for_graph(cls, graph: NeuronGraph, scheduler: Any = None, **options: Any) -> TopologyController:
        """Of one graph."""
        return cls(graph, scheduler, **options)

    @classmethod
    def for_brain(cls, brain: Any, scheduler: Any = None, **options: Any) -> TopologyController:
        """Of each region of a `BrainNetwork`, with signals and cooldowns of its own."""
        return cls(brain, scheduler, **options)

    # -- asking --------------------------------------------------------------------------------------------

    @property
    def graph(self) -> Any:
        """What it was made for; of a mapping or sequence with one graph, that graph."""
        graphs = self.graphs
        return next(iter(graphs.values())) if len(graphs) == 1 else self._whole

    @property
    def graphs(self) -> dict[str, NeuronGraph]:
        """The regions by name."""
        return {name: region.graph for name, region in self._regions.items()}

    @property
    def stats(self) -> dict[str, Any]:
        """Counts over all regions; `score_buffer` the evaluations remembered, `grad_util` the mean utilisation."""
        regions = list(self._regions.values())
        grown, pruned, merged = (sum(counts) for counts in zip(*(each.counts for each in regions), strict=True))
        return {
            "grow_count": grown,
            "prune_count": pruned,
            "merge_count": merged,
            "plateau_count": self._plateaus,
            "n_neurons": sum(each.graph.n_neurons() for each in regions),
            "n_edges": sum(each.graph.n_edges() for each in regions),
            "n_regions": len(regions),
            "score_buffer": max(each.n_scores for each in regions),
            "grad_util": sum(each.utilisation for each in regions) / len(regions),
        }

    def region_stats(self, name: str) -> dict[str, Any]:
        """The same of one region, without plateaus. KeyError if there is none."""
        each = self._regions[name]
        keys = ("grow_count", "prune_count", "merge_count")
        counts: dict[str, Any] = dict(zip(keys, each.counts, strict=True))
        size = {"n_neurons": each.graph.n_neurons(), "n_edges": each.graph.n_edges()}
        return {**counts, **size, "score_buffer": each.n_scores, "grad_util": each.utilisation}

    def set_scheduler(self, scheduler: Any) -> None:
        """The `BackoffScheduler` to reset after growth."""
        self.scheduler = scheduler

    def set_loop(self, loop: Any) -> None:
        """The loop that is about to begin: it is given a fresh patience after growth."""
        self._loop = loop

    # -- hooks ---------------------------------------------------------------------------------------------

    def on_loop_start(self) -> None:
        """Steps are recorded from now on."""
        for region in self._regions.values():
            region.graph.subscribe(region)

    def on_loop_stop(self) -> None:
        """They are no more."""
        for region in self._regions.values():
            region.graph.unsubscribe(region)
        self._loop = self._state = None

    def record(self) -> None:
        """Record the last step, for loops of one's own; within a run it happens by itself."""
        for region in self._regions.values():
            region.record()

    def on_episode_end(self, episode_id: int, eval_metrics: EvalMetrics | None) -> None:
        """Decide, if the window was evaluated."""
        if eval_metrics is None:
            return
        self._newest = eval_metrics
        cooling = self._state == LoopState.COOLING and not self._overfits()
        self._decide(grow=None if self.trigger == "signals" else cooling)

    def on_state(self, episode_id: int, state: LoopState) -> None:
        """The loop is in this state from now on."""
        self._state = state

    def on_plateau(self, episode_id: int, state: LoopState) -> None:
        """The loop has become COOLING: with that trigger a reason to grow, for loops that do not tell their state."""
        self._plateaus += 1
        if self.trigger == "plateau" and self._state is None and not self._overfits():
            self._after([region.grow() for region in self._fitted()])

    def grow(self) -> bool:
        """Grow every region now, whatever the signals and cooldowns say; whether any has."""
        return self._after([region.grow(unasked=True) for region in self._fitted()])

    def _decide(self, grow: bool | None) -> None:
        score = 0.0 if self._newest is None else self._newest.primary_score
        self._after([region.evaluated(float(score), grow) for region in self._fitted()])

    def _after(self, grew: list[bool]) -> bool:
        if not any(grew):
            return False
        if self._loop is not None:
            self._loop.renew(self.backoff_reset_factor)
        elif self.scheduler is not None:
            self.scheduler.record_restart(self.backoff_reset_factor)
        return True

    def _fitted(self) -> list[RegionGrowth]:
        """The regions, with the thresholds as they are now."""
        config = self._config()
        for region in self._regions.values():
            region.config = config
        return list(self._regions.values())

    def _overfits(self) -> bool:
        gap = None if self._newest is None else self._newest.generalization_gap
        if gap is None or self.grow_gap_threshold is None or self._newest is None:
            return False
        return gap > self.grow_gap_threshold * max(abs(self._newest.primary_score), 1e-8)

    def _config(self) -> GrowthConfig:
        return GrowthConfig(
            grow_op=self.grow_op,
            grow_grad_threshold=self.grow_grad_threshold,
            grad_eps=self.grad_eps,
            grow_cooldown=self.grow_cooldown,
            min_score_buffer=self.min_score_buffer,
            maturation_window=self.maturation_window,
            prune_edge_threshold=self.prune_edge_threshold,
            prune_edge_patience=self.prune_edge_patience,
            prune_neuron_threshold=self.prune_neuron_threshold,
            min_prune_observations=self.min_prune_observations,
            merge_similarity_threshold=self.merge_similarity_threshold,
            merge_check_interval=self.merge_check_interval,
            min_hidden_neurons=self.min_hidden_neurons,
            max_neurons=self.max_neurons,
        )

    # -- on disk -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of each region; it goes with the graphs' own states."""
        return {
            "plateaus": self._plateaus,
            "regions": {name: region.state_dict() for name, region in self._regions.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, of the same regions. ValueError if they are others."""
        if state["regions"].keys() != self._regions.keys():
            raise ValueError(
                f"the state is of the regions {', '.join(state['regions'])}, and the controller's are "
                f"{', '.join(self._regions)}"
            )
        self._plateaus = int(state["plateaus"])
        for name, region in self._regions.items():
            region.load_state_dict(state["regions"][name])


def regions_of(whole: Any) -> dict[str, NeuronGraph]:
    """Graphs by name. TypeError for anything that has none."""
    if isinstance(whole, NeuronGraph):
        return {_ALONE: whole}
    named = getattr(whole, "regions", whole)
    if isinstance(named, Sequence) and not isinstance(named, str):
        named = {f"{_ALONE}{i}": graph for i, graph in enumerate(named)}
    if not isinstance(named, Mapping) or not named or not all(isinstance(g, NeuronGraph) for g in named.values()):
        raise TypeError(f"expected a NeuronGraph, a BrainNetwork, or several graphs, got {whole!r}")
    return dict(named)
