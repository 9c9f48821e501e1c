"""Growing, pruning and merging by names: what is preserved, against the oracle, and what is refused."""

import copy

import numpy as np
import pytest

from tensor_optix.neuroevo import (
    BrainNetwork,
    GRUNeuron,
    LSTMNeuron,
    NeuronGraph,
    TrainableGRUNeuron,
    add_free_edge,
    add_input_neuron,
    cosine_similarity_neurons,
    edge_importance,
    insert_neuron_on_edge,
    merge_neurons,
    neuron_importance,
    prune_edge,
    prune_neuron,
    split_neuron,
)
from tensor_optix.neuroevo.graph import edits
from tests.neuroevo.faces import face_of
from tests.neuroevo.graphs import MODES, observations, random_oracle
from tests.neuroevo.oracle import Impossible

DALE = pytest.mark.parametrize("mode", ["clamp", "softplus"])
SIGNS = pytest.mark.parametrize("cell_type", ["excitatory", "inhibitory", "any"])
SIZE = {"excitatory": 0.8, "inhibitory": -0.8, "any": -0.8}
OBS = observations(11, 20, 1)


def line(mode, cell_type="any", delay=0, neuron=None):
    """x -> h -> y, with an edge of the given delay behind h, and one over h."""
    graph = NeuronGraph(mode)
    graph.make_room(delays=8, levels=4, gated=True)  # one capacity for most tests here
    graph.add_neuron("input", neuron_id="x")
    graph.add_neuron("hidden", "tanh", "h", cell_type=cell_type, neuron=neuron)
    graph.add_neuron("output", "linear", "y")
    graph.get_neuron("h").bias.data = 0.7
    graph.add_edge("x", "h", 0.6, edge_id="in")
    graph.add_edge("h", "y", SIZE[cell_type], delay, edge_id="out")
    graph.add_edge("x", "y", 0.3, 1, edge_id="over")
    return graph


def run(graph, obs=OBS):
    return np.concatenate([graph.forward(x) for x in obs])


def preserved(graph, change, atol=1e-6):
    """Runs half an episode, changes the graph, and compares the rest with what it would have been."""
    run(graph, OBS[:9])
    as_before = copy.deepcopy(graph)
    result = change(graph)
    np.testing.assert_allclose(run(graph, OBS[9:]), run(as_before, OBS[9:]), rtol=2e-6, atol=atol)
    graph.enforce_dale()
    graph.reset_state()
    as_before.reset_state()
    np.testing.assert_allclose(run(graph), run(as_before), rtol=2e-6, atol=atol)
    return result


@DALE
@SIGNS
@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_a_relay_changes_nothing(mode, cell_type, delay):
    graph = line(mode, cell_type, delay)
    new = preserved(graph, lambda g: insert_neuron_on_edge(g, "out", neuron_id="relay"))
    assert new == "relay"
    (before,), (behind,) = graph.edges_into(new), graph.edges_from(new)
    assert (before.src, before.delay, abs(before.weight)) == ("h", delay // 2, pytest.approx(1.0, rel=1e-6))
    assert (behind.dst, behind.delay, abs(behind.weight)) == ("y", delay - delay // 2, pytest.approx(0.8, rel=1e-6))
    assert graph.version == 7
    with pytest.raises(ValueError, match="there is no edge 'out' any more"):
        graph.get_edge("out")


@DALE
@SIGNS
@pytest.mark.parametrize("neuron", [None, GRUNeuron, LSTMNeuron, TrainableGRUNeuron])
def test_a_split_changes_nothing(mode, cell_type, neuron):
    """With a bias, with a memory, in the middle of an episode."""
    described = neuron(cell_type=cell_type) if neuron else None
    graph = line(mode, cell_type, 1, described)
    if described is not None:
        graph.get_neuron("h").gates.data = np.random.default_rng(2).normal(size=described.gates.shape)
    graph.add_edge("h", "h", 0.4 * SIZE[cell_type], 2)
    old, new = preserved(graph, lambda g: split_neuron(g, "h"))
    assert (old, new) == ("h", "n0")
    assert graph.cell_type_of(new) == cell_type
    assert type(graph.get_neuron(new)) is type(graph.get_neuron(old))
    assert float(graph.parameter("bias", new)) == pytest.approx(0.7)
    assert [e.weight for e in graph.edges_into("y") if e.src != "x"] == [
        pytest.approx(SIZE[cell_type] / 2, rel=1e-5)
    ] * 2
    assert len(graph.parameters()) == graph.n_neurons() + graph.n_edges() + 2 * bool(neuron)


def test_an_unequal_split():
    graph = line("clamp")
    graph.get_neuron("h").expand_history(6)
    preserved(graph, lambda g: split_neuron(g, "h", "twin", share=0.25))
    assert graph.get_neuron("twin").max_delay == 6
    assert graph.get_edge("out").weight == pytest.approx(-0.2)
    assert graph.edges_from("twin")[0].weight == pytest.approx(-0.6)


@DALE
def test_a_new_input_and_a_free_edge_change_nothing(mode):
    graph = line(mode, "inhibitory")
    run(graph, OBS[:9])
    as_before = copy.deepcopy(graph)
    assert add_input_neuron(graph, neuron_id="new") == "new"
    assert graph.input_ids == ["x", "new"]
    assert [(e.src, e.dst, e.weight, e.delay) for e in graph.edges_from("new")] == [
        ("new", "h", 0.0, 0),
        ("new", "y", 0.0, 0),
    ]
    assert add_free_edge(graph, "h", "h", delay=4) == "e2"
    assert add_free_edge(graph, "h", "y", edge_id="mine") == "mine"
    assert graph.place_of("mine").delay == 1
    wider = np.column_stack([OBS[9:], np.full(11, 50.0)])
    np.testing.assert_allclose(run(graph, wider), run(as_before, OBS[9:]), atol=1e-5)


def test_relays_on_relays_need_room():
    """Each lengthens the chain without delay, and takes a slot."""
    graph = line("clamp")
    expected = run(graph)
    edge = "out"
    for _ in range(10):
        edge = graph.edges_into(insert_neuron_on_edge(graph, edge))[0].edge_id
    graph.reset_state()
    np.testing.assert_allclose(run(graph), expected, atol=1e-6)
    assert (graph.arrays.capacity.hidden, graph.arrays.capacity.levels) == (16, 16)
    assert graph.n_edges() == 13


def test_pruning_a_linear_neuron_changes_nothing():
    graph = NeuronGraph()
    for name in "xz":
        graph.add_neuron("input", neuron_id=name)
    graph.add_neuron("hidden", "linear", "h")
    graph.add_neuron("output", "tanh", "y")
    graph.add_edge("x", "h", 0.5, 1)
    graph.add_edge("z", "h", 2.0, 3)
    graph.add_edge("h", "y", -0.5, 2, edge_id="gone")
    graph.add_edge("x", "y", 1.0, 3, edge_id="there")
    obs = observations(1, 12, 2)
    expected = run(graph, obs)
    graph.reset_state()
    prune_neuron(graph, "h")
    np.testing.assert_allclose(run(graph, obs), expected, rtol=1e-6, atol=1e-7)
    assert graph.hidden_ids == []
    assert {(e.src, e.delay): e.weight for e in graph.all_edges()} == {("x", 3): 0.75, ("z", 5): -1.0}
    assert graph.get_edge("there").weight == 0.75


def test_pruning_without_redistribution():
    graph = line("clamp")
    prune_neuron(graph, "h", redistribute=False)
    assert [e.edge_id for e in graph.all_edges()] == ["over"]
    prune_edge(graph, "over")
    assert graph.n_edges() == 0
    np.testing.assert_array_equal(run(graph), np.zeros(20))


@DALE
@SIGNS
def test_merging_what_was_split_brings_it_back(mode, cell_type):
    graph = line(mode, cell_type, 1)
    run(graph, OBS[:5])
    old, new = split_neuron(graph, "h")
    assert preserved(graph, lambda g: merge_neurons(g, old, new)) == "h"
    assert graph.hidden_ids == ["h"]
    assert graph.get_edge("out").weight == pytest.approx(SIZE[cell_type], rel=1e-5)
    assert [e.edge_id for e in graph.all_edges()] == ["in", "out", "over"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: insert_neuron_on_edge(g, "none"), "there is no edge 'none'"),
        (lambda g: insert_neuron_on_edge(g, "out", neuron_id="x"), "'x' is or was the id"),
        (lambda g: split_neuron(g, "nobody"), "there is no neuron 'nobody'"),
        (lambda g: split_neuron(g, "y"), "split_neuron takes hidden neurons, and 'y' is an output"),
        (lambda g: split_neuron(g, "h", share=1.5), r"share must be in \[0, 1\], got 1.5"),
        (lambda g: add_input_neuron(g, "gelu"), "activation must be one of"),
        (lambda g: add_free_edge(g, "h", "x"), "an edge into 'x' would do nothing"),
        (lambda g: add_free_edge(g, "h2", "h", delay=0), "'h2' -> 'h' -> 'h2'"),
        (lambda g: prune_edge(g, "none"), "there is no edge 'none'"),
        (lambda g: prune_neuron(g, "x"), "prune_neuron takes hidden neurons, and 'x' is an input"),
        (lambda g: prune_neuron(g, "y", redistribute=False), "'y' is an output"),
        (lambda g: merge_neurons(g, "h", "h"), "merge_neurons takes two neurons, got 'h' twice"),
        (lambda g: merge_neurons(g, "h", "x"), "'x' is an input"),
        (lambda g: merge_neurons(g, "h", "relu"), "one class, activation and cell type, got Neuron"),
        (lambda g: merge_neurons(g, "h2", "h"), "circle without delay: 'h' -> 'h2' joins them"),
        (lambda g: neuron_importance(g, "nobody"), "there is no neuron"),
        (lambda g: edge_importance(g, "none"), "there is no edge"),
        (lambda g: cosine_similarity_neurons(g, "h", "nobody"), "there is no neuron"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(call, message):
    graph = line("clamp")
    graph.add_neuron("hidden", "tanh", "h2")
    graph.add_neuron("hidden", "relu", "relu")
    graph.add_edge("h", "h2", 0.5)
    before = graph.version, graph.all_neuron_ids(), graph.all_edges(), run(graph)
    with pytest.raises(ValueError, match=message):
        call(graph)
    assert (graph.version, graph.all_neuron_ids(), graph.all_edges()) == before[:3]
    graph.reset_state()
    np.testing.assert_array_equal(run(graph), before[3])


def test_measures():
    graph = line("clamp")
    graph.add_edge("h", "h", 2.0, 1)
    assert edge_importance(graph, "out") == pytest.approx(0.8)
    assert neuron_importance(graph, "h") == pytest.approx(3.4e-8)  # silent so far; a loop counts once
    assert neuron_importance(graph, "h", activations=[0.5, -1.5]) == pytest.approx(3.4, rel=1e-6)
    assert cosine_similarity_neurons(graph, "h", "x") == 0.0
    graph.forward([1.0])
    h = np.tanh(0.6 + 0.7)
    assert neuron_importance(graph, "h") == pytest.approx(3.4 * h, rel=1e-6)
    assert cosine_similarity_neurons(graph, "h", "x") == pytest.approx(1.0)
    split_neuron(graph, "h")
    for name in "hy":
        graph.get_neuron(name).expand_history(4)
    for x in (-3.0, 2.0, 0.5):
        graph.forward([x])
    assert cosine_similarity_neurons(graph, "h", "n0") == pytest.approx(1.0, abs=1e-6)
    past = [[graph.get_neuron(name).get_delayed(d) for d in (1, 2, 3, 4)] for name in ("h", "y")]
    expected = np.dot(*past) / np.linalg.norm(past[0]) / np.linalg.norm(past[1])
    assert cosine_similarity_neurons(graph, "h", "y") == pytest.approx(expected, rel=1e-5)


def test_values_follow():
    graph = line("clamp", "inhibitory", 3)
    graph.forward([0.5])
    graph.forward([1.5])
    _, copied = split_neuron(graph, "h")
    relays = [insert_neuron_on_edge(graph, edge) for edge in ("out", "in")]
    h = np.tanh(0.6 * 1.5 + 0.7)
    seen = {name: graph.values[graph.slot_of(name)] for name in graph.all_neuron_ids()}
    # The relay of a delay of 3 was not there; that of none hands on the newest value.
    expected = {"x": 1.5, "h": h, copied: h, "y": 0.15, relays[0]: 0.0, relays[1]: 1.5}
    assert seen == {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}
    graph.forward([0.0])
    assert graph.values[graph.slot_of(relays[0])] == pytest.approx(-h, rel=1e-6)  # now it does, with its sign


def test_handles_and_ids_come_through_any_edit():
    graph = line("clamp")
    kept = [graph.parameter("bias", "h"), graph.parameter("edge", "in")]
    halved = graph.parameter("edge", "out")
    split_neuron(graph, "h")
    add_input_neuron(graph)
    add_input_neuron(graph)
    assert [float(p) for p in kept] == pytest.approx([0.7, 0.6])
    assert float(halved) == pytest.approx(-0.4)
    insert_neuron_on_edge(graph, "out")
    prune_neuron(graph, "h")
    for handle in (*kept, halved):
        with pytest.raises(ValueError, match="any more"):
            float(handle)


# Any sequence, on any graph, in the middle of an episode


def _edit(oracle, graph, rng, names):
    """One random edit of both; False where the oracle says that it is impossible. names: oracle's to the graph's."""
    hidden = [n for n, neuron in oracle.neurons.items() if neuron.role == "hidden"]
    others = [n for n, neuron in oracle.neurons.items() if neuron.role != "input"]
    what = rng.choice(["insert", "split", "edge", "prune edge", "prune", "merge", "twins"])
    edge = list(oracle.edges)[rng.integers(len(oracle.edges))] if oracle.edges else None
    u, v = names[rng.choice(list(names))], names[rng.choice(others)]
    a, b = rng.choice(hidden, 2) if hidden else (None, None)
    trial = oracle.copy()

    def edge_id(place):
        places = {tuple(graph.place_of(e.edge_id)): e.edge_id for e in graph.all_edges()}
        return places[names[place[0]], names[place[1]], place[2]]

    try:
        if what == "insert" and edge:
            new = trial.insert_on_edge(edge)
            names[new] = insert_neuron_on_edge(graph, edge_id(edge))
        elif what in ("split", "twins") and hidden:
            share = rng.choice([0.5, 0.3])
            new = trial.split(a, share)
            _, names[new] = split_neuron(graph, names[a], share=float(share))
            if what == "twins":
                trial.merge(a, new)
                merge_neurons(graph, names[a], names.pop(new))
        elif what == "edge":
            delay = int(rng.integers(4))
            by_name = {name: n for n, name in names.items()}
            weight = float(abs(rng.normal()) * trial.neurons[by_name[u]].cell_type or rng.normal())
            if (by_name[u], by_name[v], delay) in trial.edges:
                return False
            trial.add_free_edge(by_name[u], by_name[v], delay, weight)
            graph.add_edge(u, v, weight, delay)
        elif what == "prune edge" and edge:
            trial.prune_edge(edge)
            prune_edge(graph, edge_id(edge))
        elif what == "prune" and hidden:
            redistribute = bool(rng.integers(2))
            trial.prune_neuron(a, redistribute)
            prune_neuron(graph, names.pop(a), redistribute)
        elif what == "merge" and hidden:
            trial.merge(a, b)
            merge_neurons(graph, names[a], names[b])
            del names[b]
        else:
            return False
    except Impossible:
        return False
    oracle.__dict__.update(trial.__dict__)
    return True


@pytest.mark.parametrize("capacity", MODES, ids=["clamp", "softplus"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 20))])
def test_any_edits_are_the_oracles(capacity, seed):
    rng = np.random.default_rng([seed, 7])
    oracle, _ = random_oracle(seed, capacity, density=0.2)
    oracle.longest = 4
    graph = face_of(oracle, rng, max_delay=4)
    names = {n: n for n in oracle.neurons}
    done, ids = 0, set(graph.all_neuron_ids())
    while done < 20:
        there = set(graph.all_neuron_ids())
        if not _edit(oracle, graph, rng, names):
            continue
        done += 1
        new = set(graph.all_neuron_ids()) - there
        assert not new & ids
        ids |= new
        assert set(graph.all_neuron_ids()) == set(names.values())
        places = {(names[u], names[v], d) for u, v, d in oracle.edges}
        assert {(e.src, e.dst, e.delay) for e in graph.all_edges()} == places
        for x in rng.normal(size=(2, len(oracle.input_ids))):
            out, values = oracle.step(x)
            np.testing.assert_allclose(graph.forward(x), out, rtol=2e-4, atol=2e-5)
            seen = [graph.values[graph.slot_of(names[n])] for n in values]
            np.testing.assert_allclose(seen, list(values.values()), rtol=2e-4, atol=2e-5)


def alike(mode, law="any"):
    """x -> a, x -> r -> b: both are x, by other ways; both lead to y, b after a delay, too."""
    graph = NeuronGraph(mode)
    graph.make_room(delays=8, levels=4, gated=True)
    graph.add_neuron("input", neuron_id="x")
    for name in ("b", "r", "a"):
        graph.add_neuron("hidden", "linear", name, cell_type=law)
    graph.add_neuron("output", "tanh", "y")
    graph.get_neuron("a").bias.data = 0.3
    graph.get_neuron("r").bias.data = 0.3
    for src, dst, weight, delay in (
        ("x", "a", 1.0, 0), ("x", "r", 1.0, 0), ("r", "b", 1.0, 0), ("a", "y", 0.5, 0), ("b", "y", 0.25, 0),
        ("b", "y", 0.4, 2), ("r", "y", 0.1, 1),
    ):  # fmt: skip
        graph.add_edge(src, dst, weight, delay)
    return graph


@DALE
@pytest.mark.parametrize(("stays", "goes"), [("a", "b"), ("b", "a"), ("r", "b"), ("r", "a")])
def test_of_two_that_agree_one_is_enough_whatever_they_are_made_of(mode, stays, goes):
    law = "excitatory" if mode == "softplus" else "any"
    graph = alike(mode, law)
    preserved(graph, lambda g: merge_neurons(g, stays, goes, inherit=False))
    assert goes not in graph.all_neuron_ids()
    assert graph.get_neuron(stays).bias.data == pytest.approx(0.0 if stays == "b" else 0.3)


def test_what_would_close_a_circle_does_not_merge():
    graph = alike("clamp")
    with pytest.raises(ValueError, match="would close a circle without delay: 'r' -> 'b' joins them"):
        merge_neurons(graph, "b", "r", inherit=False)
    with pytest.raises(ValueError, match="would close a circle without delay: 'r' -> 'b' joins them"):
        merge_neurons(graph, "r", "b")


def test_a_refused_edit_leaves_the_graph_as_it_was():
    """Neither its inputs nor its room change."""
    graph = alike("clamp")
    before, out = graph.capacity, run(graph, OBS[:3])
    graph.reset_state()
    with pytest.raises(ValueError, match="'a' is or was the id"):
        add_input_neuron(graph, neuron_id="a")
    with pytest.raises(TypeError):
        add_input_neuron(graph, neuron_id=["a"])
    with pytest.raises(ValueError, match="cannot be done"):
        graph.edit(edits.merge, graph.slot_of("r"), graph.slot_of("b"))
    assert graph.capacity == before
    np.testing.assert_array_equal(run(graph, OBS[:3]), out)


@pytest.mark.parametrize("inherit", [True, False])
def test_edges_between_regions_follow_a_merge(inherit):
    brain = BrainNetwork()
    for name in ("one", "two"):
        brain.add_region(name, alike("clamp"))
    brain.add_inter_region_edge("one", "y", "two", "b", 0.5, 1)
    brain.add_inter_region_edge("one", "a", "two", "a", 0.25, 1)
    merge_neurons(brain.regions["two"], "a", "b", inherit=inherit)
    merge_neurons(brain.regions["one"], "a", "b", inherit=inherit)
    ends = {(edge.src_neuron, edge.dst_neuron) for edge in brain.all_inter_region_edges()}
    assert ends == ({("y", "a"), ("a", "a")} if inherit else {("a", "a")})
