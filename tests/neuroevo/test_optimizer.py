"""Adam by handles: as PyTorch's where nothing changes, from the beginning where an edit did something."""

import copy
import sys

import numpy as np
import pytest

from tensor_optix.neuroevo import NeuronGraph, insert_neuron_on_edge, merge_neurons, prune_neuron, split_neuron
from tensor_optix.neuroevo.neurons import GRUNeuron
from tensor_optix.neuroevo.optimizer import TopologyAwareAdam

torch = pytest.importorskip("torch")

SETTINGS = [
    {},
    {"lr": 0.1},
    {"weight_decay": 0.3},
    {"amsgrad": True},
    {"betas": (0.5, 0.9), "eps": 1e-3},
    {"betas": (0.3, 0.5), "weight_decay": 0.1, "amsgrad": True},
]


def small(gru=False, hidden=2):
    graph = NeuronGraph()
    ins = [graph.add_neuron("input") for _ in range(2)]
    hidden = [graph.add_neuron("hidden", neuron=GRUNeuron() if gru else None) for _ in range(hidden)]
    out = graph.add_neuron("output", "linear")
    weights = iter(np.random.default_rng(0).normal(size=100))
    for h in hidden:
        for i in ins:
            graph.add_edge(i, h, next(weights))
        graph.add_edge(h, out, next(weights))
    return graph


def twins(params):
    """The same values for PyTorch's Adam."""
    return [torch.nn.Parameter(torch.from_numpy(np.array(read(p)))) for p in params]


def read(param):
    return param.detach().numpy() if isinstance(param, torch.Tensor) else np.asarray(param.data)


def give(params, others, rng, scale=1.0):
    """Random gradients, the same to both, now and then tiny or 0."""
    for param, other in zip(params, others, strict=True):
        grad = np.float32(scale * rng.choice([1.0, 1e-3, 0.0]) * rng.normal(size=np.shape(read(param))))
        param.grad = torch.from_numpy(np.array(grad)) if isinstance(param, torch.Tensor) else grad
        other.grad = torch.from_numpy(np.array(grad))


def same(params, others):
    for param, other in zip(params, others, strict=True):
        np.testing.assert_allclose(read(param), read(other), rtol=1e-6, atol=1e-6)


def mixed():
    """Handles of all shapes and tensors, in one list."""
    rng = np.random.default_rng(3)
    tensors = [torch.nn.Parameter(torch.tensor(rng.normal(size=shape), dtype=torch.float32)) for shape in [(3, 4), ()]]
    params = small(gru=True).parameters()
    return [*params[:4], tensors[0], *params[4:], tensors[1]]


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_adam(settings):
    params, rng = mixed(), np.random.default_rng(0)
    others = twins(params)
    optimizer, theirs = TopologyAwareAdam(params, **settings), torch.optim.Adam(others, **settings)
    for i in range(40):
        give(params, others, rng, 3.0 if i < 10 else 0.3)
        optimizer.step()
        theirs.step()
        same(params, others)
    assert {param: entries["step"] for param, entries in optimizer.state.items()} == dict.fromkeys(params, 40)
    ours, reference = optimizer.state[params[4]], theirs.state[others[4]]
    for name in set(reference) - {"step"}:
        np.testing.assert_allclose(ours[name], reference[name].numpy(), rtol=1e-5, atol=1e-7)


def test_dtypes_of_tensors_stay():
    wide = torch.nn.Parameter(torch.tensor([1.0 + 1e-12], dtype=torch.float64))
    half = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float16))
    wide.grad, half.grad = torch.full((1,), 1e-12, dtype=torch.float64), torch.full((1,), 1e-4, dtype=torch.float16)
    TopologyAwareAdam([wide], lr=1e-13, eps=0.0).step()
    TopologyAwareAdam([half], lr=0.5).step()
    assert wide.dtype == torch.float64
    assert wide.item() == 1.0 + 1e-12 - 1e-13
    assert half.item() == 0.5


def test_without_a_gradient_nothing_moves():
    params = small().parameters()
    others, rng = twins(params), np.random.default_rng(0)
    optimizer, theirs = TopologyAwareAdam(params), torch.optim.Adam(others)
    assert optimizer.step() is None
    assert optimizer.state == {}
    for i in range(6):
        give(params, others, rng)
        for at in (i % 3, 5 + i % 2):  # each has a count of its own
            params[at].grad = others[at].grad = None
        assert optimizer.step(lambda: 4.5) == 4.5
        theirs.step()
    same(params, others)
    assert {optimizer.state[param]["step"] for param in params} == {3, 4, 6}


# Edits


def trained(graph, steps=5, **settings):
    optimizer, rng = TopologyAwareAdam(graph.parameters(), **settings), np.random.default_rng(1)
    for _ in range(steps):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = np.float32(rng.normal(size=param.shape))
        optimizer.step()
    return optimizer


def names(params):
    return {param.name for param in params}


def moments(optimizer):
    return {param.name: copy.deepcopy(entries) for param, entries in optimizer.state.items()}


def unmoved(optimizer, before):
    """Of these nothing was forgotten."""
    after = moments(optimizer)
    return {name for name in after if all(np.array_equal(after[name][key], x) for key, x in before[name].items())}


def test_insertion_forgets_the_edge_and_knows_nothing_of_the_neuron():
    graph = small()
    optimizer = trained(graph)
    before, edge = moments(optimizer), graph.all_edges()[0].edge_id
    old = names(graph.parameters())
    new = insert_neuron_on_edge(graph, edge)
    optimizer.notify_topology_change(graph.parameters())
    assert f"edge:{edge}" in old
    assert f"bias:{new}" in names(optimizer.param_groups[0]["params"])
    assert optimizer.param_groups[0]["params"] == graph.parameters()
    assert unmoved(optimizer, before) == names(optimizer.state) == old - {f"edge:{edge}"}


def test_splitting_forgets_the_halved_weights():
    graph = small()
    optimizer = trained(graph)
    before, old = moments(optimizer), names(graph.parameters())
    neuron = graph.hidden_ids[0]
    halved = {f"edge:{edge.edge_id}" for edge in graph.edges_from(neuron)}
    split_neuron(graph, neuron)
    optimizer.notify_topology_change(graph.parameters())
    assert halved
    assert unmoved(optimizer, before) == names(optimizer.state) == old - halved


def test_merging_and_pruning_forget_what_they_touch_and_drop_what_is_gone():
    graph = small(hidden=3)
    optimizer = trained(graph)
    before = moments(optimizer)
    values = {param.name: param.data for param in graph.parameters()}
    a, b, c = graph.hidden_ids
    merge_neurons(graph, a, b)
    prune_neuron(graph, c)
    optimizer.notify_topology_change(graph.parameters())
    untouched = {param.name for param in graph.parameters() if values.get(param.name) == param.data}
    assert f"bias:{a}" not in untouched
    assert {f"edge:{edge.edge_id}" for edge in graph.edges_into(a)} <= untouched
    assert unmoved(optimizer, before) == names(optimizer.state) == untouched


def test_steps_go_on_as_those_of_pytorch_for_each():
    """Untouched ones with their counts, new ones from the beginning."""
    graph, rng = small(), np.random.default_rng(0)
    params = graph.parameters()
    others = dict(zip([p.name for p in params], twins(params), strict=True))
    optimizer = TopologyAwareAdam(params, amsgrad=True)
    theirs = {name: torch.optim.Adam([other], amsgrad=True) for name, other in others.items()}

    def go_on():
        params = graph.parameters()
        give(params, [others[p.name] for p in params], rng)
        optimizer.step()
        for p in params:
            theirs[p.name].step()
        same(params, [others[p.name] for p in params])

    for _ in range(5):
        go_on()
    insert_neuron_on_edge(graph, graph.all_edges()[2].edge_id)
    optimizer.notify_topology_change(graph.parameters())
    new = [p for p in graph.parameters() if p.name not in others]
    assert len(new) == 3
    for param, other in zip(new, twins(new), strict=True):
        others[param.name], theirs[param.name] = other, torch.optim.Adam([other], amsgrad=True)
    for _ in range(5):
        go_on()
    assert {entries["step"] for entries in optimizer.state.values()} == {5, 10}
    # A first step has the size of the learning rate.
    split_neuron(graph, graph.hidden_ids[0])
    optimizer.notify_topology_change(graph.parameters())
    fresh = [p for p in graph.parameters() if p not in optimizer.state]
    before = [float(p.data) for p in fresh]
    for param in fresh:
        param.grad = 1e-3
    optimizer.step()
    np.testing.assert_allclose(np.subtract(before, [float(p.data) for p in fresh]), 1e-3, rtol=1e-3)


def test_moments_of_another_shape_are_forgotten():
    graph = small(gru=True)
    optimizer = trained(graph)
    gates = graph.parameter("gates", graph.hidden_ids[0])
    other = torch.nn.Parameter(torch.ones(3))
    other.grad = torch.ones(3)
    optimizer.add_param_group({"params": [other]})
    optimizer.step()
    other.grad, other.data = None, torch.ones(4)
    optimizer.notify_topology_change([*graph.parameters(), other])
    assert other not in optimizer.state
    assert gates in optimizer.state


def test_a_step_after_an_edit_that_nobody_told_of():
    graph = small()
    optimizer = trained(graph)
    before = moments(optimizer)
    graph.remove_edge(graph.all_edges()[-1].edge_id)
    values = [float(p.data) for p in graph.parameters()]
    for param in graph.parameters():
        param.grad = 1.0
    with pytest.raises(ValueError, match="there no more: call notify_topology_change"):
        optimizer.step()
    assert [float(p.data) for p in graph.parameters()] == values
    assert unmoved(optimizer, before) == set(before)
    optimizer.notify_topology_change(graph.parameters())
    optimizer.step()
    assert [float(p.data) for p in graph.parameters()] != values


def test_all_parameters_learn_after_growth():
    """Each moves by the learning rate, those that are new, too."""
    graph = small()
    optimizer = trained(graph)
    for edge in graph.all_edges()[:3]:
        insert_neuron_on_edge(graph, edge.edge_id)
    optimizer.notify_topology_change(graph.parameters())
    before = {p.name: float(p.data) for p in graph.parameters()}
    for param in graph.parameters():
        param.grad = 1.0
    optimizer.step()
    assert all(float(p.data) != before[p.name] for p in graph.parameters())


# Groups, gradients, states


def test_groups():
    graph, tensor = small(), torch.nn.Parameter(torch.zeros(2))
    biases = [p for p in graph.parameters() if p.field == "bias"]
    edges = [p for p in graph.parameters() if p.field == "edge"]
    optimizer = TopologyAwareAdam([{"params": biases, "lr": 0.0}, {"params": iter(edges)}], lr=0.5)
    optimizer.add_param_group({"params": [tensor], "lr": 0.25})
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.5, 0.25]
    for param in graph.parameters():
        param.grad = 1.0
    tensor.grad = torch.ones(2)
    before = [float(p.data) for p in biases + edges]
    optimizer.step()
    moved = np.subtract(before, [float(p.data) for p in biases + edges])
    np.testing.assert_allclose(moved, [0.0] * len(biases) + [0.5] * len(edges), atol=1e-6)
    np.testing.assert_allclose(tensor.detach(), -0.25, rtol=1e-6)
    optimizer.param_groups[1]["lr"] = 0.0
    before = [float(p.data) for p in edges]
    optimizer.step()
    assert [float(p.data) for p in edges] == before

    new = insert_neuron_on_edge(graph, edges[0].key)
    optimizer.notify_topology_change([*graph.parameters(), tensor])
    of = [names(p for p in group["params"] if p is not tensor) for group in optimizer.param_groups]
    assert of[1] == names(edges[1:])
    assert of[0] == names(biases) | {f"bias:{new}"} | (names(graph.parameters()) - names(biases) - names(edges[1:]))
    assert optimizer.param_groups[2]["params"] == [tensor]


def test_zero_grad():
    graph, tensor = small(), torch.nn.Parameter(torch.zeros(2))
    params = graph.parameters()
    optimizer = TopologyAwareAdam([*params, tensor])
    for param in params[1:]:
        param.grad = np.inf
    tensor.grad = torch.full((2,), torch.inf)
    optimizer.zero_grad(set_to_none=False)
    assert [param.grad for param in params] == [None] + [0.0] * (len(params) - 1)
    assert tensor.grad.tolist() == [0.0, 0.0]
    optimizer.zero_grad()
    assert [param.grad for param in [*params, tensor]] == [None] * (len(params) + 1)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_state_goes_on_where_it_was(amsgrad):
    def gradients(graph, seed):
        rng = np.random.default_rng(seed)
        for param in graph.parameters():
            param.grad = np.float32(rng.normal(size=param.shape))

    graph = small(gru=True)
    optimizer = trained(graph, lr=0.1, amsgrad=amsgrad)
    saved, state = optimizer.state_dict(), graph.state_dict()
    gradients(graph, 2)
    optimizer.step()
    assert saved["param_groups"][0]["params"] == list(range(len(graph.parameters())))
    twin = small(gru=True)
    twin.load_state_dict(state)
    again = TopologyAwareAdam(twin.parameters())
    again.load_state_dict(saved)
    assert again.param_groups[0]["lr"] == 0.1
    gradients(twin, 2)
    again.step()
    for one, other in zip(graph.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(one.data, other.data)


def test_a_states_arrays_are_its_own():
    graph = small()
    optimizer, other = trained(graph), TopologyAwareAdam(graph.parameters())
    before, state = moments(optimizer), optimizer.state_dict()
    other.load_state_dict(state)
    for entries in state["state"].values():
        entries["exp_avg"][...] = 9.0
    assert unmoved(optimizer, before) == unmoved(other, before) == set(before)
    other.notify_topology_change(graph.parameters())
    assert unmoved(other, before) == set(before)


def test_pytorchs_state_is_understood():
    params, rng = mixed(), np.random.default_rng(0)
    others = twins(params)
    theirs = torch.optim.Adam(others, lr=0.1, amsgrad=True)
    for _ in range(3):
        give(params, others, rng)
        theirs.step()
    for param, other in zip(params, others, strict=True):
        param.data = other.detach().clone() if isinstance(param, torch.Tensor) else read(other)
    optimizer = TopologyAwareAdam(params)
    optimizer.load_state_dict(theirs.state_dict())
    for _ in range(3):
        give(params, others, rng)
        optimizer.step()
        theirs.step()
    same(params, others)


def test_what_is_refused():
    graph = small()
    params = graph.parameters()
    for bad in ({"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9,)}, {"eps": -1.0}, {"weight_decay": np.nan}):
        with pytest.raises(ValueError, match="must be"):
            TopologyAwareAdam(params, **bad)
    for bad in ([1.0], [np.zeros(2)], params[0], torch.zeros(2), {"params": params}):
        with pytest.raises(TypeError, match="params must be"):
            TopologyAwareAdam(bad)
    with pytest.raises(ValueError, match="no parameters"):
        TopologyAwareAdam(NeuronGraph().parameters())
    with pytest.raises(ValueError, match="occurs twice"):
        TopologyAwareAdam(params + params[:1])
    optimizer = TopologyAwareAdam(params)
    with pytest.raises(ValueError, match="in another one already"):
        optimizer.add_param_group({"params": params[:1]})
    with pytest.raises(ValueError, match="a group has params and any of lr"):
        optimizer.add_param_group({"params": [torch.zeros(2)], "momentum": 0.9})
    with pytest.raises(ValueError, match="name all"):
        optimizer.notify_topology_change([])
    state = trained(small()).state_dict()
    with pytest.raises(ValueError, match="parameters, and here are"):
        TopologyAwareAdam(params[1:]).load_state_dict(state)
    state["state"][0]["exp_avg"] = np.zeros(3)
    with pytest.raises(ValueError, match="has the shape"):
        optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="state and param_groups"):
        optimizer.load_state_dict({})


def test_it_does_not_import_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    graph = small()
    optimizer = trained(graph, lr=0.5)
    optimizer.zero_grad()
    optimizer.notify_topology_change(graph.parameters())
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer.state) == len(graph.parameters())


def test_the_example():
    graph, new_params = small(), None

    optimizer = TopologyAwareAdam(graph.parameters(), lr=3e-4)
    insert_neuron_on_edge(graph, "e0")
    new_params = graph.parameters()
    optimizer.notify_topology_change(new_params)  # call after any topology mutation

    assert optimizer.param_groups[0]["lr"] == 3e-4
    assert optimizer.param_groups[0]["params"] == new_params
