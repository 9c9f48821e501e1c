"""What an agent's normaliser knows of an input stays that input's: through edits, and to disk and back."""

import copy
import json

import numpy as np
import pytest

from tensor_optix.core.normalizers import ObsNormalizer
from tensor_optix.neuroevo import BrainNetwork, GraphAgent, NeuronGraph, add_input_neuron

ACTIONS = 2


def region_of(inputs=2, outputs=0):
    graph = NeuronGraph()
    ins = [graph.add_neuron("input") for _ in range(inputs)]
    hidden = graph.add_neuron("hidden")
    for name in ins:
        graph.add_edge(name, hidden, 0.5)
    for _ in range(outputs):
        graph.add_edge(hidden, graph.add_neuron("output", "linear"), 0.5)
    return graph


def network_of(kind):
    if kind == "graph":
        return region_of(2, ACTIONS + 1)
    brain = BrainNetwork(output_regions=["B"])
    brain.add_region("A", region_of())
    brain.add_region("B", region_of(2, ACTIONS + 1))
    return brain


def agent_of(kind, **options):
    graph = network_of(kind)
    return GraphAgent(graph, len(graph.input_ids), ACTIONS, **{"normalize_observations": True, **options})


def regions_of(agent):
    return list(agent.graph.regions.values()) if isinstance(agent.graph, BrainNetwork) else [agent.graph]


def taught(agent, mean, var):
    rms = agent.obs_normalizer.rms
    rms.mean, rms.var, rms.count = np.array(mean, np.float64), np.array(var, np.float64), 50.0


def moments(agent):
    rms = agent.obs_normalizer.rms
    return rms.mean.tolist(), rms.var.tolist(), rms.count


def acts(agent):
    agent.act(np.ones(agent.obs_dim))


# -- edits ------------------------------------------------------------------------------------------------------------


def test_an_input_of_an_earlier_region_takes_no_other_regions_moments():
    agent = agent_of("brain")
    taught(agent, [1, 2, 3, 4], [5, 6, 7, 8])
    add_input_neuron(agent.graph.get_region("A"))
    acts(agent)
    assert [name for name, _ in agent.graph.input_ids] == ["A", "A", "A", "B", "B"]
    assert moments(agent) == ([1, 2, 0, 3, 4], [5, 6, 1, 7, 8], 50.0)


@pytest.mark.parametrize("place", [0, 1])
def test_an_input_that_goes_takes_its_moments_with_it(place):
    agent = agent_of("graph")
    taught(agent, [1, 2], [3, 4])
    agent.graph.remove_neuron(agent.graph.input_ids[place])
    acts(agent)
    assert moments(agent) == ([2 - place], [4 - place], 50.0)
    seen = np.float32([[5.0]])
    expected = (5.0 - (2 - place)) / np.sqrt(4 - place + 1e-8)
    np.testing.assert_allclose(agent._observations(seen), [[expected]], rtol=1e-6)


def test_one_that_comes_for_one_that_goes_knows_nothing():
    """As many as before, but another."""
    agent = agent_of("graph")
    taught(agent, [1, 2], [3, 4])
    agent.graph.remove_neuron(agent.graph.input_ids[0])
    add_input_neuron(agent.graph)
    acts(agent)
    assert moments(agent) == ([2, 0], [4, 1], 50.0)


@pytest.mark.parametrize("kind", ["graph", "brain"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_any_edits_keep_to_the_ids(kind, seed, tmp_path):
    """A dictionary by ids is the oracle; now and then the agent is saved, and goes back to an older self."""
    rng, agent = np.random.default_rng(seed), agent_of(kind)
    known = dict(zip(agent.graph.input_ids, np.arange(1.0, 9.0).reshape(-1, 2), strict=False))
    taught(agent, *zip(*known.values(), strict=True))
    agent.save_weights(str(tmp_path / "0"))
    saved = [dict(known)]
    for _ in range(12):
        what = rng.choice(["add", "remove", "save", "load", "act"], p=[0.3, 0.2, 0.1, 0.2, 0.2])
        region = regions_of(agent)[rng.integers(len(regions_of(agent)))]
        if what == "add":
            add_input_neuron(region)
        elif what == "remove" and len(region.input_ids) > 1:
            region.remove_neuron(region.input_ids[rng.integers(len(region.input_ids))])
        elif what == "load":
            which = rng.integers(len(saved))
            agent.load_weights(str(tmp_path / str(which)))
            known = dict(saved[which])
        known = {name: known.get(name, np.array([0.0, 1.0])) for name in agent.graph.input_ids}
        if what == "save":
            agent.save_weights(str(tmp_path / str(len(saved))))
            saved.append(dict(known))
        elif what == "act":
            acts(agent)
            np.testing.assert_array_equal(np.transpose(moments(agent)[:2]), list(known.values()))
    acts(agent)
    np.testing.assert_array_equal(np.transpose(moments(agent)[:2]), list(known.values()))


def test_copies_go_their_own_ways():
    agent = agent_of("graph")
    taught(agent, [1, 2], [3, 4])
    twin = copy.deepcopy(agent)
    add_input_neuron(twin.graph)
    acts(twin)
    acts(agent)
    assert moments(twin)[0] == [1, 2, 0]
    assert moments(agent)[0] == [1, 2]


# -- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["graph", "brain"])
@pytest.mark.parametrize("edit", [add_input_neuron, lambda graph: graph.remove_neuron(graph.input_ids[0])])
@pytest.mark.parametrize("act_before", [True, False])
def test_weights_come_back_across_a_change_of_inputs(kind, edit, act_before, tmp_path):
    agent = agent_of(kind)
    mean = [1.0, 2.0, 3.0, 4.0][: agent.obs_dim]
    taught(agent, mean, mean)
    agent.save_weights(str(tmp_path / "before"))
    edit(regions_of(agent)[0])
    if act_before:
        acts(agent)
    agent.save_weights(str(tmp_path / "after"))
    acts(agent)
    after = agent.graph.input_ids, moments(agent)
    agent.load_weights(str(tmp_path / "before"))
    assert moments(agent)[0] == mean
    acts(agent)
    assert moments(agent) == (mean, mean, 50.0)
    other = agent_of(kind)
    other.load_weights(str(tmp_path / "after"))
    acts(other)
    assert (other.graph.input_ids, moments(other)) == after
    add_input_neuron(regions_of(other)[0])  # ids are known from then on, too
    acts(other)
    known = dict(zip(after[0], after[1][0], strict=True))
    assert moments(other)[0] == [known.get(name, 0) for name in other.graph.input_ids]


def test_a_mean_brings_the_first_ones_inputs(tmp_path):
    agent = agent_of("graph")
    taught(agent, [1, 2], [3, 4])
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        agent.save_weights(path)
    add_input_neuron(agent.graph)
    acts(agent)
    agent.average_weights(paths)
    acts(agent)
    assert moments(agent) == ([1, 2], [3, 4], 50.0)


def forget_ids(path):
    record = json.loads((path / "agent.json").read_text())
    del record["inputs"]
    (path / "agent.json").write_text(json.dumps(record))
    return record


@pytest.mark.parametrize("kind", ["graph", "brain"])
def test_what_was_saved_without_ids_loads_where_shapes_agree(kind, tmp_path):
    agent = agent_of(kind)
    mean = [1.0, 2.0, 3.0, 4.0][: agent.obs_dim]
    taught(agent, mean, mean)
    agent.save_weights(str(tmp_path / "a"))
    record = forget_ids(tmp_path / "a")
    add_input_neuron(regions_of(agent)[0])
    acts(agent)
    agent.load_weights(str(tmp_path / "a"))
    assert moments(agent) == (mean, mean, 50.0)
    acts(agent)
    assert moments(agent) == (mean, mean, 50.0)
    for name in ("mean", "var"):
        record["parts"]["obs_normalizer"][name].pop()
    (tmp_path / "a" / "agent.json").write_text(json.dumps(record))
    add_input_neuron(regions_of(agent)[0])
    acts(agent)
    before = agent.graph.input_ids, moments(agent)
    with pytest.raises(ValueError, match=f"was saved for {len(mean) - 1} inputs, and the graph has {len(mean)}"):
        agent.load_weights(str(tmp_path / "a"))
    acts(agent)
    assert (agent.graph.input_ids, moments(agent)) == before


@pytest.mark.parametrize("how", ["load_weights", "average_weights"])
def test_what_cannot_be_loaded_leaves_all_as_it_was(how, tmp_path):
    """Of an agent without a reward normaliser, which is found out last."""
    plain = agent_of("graph", reward_normalizer=False)
    plain.save_weights(str(tmp_path / "plain"))
    agent = agent_of("graph")
    taught(agent, [1, 2], [3, 4])
    add_input_neuron(agent.graph)
    acts(agent)
    path = str(tmp_path / "plain")
    with pytest.raises(ValueError, match="the agent has"):
        getattr(agent, how)(path if how == "load_weights" else [path])
    acts(agent)
    assert moments(agent) == ([1, 2, 0], [3, 4, 1], 50.0)


def test_a_normaliser_for_other_observations_is_refused():
    with pytest.raises(ValueError, match=r"obs_normalizer is for observations of shape \[3\], expected \[2\]"):
        agent_of("graph", obs_normalizer=ObsNormalizer((3,)))


@pytest.mark.parametrize(("shape", "source"), [((2,), [0, 2]), ((2,), [-1]), ((2, 1), [0])])
def test_a_normaliser_is_not_rearranged_by_what_it_has_not(shape, source):
    normalizer = ObsNormalizer(shape)
    with pytest.raises(ValueError, match="the normaliser is for observations of shape"):
        normalizer.rearrange(source)
    assert normalizer.rms.mean.shape == shape
