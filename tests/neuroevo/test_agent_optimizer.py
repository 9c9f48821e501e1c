"""`agent.optimizer`: what Adam knows, to look at."""

import itertools

import numpy as np
import pytest

from tensor_optix.core.types import HyperparamSet
from tensor_optix.neuroevo import GraphAgent, add_free_edge, split_neuron
from tests.algorithms.recurrent_parts import pipeline_of
from tests.algorithms.test_flax_ppo import CHOICES, DIMS, OBS
from tests.neuroevo.agents import agent_of, dense_graph, trainable
from tests.neuroevo.test_graph_agent import brain_of, brain_window


def learned(agent, kind="discrete", count=1):
    for data in itertools.islice(pipeline_of("several", kind, agent).episodes(), count):
        agent.learn(data)
    return agent


def test_of_a_new_agent_nothing_is_known():
    agent = agent_of(learning_rate=0.25)
    optimizer = agent.optimizer
    assert dict(optimizer.state) == {}
    assert optimizer.lr == 0.25
    agent.set_hyperparams(HyperparamSet({"learning_rate": 0.5}))
    assert optimizer.lr == 0.5
    (group,) = optimizer.param_groups
    assert group["params"] == agent.graph.parameters()
    assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.9, 0.999), 1e-5)


@pytest.mark.parametrize("make", [dense_graph, pytest.param(trainable, marks=pytest.mark.slow)])
def test_what_it_shows_is_the_agents(make):
    agent = learned(agent_of(make()))
    optimizer, graph = agent.optimizer, agent.graph
    state, inputs = optimizer.state, {graph.parameter("bias", name) for name in graph.input_ids}
    assert set(state) == set(graph.parameters()) - inputs  # an input has no bias to learn
    adam = agent._moments.state
    for handle, known in state.items():
        assert list(known) == ["step", "exp_avg", "exp_avg_sq"]
        for name, part in (("exp_avg", adam.mu), ("exp_avg_sq", adam.nu)):
            np.testing.assert_array_equal(known[name], graph.weight_in(part, handle.field, handle.key))
            assert known[name].shape == handle.shape
        np.testing.assert_array_equal(known["exp_avg"], handle.grad)
    assert {known["step"] for known in state.values()} == {int(adam.count.edges.max())}
    before = state[graph.parameter("edge", graph.all_edges()[0].edge_id)]["step"]
    learned(agent)
    assert optimizer.state[graph.parameter("edge", graph.all_edges()[0].edge_id)]["step"] > before


def test_the_spread_of_actions_is_a_parameter_too():
    agent = learned(agent_of(kind="continuous"), "continuous")
    known = agent.optimizer.state["log_std"]
    assert known["step"] > 0
    assert known["exp_avg"].shape == (DIMS,)
    np.testing.assert_array_equal(known["exp_avg"], agent._opt["mu"])
    assert "log_std" not in learned(agent_of()).optimizer.state


@pytest.mark.slow
def test_a_brains():
    brain = brain_of()
    agent = GraphAgent(brain, OBS + 2, CHOICES, hyperparams={"n_epochs": 1, "minibatch_size": 16})
    agent.learn(brain_window(agent, np.random.default_rng(0)))
    state = agent.optimizer.state
    inputs = {r.parameter("bias", name) for r in brain.regions.values() for name in r.input_ids}
    assert set(state) == set(brain.parameters()) - inputs
    for handle, known in state.items():
        np.testing.assert_array_equal(known["exp_avg"], handle.grad)


def test_nothing_of_it_can_be_written_to():
    agent = learned(agent_of())
    optimizer = agent.optimizer
    handle, known = next(iter(optimizer.state.items()))
    with pytest.raises(ValueError, match="read-only"):
        known["exp_avg"][...] = 1.0
    with pytest.raises(TypeError, match="does not support item assignment"):
        known["step"] = 0
    with pytest.raises(TypeError, match="does not support item assignment"):
        optimizer.state[handle] = {}
    with pytest.raises(AttributeError):
        optimizer.lr = 1.0
    with pytest.raises(AttributeError):
        agent.optimizer = None


def test_to_tell_it_of_edits_is_allowed_and_does_nothing():
    told, silent = (learned(agent_of()) for _ in range(2))
    optimizer = told.optimizer
    for agent in (told, silent):
        copied = split_neuron(agent.graph, agent.graph.hidden_ids[0])[1]
        edge = add_free_edge(agent.graph, agent.graph.input_ids[0], agent.graph.output_ids[0], delay=1)
    assert optimizer.notify_topology_change() is None
    assert optimizer.notify_topology_change(told.graph.parameters()) is None
    states = [{handle.name: dict(known) for handle, known in a.optimizer.state.items()} for a in (told, silent)]
    assert f"edge:{edge}" not in states[0]  # it begins anew
    assert all(f"edge:{each.edge_id}" not in states[0] for each in told.graph.edges_into(copied))
    assert any(each.dst not in (copied, told.graph.hidden_ids[0]) for each in told.graph.all_edges())
    assert states[0]
    np.testing.assert_equal(*states)
