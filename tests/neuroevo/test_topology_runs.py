"""The controller in runs: what the loop is told, regions, the pure step, files, and others who edit."""

import copy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.types import LoopState, StopReason
from tensor_optix.neuroevo import (
    add_free_edge,
    add_input_neuron,
    insert_neuron_on_edge,
    prune_neuron,
    split_neuron,
)
from tensor_optix.neuroevo.graph import growth
from tensor_optix.neuroevo.graph.growth import Activity, Told
from tensor_optix.neuroevo.region_growth import RegionGrowth
from tests.neuroevo.agents import agent_of, dense_graph
from tests.neuroevo.controllers import (
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
from tests.neuroevo.test_graph_agent import windows
from tests.runs import assert_same_bits

# -- what the loop is told ------------------------------------------------------------------------------------------


def cooled():
    """A scheduler in COOLING whose interval has grown to 16."""
    scheduler = BackoffScheduler(plateau_threshold=2)
    for _ in range(4):
        scheduler.record_non_improvement()
    assert scheduler.current_interval == 16
    return scheduler


@pytest.mark.parametrize(("factor", "interval"), [(0.5, 8), (0.25, 4), (0.0, 1), (1.0, 16)])
@pytest.mark.parametrize("later", [False, True])
def test_growth_resets_a_scheduler_of_ones_own(factor, interval, later):
    scheduler = cooled()
    controller = controller_of(scheduler=None if later else scheduler, backoff_reset_factor=factor)
    if later:
        controller.set_scheduler(scheduler)
    assert controller.scheduler is scheduler
    play(controller, WAVE[:11])
    assert scheduler.current_state == LoopState.COOLING
    assert scheduler.current_interval == 16
    assert play(controller, WAVE[11:12], first=11) == [11]
    assert scheduler.current_state == LoopState.ACTIVE
    assert scheduler.current_interval == interval
    assert scheduler.consecutive_non_improvements == 0


def test_pruning_resets_nothing():
    scheduler, graph = cooled(), dense_graph(hidden=4)
    weak_edge(graph)
    controller = controller_of(graph, scheduler=scheduler, prune_edge_threshold=1e-3)
    play(controller, [0.0] * 4)
    assert counts(controller) == (0, 1, 0)
    assert scheduler.current_state == LoopState.COOLING


def test_a_loop_comes_before_a_scheduler():
    told, scheduler = [], cooled()
    controller = controller_of(scheduler=scheduler, backoff_reset_factor=0.25)
    controller.set_loop(SimpleNamespace(renew=told.append))
    controller.grow()
    assert told == [0.25]
    assert scheduler.current_interval == 16


def test_after_a_run_its_loop_is_forgotten(tmp_path):
    """A scheduler that is given later counts, and a copy does not bring the loop's environments and files along."""
    controller = controller_of()
    loop = loop_of(tmp_path, controller, np.zeros(3))
    loop.run()
    assert loop not in vars(controller).values()
    controller.set_scheduler(cooled())
    assert controller.grow()
    assert controller.scheduler.current_interval == 8


def test_growth_gives_a_loop_a_fresh_patience(tmp_path):
    """Scores that lead nowhere are over at some point, and go on as long as something grows."""
    ends = {}
    for name, grows in (("plain", False), ("growing", True)):
        controller = controller_of(prune_neuron_threshold=0.0)

        class Grow:
            def on_episode_end(self, window, evaluated, controller=controller, grows=grows):
                if grows and evaluated and controller.stats["grow_count"] < 3 and window > 30:
                    assert controller.grow()

        loop = loop_of(tmp_path / name, controller, np.zeros(400), [Grow()])
        result = loop.run()
        ends[name] = result.windows
        assert not result.callback_failures
        assert result.stop_reason == StopReason.CONVERGED
    assert ends["plain"] + 8 < ends["growing"] < 400


def test_a_loop_is_active_after_growth_and_keeps_part_of_its_interval(tmp_path):
    seen = []

    class Grow:
        def on_episode_end(self, window, evaluated):
            seen.append((loop.brain.loop_state, loop.brain.interval))
            if evaluated and seen[-1] == (LoopState.COOLING, 8) and not controller.stats["grow_count"]:
                assert controller.grow()
                seen.append((loop.brain.loop_state, loop.brain.interval))
                loop.stop()

    controller = controller_of(prune_neuron_threshold=0.0)
    loop = loop_of(tmp_path, controller, np.zeros(60), [Grow()])
    loop.run()
    assert not loop.result.callback_failures
    assert seen[-2:] == [(LoopState.COOLING, 8), (LoopState.ACTIVE, 4)]


def test_a_run_records_by_itself_and_only_while_it_runs():
    graph = dense_graph(hidden=4)
    controller = controller_of(graph)
    (region,) = controller._regions.values()
    graph.forward(np.ones(3))
    assert region._recorded is None
    controller.on_loop_start()
    for _ in range(3):
        graph.forward(np.ones(3))
    assert region._recorded.steps == 3
    controller.on_loop_stop()
    graph.forward(np.ones(3))
    assert region._recorded.steps == 3


def test_a_step_counts_once():
    graph = dense_graph(hidden=4)
    controller = controller_of(graph)
    controller.on_loop_start()
    for _ in range(3):
        graph.forward(np.ones(3))
        controller.record()  # by hand besides
    (region,) = controller._regions.values()
    assert region._recorded.steps == 3


# -- regions --------------------------------------------------------------------------------------------------------


def test_regions_decide_for_themselves():
    """Only one gets gradients; only the other has an idle neuron and a weak edge."""
    brain = two_regions()
    controller = controller_of(brain, prune_edge_threshold=1e-3, grow_op="split_neuron")
    busy, other = brain.regions.values()
    weak_edge(other)
    for i, score in enumerate(WAVE[:24]):
        with_gradients(busy)
        with_gradients(other, 0.0)
        ran(busy, i)
        ran(other, i, quiet=["n4"])
        controller.record()
        controller.on_episode_end(i, metrics(score, i))
    a, b = (controller.region_stats(name) for name in "ab")
    assert (a["grow_count"], a["prune_count"]) == (4, 0)
    assert (b["grow_count"], b["prune_count"]) == (0, 2)
    assert "n4" not in other.hidden_ids
    assert (a["grad_util"], b["grad_util"]) == (1.0, 0.0)
    assert counts(controller) == (4, 2, 0)


def test_cooldowns_are_the_regions_own():
    brain = two_regions()
    controller = controller_of(brain)
    first, second = brain.regions.values()
    grew = {"a": [], "b": []}
    for i, score in enumerate(WAVE):
        with_gradients(first)
        with_gradients(second, 1.0 if i > 3 else 0.0)
        for graph in (first, second):
            ran(graph, i)
        before = {name: controller.region_stats(name)["grow_count"] for name in grew}
        controller.record()
        controller.on_episode_end(i, metrics(score, i))
        for name, count in before.items():
            if controller.region_stats(name)["grow_count"] > count:
                grew[name].append(i)
    assert grew["a"][:3] == [11, 15, 19]
    assert grew["b"][:3] == [13, 17, 21]  # when most evaluations have seen gradients


# -- one brain, two drivers -----------------------------------------------------------------------------------------


def roomy(graph):
    """With room for what may come, so that both drivers have the same capacity."""
    graph.make_room(hidden=8, levels=4, delays=2)
    return graph


STILL = {"grow_grad_threshold": 1.0, "prune_edge_threshold": 1e-3}
EDITS = {
    "insert_edge": ({"grow_op": "insert_edge"}, {}),
    "split_neuron": ({"grow_op": "split_neuron"}, {"quiet": ["n3"]}),
    "add_edge": ({"grow_op": "add_edge"}, {}),
    "nothing": (STILL, {}),
    "weak edges": (STILL, {}),
    "idle neuron": (STILL, {"quiet": ["n4"], "idle": ["n4"]}),
    "twins": (STILL, {"alike": ("n4", "n6")}),
}
DEAR = {"split_neuron", "add_edge"}  # each compiles a step of its own


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.slow) if what in DEAR else what for what in EDITS]
)
def test_what_is_decided_is_what_the_pure_step_decides(what):
    options, done = EDITS[what]
    # Until the twelfth evaluation nothing is due.
    calm = {"maturation_window": 12, "merge_check_interval": 12, "min_score_buffer": 12}
    graph = roomy(dense_graph(hidden=4))
    if what == "weak edges":
        for edge in graph.all_edges()[3:6]:
            graph.parameter("edge", edge.edge_id).data = 1e-4
    controller = controller_of(graph, **{**calm, **options})
    (region,) = controller._regions.values()
    config = controller._config()
    for _ in range(3):
        graph.forward(np.ones(3))
    state, memory = jax.tree.map(jnp.array, (region.growth, graph.memory))
    structure = jax.tree.map(np.array, graph.arrays.topology)
    for i, score in enumerate(WAVE[:12]):
        with_gradients(graph, idle=done.get("idle", ()))
        ran(graph, i, done.get("quiet", ()), done.get("alike"))
        values, gradient = graph.last_step[0], graph.gradient
        activity = Activity(values.mean(axis=0), np.abs(values).mean(axis=0), values.T @ values / len(values))
        before = graph.arrays
        key = jax.random.fold_in(jax.random.key(0), i + 1)
        decided = _pure_step(config, before, state, memory, Told(jnp.float32(score), activity, gradient), key)
        state, memory = decided.growth, decided.memory
        controller.record()
        assert region.evaluated(score) == bool(decided.grew)
        assert graph.capacity == before.capacity
        expected, found = (jax.tree.map(np.asarray, x) for x in (decided.graph, graph.arrays))
        jax.tree.map(np.testing.assert_array_equal, expected.topology, found.topology)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), expected.weights, found.weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, region.growth)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), memory, graph.memory)
    changed = not all(jax.tree.leaves(jax.tree.map(np.array_equal, structure, graph.arrays.topology)))
    assert changed == (what != "nothing")
    kind = {"weak edges": (0, 3, 0), "idle neuron": (0, 1, 0), "twins": (0, 0, 1), "nothing": (0, 0, 0)}
    assert counts(controller) == kind.get(what, (1, 0, 0))


_pure_step = jax.jit(growth.step, static_argnums=0)


# -- on disk, copies, and others who edit -----------------------------------------------------------------------------


def test_a_state_goes_on_where_it_was():
    """In the middle of a cooldown, after growth, with a weak edge under watch."""
    graph, twin = dense_graph(hidden=4), dense_graph(hidden=4)
    watchful = {"prune_edge_threshold": 1e-3, "grow_op": "split_neuron"}
    one, other = (controller_of(each, **watchful) for each in (graph, twin))
    play(one, WAVE[:13])
    weak_edge(graph)
    play(one, WAVE[13:14], first=13)
    one.on_plateau(13, LoopState.COOLING)
    assert one.stats["grow_count"] == 1
    twin.load_state_dict(graph.state_dict())
    other.load_state_dict(one.state_dict())
    assert other.stats == one.stats
    for controller in (one, other):
        play(controller, WAVE[14:15], first=14)
    assert one.stats == other.stats
    assert counts(one) == (1, 1, 0)
    for controller in (one, other):
        play(controller, WAVE[15:24], first=15)
    assert one.stats == other.stats
    assert counts(one)[0] == 4
    assert_same_bits(graph.arrays, twin.arrays)


def test_a_state_between_two_evaluations_goes_on_with_what_was_recorded():
    graph, twin = dense_graph(hidden=4), dense_graph(hidden=4)
    one, other = (controller_of(each) for each in (graph, twin))
    play(one, WAVE[:10])
    with_gradients(graph)
    ran(graph, 10, quiet=["n3"])
    one.record()
    twin.load_state_dict(graph.state_dict())
    other.load_state_dict(one.state_dict())
    for controller in (one, other):
        with_gradients(controller.graph)
        controller.on_episode_end(10, metrics(WAVE[10], 10))
    assert_same_bits(one.state_dict(), other.state_dict())


def test_a_state_is_plain():
    controller = controller_of(two_regions())
    play(controller, WAVE[:3])
    state = controller.state_dict()
    assert set(state["regions"]) == {"a", "b"}
    assert all(isinstance(leaf, int | float | np.ndarray | np.generic) for leaf in jax.tree.leaves(state))
    then = copy.deepcopy(state)
    play(controller, WAVE[3:6], first=3)
    assert_same_bits(state, then)  # arrays of its own


def test_a_state_of_others_is_refused():
    controller = controller_of(two_regions())
    with pytest.raises(ValueError, match="the state is of the regions graph, and the controller's are a, b"):
        controller.load_state_dict(controller_of().state_dict())
    large = controller_of(dense_graph(hidden=20))
    with pytest.raises(ValueError, match="load the graph first"):
        controller_of().load_state_dict(large.state_dict())


def test_a_copy_is_of_its_own():
    controller = controller_of()
    play(controller, WAVE[:11])
    twin = copy.deepcopy(controller)
    assert twin.graph is not controller.graph
    assert play(twin, WAVE[11:12], first=11) == [11]
    assert counts(controller) == (0, 0, 0)
    assert controller.graph.n_neurons() == 11
    assert play(controller, WAVE[11:12], first=11) == [11]


USER_EDITS = {
    "insert": lambda g: insert_neuron_on_edge(g, g.all_edges()[0].edge_id),
    "split": lambda g: split_neuron(g, "n4"),
    "free edge": lambda g: add_free_edge(g, "n4", "n3", delay=3),
    "prune": lambda g: prune_neuron(g, "n4"),
    "input": add_input_neuron,
    "a neuron": lambda g: g.add_neuron("hidden"),
    "no neuron": lambda g: g.remove_neuron("n0"),
    "no edge": lambda g: g.remove_edge(g.all_edges()[0].edge_id),
    "much": lambda g: [split_neuron(g, "n4") for _ in range(9)],
    "another graph": lambda g: g.load_state_dict(dense_graph(hidden=4, seed=4).state_dict()),
}
ROOM = {"free edge", "input", "much"}  # another capacity, for which all compiles anew


@pytest.mark.parametrize(
    "edit", [pytest.param(edit, marks=pytest.mark.slow) if edit in ROOM else edit for edit in USER_EDITS]
)
def test_an_edit_between_record_and_evaluation_does_no_harm(edit):
    graph = dense_graph(hidden=4)
    controller = controller_of(graph)
    play(controller, WAVE[:12])
    grew = controller.stats["grow_count"]
    with_gradients(graph)
    ran(graph, 12)
    controller.record()
    USER_EDITS[edit](graph)
    with_gradients(graph)
    ran(graph, 50)
    controller.record()
    structure = {(e.src, e.dst, e.delay): e.weight for e in graph.all_edges()}
    controller.on_episode_end(12, metrics(WAVE[12], 12))
    assert {(e.src, e.dst, e.delay): e.weight for e in graph.all_edges()} == structure  # nothing was due
    (region,) = controller._regions.values()
    slots = [graph.slot_of(name) for name in graph.all_neuron_ids()]
    there = np.isin(np.arange(graph.capacity.neurons), slots)
    age = np.asarray(region.growth.age)
    assert not age[~there].any()
    assert (age[there] >= 1).all()
    if edit != "another graph":
        assert age[graph.slot_of("n5")] == 13
    play(controller, WAVE[13:20], first=13)
    assert controller.stats["grow_count"] > grew


def test_what_was_recorded_of_a_neuron_is_not_anothers():
    """Two have done the same; then one goes, and a new one takes its place in the arrays."""
    graph = dense_graph(hidden=4)
    controller = controller_of(graph, maturation_window=0)
    play(controller, [0.0, 0.0])
    with_gradients(graph)
    ran(graph, 2, alike=("n4", "n6"))
    controller.record()
    slot = graph.slot_of("n6")
    prune_neuron(graph, "n6")
    _, copied = split_neuron(graph, "n5")
    assert graph.slot_of(copied) == slot
    controller.on_episode_end(2, metrics(0.0, 2))
    assert counts(controller) == (0, 0, 0)
    assert np.asarray(next(iter(controller._regions.values())).growth.importance)[slot] == 0.0


@pytest.mark.slow
def test_what_has_grown_gets_gradients_in_the_next_window():
    agent = agent_of(dense_graph(hidden=2), entropy_coef=0.0)
    controller = controller_of(agent.graph, grow_op="split_neuron", act_history_len=4)
    controller.on_loop_start()
    source = windows(agent, 3)
    agent.learn(next(source))
    controller.on_episode_end(0, metrics(0.0))
    assert controller.stats["grad_util"] == 1.0
    before = set(agent.graph.parameters())
    assert controller.grow()
    new = set(agent.graph.parameters()) - before
    assert len(new) == 1 + 3 + 4
    values = {handle: float(handle.data) for handle in new}
    agent.learn(next(source))
    assert all(handle.grad for handle in new)
    assert all(float(handle.data) != values[handle] for handle in new)
    assert isinstance(next(iter(controller._regions.values())), RegionGrowth)
    controller.on_episode_end(1, metrics(0.0))
    assert controller.stats["grad_util"] == 1.0


def test_a_roll_back_does_not_make_old_neurons_young(tmp_path):
    """They keep what is known of them, whatever slots they come back to; what was grown since goes with its age."""
    graph = dense_graph(hidden=3)
    controller = controller_of(graph)
    play(controller, [0.0] * 4)
    saved = graph.state_dict()
    add_input_neuron(graph)  # others move
    new = split_neuron(graph, "n4")[1]
    play(controller, [0.0] * 2)
    region = controller._regions["graph"]

    def known(name):
        growth = region.growth
        return int(growth.age[graph.slot_of(name)]), float(growth.importance[graph.slot_of(name)])

    names = [name for name in graph.all_neuron_ids() if name != new and known(name)[0] == 6]
    before = {name: known(name) for name in names}
    assert len(names) >= 6
    graph.load_state_dict(saved)
    assert {name: known(name) for name in names} == before
    assert np.asarray(region.growth.age).sum() == 6 * len(names)
    assert not np.asarray(region.growth.weak).any()
