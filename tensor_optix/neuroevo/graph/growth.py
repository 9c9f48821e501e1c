"""When a graph grows, prunes and merges: three signals, pure decisions, one region at a time.

After every evaluation the region is told the score and what its neurons did since the last (`Told`). It grows where all
three signals agree: the score does not rise (a t-test on its slope), its residuals are autocorrelated (there is
structure that the graph does not capture), and most hidden neurons still get gradients (none is idle). Edges that stay
weak, neurons that do nothing and neurons that do the same go.

The slope's standard error counts the effective sample size n (1 - r) / (1 + r) of autocorrelated residuals, as the
scheduler's test does (core/convergence.py). On scores without any trend or autocorrelation r is normal with standard
deviation 1 / sqrt(n), so that a test grows by chance with a probability of 2.3 % at `autocorrelation` = 2.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.core.convergence import newest, push
from tensor_optix.neuroevo.graph import dale, edits
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Graph, Kind, Memory, Role, Weights
from tensor_optix.neuroevo.graph.levels import levels

SCORES = 200  # newest scores that are remembered
LOOK = 2  # times `min_score_buffer`: so many of the newest say whether the score rises, not how it once began
HISTORY = 100  # newest shares of neurons with gradients
SPLIT_SHARE = 0.6  # unequal, so that the two get different gradients
# What grows a graph: at the place that `growing_place` finds.
GROW_EDITS: dict[str, Callable[..., edits.Edited]] = {
    "insert_edge": edits.insert,
    "split_neuron": partial(edits.split, share=SPLIT_SHARE),
    "add_edge": edits.add_edge,
}
_EDGE = 0  # what growing draws random numbers for
_WEAK = 30_000  # evaluations in a row that are counted, in int16
_FOREVER = 2**31 - 1
# Settings that count, and their ranges.
_COUNTS = {
    "min_score_buffer": (4, SCORES),
    "grow_cooldown": (0, _FOREVER),
    "maturation_window": (0, _FOREVER),
    "prune_edge_patience": (1, _WEAK),
    "min_prune_observations": (1, _FOREVER),
    "merge_check_interval": (1, _FOREVER),
    "min_hidden_neurons": (0, _FOREVER),
    "max_neurons": (1, _FOREVER),
}
# Those that something is compared with: 0 lets everything pass, a large one nothing.
_LEVELS = (
    "slope", "autocorrelation", "grow_grad_threshold", "grad_eps", "prune_edge_threshold", "prune_neuron_threshold",
    "merge_similarity_threshold",
)  # fmt: skip


@dataclass(frozen=True)
class GrowthConfig:
    """Static settings. Counts are evaluations.

    Raises:
      ValueError: a setting is out of its range.
    """

    grow_op: str = "insert_edge"  # on the heaviest edge; "split_neuron": the most active; "add_edge": a random one
    grow_trigger: str = "signals"  # all three; "plateau": the first alone
    slope: float = 2.0  # standard errors above which the score counts as rising
    autocorrelation: float = 2.0  # times 1 / sqrt(n), above which residuals have structure
    grow_grad_threshold: float = 0.7  # share of hidden neurons that get gradients
    grad_eps: float = 1e-6  # of a neuron's gradients together
    grow_cooldown: int = 20  # between two growths
    min_score_buffer: int = 30  # scores before the first
    maturation_window: int = 30  # age below which nothing of a neuron is pruned
    prune_edge_threshold: float = 1e-3
    prune_edge_patience: int = 10  # in a row below it
    prune_neuron_threshold: float = 1e-4  # of its importance: weight of its edges times its activity
    min_prune_observations: int = 10
    merge_similarity_threshold: float = 0.95  # concordance of two neurons' values
    merge_check_interval: int = 50
    min_hidden_neurons: int = 1
    max_neurons: int = 256  # of all roles

    def __post_init__(self) -> None:
        if self.grow_op not in GROW_EDITS:
            raise ValueError(f"grow_op must be one of {', '.join(GROW_EDITS)}, got {self.grow_op!r}")
        if self.grow_trigger not in ("signals", "plateau"):
            raise ValueError(f"grow_trigger must be signals or plateau, got {self.grow_trigger!r}")
        for name, (least, most) in _COUNTS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
        for name in _LEVELS:
            value = getattr(self, name)
            if isinstance(value, jax.Array):  # a threshold that moves is traced
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


class Growth(struct.PyTreeNode):
    """What a region remembers of itself."""

    scores: jax.Array  # [200] float32, newest last
    n_scores: jax.Array  # [] int32
    since_grown: jax.Array  # [] int32, evaluations
    evaluations: jax.Array  # [] int32
    utilisation: jax.Array  # [100] float32, shares of hidden neurons with gradients, newest last
    age: jax.Array  # [N] int32, evaluations that the neuron has been through
    importance: jax.Array  # [N] float32, summed over `age`
    weak: jax.Array  # [1 + D, N, N] int16, evaluations in a row that the edge was below the threshold
    counts: jax.Array  # [3] int32: grown, pruned, merged


class Activity(struct.PyTreeNode):
    """What the neurons did, over the steps since the evaluation before. Means, or sums of as many windows."""

    mean: jax.Array  # [N] float32, values
    size: jax.Array  # [N] float32, |values|
    product: jax.Array  # [N, N] float32, products of two neurons' values at the same step


class Told(NamedTuple):
    """What a region is told after an evaluation."""

    score: jax.Array  # [] float32, higher is better
    activity: Activity  # means
    gradient: Weights  # of the loss, or its running mean


class Decision(NamedTuple):
    """A region after its decisions."""

    graph: Graph
    growth: Growth
    memory: Memory
    changed: jax.Array  # [] bool, the topology is another
    grew: jax.Array  # [] bool
    kept: Weights  # bool in the place of each parameter: no edit has touched it


def init(config: GrowthConfig, capacity: Capacity) -> Growth:
    """Nothing seen."""
    n, zero = capacity.neurons, jnp.int32(0)
    return Growth(
        scores=jnp.zeros((SCORES,), jnp.float32),
        n_scores=zero,
        since_grown=jnp.int32(config.grow_cooldown),
        evaluations=zero,
        utilisation=jnp.zeros((HISTORY,), jnp.float32),
        age=jnp.zeros((n,), jnp.int32),
        importance=jnp.zeros((n,), jnp.float32),
        weak=jnp.zeros((1 + capacity.delays, n, n), jnp.int16),
        counts=jnp.zeros((3,), jnp.int32),
    )


def step(config: GrowthConfig, graph: Graph, growth: Growth, memory: Memory, told: Told, key: jax.Array) -> Decision:
    """Remember an evaluation, then prune, merge or grow: at most one edit of each kind, and edges as many as are due.

    Args:
        config: static.
        graph, growth: the region.
        memory: of the episodes that go on, [*batch, ...].
        told: a score that is not finite is passed over.
        key: consumed; of `add_edge` only.
    """
    growth = remembered(config, graph, growth, told)
    before = graph
    graph, growth = _prune_edges(config, graph, growth)
    kept = edits.kept(before, graph)
    grows = wants_growth(config, graph, growth)
    slot, due = idle_neuron(config, graph, growth, told)
    # What does nothing hands nothing on: as if it were linear, an idle neuron would change the function.
    pruned = edits.unless(~due, graph, edits.prune_neuron(graph, slot, redistribute=False))
    graph, growth, memory, kept = _apply(graph, growth, memory, kept, pruned, 1)
    a, b, due = twins(config, graph, growth, told)
    merged = edits.unless(~due, graph, edits.absorb(graph, a, b))
    graph, growth, memory, kept = _apply(graph, growth, memory, kept, merged, 2)
    place, there = growing_place(config, graph, told, key, within=True)
    edited = edits.unless(~(grows & there), graph, GROW_EDITS[config.grow_op](graph, *place))
    graph, growth, memory, kept = _apply(graph, growth, memory, kept, edited, 0)
    growth = growth.replace(since_grown=jnp.where(edited.ok, jnp.int32(0), growth.since_grown))
    changed = (graph.topology.edges != before.topology.edges).any()
    return Decision(graph, growth, memory, changed, edited.ok, kept)


def signals(config: GrowthConfig, growth: Growth) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The three, [] bool each: the score does not rise; residuals are autocorrelated; neurons are utilised.

    Whether it rises the newest `LOOK * min_score_buffer` scores say, and not how learning once began; structure is
    looked for in all that are remembered.
    """
    count = jnp.minimum(growth.n_scores, growth.scores.shape[0])
    slope, error, _ = _line(growth.scores, jnp.minimum(count, LOOK * config.min_score_buffer))
    _, _, r = _line(growth.scores, count)
    chance = 1 / jnp.sqrt(jnp.maximum(count, 2).astype(jnp.float32))
    history = newest(growth.utilisation.shape[0], jnp.minimum(growth.evaluations, growth.utilisation.shape[0]))
    utilised = jnp.where(history, growth.utilisation, 0.0).sum() / jnp.maximum(history.sum(dtype=jnp.float32), 1)
    return ~(slope > config.slope * error), r > config.autocorrelation * chance, utilised > config.grow_grad_threshold


def _line(scores: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the newest `count` scores: slope, its standard error, lag-1 autocorrelation of the residuals; [] float32."""
    size = scores.shape[0]
    n = jnp.maximum(count, 2).astype(jnp.float32)
    valid = newest(size, count)
    time = jnp.where(valid, jnp.arange(size, dtype=jnp.float32) - (jnp.float32(size - 1) - (n - 1) / 2), 0.0)
    centred = jnp.where(valid, scores - scores[-1], 0.0)
    centred = jnp.where(valid, centred - centred.sum() / n, 0.0)
    spread = jnp.maximum((time * time).sum(), 1e-6)
    slope = (time * centred).sum() / spread
    residual = centred - slope * time
    square = (residual * residual).sum()
    both = valid[1:] & valid[:-1]
    r = jnp.where(square > 0, jnp.where(both, residual[1:] * residual[:-1], 0.0).sum() / jnp.maximum(square, 1e-30), 0)
    r = jnp.clip(r, -0.99, 0.99)
    effective = jnp.clip(n * (1 - r) / (1 + r), 2.0, n)
    return slope, jnp.sqrt(square / jnp.maximum(effective - 2, 1.0) / spread), r


def utilisation(config: GrowthConfig, graph: Graph, gradient: Weights) -> jax.Array:
    """[] float32, the share of hidden neurons whose gradients, of the bias and of all edges, exceed `grad_eps`."""
    hidden = graph.topology.role == int(Role.HIDDEN)
    size = jnp.abs(gradient.bias) + jnp.abs(gradient.edges).sum(axis=(0, 1)) + jnp.abs(gradient.edges).sum(axis=(0, 2))
    used = (hidden & (size > config.grad_eps)).sum().astype(jnp.float32)
    count = hidden.sum().astype(jnp.float32)
    return jnp.where(count > 0, used / jnp.maximum(count, 1.0), jnp.float32(1.0))  # where there is none, none is idle


def remembered(config: GrowthConfig, graph: Graph, growth: Growth, told: Told) -> Growth:
    """The growth after an evaluation, nothing decided yet."""
    valid, there = jnp.isfinite(told.score), graph.topology.role != int(Role.ABSENT)
    matrix = jnp.abs(dale.effective(graph))
    importance = (matrix.sum(axis=(0, 1)) + matrix.sum(axis=(0, 2))) * told.activity.size
    weak = graph.topology.edges & (matrix < config.prune_edge_threshold)
    streak = jnp.where(weak, jnp.minimum(growth.weak, _WEAK) + 1, 0).astype(jnp.int16)
    return growth.replace(
        scores=jnp.where(valid, push(growth.scores, jnp.where(valid, told.score, 0.0)), growth.scores),
        n_scores=growth.n_scores + valid.astype(jnp.int32),
        since_grown=growth.since_grown + 1,
        evaluations=growth.evaluations + 1,
        utilisation=push(growth.utilisation, utilisation(config, graph, told.gradient)),
        age=jnp.where(there, growth.age + 1, 0),
        importance=jnp.where(there, growth.importance + importance, 0.0),
        weak=streak,
    )


def wants_growth(config: GrowthConfig, graph: Graph, growth: Growth) -> jax.Array:
    """[] bool: the signals agree, the last growth is long enough ago, and there is room."""
    stands, structured, utilised = signals(config, growth)
    agreed = stands if config.grow_trigger == "plateau" else stands & structured & utilised
    enough = (growth.n_scores >= config.min_score_buffer) & (growth.since_grown >= config.grow_cooldown)
    room = (graph.topology.role != int(Role.ABSENT)).sum() < config.max_neurons
    return agreed & enough & room


def weak_edges(config: GrowthConfig, growth: Growth) -> jax.Array:
    """[1 + D, N, N] bool: those that have been weak for long enough, and whose both ends are mature."""
    old = growth.age >= config.maturation_window
    return (growth.weak >= config.prune_edge_patience) & (old[None, None, :] & old[None, :, None])


def _prune_edges(config: GrowthConfig, graph: Graph, growth: Growth) -> tuple[Graph, Growth]:
    due = weak_edges(config, growth)
    edges = graph.topology.edges & ~due
    after = graph.replace(
        topology=graph.topology.replace(edges=edges),
        weights=graph.weights.replace(edges=jnp.where(edges, graph.weights.edges, jnp.float32(0.0))),
    )
    pruned = (graph.topology.edges & due).sum(dtype=jnp.int32)
    return after, growth.replace(counts=growth.counts.at[1].add(pruned), weak=jnp.where(due, 0, growth.weak))


def idle_neuron(config: GrowthConfig, graph: Graph, growth: Growth, told: Told) -> tuple[jax.Array, jax.Array]:
    """The least important hidden neuron, and whether it goes: unimportant, mature and without gradient."""
    hidden = graph.topology.role == int(Role.HIDDEN)
    seen = growth.age >= jnp.int32(max(config.min_prune_observations, config.maturation_window))
    mean = growth.importance / jnp.maximum(growth.age, 1).astype(jnp.float32)
    idle = jnp.abs(told.gradient.bias) < config.grad_eps
    due = hidden & seen & idle & (mean < config.prune_neuron_threshold) & (hidden.sum() > config.min_hidden_neurons)
    return jnp.argmin(jnp.where(due, mean, jnp.inf)).astype(jnp.int32), due.any()


def concordance(activity: Activity) -> jax.Array:
    """[N, N] float32: 2 cov / (var + var' + (mean - mean')^2), 1 for two neurons whose values are equal at every step.

    0 where neither varies.
    """
    mean = activity.mean
    covariance = activity.product - mean[:, None] * mean[None, :]
    variance = jnp.maximum(jnp.diagonal(covariance), 0.0)
    apart = jnp.square(mean[:, None] - mean[None, :])
    total = variance[:, None] + variance[None, :] + apart
    return jnp.where(total > 1e-12, 2 * covariance / jnp.maximum(total, 1e-12), jnp.float32(0.0))


def twins(config: GrowthConfig, graph: Graph, growth: Growth, told: Told) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two mature hidden neurons of one kind whose values agree best, and whether they merge.

    They do at every `merge_check_interval`th evaluation, if they agree well enough. The first stays: where one leads to
    the other, that one, so that no circle closes.
    """
    topology = graph.topology
    hidden = topology.role == int(Role.HIDDEN)
    mature = hidden & (growth.age >= config.maturation_window)
    agreement = concordance(told.activity)
    alike = jnp.triu(jnp.ones_like(agreement, bool), 1) & (mature[:, None] & mature[None, :])
    for field in (topology.kind, topology.activation, topology.cell_type):
        alike = alike & (field[:, None] == field[None, :])
    worth = jnp.where(alike, agreement, -jnp.inf)
    best = jnp.argmax(worth)
    a, b = (best // worth.shape[1]).astype(jnp.int32), (best % worth.shape[1]).astype(jnp.int32)
    depth, _ = levels(topology.edges[0], graph.capacity.levels, graph.capacity.inputs)
    a, b = jnp.where(depth[b] < depth[a], b, a), jnp.where(depth[b] < depth[a], a, b)
    due = growth.evaluations % config.merge_check_interval == 0
    due = due & (worth.reshape(-1)[best] > config.merge_similarity_threshold)
    return a, b, due & (hidden.sum() > config.min_hidden_neurons)


def growing_place(
    config: GrowthConfig, graph: Graph, told: Told, key: jax.Array, within: bool = False
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Where to grow, as arguments of the edit that `grow_op` stands for, and whether there is such a place.

    insert_edge: the heaviest edge, unless there is another than those at relays, which a relay more does nothing for;
    with `within`, of those where a neuron fits into the capacity's levels.
    split_neuron: the most active hidden neuron. add_edge: a random place for a delayed edge (ValueError at a capacity
    without delays).
    """
    topology = graph.topology
    if config.grow_op == "split_neuron":
        hidden = topology.role == int(Role.HIDDEN)
        return (jnp.argmax(jnp.where(hidden, told.activity.size, -1.0)).astype(jnp.int32),), hidden.any()
    if config.grow_op == "insert_edge":
        possible = topology.edges & insertable(graph) if within else topology.edges
        plain = relays(graph)
        elsewhere = possible & ~(plain[None, :, None] | plain[None, None, :])
        possible = jnp.where(elsewhere.any(), elsewhere, possible)
        heaviest = jnp.argmax(jnp.where(possible, jnp.abs(dale.effective(graph)), -1.0))
        place = jnp.unravel_index(heaviest, topology.edges.shape)
        return tuple(index.astype(jnp.int32) for index in place), possible.any()
    if graph.capacity.delays == 0:
        raise ValueError("add_edge adds delayed edges: give the graph room for delays, with max_delay")
    source, target = topology.role != int(Role.ABSENT), topology.role > int(Role.INPUT)
    free = ~topology.edges[1:] & (target[None, :, None] & source[None, None, :])
    drawn = jnp.where(free, jax.random.uniform(jax.random.fold_in(key, _EDGE), free.shape), -1.0)
    delay, dst, src = (i.astype(jnp.int32) for i in jnp.unravel_index(jnp.argmax(drawn), free.shape))
    return (delay + 1, dst, src), free.any()


def relays(graph: Graph) -> jax.Array:
    """[N] bool: linear hidden neurons with one edge in and one out, as `edits.insert` makes them."""
    topology = graph.topology
    linear = (topology.kind == int(Kind.POINT)) & (topology.activation == int(Activation.LINEAR))
    inward, outward = (topology.edges.sum(axis=axes, dtype=jnp.int32) for axes in ((0, 2), (0, 1)))
    return (topology.role == int(Role.HIDDEN)) & linear & (inward == 1) & (outward == 1)


def insertable(graph: Graph) -> jax.Array:
    """[1 + D, N, N] bool: where a neuron on an edge (`edits.insert`) makes no chain longer than the capacity's levels.

    What stands behind a delay of 2 or more is a chain of its own; on one of 1 it ends the chain of the edge's source,
    and on one of 0 it joins the chains of both ends.
    """
    most, chain = graph.capacity.levels, graph.topology.edges[0]
    above, _ = levels(chain, most, graph.capacity.inputs)
    below, _ = levels(chain.T, most)
    short = [above[None, :] + 1 + below[:, None] <= most, jnp.broadcast_to(above[None, :] + 1 <= most, chain.shape)]
    longer = [jnp.ones_like(chain)] * max(graph.capacity.delays - 1, 0)
    return jnp.stack([*short, *longer][: 1 + graph.capacity.delays])


def _apply(
    graph: Graph, growth: Growth, memory: Memory, kept: Weights, edited: edits.Edited, count: int
) -> tuple[Graph, Growth, Memory, Weights]:
    """The region after an edit: what is new starts without a past of its own."""
    fresh = edited.graph.topology.role != graph.topology.role
    same = edits.kept(graph, edited.graph)
    growth = growth.replace(
        age=jnp.where(fresh, 0, growth.age),
        importance=jnp.where(fresh, 0.0, growth.importance),
        weak=jnp.where(same.edges, growth.weak, 0),
        counts=growth.counts.at[count].add(edited.ok.astype(jnp.int32)),
    )
    kept = jax.tree.map(jnp.logical_and, kept, same)
    return edited.graph, growth, edits.carried(edited, memory), kept
