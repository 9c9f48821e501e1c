"""The documented ways to build and change graphs of neurons."""

import numpy as np
import pytest

from tensor_optix.neuroevo import NeuronGraph


def outputs(graph, steps=6):
    """Of an episode."""
    graph.reset_state()
    obs = np.random.default_rng(0).normal(size=(steps, len(graph.input_ids)))
    return np.stack([graph.forward(x) for x in obs])


def minimal():
    # Build a minimal graph: 4 inputs, 2 hidden, 3 outputs (2 actions + 1 value)
    g = NeuronGraph()
    for _ in range(4):
        g.add_neuron(role="input", activation="linear")
    for _ in range(2):
        g.add_neuron(role="hidden", activation="tanh")
    for _ in range(3):
        g.add_neuron(role="output", activation="linear")
    for inp in g.input_ids:
        for hid in g.hidden_ids:
            g.add_edge(inp, hid, weight=0.1, delay=0)
    for hid in g.hidden_ids:
        for out in g.output_ids:
            g.add_edge(hid, out, weight=0.1, delay=0)
    return g


def test_a_minimal_graph():
    g = minimal()
    assert (g.n_neurons(), g.n_edges()) == (9, 14)
    obs = np.array([0.5, -1.0, 2.0, 0.25])
    np.testing.assert_allclose(g.forward(obs), np.full(3, 0.2 * np.tanh(0.1 * obs.sum())), rtol=1e-6)


def test_graph_construction_and_neuron_types():
    from tensor_optix.neuroevo import GRUNeuron, LSTMNeuron, NeuronGraph, TrainableGRUNeuron, TrainableLSTMNeuron

    graph = NeuronGraph()

    for _ in range(4):
        graph.add_neuron(role="input", activation="linear")
    for _ in range(8):
        graph.add_neuron(role="hidden", activation="tanh")
    graph.add_neuron(role="hidden", neuron=GRUNeuron())
    graph.add_neuron(role="hidden", neuron=LSTMNeuron())
    graph.add_neuron(role="hidden", neuron=TrainableGRUNeuron())
    graph.add_neuron(role="hidden", neuron=TrainableLSTMNeuron())
    graph.add_neuron(role="output", activation="linear")  # last output neuron is the value head

    src_id, dst_id = graph.input_ids[0], graph.output_ids[-1]
    graph.add_edge(src_id, dst_id, weight=0.0, delay=0)  # feedforward (d=0)
    graph.add_edge(src_id, dst_id, weight=0.0, delay=1)  # recurrent (d>=1, reads from history buffer)
    np.testing.assert_array_equal(outputs(graph), 0.0)
    assert [graph.get_neuron(name).is_recurrent for name in graph.hidden_ids] == [False] * 10 + [True] * 2
    for name in graph.hidden_ids:
        graph.add_edge(src_id, name, weight=1.0)
        graph.add_edge(name, dst_id, weight=1.0)
    assert np.abs(outputs(graph)).min() > 0
    for name in graph.hidden_ids:
        neuron = graph.get_neuron(name)
        neuron.step(0.5)
        assert neuron.importance(1.0) > 0
        assert neuron.can_merge_with(neuron.split_copy())
        assert neuron.make_relay().step(0.25) == 0.25


def test_variable_delay_recurrence():
    """h_v(t) = sigma(b_v + sum w_uv h_u(t - d))."""
    graph = NeuronGraph()
    u, v = graph.add_neuron("input"), graph.add_neuron("output", "sigmoid")
    graph.add_edge(u, v, 0.5, delay=0)
    graph.add_edge(u, v, -2.0, delay=2)
    graph.add_edge(v, v, 0.7, delay=1)
    graph.get_neuron(v).bias.data = 0.1
    x, h = [0.3, -1.0, 2.0, 0.5], 0.0
    for t in range(4):
        h = 1 / (1 + np.exp(-(0.1 + 0.5 * x[t] - 2.0 * (x[t - 2] if t >= 2 else 0) + 0.7 * h)))
        np.testing.assert_allclose(graph.forward([x[t]]), [h], rtol=1e-6)


@pytest.mark.parametrize("grow", ["insert", "split", "input", "free"])
def test_growing_is_function_preserving(grow):
    from tensor_optix.neuroevo import add_free_edge, add_input_neuron, insert_neuron_on_edge, split_neuron

    graph = minimal()
    before = outputs(graph)
    edge_id, neuron_id = graph.all_edges()[0].edge_id, graph.hidden_ids[0]
    if grow == "insert":
        insert_neuron_on_edge(graph, edge_id)
    elif grow == "split":
        split_neuron(graph, neuron_id)
    elif grow == "input":
        new = add_input_neuron(graph)
        assert {edge.dst for edge in graph.edges_from(new)} == {*graph.hidden_ids, *graph.output_ids}
        graph.reset_state()
        obs = np.column_stack([np.random.default_rng(0).normal(size=(6, 4)), np.ones(6)])
        np.testing.assert_array_equal(np.stack([graph.forward(x) for x in obs]), before)
        return
    else:
        add_free_edge(graph, graph.hidden_ids[0], graph.hidden_ids[1], delay=1)
    np.testing.assert_allclose(outputs(graph), before, rtol=1e-6)


def test_pruning_and_merging():
    from tensor_optix.neuroevo import merge_neurons, prune_edge, prune_neuron

    graph = minimal()
    before = outputs(graph)
    id_a, id_b = graph.hidden_ids
    merge_neurons(graph, id_a, id_b)  # both do the same
    np.testing.assert_allclose(outputs(graph), before, rtol=1e-6)
    prune_edge(graph, graph.edges_from(id_a)[0].edge_id)
    assert graph.n_edges() == 4 + 2
    prune_neuron(graph, id_a)  # hands its signal on
    assert {(edge.src, edge.dst) for edge in graph.all_edges()} == {
        (src, dst) for src in graph.input_ids for dst in graph.output_ids[1:]
    }
    assert graph.all_edges()[0].weight == pytest.approx(0.02)


def test_dales_law():
    from tensor_optix.neuroevo import NeuronGraph

    g = NeuronGraph()
    exc = g.add_neuron(role="hidden", activation="relu", cell_type="excitatory")
    inh = g.add_neuron(role="hidden", activation="tanh", cell_type="inhibitory")
    fre = g.add_neuron(role="hidden", activation="tanh", cell_type="any")  # default, unconstrained
    assert [g.cell_type_of(name) for name in (exc, inh, fre)] == ["excitatory", "inhibitory", "any"]
    out = g.add_neuron(role="output")
    edges = [g.add_edge(name, out, weight) for name, weight in ((exc, 0.5), (inh, -0.5), (fre, 0.5))]
    for edge in edges:  # a step of an optimiser
        g.parameter("edge", edge).data = -g.parameter("edge", edge).data
    g.enforce_dale()
    assert [g.effective_weight(edge) for edge in edges] == [0.0, 0.0, -0.5]


def test_both_forms_of_dales_law():
    # clamp mode (default): outgoing weights clamped post-step
    graph = NeuronGraph(dale_mode="clamp")
    graph.add_neuron(role="hidden", activation="relu", cell_type="excitatory")  # weights >= 0
    graph.add_neuron(role="hidden", activation="tanh", cell_type="inhibitory")  # weights <= 0

    # softplus mode: raw parameter theta, effective weight = softplus(theta) * sign
    graph = NeuronGraph(dale_mode="softplus")
    src_id = graph.add_neuron(role="hidden", activation="tanh", cell_type="inhibitory")
    edge_id = graph.add_edge(src_id, graph.add_neuron(role="output"), weight=-0.5)
    w = graph.effective_weight(edge_id)  # reads post-softplus value
    assert w == pytest.approx(-0.5, rel=1e-6)
    theta = float(graph.parameter("edge", edge_id))
    assert w == pytest.approx(-np.log1p(np.exp(theta)), rel=1e-6)
    graph.enforce_dale()  # a no-op in this mode
    assert graph.effective_weight(edge_id) == w
