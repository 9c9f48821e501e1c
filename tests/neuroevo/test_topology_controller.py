"""The controller: how it is made, what each option does, when it grows, prunes and merges."""

import inspect

import numpy as np
import pytest

from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.types import EvalMetrics, LoopState
from tensor_optix.neuroevo import (
    TopologyController,
    region_growth,
)
from tensor_optix.neuroevo.graph import growth
from tests.neuroevo.agents import dense_graph
from tests.neuroevo.controllers import (
    QUICK,
    WAVE,
    controller_of,
    counts,
    loop_of,
    metrics,
    play,
    ran,
    two_regions,
    weak_edge,
    with_gradients,
)

# -- how it is made -------------------------------------------------------------------------------------------------


def test_every_form():
    graph, brain = dense_graph(hidden=4), two_regions()
    for made in (
        TopologyController(graph),
        TopologyController(graph=graph),
        TopologyController(regions=graph),
        TopologyController.for_graph(graph),
        TopologyController.for_graph(graph=graph, scheduler=BackoffScheduler()),
        TopologyController({"only": graph}),
        TopologyController([graph]),
    ):
        assert made.graph is graph
        assert list(made.graphs.values()) == [graph]
        assert made.stats["n_regions"] == 1
    for made in (
        TopologyController(brain),
        TopologyController(graph=brain),
        TopologyController.for_brain(brain, scheduler=BackoffScheduler()),
        TopologyController(brain.regions),
    ):
        assert made.graphs == brain.regions
        assert made.graph is brain or made.graph == brain.regions
        assert made.stats["n_regions"] == 2
    several = TopologyController([graph, dense_graph(hidden=4)])
    assert len(several.graphs) == 2
    assert several.graph[0] is graph


def test_options_and_defaults_are_the_documented_ones():
    documented = {
        "regions": None, "scheduler": None, "grow_op": "insert_edge", "grow_grad_threshold": 0.7, "grow_cooldown": 20,
        "backoff_reset_factor": 0.5, "grad_eps": 1e-6, "maturation_window": 30, "prune_edge_threshold": 1e-3,
        "prune_edge_patience": 10, "prune_neuron_threshold": 1e-4, "min_prune_observations": 10,
        "merge_similarity_threshold": 0.95, "merge_check_interval": 50, "act_history_len": 100, "min_score_buffer": 30,
        "max_neurons": 256, "min_hidden_neurons": 1, "graph": None, "grow_gap_threshold": 0.15,
    }  # fmt: skip
    found = {name: p.default for name, p in inspect.signature(TopologyController).parameters.items()}
    assert {name: found[name] for name in documented} == documented
    assert list(found)[:18] == list(documented)[:18]
    made = TopologyController(dense_graph(hidden=4))
    assert all(getattr(made, name) == value for name, value in documented.items() if name not in ("regions", "graph"))


def test_stats():
    controller = controller_of(two_regions())
    assert controller.stats == {
        "grow_count": 0, "prune_count": 0, "merge_count": 0, "plateau_count": 0, "n_neurons": 22, "n_edges": 56,
        "n_regions": 2, "score_buffer": 0, "grad_util": 0.0,
    }  # fmt: skip
    play(controller, [0.0, np.nan, 1.0], idle=["n3"])
    controller.on_plateau(2, LoopState.COOLING)
    controller.on_episode_end(3, None)  # not evaluated
    stats = controller.stats
    assert (stats["score_buffer"], stats["plateau_count"]) == (2, 1)
    assert stats["grad_util"] == pytest.approx(0.75)
    assert controller.region_stats("a") == {
        "grow_count": 0, "prune_count": 0, "merge_count": 0, "n_neurons": 11, "n_edges": 28, "score_buffer": 2,
        "grad_util": pytest.approx(0.75),
    }  # fmt: skip
    with pytest.raises(KeyError):
        controller.region_stats("c")


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda g: TopologyController(), TypeError, "takes the graph or the regions"),
        (lambda g: TopologyController(g, graph=g), TypeError, "one of both"),
        (lambda g: TopologyController("graph"), TypeError, "expected a NeuronGraph"),
        (lambda g: TopologyController({}), TypeError, "expected a NeuronGraph"),
        (lambda g: TopologyController([g, 3]), TypeError, "expected a NeuronGraph"),
        (lambda g: TopologyController(g, trigger="dormant"), ValueError, "trigger must be one of signals, plateau"),
        (lambda g: TopologyController(g, backoff_reset_factor=1.5), ValueError, r"backoff_reset_factor must be in \[0"),
        (lambda g: TopologyController(g, grow_op="duplicate"), ValueError, "grow_op must be one of insert_edge"),
        (
            lambda g: TopologyController(g, grow_grad_threshold=70),
            ValueError,
            r"grow_grad_threshold is a share, in",
        ),
        (lambda g: TopologyController(g, grow_gap_threshold=-1), ValueError, "grow_gap_threshold must be None or at"),
        (lambda g: TopologyController(g, act_history_len=-5), ValueError, "act_history_len must be a whole number of"),
        (lambda g: TopologyController(g, seed=-1), ValueError, "seed must be a whole number of at least 0, got -1"),
        (lambda g: TopologyController(g, grow_cooldown=1.5), ValueError, "grow_cooldown must be a whole number"),
        (lambda g: TopologyController(g, min_score_buffer=2), ValueError, "min_score_buffer must be a whole number"),
        (lambda g: TopologyController(g, maturation_window=-1), ValueError, "maturation_window must be a whole number"),
        (
            lambda g: TopologyController(g, prune_edge_patience=0),
            ValueError,
            "prune_edge_patience must be a whole number",
        ),
        (lambda g: TopologyController(g, nonsense=1), TypeError, "nonsense"),
    ],
)
def test_what_is_refused(make, error, said):
    with pytest.raises(error, match=said):
        make(dense_graph(hidden=4))


# -- when it grows --------------------------------------------------------------------------------------------------


def test_a_wave_grows_at_its_cooldown():
    controller = controller_of()
    grew = play(controller, WAVE)
    assert grew[0] == 11  # with the twelfth score
    assert set(np.diff(grew)) == {QUICK["grow_cooldown"]}
    assert controller.stats["n_edges"] == 28 + len(grew)


@pytest.mark.parametrize("op", sorted(growth.GROW_EDITS))
def test_never_while_the_score_rises(op):
    assert play(controller_of(grow_op=op), WAVE + np.arange(40)) == []


def test_not_where_neurons_get_no_gradients():
    controller = controller_of(prune_neuron_threshold=0.0)
    assert play(controller, WAVE, size=0.0) == []
    assert controller.stats["grad_util"] == 0.0


def test_not_on_scores_without_structure():
    noise = np.random.default_rng(0).normal(size=40)
    assert play(controller_of(), noise) == []


@pytest.mark.parametrize("field", ["bias", "edge"])
def test_gradients_may_be_those_of_the_parameters(field):
    """Without an agent: what someone else has put into `grad`."""
    graph = dense_graph(hidden=4)
    controller = controller_of(graph)
    for i, score in enumerate(WAVE[:12]):
        for handle in graph.parameters():
            if handle.field == field:
                handle.grad = np.ones(handle.shape)
        ran(graph, i)
        controller.record()
        controller.on_episode_end(i, metrics(score, i))
    assert controller.stats["grow_count"] == 1
    assert controller.stats["grad_util"] == 1.0


@pytest.mark.parametrize("ran_on", [True, False])
def test_an_evaluation_of_which_nothing_was_recorded_prunes_no_neuron(ran_on):
    """Neurons are busy, or nothing has run, only nobody has called `record`; there are no gradients either."""
    graph = dense_graph(hidden=4)
    controller = controller_of(graph)
    for i in range(8):
        if ran_on:
            graph.forward(np.ones(3))
        controller.on_episode_end(i, metrics(0.0, i))
    assert len(graph.hidden_ids) == 4


def test_growing_now():
    controller = controller_of()
    assert controller.grow()
    assert controller.grow()  # whatever the cooldown says
    assert counts(controller) == (2, 0, 0)


# -- each option does something -------------------------------------------------------------------------------------


def test_grow_op():
    graphs = {op: dense_graph(hidden=4) for op in growth.GROW_EDITS}
    before = {edge.edge_id: edge for edge in graphs["add_edge"].all_edges()}
    for op, graph in graphs.items():
        assert play(controller_of(graph, grow_op=op), WAVE[:12], quiet=["n3", "n4", "n6"]) == [11]
    heaviest = max(before.values(), key=lambda edge: abs(edge.weight))
    inserted = graphs["insert_edge"]
    assert heaviest.edge_id not in {edge.edge_id for edge in inserted.all_edges()}
    (relay,) = set(inserted.hidden_ids) - set(graphs["add_edge"].hidden_ids)
    assert (inserted.edges_into(relay)[0].src, inserted.edges_from(relay)[0].dst) == (heaviest.src, heaviest.dst)
    split = graphs["split_neuron"]
    (twin,) = set(split.hidden_ids) - set(graphs["add_edge"].hidden_ids)
    assert [edge.src for edge in split.edges_into(twin)] == [edge.src for edge in split.edges_into("n5")]
    for kept, given in zip(split.edges_from("n5"), split.edges_from(twin), strict=True):  # n5 was the active one
        whole = before[kept.edge_id].weight
        np.testing.assert_allclose([kept.weight, given.weight], [0.6 * whole, 0.4 * whole], rtol=1e-5)
    for old in ("n3", "n4", "n6"):
        assert [edge.weight for edge in split.edges_from(old)] == [
            edge.weight for edge in before.values() if edge.src == old
        ]
    (free,) = set(graphs["add_edge"].all_edges()) - set(before.values())
    assert free.delay >= 1
    assert free.weight == 0.0


def test_grow_grad_threshold_and_grad_eps():
    scores = WAVE[:12]
    assert play(controller_of(grow_grad_threshold=0.7), scores, idle=["n3"]) == [11]  # three of four
    assert play(controller_of(grow_grad_threshold=0.8), scores, idle=["n3"]) == []
    assert play(controller_of(grad_eps=1e-6), scores, size=1e-4) == [11]
    assert play(controller_of(grad_eps=1e-2, prune_neuron_threshold=0.0), scores, size=1e-4) == []


def test_min_score_buffer():
    assert play(controller_of(min_score_buffer=20), WAVE)[0] == 19


def test_max_neurons():
    controller = controller_of(max_neurons=13, grow_op="split_neuron")
    assert len(play(controller, WAVE)) == 2
    assert controller.stats["n_neurons"] == 13


def pruned_after(weight=5e-4, **options):
    """The number of evaluations after which a weak edge is gone, None: it stays."""
    graph = dense_graph(hidden=4)
    edge = weak_edge(graph, weight)
    controller = controller_of(graph, **{"prune_edge_threshold": 1e-3, **options})
    for i in range(8):
        play(controller, [0.0], first=i)
        if edge not in {each.edge_id for each in graph.all_edges()}:
            assert counts(controller) == (0, 1, 0)
            assert graph.n_edges() == 27
            return i + 1
    return None


def test_weak_edges():
    assert pruned_after() == 3  # when its neurons are old enough
    assert pruned_after(maturation_window=0) == 2  # QUICK's patience
    assert pruned_after(prune_edge_patience=6) == 6
    assert pruned_after(prune_edge_threshold=1e-4) is None
    assert pruned_after(weight=5e-3) is None
    assert pruned_after(weight=5e-3, prune_edge_threshold=1e-2) == 3


def test_an_edge_that_recovers_begins_anew():
    graph = dense_graph(hidden=4)
    edge = weak_edge(graph)
    controller = controller_of(graph, prune_edge_threshold=1e-3)
    graph.parameter("edge", edge).data = 0.5
    for i, weight in enumerate((0.5, 0.5, 0.5, 5e-4, 0.5, 5e-4)):
        graph.parameter("edge", edge).data = weight
        play(controller, [0.0], first=i)
    assert graph.get_edge(edge).weight == pytest.approx(5e-4)
    play(controller, [0.0], first=6)
    assert counts(controller) == (0, 1, 0)


def gone_after(**options):
    """The number of evaluations after which a neuron that does nothing is gone."""
    graph = dense_graph(hidden=4)
    controller = controller_of(graph, **options)
    for i in range(8):
        play(controller, [0.0], idle=["n4"], quiet=["n4"], first=i)
        if "n4" not in graph.hidden_ids:
            assert counts(controller) == (0, 1, 0)
            return i + 1
    return None


def test_idle_neurons():
    assert gone_after() == 3  # old enough
    assert gone_after(min_prune_observations=5) == 5
    assert gone_after(prune_neuron_threshold=0.0) is None
    assert gone_after(min_hidden_neurons=4) is None
    assert gone_after(min_hidden_neurons=3) == 3


def test_a_neuron_that_still_learns_or_still_does_something_stays():
    for quiet, idle in ((["n4"], []), ([], ["n4"])):
        controller = controller_of()
        play(controller, [0.0] * 6, idle=idle, quiet=quiet)
        assert counts(controller) == (0, 0, 0)


def merged_after(steps=64, **options):
    """The number of evaluations after which two neurons that do the same have become one."""
    graph = dense_graph(hidden=4)
    controller = controller_of(graph, **options)
    for i in range(8):
        play(controller, [0.0], alike=("n4", "n6"), steps=steps, first=i)
        if graph.hidden_ids == ["n3", "n4", "n5"]:
            assert counts(controller) == (0, 0, 1)
            return i + 1
    return None


def test_twins():
    assert merged_after() == 3  # mature, and due
    assert merged_after(merge_check_interval=5) == 5
    assert merged_after(merge_similarity_threshold=1.1) is None
    assert merged_after(act_history_len=65) is None
    assert merged_after(steps=8) == 3
    assert merged_after(min_hidden_neurons=4) is None


def test_a_merge_similarity_threshold_is_a_threshold():
    graph = dense_graph(hidden=4)

    def play_similar(controller):
        for i in range(3):
            with_gradients(graph)
            values = np.random.default_rng(i).normal(size=(500, graph.capacity.neurons)).astype(np.float32)
            noise = np.random.default_rng([i, 1]).normal(size=500).astype(np.float32)
            a, b = graph.slot_of("n4"), graph.slot_of("n6")
            values[:, b] = 0.9 * values[:, a] + np.float32(np.sqrt(1 - 0.81)) * noise  # correlated by 0.9
            graph.saw(values, graph.memory)
            controller.record()
            controller.on_episode_end(i, metrics(0.0, i))
        return counts(controller)[2]

    assert play_similar(controller_of(graph)) == 0
    assert play_similar(controller_of(graph, merge_similarity_threshold=0.8)) == 1


def test_no_more_than_min_hidden_neurons_go_in_one_evaluation():
    """An idle neuron and two that do the same, and one of the four may go."""
    graph = dense_graph(hidden=4)
    controller = controller_of(graph, min_hidden_neurons=3)
    play(controller, [0.0] * 6, idle=["n3"], quiet=["n3"], alike=("n4", "n6"))
    assert len(graph.hidden_ids) == 3


def test_a_seed_places_free_edges():
    def places(seed):
        graph = dense_graph(hidden=4)
        controller = controller_of(graph, grow_op="add_edge", seed=seed)
        assert all(controller.grow() for _ in range(3))
        return [(edge.src, edge.dst, edge.delay) for edge in graph.all_edges()[-3:]]

    assert places(0) == places(0)
    assert places(0) != places(1)


def test_free_edges_of_one_region_are_not_those_of_another():
    brain = two_regions()
    controller = controller_of(brain, grow_op="add_edge")
    for _ in range(3):
        assert controller.grow()
    a, b = ([(e.src, e.dst, e.delay) for e in graph.all_edges()[-3:]] for graph in brain.regions.values())
    assert a != b


def test_thresholds_set_later_count_and_compile_nothing():
    controller = controller_of(grow_grad_threshold=0.8)
    scores = WAVE[:24]
    play(controller, scores[:14], idle=["n3"])
    assert counts(controller) == (0, 0, 0)
    compiled = [f._cache_size() for f in (region_growth._decided, region_growth._remembered)]
    controller.grow_grad_threshold = 0.5
    controller.grad_eps, controller.merge_similarity_threshold = 1e-5, 0.99
    controller.prune_neuron_threshold = 1e-9
    grew = play(controller, scores[14:16], idle=["n3"], first=14)
    assert grew == [14]
    edge = weak_edge(controller.graph, 5e-3)
    controller.prune_edge_threshold = 1e-2
    play(controller, scores[16:18], first=16)
    assert edge not in {each.edge_id for each in controller.graph.all_edges()}
    assert [f._cache_size() for f in (region_growth._decided, region_growth._remembered)] == compiled


def test_a_cooldown_set_later_counts_too():
    controller = controller_of()
    assert play(controller, WAVE[:18]) == [11, 15]
    controller.grow_cooldown = 7
    assert play(controller, WAVE[18:32], first=18) == [22, 29]


# -- the older trigger ----------------------------------------------------------------------------------------------


def test_a_plateau_is_a_trigger_where_asked_for():
    plain, asked = controller_of(), controller_of(trigger="plateau")
    for controller in (plain, asked):
        controller.on_episode_end(0, metrics(0.0))
        controller.on_plateau(0, LoopState.COOLING)
        controller.on_plateau(1, LoopState.COOLING)  # not rested
    assert counts(plain) == (0, 0, 0)
    assert counts(asked) == (1, 0, 0)
    assert play(asked, WAVE) == []  # the signals count for nothing
    asked.on_plateau(50, LoopState.COOLING)
    assert counts(asked)[0] == 2


@pytest.mark.parametrize(
    ("train", "validation", "threshold", "grows"),
    [
        (11.0, 10.0, 0.15, True),
        (12.0, 10.0, 0.15, False),
        (12.0, 10.0, 0.3, True),
        (99.0, 10.0, None, True),
        (-10.0, -12.0, 0.15, False),
        (-11.0, -12.0, 0.15, True),
        (10.0, 12.0, 0.15, True),
    ],
)
@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_plateau_with_overfitting_is_none(train, validation, threshold, grows, in_a_loop):
    controller = controller_of(trigger="plateau", grow_gap_threshold=threshold)
    if in_a_loop:  # which tells its state first
        controller.on_state(0, LoopState.COOLING)
    told = EvalMetrics(validation, {"train_score": train, "val_score": validation}, 0)
    controller.on_episode_end(0, told)
    controller.on_plateau(0, LoopState.COOLING)
    assert controller.stats["grow_count"] == grows


def test_a_plateau_splits_the_most_active_neuron():
    graph = dense_graph(hidden=4)
    controller = controller_of(graph, trigger="plateau", grow_op="split_neuron")
    before = {edge.edge_id: edge.weight for edge in graph.all_edges()}
    play(controller, [0.0] * 3, quiet=["n3", "n4", "n6"])
    controller.on_plateau(2, LoopState.COOLING)
    assert counts(controller) == (1, 0, 0)
    changed = {edge.src for edge in graph.all_edges() if before.get(edge.edge_id, edge.weight) != edge.weight}
    assert changed == {"n5"}


def test_a_plateau_that_lasts_grows_again_when_rested(tmp_path):
    """In a loop whose score never moves: cooldown over, still COOLING, and long before DORMANT."""
    controller = controller_of(trigger="plateau", prune_neuron_threshold=0.0)
    loop = loop_of(tmp_path, controller, np.zeros(60))
    loop.run()
    assert not loop.result.callback_failures
    assert controller.stats["grow_count"] >= 2
