"""Controllers that decide soon, and scripted evaluations for them."""

import numpy as np

from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.types import EvalMetrics
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.host import LoopController
from tensor_optix.neuroevo import (
    BrainNetwork,
    TopologyController,
)
from tensor_optix.neuroevo.graph.arrays import Weights
from tests.host_parts import Plain, Source, window_of
from tests.neuroevo.agents import dense_graph

QUICK = {
    "min_score_buffer": 12, "grow_cooldown": 4, "maturation_window": 3, "prune_edge_patience": 2,
    "min_prune_observations": 2, "merge_check_interval": 3, "act_history_len": 8,
    "grow_op": "add_edge", "prune_edge_threshold": 0.0,  # which needs no room and leaves what grew where it is
}  # fmt: skip
WAVE = np.cos(np.arange(40) * 2 * np.pi / 12)  # structure and no trend, from the eleventh score on


def controller_of(graph=None, **options):
    return TopologyController(dense_graph(hidden=4) if graph is None else graph, **{**QUICK, **options})


def metrics(score, i=0, **more):
    return EvalMetrics(float(score), more, i)


def with_gradients(graph, size=1.0, idle=()):
    """Of all weights the same, but for those of idle neurons."""
    weights = {name: np.full(x.shape, size, np.float32) for name, x in vars(graph.arrays.weights).items()}
    for name in set(idle) & set(graph.hidden_ids):
        slot = graph.slot_of(name)
        weights["bias"][slot] = weights["edges"][:, slot] = weights["edges"][:, :, slot] = 0.0
    graph.set_gradients(Weights(**weights))


def ran(graph, i, quiet=(), alike=None, steps=64):
    """Noise in all neurons but the quiet ones; two that are alike have the same."""
    values = np.random.default_rng(i).normal(size=(steps, graph.capacity.neurons)).astype(np.float32)
    for name in set(quiet) & set(graph.hidden_ids):
        values[:, graph.slot_of(name)] = 0.0
    if alike and set(alike) <= set(graph.hidden_ids):
        values[:, graph.slot_of(alike[1])] = values[:, graph.slot_of(alike[0])]
    graph.saw(np.where(np.asarray(graph.arrays.topology.role) > 0, values, 0), graph.memory)


def play(controller, scores, size=1.0, idle=(), quiet=(), alike=None, steps=64, first=0):
    """Evaluations; those at which it grew."""
    grew, before = [], controller.stats["grow_count"]
    for i, score in enumerate(scores, first):
        for graph in controller.graphs.values():
            with_gradients(graph, size, idle)
            ran(graph, i, quiet, alike, steps)
        controller.record()
        controller.on_episode_end(i, metrics(score, i))
        if controller.stats["grow_count"] > before:
            grew.append(i)
        before = controller.stats["grow_count"]
    return grew


def counts(controller):
    return tuple(controller.stats[key] for key in ("grow_count", "prune_count", "merge_count"))


def two_regions():
    brain = BrainNetwork(seed=1)
    brain.add_region("a", dense_graph(hidden=4))
    brain.add_region("b", dense_graph(hidden=4, seed=1))
    brain.add_pathway("a", "b", n_connections=3)
    return brain


def weak_edge(graph, weight=5e-4):
    edge = graph.all_edges()[0].edge_id
    graph.parameter("edge", edge).data = weight
    return edge


def loop_of(folder, controller, scores, callbacks=()):
    """Scripted scores, one a window; COOLING after three that do not improve, whose intervals are 2, 4 and 8."""
    source = Source(lambda i: window_of([scores[i]], ends=(0,), episode_id=i), len(scores))
    scheduler = BackoffScheduler(max_interval_episodes=8, plateau_threshold=3, dormant_threshold=20)
    return LoopController(
        agent=Plain(), pipeline=source, callbacks=[controller, *callbacks], backoff_scheduler=scheduler,
        checkpoint_registry=CheckpointRegistry(folder), checkpoint_score_fn=lambda agent: scores[int(agent.weight) - 1],
    )  # fmt: skip
