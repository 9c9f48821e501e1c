"""Agents whose policy is a graph: acting is learning, edits between windows, memories, files, and whole runs."""

import copy
import itertools

import gymnasium
import jax
import numpy as np
import pytest

from tensor_optix.algorithms.flax_graph_programs import programs
from tensor_optix.core.normalizers import RewardNormalizer
from tensor_optix.core.types import HyperparamSet
from tensor_optix.loop.durable import RunDirError
from tensor_optix.neuroevo import (
    BrainNetwork,
    GraphAgent,
    GRUNeuron,
    HebbianHook,
    LSTMNeuron,
    NeuronGraph,
    RecurrentGraphAgent,
    TopologyController,
    TrainableGRUNeuron,
    TrainableLSTMNeuron,
    add_free_edge,
    add_input_neuron,
    insert_neuron_on_edge,
    merge_neurons,
    prune_neuron,
    split_neuron,
)
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.pipeline import VectorBatchPipeline
from tests.algorithms.recurrent_parts import pipeline_of, segments_of, window_of
from tests.algorithms.test_flax_ppo import CHOICES, DIMS, OBS
from tests.algorithms.test_flax_recurrent_ppo_state import Seeded
from tests.neuroevo.agents import agent_of, dense_graph
from tests.runs import assert_same_bits

KINDS = ("discrete", "continuous")


def windows(agent, count, kind="discrete", which="several"):
    return itertools.islice(pipeline_of(which, kind, agent).episodes(), count)


def weights(graph):
    return {handle.name: np.array(handle.data) for handle in graph.parameters()}


def unit(agent, actions):
    if agent.continuous:
        return agent._bounds.to_unit(np.asarray(actions, np.float64)).astype(np.float32)
    return np.asarray(actions, np.int32)


def by_forward(graph, data, log_std):
    """Log-probabilities and values of a window's rows by the graph's own `forward`, one environment after another.

    From nothing remembered: of a first window.
    """
    twin, log_probs, values = copy.deepcopy(graph), np.zeros(data.length), np.zeros(data.length)
    for start, end in segments_of(data):
        twin.reset_state()
        for t in range(start, end):
            if t in data.episode_starts:
                twin.reset_state()
            out = np.float64(twin.forward(np.float32(data.observations[t])))
            policy, values[t] = out[:-1], out[-1]
            if log_std is None:
                log_probs[t] = policy[int(data.actions[t])] - np.log(np.exp(policy).sum())
            else:
                z = (data.unit[t] - policy) / np.exp(log_std)
                log_probs[t] = np.sum(-0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi))
    return log_probs, values


# -- acting is learning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "neuron", "delay", "cell_type"),
    [
        ("clamp", None, 2, "any"),
        pytest.param("softplus", GRUNeuron, 1, "any", marks=pytest.mark.slow),
        pytest.param("clamp", TrainableLSTMNeuron, 0, "any", marks=pytest.mark.slow),
        ("softplus", None, 1, "inhibitory"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_learning_sees_what_acting_saw(kind, mode, neuron, delay, cell_type):
    outputs = (DIMS if kind == "continuous" else CHOICES) + 1
    graph = dense_graph(outputs=outputs, mode=mode, neuron=neuron, delay=delay, cell_type=cell_type)
    agent = agent_of(graph, kind=kind)
    (data,) = windows(agent, 1, kind)
    data.unit = unit(agent, data.actions)
    log_std = np.asarray(agent._present().log_std, np.float64) if kind == "continuous" else None
    log_probs, values = by_forward(graph, data, log_std)
    seen = agent._unrolled(data, agent._observations(np.asarray(data.observations)), data.unit)
    np.testing.assert_allclose(seen.log_prob, log_probs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.value, values, rtol=1e-4, atol=1e-5)
    assert any(data.terminated)


@pytest.mark.parametrize("recurrent", [pytest.param(False, marks=pytest.mark.slow), True])
def test_before_an_update_every_ratio_is_one(recurrent):
    """The behaviour's own log-probabilities, as far as learning can see, change nothing; others would."""
    agent = agent_of(dense_graph(neuron=TrainableGRUNeuron, delay=2), recurrent=recurrent, learning_rate=0.0)
    first, second = windows(agent, 2)
    agent.learn(first)
    data = copy.copy(second)
    seen = agent._unrolled(data, agent._observations(np.asarray(data.observations)), unit(agent, data.actions))
    data.log_probs = seen.log_prob
    assert abs(agent.learn(data)["approx_kl"]) < 1e-10
    data.log_probs = seen.log_prob + 0.1 * np.sin(np.arange(data.length)).astype(np.float32)
    assert agent.learn(data)["approx_kl"] > 1e-4


def test_the_memory_of_act_is_the_graphs():
    graph = dense_graph(delay=1)
    agent, twin = agent_of(graph), copy.deepcopy(graph)
    seen = np.random.default_rng(0).normal(size=(4, OBS)).astype(np.float32)
    for obs in seen:
        twin.forward(obs)
        assert agent.act(obs) in range(CHOICES)
        assert isinstance(agent.act_deterministic(obs), int)
        np.testing.assert_allclose(graph.values, twin.values, rtol=1e-5, atol=1e-6)
    probs = agent.action_probs(seen[0])
    out = np.float64(twin.forward(seen[0])[:-1])
    np.testing.assert_allclose(probs, np.exp(out) / np.exp(out).sum(), rtol=1e-5)
    agent.reset_hidden()
    twin.reset_state()
    np.testing.assert_allclose(agent.action_probs(seen[1])[0], _softmax(twin.forward(seen[1])[:-1])[0], rtol=1e-5)


def _softmax(x):
    x = np.exp(np.float64(x))
    return x / x.sum()


# -- edits between windows ------------------------------------------------------------------------------------------


EDITS = {
    "insert": lambda g: insert_neuron_on_edge(g, g.all_edges()[-1].edge_id),
    "split": lambda g: split_neuron(g, g.hidden_ids[0]),
    "free edge": lambda g: add_free_edge(g, g.hidden_ids[0], g.output_ids[0], delay=4),
    "merge of a split": lambda g: merge_neurons(g, *split_neuron(g, g.hidden_ids[1], share=0.3)),
    "many": lambda g: [split_neuron(g, name) for name in g.hidden_ids * 3],  # beyond its room
}


@pytest.mark.parametrize(
    "edit", [pytest.param(name, marks=pytest.mark.slow if name == "many" else ()) for name in EDITS]
)
def test_an_edit_in_the_middle_of_episodes_changes_no_action(edit):
    """Memories that a pipeline keeps go on through function-preserving edits."""
    agents = [agent_of(dense_graph(neuron=LSTMNeuron, delay=2), kind="discrete") for _ in range(2)]
    rng, hidden, starts = np.random.default_rng(0), [None, None], np.ones(3, bool)
    probs = programs(True, False).probs
    for t in range(9):
        if t == 4:
            EDITS[edit](agents[0].graph)
        obs = rng.normal(size=(3, OBS)).astype(np.float32)
        found = []
        for i, agent in enumerate(agents):
            rows = agent._memory(hidden[i], 3)
            found.append(np.asarray(probs(agent._present(), obs, rows, starts)[0]))
            hidden[i] = agent.act_recurrent(obs, hidden[i], starts, deterministic=True)[1]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
        starts = np.array([False, t == 5, False])
    assert len(hidden[0][0]) >= len(hidden[1][0])


def test_what_has_grown_learns_from_the_next_window_on():
    agent = agent_of(dense_graph(hidden=2), entropy_coef=0.0)
    source = windows(agent, 3)
    agent.learn(next(source))
    known = {"bias", "edge"}
    mu = agent._moments.state.mu
    assert np.abs(np.asarray(mu.edges)).sum() > 0
    old, copy_id = split_neuron(agent.graph, agent.graph.hidden_ids[0], share=0.6)
    edge = add_free_edge(agent.graph, agent.graph.input_ids[0], agent.graph.output_ids[0], delay=1)
    moments = agent._moments.state
    slots = agent.graph.slot_of(old), agent.graph.slot_of(copy_id)
    for tree in moments[:3]:  # of what was touched nothing is known
        assert not np.asarray(tree.edges)[:, slots[1]].any()
        assert not np.asarray(tree.edges)[:, :, list(slots)].any()
    other = agent.graph.slot_of(agent.graph.hidden_ids[1])
    assert np.asarray(moments.mu.edges)[:, other].any()
    before = weights(agent.graph)
    agent.learn(next(source))
    agent.learn(next(source))
    after = weights(agent.graph)
    inputs = {f"bias:{name}" for name in agent.graph.input_ids}
    still = {name for name in before if name not in inputs and np.array_equal(before[name], after[name])}
    assert not still
    assert float(agent.graph.parameter("edge", edge).data) != 0.0
    assert agent.graph.gradient is not None
    assert {handle.field for handle in agent.graph.parameters() if handle.grad is not None} == known


def test_a_first_step_after_growth_has_the_size_of_a_first_step():
    """Bias correction counts by parameter: a fresh weight moves by the learning rate, not by three of them."""
    agent = agent_of(learning_rate=0.01, minibatch_size=1000, entropy_coef=0.0, n_epochs=500)
    source = windows(agent, 3)
    for data in itertools.islice(source, 2):
        agent.learn(data)
    assert agent._moments.state.count.edges.max() > 1000  # where one count for all would make the step twice as long
    agent.set_hyperparams(HyperparamSet({"n_epochs": 1}))
    new = add_free_edge(agent.graph, agent.graph.hidden_ids[0], agent.graph.output_ids[0], delay=1)
    agent.learn(next(source))
    assert 0.005 < abs(float(agent.graph.parameter("edge", new).data)) <= 0.0201  # of two updates


def test_inputs_may_be_added():
    agent = agent_of()
    agent = GraphAgent(agent.graph, OBS, CHOICES, normalize_observations=True)
    agent.learn(next(windows(agent, 1)))
    mean = agent.obs_normalizer.rms.mean
    add_input_neuron(agent.graph)
    assert agent.obs_dim == OBS + 1
    agent.act(np.zeros(OBS + 1))
    np.testing.assert_array_equal(agent.obs_normalizer.rms.mean, [*mean, 0.0])
    with pytest.raises(ValueError, match=r"observations must have shape \[4\]"):
        agent.act(np.zeros(OBS))


@pytest.mark.parametrize("cell_type", ["excitatory", "inhibitory"])
def test_dales_law_holds_after_learning_and_noise(cell_type):
    agent = agent_of(dense_graph(cell_type=cell_type), learning_rate=0.5)
    sign = 1 if cell_type == "excitatory" else -1

    def outgoing():
        graph = agent.graph
        return np.array([edge.weight for name in graph.hidden_ids for edge in graph.edges_from(name)])

    for data in windows(agent, 2):
        agent.learn(data)
        assert (sign * outgoing() >= 0).all()
        assert (outgoing() == 0).any()  # the law has had to act
    agent.perturb_weights(2.0)
    assert (sign * outgoing() >= 0).all()


# -- gradients through time -----------------------------------------------------------------------------------------


def test_gradients_go_through_time_only_where_they_may():
    """Of the last output, by the first observation: through a trainable cell, not through any other memory."""
    obs = np.random.default_rng(0).normal(size=(5, OBS)).astype(np.float32)

    def slope(**options):
        through = options.pop("through_delays", False)
        graph = dense_graph(**options)
        agent = RecurrentGraphAgent(graph, OBS, CHOICES, through_delays=through)
        by_obs = jax.grad(lambda x: agent.recurrent_forward(x)[-1, 0])(obs)
        return agent, np.abs(np.asarray(by_obs)[0]).sum()

    agent, size = slope(neuron=TrainableGRUNeuron)
    assert agent.is_recurrent
    assert size > 1e-4
    assert not slope(neuron=GRUNeuron)[0].is_recurrent
    assert slope(neuron=GRUNeuron)[1] == 0
    assert slope(delay=1)[1] == 0
    assert slope(delay=1, through_delays=True)[1] > 1e-4


def test_recurrent_forward_is_forward_step_by_step():
    graph = dense_graph(neuron=TrainableLSTMNeuron, delay=2)
    agent = RecurrentGraphAgent(graph, OBS, CHOICES)
    obs = np.random.default_rng(1).normal(size=(6, OBS)).astype(np.float32)
    starts = np.array([False, False, True, False, False, False])
    out = np.asarray(agent.recurrent_forward(obs, starts))
    for t in range(6):
        if starts[t]:
            graph.reset_state()
        np.testing.assert_allclose(out[t], graph.forward(obs[t]), rtol=1e-5, atol=1e-6)


def test_without_trainable_neurons_rows_are_learned_from_one_by_one():
    assert agent_of(recurrent=True)._sequence_length() == 1
    assert agent_of(dense_graph(neuron=TrainableGRUNeuron), recurrent=True)._sequence_length() == 4
    agent = RecurrentGraphAgent(dense_graph(neuron=TrainableGRUNeuron), OBS, CHOICES, chunk_len=9)
    assert agent._sequence_length() == 9
    plain, chunked = agent_of(seed=3), agent_of(recurrent=True, seed=3)
    for one, other in zip(windows(plain, 2), windows(chunked, 2), strict=True):
        plain.learn(one)
        chunked.learn(other)
    assert_same_bits(weights(plain.graph), weights(chunked.graph))


# -- hyperparameters and files --------------------------------------------------------------------------------------


def test_hyperparameters_are_copies():
    agent = agent_of()
    agent.get_hyperparams().params["learning_rate"] = 9.0
    assert agent.get_hyperparams().params["learning_rate"] == 0.01
    with pytest.raises(ValueError, match="chunk_len must be from 1"):
        agent.set_hyperparams(HyperparamSet({"chunk_len": 0}))


def test_hyperparameters_may_be_a_mapping():
    given = {"learning_rate": 1e-3, "mine": 5}
    agents = [GraphAgent(dense_graph(), OBS, CHOICES, hyperparams=x) for x in (given, HyperparamSet(given), {}, None)]
    params = [agent.get_hyperparams().params for agent in agents]
    assert params[0] == params[1] == {**params[2], **given}
    assert params[2] == params[3]
    agents[0].set_hyperparams(HyperparamSet({"learning_rate": 1e-2}))
    assert given["learning_rate"] == 1e-3
    with pytest.raises(TypeError, match=r"hyperparams must be a HyperparamSet or a mapping.*got \[1\]"):
        GraphAgent(dense_graph(), OBS, CHOICES, hyperparams=[1])


@pytest.mark.parametrize("kind", ["discrete", pytest.param("continuous", marks=pytest.mark.slow)])
def test_a_saved_agent_comes_back_whatever_has_grown_since(tmp_path, kind):
    """Weights, moments, random numbers, memories of running episodes: what comes after is the same, bit for bit."""

    def grown():
        outputs = (DIMS if kind == "continuous" else CHOICES) + 1
        agent = agent_of(dense_graph(outputs=outputs, delay=1), kind=kind, reward_normalizer=True)
        return agent, VectorBatchPipeline([lambda: Seeded(kind, 0)] * 3, agent, 8, seed=3)

    agent, pipeline = grown()
    source = pipeline.episodes()
    agent.learn(next(source))
    split_neuron(agent.graph, agent.graph.hidden_ids[0], share=0.6)
    prune_neuron(agent.graph, agent.graph.hidden_ids[1])
    agent.learn(next(source))
    insert_neuron_on_edge(agent.graph, agent.graph.all_edges()[0].edge_id)  # the pipeline's memories are older
    agent.save_state(str(tmp_path / "a"))
    held = pipeline.state_dict()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "agent.json", "model.safetensors", "optimizer.safetensors",
    ]  # fmt: skip
    other, second = grown()
    for name in other.graph.hidden_ids[:2]:
        split_neuron(other.graph, name)
    other.load_state(str(tmp_path / "a"))
    assert second.load_state_dict(held) == []
    assert_same_bits(weights(agent.graph), weights(other.graph))
    following = second.episodes()
    for _ in range(2):
        mine, theirs = next(source), next(following)
        np.testing.assert_array_equal(mine.actions, theirs.actions)
        agent.learn(mine)
        other.learn(theirs)
    assert_same_bits(weights(agent.graph), weights(other.graph))
    assert_same_bits(agent._moments.named(), other._moments.named())


def test_a_damaged_or_foreign_directory_leaves_the_agent_as_it_was(tmp_path):
    agent = agent_of()
    agent.save_weights(str(tmp_path / "a"))
    agent_of(dense_graph(outputs=6)).save_weights(str(tmp_path / "wide"))
    agent_of(dense_graph(mode="softplus")).save_weights(str(tmp_path / "soft"))
    before = weights(agent.graph)
    _, hidden = agent.act_recurrent(np.ones((2, OBS)), None, [True] * 2)
    with pytest.raises(ValueError, match="has 6 output neurons by now, and the agent needs 4"):
        agent.load_weights(str(tmp_path / "wide"))
    with pytest.raises(ValueError, match="dale_mode"):
        agent.load_weights(str(tmp_path / "soft"))
    with pytest.raises(ValueError, match="has no generator"):
        agent.load_state(str(tmp_path / "a"))
    (tmp_path / "a" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunDirError, match="is damaged"):
        agent.load_weights(str(tmp_path / "a"))
    assert_same_bits(weights(agent.graph), before)
    np.testing.assert_array_equal(agent._routes.present(hidden), hidden)


def test_means_are_of_equal_structures(tmp_path):
    agents = [agent_of(dense_graph(seed=i)) for i in range(3)]
    for i, agent in enumerate(agents):
        agent.save_weights(str(tmp_path / str(i)))
    mean = agents[0]
    mean.average_weights([str(tmp_path / "1"), str(tmp_path / "2")])
    one, other = (weights(agent.graph) for agent in agents[1:])
    for name, value in weights(mean.graph).items():
        np.testing.assert_allclose(value, (one[name] + other[name]) / 2, rtol=1e-6)
    split_neuron(agents[1].graph, agents[1].graph.hidden_ids[0])
    agents[1].save_weights(str(tmp_path / "1"))
    with pytest.raises(ValueError, match="other neurons or edges"):
        mean.average_weights([str(tmp_path / "2"), str(tmp_path / "1")])


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: GraphAgent(dense_graph(), OBS + 1, CHOICES), ValueError, "has 3 input neurons"),
        (lambda: GraphAgent(dense_graph(), OBS, CHOICES + 1), ValueError, "has 4 output neurons, expected 5"),
        (lambda: GraphAgent(dense_graph(), OBS, CHOICES, device="quantum"), ValueError, "device must be 'auto'"),
        (lambda: agent_of().act_recurrent(np.zeros((2, OBS)), np.zeros((3, 1)), [True] * 2), ValueError, "rows of 2"),
        (lambda: agent_of().set_action_bounds([0], [1]), TypeError, "chooses among actions"),
        (lambda: agent_of().learn(window_of(actions=np.full(24, CHOICES))), ValueError, "actions must be from 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_memories_of_another_agent_are_refused():
    small, large = agent_of(), agent_of(dense_graph(hidden=9))
    _, hidden = large.act_recurrent(np.zeros((2, OBS)), None, [True] * 2)
    with pytest.raises(ValueError, match="those of another agent mean nothing here"):
        small.act_recurrent(np.zeros((2, OBS)), hidden, [False] * 2)
    split_neuron(large.graph, large.graph.hidden_ids[0])
    _, hidden = large.act_recurrent(np.zeros((2, OBS)), hidden, [False] * 2)
    with pytest.raises(ValueError, match="those of another agent mean nothing here"):  # of a version yet to come
        small.act_recurrent(np.zeros((2, OBS)), hidden, [False] * 2)


def test_outputs_must_stay():
    agent = agent_of()
    agent.graph.add_neuron("output", "linear")
    with pytest.raises(ValueError, match="5 output neurons by now, and the agent needs 4"):
        agent.act(np.zeros(OBS))


def test_rewards_are_scaled_unless_that_is_declined():
    assert isinstance(GraphAgent(dense_graph(), OBS, CHOICES).reward_normalizer, RewardNormalizer)
    assert GraphAgent(dense_graph(), OBS, CHOICES, reward_normalizer=False).reward_normalizer is None


def test_copies_go_their_own_ways():
    agent = agent_of(dense_graph(delay=1))
    (data,) = windows(agent, 1)
    twin = copy.deepcopy(agent)
    before = weights(agent.graph)
    split_neuron(twin.graph, twin.graph.hidden_ids[0])
    twin.learn(data)
    assert_same_bits(weights(agent.graph), before)
    assert agent._routes.version == 0
    assert twin._routes.version > 0


# -- brains ---------------------------------------------------------------------------------------------------------


def brain_of(seed=0):
    """Two regions: the second sees nothing but what the first sends, now and two steps ago."""
    brain, rng = BrainNetwork(output_regions=["motor"], seed=seed), np.random.default_rng(seed)
    motor = NeuronGraph(seed=1)
    inputs = [motor.add_neuron("input", "linear") for _ in range(2)]
    outputs = [motor.add_neuron("output", "linear") for _ in range(CHOICES + 1)]
    for u, v in itertools.product(inputs, outputs):
        motor.add_edge(u, v, rng.normal())
    brain.add_region("sensory", dense_graph(outputs=2, delay=1))
    brain.add_region("motor", motor)
    brain.add_pathway("sensory", "motor", n_connections=4, delay=0, weight_init=0.3)
    brain.add_pathway("sensory", "motor", n_connections=4, delay=2, weight_init=0.1)
    return brain


def brain_agent():
    settings = HyperparamSet({"n_epochs": 1, "minibatch_size": 16, "learning_rate": 0.01})
    return GraphAgent(brain_of(), OBS + 2, CHOICES, hyperparams=settings)


def brain_window(agent, rng, hidden=None):
    rows = 24
    obs = rng.normal(size=(rows, OBS + 2)).astype(np.float32)
    hidden = hidden if hidden is not None else agent.act_recurrent(obs[:1], None, [True], deterministic=True)[1]
    return window_of(rows=rows, observations=obs, hidden_states=hidden)


@pytest.mark.slow
def test_a_brain_learns_with_its_pathways_and_follows_the_edits_of_its_regions():
    agent, twin = brain_agent(), brain_agent()
    rng = np.random.default_rng(0)
    brain = agent.graph
    before = {edge.edge_id: edge.weight for edge in brain.all_inter_region_edges()}
    losses = agent.learn(brain_window(agent, rng))
    assert np.isfinite(list(losses.values())).all()
    after = {edge.edge_id: edge.weight for edge in brain.all_inter_region_edges()}
    assert all(after[name] != weight for name, weight in before.items())
    assert any(handle.grad for handle in brain.parameters())

    twin.graph.load_state_dict(brain.state_dict())
    agent.perturb_weights(0.0)
    hidden = [None, None]
    for t in range(8):
        if t == 3:
            split_neuron(brain.get_region("sensory"), brain.get_region("sensory").hidden_ids[0])
            insert_neuron_on_edge(brain.get_region("motor"), brain.get_region("motor").all_edges()[0].edge_id)
        obs = rng.normal(size=(2, OBS + 2)).astype(np.float32)
        probs = []
        for i, each in enumerate((agent, twin)):
            rows = each._memory(hidden[i], 2)
            seen = each._observations(obs)
            probs.append(np.asarray(each._programs.probs(each._present(), seen, rows, np.zeros(2, bool))[0]))
            hidden[i] = each.act_recurrent(obs, hidden[i], [t == 0] * 2, deterministic=True)[1]
        np.testing.assert_allclose(probs[0], probs[1], rtol=1e-5, atol=1e-6)
    agent.learn(brain_window(agent, rng, hidden[0][:1]))


def test_a_brain_that_no_longer_fits_is_refused():
    agent = brain_agent()
    agent.graph.add_pathway("sensory", "motor", n_connections=2, delay=7)
    agent.act_recurrent(np.zeros((2, OBS + 2)), None, [True] * 2)  # with more to remember
    agent.graph.add_region("new", dense_graph(outputs=1))
    with pytest.raises(ValueError, match="has other regions than when the agent was made"):
        agent.act_recurrent(np.zeros((2, 2 * OBS + 2)), None, [True] * 2)


def test_a_region_of_a_learning_brain_can_be_copied():
    agent = brain_agent()
    region = copy.deepcopy(agent.graph.get_region("sensory"))
    split_neuron(region, region.hidden_ids[0])
    assert agent._routes.version == 0
    twin = copy.deepcopy(agent)
    split_neuron(twin.graph.get_region("sensory"), twin.graph.get_region("sensory").hidden_ids[0])
    assert agent._routes.version == 0
    assert twin._routes.version > 0


def test_a_brain_comes_back_from_disk(tmp_path):
    agent, rng = brain_agent(), np.random.default_rng(0)
    agent.learn(brain_window(agent, rng))
    split_neuron(agent.graph.get_region("sensory"), agent.graph.get_region("sensory").hidden_ids[0])
    agent.save_state(str(tmp_path / "a"))
    other = brain_agent()
    other.load_state(str(tmp_path / "a"))
    data = brain_window(agent, rng)
    assert other.learn(data) == agent.learn(data)
    weights = [[float(np.sum(handle.data)) for handle in each.graph.parameters()] for each in (agent, other)]
    assert weights[0] == weights[1]


# -- whole runs -----------------------------------------------------------------------------------------------------


def growing_run(folder, windows, resume_from=None):
    graph = dense_graph(hidden=2)
    agent = agent_of(graph, reward_normalizer=True)
    controller = TopologyController(
        graph, grow_op="split_neuron", min_score_buffer=4, grow_cooldown=2, trigger="plateau", maturation_window=2,
        merge_check_interval=3,
    )  # fmt: skip
    pipeline = VectorBatchPipeline([lambda: Seeded("discrete", 0)] * 3, agent, 8, seed=3)
    run = RLOptimizer(
        agent, pipeline, max_episodes=windows, checkpoint_dir=folder, plateau_threshold=2,
        callbacks=[HebbianHook(graph, hebbian_lr=0.01), controller],
        min_episodes_before_dormant=1000, resume_from=resume_from,
    )  # fmt: skip
    return run, run.run(), agent, controller


@pytest.mark.slow
@pytest.mark.parametrize("cut", [20, 21])  # at an evaluation that was due, and at one that was not
def test_a_run_grows_and_one_that_is_resumed_goes_on_bit_for_bit(tmp_path, cut):
    _, whole, agent, controller = growing_run(tmp_path / "whole", 36)
    assert controller.stats["grow_count"] >= 1
    assert not whole.callback_failures
    first, _, _, _ = growing_run(tmp_path / "parts", cut)
    _, _, resumed, again = growing_run(tmp_path / "parts", 36, resume_from=first.run_dir)
    assert again.stats == controller.stats
    assert_same_bits(weights(agent.graph), weights(resumed.graph))


@pytest.mark.slow
def test_a_memory_is_learned(tmp_path):
    """A cue at the first step, to be named at the last: only a memory can."""

    class Cue(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32), gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t, self.cue = 0, int(self.np_random.integers(2))
            return np.array([2.0 * self.cue - 1, 0], np.float32), {}

        def step(self, action):
            self.t += 1
            last = self.t == 3
            reward = float(action == self.cue) if last else 0.0
            return np.array([0, float(self.t == 2)], np.float32), reward, last, False, {}

    graph = NeuronGraph(seed=1)
    rng = np.random.default_rng(1)
    inputs = [graph.add_neuron("input", "linear") for _ in range(2)]
    hidden = [graph.add_neuron("hidden", neuron=TrainableLSTMNeuron()) for _ in range(6)]
    outputs = [graph.add_neuron("output", "linear") for _ in range(3)]
    for before, after in ((inputs, hidden), (hidden, outputs)):
        for u, v in itertools.product(before, after):
            graph.add_edge(u, v, rng.normal() * 0.7)
    agent = RecurrentGraphAgent(
        graph, 2, 2, hyperparams=HyperparamSet({"chunk_len": 4, "learning_rate": 0.01, "n_epochs": 4})
    )
    pipeline = VectorBatchPipeline([Cue] * 8, agent, window_size=64, seed=0)
    result = RLOptimizer(agent, pipeline, max_episodes=60, checkpoint_dir=tmp_path).run()
    assert result.best_snapshot.eval_metrics.primary_score > 0.95
