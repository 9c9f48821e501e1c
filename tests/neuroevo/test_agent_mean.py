"""The mean of saved graphs goes by ids: whatever happened to a graph before, and wherever its neurons lie."""

import numpy as np
import pytest

from tensor_optix.neuroevo import BrainNetwork, GraphAgent, NeuronGraph, RecurrentGraphAgent, prune_neuron
from tensor_optix.neuroevo.neurons import GRUNeuron

ACTIONS = 2


def graph_of(seed, history="plain", order=1, outputs=ACTIONS + 1, dale_mode="clamp"):
    """Equal neurons and edges by ids, other weights for each seed; `history` and `order` are how it came about.

    order: -1 adds the hidden neurons and the edges the other way round.
    """
    rng, graph = np.random.default_rng(seed), NeuronGraph(dale_mode, seed=seed)
    ins = [graph.add_neuron("input", neuron_id=f"in{i}") for i in range(2)]
    gone = [graph.add_neuron("hidden") for _ in range(12 if history == "grown" else 0)]  # beyond its first room
    hidden = {
        name: graph.add_neuron("hidden", neuron_id=name, neuron=GRUNeuron() if name == "h0" else None)
        for name in ["h0", "h1", "h2"][::order]
    }
    outs = [graph.add_neuron("output", "linear", neuron_id=f"out{i}") for i in range(outputs)]
    if history == "grown":
        long = graph.add_edge("h0", "h1", delay=5)  # more to remember
        graph.remove_edge(long)
        for name in gone:
            prune_neuron(graph, name)
    pairs = [(u, v) for u in ins for v in sorted(hidden)] + [(u, v) for u in sorted(hidden) for v in outs]
    for u, v in pairs[::order]:
        graph.add_edge(u, v, 1.0, edge_id=f"{u}-{v}")
    for handle in graph.parameters():
        handle.data = rng.normal(size=np.shape(handle.data))
    return graph


def brain_of(seed, history="plain", order=1):
    brain = BrainNetwork(output_regions=["B"], seed=seed)
    brain.add_region("A", graph_of(seed, history, order, outputs=2))
    brain.add_region("B", graph_of(seed + 100, "plain", order))
    ends = [("A", "out0", "B", "in0"), ("A", "out1", "B", "in1"), ("A", "h0", "B", "h1")]
    for i, end in list(enumerate(ends))[::order]:
        brain.add_inter_region_edge(*end, weight=np.random.default_rng([seed, i]).normal(), edge_id=f"{i}")
    return brain


MAKERS = {"graph": graph_of, "brain": brain_of}


def agent_of(graph, cls=GraphAgent, **options):
    return cls(graph, len(graph.input_ids), ACTIONS, **options)


def weights(graph, at=()):
    """By region, if there are some, and name."""
    if isinstance(graph, NeuronGraph):
        return {(*at, handle.name): np.array(handle.data) for handle in graph.parameters()}
    found = {("", edge.edge_id): np.float32(edge.weight) for edge in graph.all_inter_region_edges()}
    for name, region in graph.regions.items():
        found |= weights(region, (name,))
    return found


def saved(agent, path):
    agent.save_weights(str(path))
    return str(path)


@pytest.mark.parametrize("order", [1, pytest.param(-1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("history", [pytest.param("plain", marks=pytest.mark.slow), "grown"])
@pytest.mark.parametrize("kind", MAKERS)
def test_the_mean_is_of_each_neuron_and_edge(kind, history, order, tmp_path):
    one, other = MAKERS[kind](1), MAKERS[kind](2, history, order)
    if history == "grown":
        regions = [getattr(each, "regions", {"A": each})["A"] for each in (one, other)]
        assert regions[0].capacity != regions[1].capacity
        assert regions[0].slot_of("h0") != regions[1].slot_of("h0")
    before = weights(one), weights(other)
    paths = [saved(agent_of(graph), tmp_path / str(i)) for i, graph in enumerate((one, other))]
    for these in (paths, paths[::-1]):
        mean = agent_of(MAKERS[kind](3))
        mean.average_weights(these)
        found = weights(mean.graph)
        assert found.keys() == before[0].keys() == before[1].keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, (before[0][name] + before[1][name]) / 2, rtol=1e-6)
        mean.act(np.zeros(mean.obs_dim))


def test_actions_that_vary_have_a_mean_spread(tmp_path):
    agents = [agent_of(graph_of(seed), continuous=True) for seed in range(3)]
    for i, agent in enumerate(agents):
        agent._params = agent._params + np.float32(i)
    paths = [saved(agent, tmp_path / str(i)) for i, agent in enumerate(agents)]
    agents[0].average_weights(paths)
    np.testing.assert_array_equal(agents[0]._params, [1.0, 1.0])


def retyped(**options):
    graph = graph_of(1)
    graph.remove_neuron("h2")
    graph.add_neuron("hidden", neuron_id="h3", **options)
    return graph


def turned(brain):
    """The same regions in another order, so observations mean something else."""
    other = BrainNetwork(output_regions=["B"])
    for name in ("B", "A"):
        other.add_region(name, brain.get_region(name))
    for edge in brain.all_inter_region_edges():
        other.add_inter_region_edge(*edge.ends[:4], edge.weight, edge.delay, edge.edge_id)
    return other


def rewired(brain):
    edge = brain.all_inter_region_edges()[0]
    brain.remove_inter_region_edge(edge.edge_id)
    brain.add_inter_region_edge(*edge.ends[:4], edge.weight, delay=3, edge_id="new")
    return brain


def missing_edge():
    graph = graph_of(1)
    graph.remove_edge("h0-out0")
    return graph


OTHERS = {
    "an activation": (retyped, lambda: retyped(activation="relu")),
    "a class": (retyped, lambda: retyped(neuron=GRUNeuron())),
    "a cell type": (retyped, lambda: retyped(cell_type="inhibitory")),
    "an edge": (lambda: graph_of(1), missing_edge),
    "Dale's law": (lambda: graph_of(1), lambda: graph_of(1, dale_mode="softplus")),
    "the order of regions": (lambda: brain_of(1), lambda: turned(brain_of(1))),
    "an edge between regions": (lambda: brain_of(1), lambda: rewired(brain_of(1))),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_differs_has_no_mean(what, tmp_path):
    agents = [agent_of(make()) for make in OTHERS[what]]
    paths = [saved(agent, tmp_path / str(i)) for i, agent in enumerate(agents)]
    before = weights(agents[0].graph)
    with pytest.raises(ValueError, match=r"other neurons or edges than.*their weights have no mean"):
        agents[0].average_weights(paths)
    np.testing.assert_equal(weights(agents[0].graph), before)


def test_other_actions_and_other_agents_have_none(tmp_path):
    agent, other = agent_of(graph_of(1)), agent_of(graph_of(2), continuous=True)
    paths = [saved(each, tmp_path / str(i)) for i, each in enumerate((agent, other))]
    with pytest.raises(ValueError, match="has other actions than"):
        agent.average_weights(paths)
    with pytest.raises(ValueError, match="got no paths"):
        agent.average_weights([])
    RecurrentGraphAgent(graph_of(3), 2, ACTIONS).average_weights(paths[:1])
    (tmp_path / "0" / "agent.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="was not saved by such an agent: it lacks 'graph'"):
        agent.average_weights(paths[:1])
