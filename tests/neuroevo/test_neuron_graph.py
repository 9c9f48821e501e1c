"""The graph of neurons with names: what it computes, what it refuses, and what survives its changes."""

import copy
import importlib.util
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.neuroevo import (
    GRUNeuron,
    LSTMNeuron,
    Neuron,
    NeuronGraph,
    TrainableGRUNeuron,
    TrainableLSTMNeuron,
    neuron_graph,
)
from tensor_optix.neuroevo.graph.arrays import Weights
from tensor_optix.neuroevo.graph.dale import ZERO
from tensor_optix.neuroevo.graph.forward import step
from tests.neuroevo.faces import face_of
from tests.neuroevo.graphs import MODES, observations, random_oracle

DALE = pytest.mark.parametrize("mode", ["clamp", "softplus"])


def small(mode="clamp", hidden=2, neuron=None):
    """Two inputs, hidden neurons, two outputs; all joined, with some feedback."""
    graph = NeuronGraph(mode)
    for _ in range(2):
        graph.add_neuron("input")
    for _ in range(hidden):
        graph.add_neuron("hidden", neuron=neuron)
    for _ in range(2):
        graph.add_neuron("output", "linear")
    weights = iter(np.random.default_rng(0).normal(size=100))
    for h in graph.hidden_ids:
        for i in graph.input_ids:
            graph.add_edge(i, h, next(weights))
        for o in graph.output_ids:
            graph.add_edge(h, o, next(weights))
        graph.add_edge(h, graph.hidden_ids[0], 0.3, delay=2)
    return graph


OBS = observations(3, 20, 2)


def run(graph, obs=OBS):
    return np.stack([graph.forward(x) for x in obs])


# What it computes


@pytest.mark.parametrize("capacity", MODES, ids=["clamp", "softplus"])
def test_an_episode_is_the_oracles(capacity):
    """Whatever the names and the order in which neurons and edges came."""
    for seed in range(3):
        oracle, _ = random_oracle(seed, capacity, hidden=6)
        graph = face_of(oracle, np.random.default_rng(seed))
        obs = observations(seed, 8, len(oracle.input_ids))
        for x in obs:
            out, values = oracle.step(x)
            np.testing.assert_allclose(graph.forward(x), out, rtol=1e-5, atol=2e-6)
            seen = {name: graph.values[graph.slot_of(name)] for name in graph.all_neuron_ids()}
            np.testing.assert_allclose([seen[n] for n in values], list(values.values()), rtol=1e-5, atol=2e-6)


def test_edges_without_delay_act_in_the_same_step_whatever_the_order_of_adding():
    for ids in ("abcde", "edcba", "cbead"):
        graph = NeuronGraph()
        graph.add_neuron("input", neuron_id="in")
        for name in ids:
            graph.add_neuron("hidden", "linear", name)
        graph.add_neuron("output", "linear", "out")
        way = ["in", *"abcde", "out"]
        for src, dst in itertools.pairwise(way):
            graph.add_edge(src, dst, 2.0)
        assert graph.forward([1.0]) == 64.0
        assert graph.arrays.capacity.levels == 8


def test_a_delayed_edge_brings_the_value_of_so_many_steps_ago_until_the_episode_ends():
    graph = NeuronGraph()
    graph.add_neuron("input", neuron_id="x")
    graph.add_neuron("output", "linear", neuron_id="y")
    graph.add_edge("x", "y", 1.0, delay=3)
    graph.reset_state()
    assert [float(graph.forward([t])[0]) for t in range(1, 6)] == [0, 0, 0, 1, 2]
    graph.reset_state()
    assert float(graph.forward([9.0])[0]) == 0.0


@DALE
@pytest.mark.parametrize("neuron", [None, GRUNeuron(), TrainableLSTMNeuron()])
def test_acting_and_learning_are_one_forward(mode, neuron):
    """forward, step by step, and the pure scan over the same observations."""
    graph = small(mode, neuron=neuron)
    graph.add_neuron("hidden", "relu", "signed", cell_type="inhibitory")
    graph.add_edge("n0", "signed", 1.0)
    graph.add_edge("signed", graph.output_ids[0], -0.7)
    arrays, memory = graph.arrays, graph.memory

    def one(memory, x):
        out, memory, _ = step(arrays, memory, x)
        return memory, out

    end, outs = jax.jit(lambda m, x: jax.lax.scan(one, m, x))(memory, OBS)
    np.testing.assert_allclose(run(graph), outs, rtol=1e-6, atol=1e-7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), graph.memory, end)


def test_the_same_kind_comes_out():
    torch = pytest.importorskip("torch")
    graph = small()
    kinds = [np.array([1, 2]), [1.0, 2.0], jnp.array([1.0, 2.0]), torch.tensor([1.0, 2.0], requires_grad=True)]
    outs = []
    for obs in kinds:
        graph.reset_state()
        outs.append(graph(obs))
    assert [type(out).__module__.split(".")[0] for out in outs] == ["numpy", "numpy", "jaxlib", "torch"]
    assert isinstance(outs[2], jax.Array)
    assert {str(out.dtype).removeprefix("torch.") for out in outs} == {"float32"}
    for out in outs:
        np.testing.assert_array_equal(np.asarray(out), outs[0])
    outs[0][0] = 1.0  # may be written to


@pytest.mark.parametrize("obs", [np.zeros(3), np.zeros((1, 2)), 1.0, []])
def test_another_obs_dim_is_refused(obs):
    with pytest.raises(ValueError, match=r"obs dim must be 2, one number for each input neuron, got the shape \["):
        small().forward(obs)


def test_forward_keeps_out_of_transformations():
    with pytest.raises(TypeError, match=r"forward\.step"):
        jax.jit(small().forward)(jnp.zeros(2))


def test_without_inputs_or_outputs():
    graph = NeuronGraph()
    assert graph.forward([]).shape == (0,)
    graph.add_neuron("output", "linear", "y")
    graph.get_neuron("y").bias.data = 0.5
    assert graph.forward([]).tolist() == [0.5]


def test_one_program_for_all_graphs_of_a_capacity():
    before = neuron_graph._forward._cache_size()
    graph = small(hidden=3)
    run(graph)
    graph.compile_forward()
    first = neuron_graph._forward._cache_size()
    assert first <= before + 1
    graph.add_edge("n1", graph.output_ids[0], 0.4)
    graph.add_neuron()
    graph.invalidate_compile()
    graph.remove_edge("e3")
    graph.reset_state()
    run(graph)
    run(small(hidden=3))
    assert neuron_graph._forward._cache_size() == first


# Names


def test_ids_are_given_once():
    graph = NeuronGraph()
    assert [graph.add_neuron() for _ in range(3)] == ["n0", "n1", "n2"]
    assert graph.add_neuron(neuron_id=("a", 1)) == ("a", 1)
    assert graph.add_neuron(neuron_id="n4") == "n4"
    graph.remove_neuron("n2")
    assert [graph.add_neuron() for _ in range(2)] == ["n3", "n5"]
    for taken in ("n0", "n2"):
        with pytest.raises(ValueError, match=f"'{taken}' is or was the id of a neuron"):
            graph.add_neuron(neuron_id=taken)
    assert graph.add_edge("n0", "n1") == "e0"
    graph.remove_edge("e0")
    assert graph.add_edge("n0", "n1") == "e1"
    with pytest.raises(ValueError, match="none is given twice"):
        graph.add_edge("n0", "n3", edge_id="e0")
    assert graph.n_edges() == 1


def test_inputs_and_outputs_come_and_go():
    graph = NeuronGraph()
    for name in "abc":
        graph.add_neuron("input", neuron_id=name)
        graph.add_neuron("output", "linear", name.upper())
    graph.add_neuron(neuron_id="h", activation="linear")
    for i, name in enumerate("abc"):
        graph.add_edge(name, "h", 10.0**i)
        graph.add_edge("h", name.upper(), 1.0, delay=i)
    graph.forward([1, 1, 1])
    assert graph.forward([1, 2, 3]).tolist() == [321.0, 111.0, 0.0]
    graph.remove_neuron("b")
    graph.remove_neuron("A")
    assert (graph.input_ids, graph.output_ids, graph.hidden_ids) == (["a", "c"], ["B", "C"], ["h"])
    assert graph.arrays.capacity.inputs == graph.arrays.capacity.outputs == 2
    assert graph.forward([1, 1]).tolist() == [321.0, 111.0]  # the memory is that of before
    graph.add_neuron("input", neuron_id="d")
    assert graph.forward([1, 1, 50]).tolist() == [101.0, 321.0]
    graph.remove_neuron("nobody")
    graph.remove_edge("nothing")


def test_views():
    graph = small()
    edge = graph.get_edge("e0")
    assert (edge.src, edge.dst, edge.delay) == ("n0", "n2", 0)
    assert edge.weight == pytest.approx(0.12573022)
    assert edge == graph.all_edges()[0] == graph.edges_from("n0")[0] == graph.edges_into("n2")[0]
    assert [e.edge_id for e in graph.edges_into("n2")] == ["e0", "e1", "e4", "e9"]
    assert graph.all_neuron_ids() == [f"n{i}" for i in range(6)]
    assert (graph.n_neurons(), graph.n_edges()) == (6, 10)
    assert graph.cell_type_of("n2") == "any"
    with pytest.raises(AttributeError):
        edge.weight = 1.0


def test_every_change_of_structure_is_counted():
    graph = NeuronGraph()
    changes = [
        lambda: graph.add_neuron("input"),
        lambda: graph.add_neuron("output"),
        lambda: graph.add_edge("n0", "n1", 0.5),
        lambda: graph.remove_edge("e0"),
        lambda: graph.remove_neuron("n0"),
        lambda: graph.load_state_dict(graph.state_dict()),
    ]
    for count, change in enumerate(changes):
        assert graph.version == count
        change()
    assert graph.version == len(changes)
    graph.forward([])
    graph.enforce_dale()
    graph.set_arrays(graph.arrays)
    graph.remove_edge("e0")
    graph.parameters()[0].data = 1.0
    assert graph.version == len(changes)


# What it refuses


def test_a_circle_without_delay_is_refused_by_name():
    graph = NeuronGraph()
    for name in "abcd":
        graph.add_neuron(neuron_id=name)
    for src, dst in ("ab", "bc", "ad", "cd"):
        graph.add_edge(src, dst)
    with pytest.raises(ValueError, match="'c' -> 'a' -> 'b' -> 'c'"):
        graph.add_edge("c", "a")
    with pytest.raises(ValueError, match="'d' -> 'd'"):
        graph.add_edge("d", "d")
    assert graph.n_edges() == 4
    graph.add_edge("c", "a", delay=1)
    graph.add_edge("d", "d", delay=1)


def test_a_second_edge_is_refused():
    graph = small()
    with pytest.raises(ValueError, match="joined with delay 0 already, by the edge 'e0'"):
        graph.add_edge("n0", "n2", 0.7)
    graph.add_edge("n0", "n2", 0.7, delay=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.add_neuron("middle"), "role must be one of input, hidden, output, got 'middle'"),
        (lambda g: g.add_neuron(activation="gelu"), "activation must be one of .*elu, got 'gelu'"),
        (lambda g: g.add_neuron(cell_type="both"), "cell_type must be one of .*, got 'both'"),
        (lambda g: g.add_neuron(max_delay=0), "max_delay must be at least 1, got 0"),
        (lambda g: g.add_neuron("input", neuron=GRUNeuron()), "cannot be a GRUNeuron"),
        (lambda g: g.add_neuron(cell_type="inhibitory", neuron=Neuron(cell_type="excitatory")), "give one of them"),
        (lambda g: g.add_edge("n0", "nobody"), "there is no neuron 'nobody'"),
        (lambda g: g.add_edge("nobody", "n2"), "there is no neuron 'nobody'"),
        (lambda g: g.add_edge("n2", "n0", delay=1), "an edge into 'n0' would do nothing"),
        (lambda g: g.add_edge("n0", "n4", delay=-1), "delay must be at least 0, got -1"),
        (lambda g: g.add_edge("n0", "n4", float("nan")), "weight must be finite, got nan"),
        (lambda g: g.get_neuron("nobody"), "there is no neuron 'nobody'; all_neuron_ids"),
        (lambda g: g.get_edge("nothing"), "there is no edge 'nothing'; all_edges"),
        (lambda g: g.edges_from("nobody"), "there is no neuron 'nobody'"),
        (lambda g: NeuronGraph("hard"), "dale_mode must be one of clamp, softplus, got 'hard'"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    graph = small()
    before = graph.version, graph.n_neurons(), graph.n_edges(), run(graph)
    with pytest.raises(ValueError, match=message):
        call(graph)
    graph.reset_state()
    assert (graph.version, graph.n_neurons(), graph.n_edges()) == before[:3]
    np.testing.assert_array_equal(run(graph), before[3])


def test_types():
    graph = small()
    with pytest.raises(TypeError, match=r"delay must be a whole number, got 1\.5"):
        graph.add_edge("n0", "n4", delay=1.5)
    with pytest.raises(TypeError, match="neuron must be a Neuron"):
        graph.add_neuron(neuron=GRUNeuron)


# Dale's law


def dale_graph(mode):
    graph = NeuronGraph(mode)
    graph.add_neuron("input", neuron_id="x")
    for name in ("excitatory", "inhibitory", "any"):
        graph.add_neuron(neuron_id=name, activation="linear", cell_type=name)
        graph.add_edge("x", name, 1.0)
    graph.add_neuron("output", "linear", neuron_id="y")
    return graph


@DALE
def test_weights_are_given_and_read_as_they_act(mode):
    graph = dale_graph(mode)
    for name, weight in {"excitatory": 0.25, "inhibitory": -0.5, "any": -3.0}.items():
        graph.add_edge(name, "y", weight, edge_id=name)
        assert graph.effective_weight(name) == graph.get_edge(name).weight == pytest.approx(weight, rel=1e-6)
    assert graph.forward([2.0]) == pytest.approx(-6.5, rel=1e-6)
    raw = float(graph.parameter("edge", "excitatory"))
    assert raw == pytest.approx(0.25 if mode == "clamp" else np.log(np.expm1(0.25)), rel=1e-6)


def test_clamping_waits_for_its_call():
    graph = dale_graph("clamp")
    for name, weight in {"excitatory": -0.25, "inhibitory": 0.5, "any": -3.0}.items():
        graph.add_edge(name, "y", weight, edge_id=name)
        assert graph.effective_weight(name) == weight
    graph.forward([1.0])
    graph.enforce_dale()
    assert [graph.effective_weight(name) for name in ("excitatory", "inhibitory", "any")] == [0.0, 0.0, -3.0]
    graph.parameter("edge", "inhibitory").data = 0.1
    graph.enforce_dale()
    assert float(graph.parameter("edge", "inhibitory")) == 0.0


def test_softplus_has_no_wrong_signs():
    graph = dale_graph("softplus")
    with pytest.raises(
        ValueError, match=r"weights from 'excitatory' must be at least 0, for it is excitatory, got -0\.25"
    ):
        graph.add_edge("excitatory", "y", -0.25)
    with pytest.raises(ValueError, match="weights from 'inhibitory' must be at most 0"):
        graph.add_edge("inhibitory", "y", 0.5)
    for name in ("excitatory", "inhibitory"):
        handle = graph.parameter("edge", graph.add_edge(name, "y", 0.0, edge_id=name))
        assert float(handle) == ZERO
        assert abs(graph.effective_weight(name)) < 1e-6
    for raw in (-3.0, 3.0):
        graph.parameter("edge", "inhibitory").data = raw
        graph.enforce_dale()
        assert float(graph.parameter("edge", "inhibitory")) == raw
        assert graph.effective_weight("inhibitory") < 0


# Parameters


def test_there_is_a_handle_for_all_that_is_learned():
    graph = small(neuron=GRUNeuron())
    graph.add_neuron(neuron=LSTMNeuron(), neuron_id="l")
    names = [p.name for p in graph.parameters()]
    assert names[:7] == [*(f"bias:n{i}" for i in range(6)), "bias:l"]
    assert names[7:-3] == [f"edge:e{i}" for i in range(10)]
    assert names[-3:] == ["gates:n2", "gates:n3", "gates:l"]
    assert [p.shape for p in graph.parameters()[-3:]] == [(9,), (9,), (12,)]
    assert all(p.grad is None for p in graph.parameters())
    graph.remove_neuron("n2")
    assert len(graph.parameters()) == graph.n_neurons() + graph.n_edges() + 2


def test_handles_write_through_and_stay():
    graph = small()
    bias, edge = graph.parameter("bias", "n4"), graph.parameter("edge", "e2")
    before = graph.arrays
    kept = jax.tree.map(np.array, before.weights)
    bias.data, edge.data, edge.grad = 0.25, jnp.float32(-1.5), [0.5]
    jax.tree.map(np.testing.assert_array_equal, before.weights, kept)  # what was handed out stays
    graph.add_neuron("input")
    graph.add_neuron("output", activation="linear")
    for _ in range(9):
        graph.add_neuron()
    graph.remove_neuron("n0")
    assert graph.parameters()[3] is bias
    assert (float(bias), float(edge), float(edge.grad)) == (0.25, -1.5, 0.5)
    assert graph.effective_weight("e2") == -1.5
    assert np.flatnonzero(graph.arrays.weights.bias).tolist() == [graph.slot_of("n4")]
    bias.data += 1
    assert float(bias) == 1.25


def test_a_handle_of_something_gone_says_so():
    graph = small()
    gone = [graph.parameter("bias", "n2"), graph.parameter("edge", "e0")]
    graph.remove_neuron("n2")
    for handle, what in zip(gone, ["neuron 'n2'", "edge 'e0'"], strict=True):
        for use in (float, lambda p: p.grad, lambda p: setattr(p, "data", 1.0), lambda p: setattr(p, "grad", 1.0)):
            with pytest.raises(ValueError, match=f"there is no {what} any more"):
                use(handle)


def test_of_another_shape_is_refused():
    graph = small(neuron=GRUNeuron())
    with pytest.raises(ValueError, match=r"data of gates:n2 must have the shape \[9\], got one of shape \[12\]"):
        graph.parameter("gates", "n2").data = np.zeros(12)
    with pytest.raises(ValueError, match=r"grad of bias:n2 must have the shape \[\]"):
        graph.parameter("bias", "n2").grad = [1.0, 2.0]


def test_gradients_are_handed_on():
    graph = small(neuron=TrainableGRUNeuron())
    arrays, memory = graph.arrays, graph.memory

    def loss(weights):
        return step(arrays.replace(weights=weights), memory, jnp.ones(2))[0].sum()

    graph.set_gradients(jax.jit(jax.grad(loss))(arrays.weights))
    for handle in graph.parameters():
        value, h = handle.data.copy(), 1e-2
        handle.data = value + h
        up = graph.forward([1, 1]).sum()
        graph.reset_state()
        handle.data = value - h
        down = graph.forward([1, 1]).sum()
        graph.reset_state()
        handle.data = value
        assert np.sum(handle.grad) == pytest.approx((up - down) / (2 * h), abs=2e-3), handle.name


# What survives


def test_gates_are_drawn_from_the_seed():
    def first(seed):
        graph = NeuronGraph(seed=seed)
        return [np.array(graph.get_neuron(graph.add_neuron(neuron=GRUNeuron())).gates.data) for _ in range(2)]

    a, b = first(0)
    assert np.flatnonzero(a).tolist() == [7]  # the candidate's input
    assert a[7] != b[7]
    np.testing.assert_array_equal(first(0)[1], b)
    assert first(1)[0][7] != a[7]
    many = [first(seed)[0][7] for seed in range(60)]
    assert 0.07 < np.std(many) < 0.14  # 0.1: beyond three deviations


def test_copies_go_their_own_ways():
    graph = small(neuron=LSTMNeuron())
    handle = graph.parameter("edge", "e0")
    run(graph)
    twin = copy.deepcopy(graph)
    np.testing.assert_array_equal(run(twin), run(graph))
    before = run(graph)
    twin.parameter("edge", "e0").data = 9.0
    twin.get_neuron("n2").bias.data = 9.0
    twin.add_edge("n0", "n4", 9.0)
    assert float(handle) != 9.0
    assert graph.n_edges() == 10
    assert np.abs(run(twin) - before).max() > 1


@DALE
def test_a_state_comes_back_whatever_has_grown_or_gone(mode):
    graph = small(mode, neuron=TrainableLSTMNeuron())
    graph.add_neuron("hidden", "relu", "signed", cell_type="inhibitory", max_delay=3)
    graph.add_edge("signed", "n4", -0.7, delay=1)
    graph.add_edge("n0", "signed", 0.7)
    handle = graph.parameter("edge", "e0")
    run(graph)
    state, capacity = graph.state_dict(), graph.arrays.capacity
    goes_on = run(copy.deepcopy(graph))
    handle.data = 5.0
    for _ in range(20):
        graph.add_edge(graph.add_neuron(), "n5", 1.0, delay=5)
    graph.remove_neuron("n2")
    graph.add_neuron("input")
    graph.add_neuron("output")
    assert graph.arrays.capacity != capacity
    graph.load_state_dict(state)
    assert graph.arrays.capacity == capacity  # slot by slot as it was: sums are taken in the same order
    np.testing.assert_allclose(run(graph), goes_on, rtol=1e-6, atol=1e-7)
    assert graph.get_neuron("signed").max_delay == 3
    assert float(handle) == pytest.approx(0.12573022)
    assert graph.add_neuron() == "n28"  # behind all that there were
    assert graph.add_edge("n0", "n4", delay=9) == "e32"

    elsewhere = NeuronGraph(mode)
    elsewhere.load_state_dict(state)
    np.testing.assert_allclose(run(elsewhere), goes_on, rtol=1e-6, atol=1e-7)
    assert elsewhere.all_edges() == [e for e in graph.all_edges() if e.delay < 9]


def test_ids_of_what_is_gone_are_in_the_state():
    graph = small()
    graph.add_neuron(neuron_id="mine")
    graph.add_edge("n0", "mine")
    for name in ("mine", "n5"):
        graph.remove_neuron(name)
    elsewhere = NeuronGraph()
    elsewhere.load_state_dict(graph.state_dict())
    with pytest.raises(ValueError, match="'mine' is or was the id of a neuron"):
        elsewhere.add_neuron(neuron_id="mine")
    assert elsewhere.add_neuron() == graph.add_neuron() == "n6"
    assert elsewhere.add_edge("n6", "n4") == graph.add_edge("n6", "n4") == "e11"


def test_a_state_is_plain():
    state = small(neuron=GRUNeuron()).state_dict()
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in state.items()}
    graph = NeuronGraph()
    graph.load_state_dict(json.loads(json.dumps(plain)))
    np.testing.assert_array_equal(run(graph), run(small(neuron=GRUNeuron())))


def test_a_state_that_does_not_fit_changes_nothing():
    graph = small()
    state = graph.state_dict()
    before = run(graph)
    with pytest.raises(ValueError, match="dale_mode is 'clamp', the state's 'softplus'"):
        graph.load_state_dict(NeuronGraph("softplus").state_dict())
    with pytest.raises(ValueError, match="it lacks raw"):
        graph.load_state_dict({key: value for key, value in state.items() if key != "raw"})
    with pytest.raises(ValueError, match="class"):
        graph.load_state_dict({**state, "neurons": [{"id": "a"}] * 6})
    graph.reset_state()
    np.testing.assert_array_equal(run(graph), before)


def test_arrays_go_out_and_weights_come_in():
    graph = small()
    arrays = graph.arrays
    assert (arrays.capacity.inputs, arrays.capacity.outputs) == (2, 2)
    run(graph)
    memory = graph.memory
    doubled = arrays.replace(weights=jax.tree.map(lambda x: 2 * x, arrays.weights))
    graph.set_arrays(doubled)
    assert graph.effective_weight("e0") == pytest.approx(2 * 0.12573022)
    jax.tree.map(np.testing.assert_array_equal, graph.memory, memory)
    out, after, _ = step(doubled, memory, jnp.ones(2))
    np.testing.assert_allclose(graph.forward(np.ones(2)), out, rtol=1e-6)
    graph.set_arrays(arrays, after)
    np.testing.assert_allclose(graph.forward(np.ones(2)), step(arrays, after, jnp.ones(2))[0], rtol=1e-6)

    with pytest.raises(ValueError, match="other neurons or edges"):
        graph.set_arrays(arrays.replace(topology=arrays.topology.replace(edges=~arrays.topology.edges)))
    with pytest.raises(ValueError, match="the memory of one graph"):
        graph.set_arrays(arrays, jax.tree.map(lambda x: x[None], after))
    with pytest.raises(ValueError, match="shapes and dtypes"):
        graph.set_arrays(arrays.replace(weights=Weights(*([jnp.zeros(1)] * 3))))
    graph.add_neuron("input")
    with pytest.raises(ValueError, match="take `arrays` anew"):
        graph.set_arrays(arrays)


def test_values_are_those_of_the_last_step():
    graph = small()
    assert graph.values is None
    out = graph.forward([0.5, -0.5])
    assert graph.values.shape == (graph.arrays.capacity.neurons,)
    graph.add_neuron("input")
    for _ in range(9):
        new = graph.add_neuron()
    at = [graph.slot_of(name) for name in ("n0", "n1", *graph.output_ids, new)]
    np.testing.assert_array_equal(graph.values[at], [0.5, -0.5, *out, 0.0])
    graph.reset_state()
    np.testing.assert_array_equal(graph.values[at[0]], 0.5)


# Neurons


def test_importing_is_light():
    assert importlib.util.find_spec("tensor_optix.neuroevo")
    code = (
        "import sys, tensor_optix.neuroevo as n\n"
        "assert 'NeuronGraph' in dir(n)\n"
        "assert 'torch' not in sys.modules and 'tensor_optix.neuroevo.neuron_graph' not in sys.modules\n"
        "assert n.NeuronGraph().forward([]).shape == (0,) and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("cls", [GRUNeuron, LSTMNeuron, TrainableGRUNeuron, TrainableLSTMNeuron, Neuron])
def test_a_neuron_of_its_own_does_what_it_does_in_a_graph(cls):
    graph = NeuronGraph(seed=5)
    graph.add_neuron("input")
    graph.add_neuron("hidden", neuron=cls(neuron_id="h", max_delay=3, cell_type="excitatory"))
    graph.add_neuron("output", "linear")
    graph.add_edge("n0", "h", 1.0)
    graph.add_edge("h", "n1", 1.0)
    view = graph.get_neuron("h")
    assert type(view) is cls
    assert (view.neuron_id, view.max_delay, view.cell_type) == ("h", 3, "excitatory")
    assert view.is_recurrent == cls.__name__.startswith("Trainable")
    if view.gates is not None:
        view.gates.data = np.random.default_rng(1).normal(size=view.gates.shape)
    view.bias.data = 0.2
    alone = view.split_copy()
    assert (type(alone), alone.neuron_id) == (cls, None)
    for x in (0.5, -1.0, 2.0, 0.3, 0.4):
        asked = view.step(x)
        value = graph.forward([x])[0]
        assert alone.step(x) == pytest.approx(value, abs=1e-6)
        assert alone.recurrent_step(x) == pytest.approx(value, abs=1e-6)
        assert asked == pytest.approx(value, abs=1e-6)
        alone.push_history()
        assert view.value == view.get_delayed(0) == value
    for d in range(5):
        assert view.get_delayed(d) == pytest.approx(alone.get_delayed(d), abs=1e-6)
    assert view.get_delayed(1) != 0
    assert view.get_delayed(4) == 0  # beyond what it keeps
    again = view.split_copy()
    assert again.step(0.7) == pytest.approx(graph.forward([0.7])[0], abs=1e-6)  # memory, too
    alone.reset_state()
    view.reset_state()
    assert alone.get_delayed(1) == view.get_delayed(1) == 0
    alone.reset_train_state()
    assert alone.step(0.5) == pytest.approx(alone.recurrent_step(0.5)) == pytest.approx(graph.forward([0.5])[0])


def test_a_neuron_is_described_by_another():
    graph = small(neuron=LSTMNeuron(max_delay=3))
    view = graph.get_neuron("n2")
    view.bias.data = 0.3
    copied = graph.get_neuron(graph.add_neuron(neuron=view, cell_type="excitatory"))
    assert (copied.neuron_id, copied.max_delay, copied.cell_type, type(copied)) == ("n6", 3, "excitatory", LSTMNeuron)
    assert float(copied.bias) == float(view.bias) == pytest.approx(0.3)
    np.testing.assert_array_equal(copied.gates.data, view.gates.data)
    copied.bias.data = 0.0
    assert float(view.bias) == pytest.approx(0.3)
    assert graph.add_neuron(neuron=Neuron(neuron_id="own")) == "own"
    assert graph.add_neuron(neuron=Neuron(neuron_id="own"), neuron_id="other") == "other"


def test_gradients_flow_through_a_sequence_of_a_trainable_neuron():
    neuron = TrainableGRUNeuron()
    neuron.gates.data = np.linspace(-1, 1, 9)

    def last(first):
        neuron.reset_train_state()
        neuron.recurrent_step(first)
        return neuron.recurrent_step(jnp.float32(0.3))

    slope = float(jax.grad(last)(jnp.float32(0.5)))
    assert slope == pytest.approx(float(last(0.51) - last(0.49)) / 0.02, abs=1e-3)
    assert abs(slope) > 1e-3


def test_the_protocol_of_neurons():
    neuron = Neuron("tanh", max_delay=2)
    assert isinstance(neuron.step(0.5), float)
    assert neuron.importance(3.0) == pytest.approx(3 * np.tanh(0.5), rel=1e-6)
    assert Neuron().importance(3.0) == pytest.approx(3e-8)
    relay = neuron.make_relay()
    assert [relay.step(x) for x in (-3.0, 5.0)] == [-3.0, 5.0]
    assert GRUNeuron().make_relay().kind == Neuron.kind
    neuron.init_history_from_buffer([10.0, np.float32(20), 30])
    assert [neuron.get_delayed(d) for d in (1, 2, 3)] == [10, 20, 0]
    neuron.expand_history(4)
    neuron.expand_history(1)
    assert (neuron.max_delay, [neuron.get_delayed(d) for d in (1, 2, 3)]) == (4, [10, 20, 0])
    assert neuron.can_merge_with(Neuron())
    assert not neuron.can_merge_with(Neuron("relu"))
    assert not GRUNeuron().can_merge_with(LSTMNeuron())
    assert not GRUNeuron().can_merge_with(TrainableGRUNeuron())
    with pytest.raises(ValueError, match="one number a step"):
        neuron.step([1.0, 2.0])
    assert neuron.step(np.array([0.5])).shape == (1,)


def test_a_view_writes_the_graphs_history():
    graph = small()
    run(graph)
    view = graph.get_neuron("n2")
    older = [view.get_delayed(d) for d in (1, 2)]
    view.expand_history(5)
    assert [view.get_delayed(d) for d in (1, 2, 3)] == [*older, 0]
    assert graph.arrays.capacity.delays == 8
    view.init_history_from_buffer([7.0, 8.0])
    assert [view.get_delayed(d) for d in (1, 2, 3)] == [7, 8, 0]
    np.testing.assert_array_equal(np.asarray(graph.memory.past)[:3, graph.slot_of("n2")], [7, 8, 0])
