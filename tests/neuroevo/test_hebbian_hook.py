"""The hook on graphs with names: the rule edge by edge in plain Python, edits in between, and how it is called."""

# ruff: noqa: B007, RUF059 (the documents' own loops)

import copy
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.loop.events import CallbackList, LoopCallback
from tensor_optix.neuroevo import NeuronGraph, insert_neuron_on_edge, prune_neuron, split_neuron
from tensor_optix.neuroevo.graph import hebbian
from tensor_optix.neuroevo.graph.arrays import fresh_memory
from tensor_optix.neuroevo.graph.forward import step as graph_step
from tensor_optix.neuroevo.hebbian_hook import HebbianHook
from tests.neuroevo.faces import face_of
from tests.neuroevo.graphs import MODES, observations, random_oracle, run_oracle

LR, DECAY = 0.1, 0.01


def raw(graph):
    return {edge.edge_id: float(graph.read("edge", edge.edge_id)) for edge in graph.all_edges()}


def mean_products(history, edge, first=0):
    """By hand: values of all steps by id -> the mean over the steps from `first` on."""
    u, v, d = edge
    products = [
        history[t][v] * (history[t - d][u] if t >= d and u in history[t - d] else 0.0)
        for t in range(first, len(history))
    ]
    return sum(products) / len(products)


def ran(graph, hook, obs):
    """Values by id of every step, each recorded."""
    history = []
    for x in obs:
        graph.forward(x)
        hook.record()
        history.append({name: float(graph.values[graph.slot_of(name)]) for name in graph.all_neuron_ids()})
    return history


def small(mode="clamp", hidden=2):
    """Two inputs, hidden neurons, one output, and one delayed edge back."""
    graph = NeuronGraph(mode)
    ins = [graph.add_neuron("input") for _ in range(2)]
    hidden = [graph.add_neuron("hidden", "tanh") for _ in range(hidden)]
    out = graph.add_neuron("output", "linear")
    weights = iter(np.random.default_rng(0).normal(size=100))
    for h in hidden:
        for i in ins:
            graph.add_edge(i, h, next(weights))
        graph.add_edge(h, out, next(weights))
    for h in hidden[:1]:
        graph.add_edge(out, h, 0.3, delay=2)
    return graph


# The rule


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", MODES, ids=["clamp", "softplus"])
def test_every_edge_follows_what_it_delivered(capacity, seed):
    oracle, _ = random_oracle(seed, capacity, hidden=4)
    graph = face_of(oracle, np.random.default_rng(seed))
    hook = HebbianHook(graph, hebbian_lr=LR, weight_decay=DECAY)
    obs = observations(seed, 7, 3)
    for x in obs:
        graph.forward(x)
        hook.record()
    assert hook.n_steps_recorded == 7
    history = run_oracle(oracle.copy(), obs)
    means = {edge: mean_products(history, edge) for edge in oracle.edges}
    assert max(edge[2] for edge in means) == 3
    assert hook.mean_coactivation == pytest.approx(np.mean(list(means.values())), rel=1e-4, abs=1e-6)
    hook.apply()
    changed = raw(graph)
    for edge, old in oracle.edges.items():
        new = old + LR * means[edge] - DECAY * old
        sign = oracle.neurons[edge[0]].cell_type
        if not capacity.softplus and sign * new < 0:
            new = 0.0
        assert changed[edge] == pytest.approx(new, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("mode", ["clamp", "softplus"])
def test_dales_law(mode):
    def grown(respect_dale):
        graph = small(mode, hidden=0)
        up = graph.add_neuron(activation="tanh", cell_type="excitatory")
        down = graph.add_neuron(activation="tanh", cell_type="inhibitory")
        (a, _), (out,) = graph.input_ids, graph.output_ids
        graph.add_edge(a, up, 1.0)
        graph.add_edge(a, down, 1.0)
        graph.add_edge(up, out, 0.1)
        graph.add_edge(down, out, -2.0)
        graph.add_edge(up, down, 0.1, delay=1)
        graph.get_neuron(out).bias.data = -0.9
        hook = HebbianHook(graph, 50.0, 0.0, respect_dale=respect_dale)
        ran(graph, hook, [[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
        hook.apply()
        weights = [edge.weight for edge in graph.edges_from(up)] + [-edge.weight for edge in graph.edges_from(down)]
        return min(weights)

    assert grown(True) >= 0
    assert (grown(False) < 0) == (mode == "clamp")


def test_decay_and_clipping():
    graph = small()
    hook = HebbianHook(graph, hebbian_lr=0.0, weight_decay=0.25)
    before = raw(graph)
    ran(graph, hook, observations(0, 3, 2))
    hook.apply()
    assert raw(graph) == pytest.approx({name: 0.75 * w for name, w in before.items()}, rel=1e-5)
    hook = HebbianHook(graph, hebbian_lr=100.0, clip_weight=0.25)
    ran(graph, hook, observations(0, 3, 2))
    hook.apply()
    assert max(map(abs, raw(graph).values())) == 0.25


def test_a_batch_of_environments_counts_each():
    graph = small()
    hook, by_hand = HebbianHook(graph, LR, DECAY), HebbianHook(small(), LR, DECAY)
    obs = np.random.default_rng(1).normal(size=(4, 2, 3, 2)).astype(np.float32)
    arrays, memory = graph.arrays, fresh_memory(graph.arrays.capacity, (2, 3))
    for x in obs:
        before = memory
        _, memory, values = graph_step(arrays, memory, jnp.asarray(x))
        graph.saw(values, before)
        hook.record()
    for row in np.ndindex(2, 3):
        by_hand.graphs[0].reset_state()
        ran(by_hand.graphs[0], by_hand, obs[(slice(None), *row)])
    assert hook.n_steps_recorded == by_hand.n_steps_recorded == 24
    for one in (hook, by_hand):
        one.apply_and_reset()
    assert raw(graph) == pytest.approx(raw(by_hand.graphs[0]), rel=1e-5)


# Edits in the middle of an episode


def growth(graph):
    """What a controller may do, and the edges that it left alone."""
    before = raw(graph)
    (a, _), (h, g), (out,) = graph.input_ids, graph.hidden_ids, graph.output_ids
    graph.add_edge(a, out, 0.2)  # between neurons that have fired together before
    insert_neuron_on_edge(graph, graph.edges_into(h)[-1].edge_id)  # the delayed one
    split_neuron(graph, g)
    for _ in range(9):  # more than there was room for
        graph.add_neuron()
    return {name: w for name, w in raw(graph).items() if before.get(name) == w}


@pytest.mark.parametrize("mode", ["clamp", "softplus"])
def test_growth_keeps_the_traces_of_untouched_edges_and_new_ones_begin(mode):
    graph, obs = small(mode), observations(2, 9, 2)
    hook = HebbianHook(graph, LR, DECAY)
    history = ran(graph, hook, obs[:5])
    room = graph.arrays.capacity.hidden
    untouched = growth(graph)
    assert 2 < len(untouched) < graph.n_edges()
    assert graph.arrays.capacity.hidden > room
    history += ran(graph, hook, obs[5:])
    assert hook.n_steps_recorded == 9
    before, places = raw(graph), {edge: graph.place_of(edge) for edge in raw(graph)}
    (relayed,) = [name for name, place in places.items() if place.delay and place.src not in history[0]]
    places.pop(relayed)  # the relay has a past before it was there
    hook.apply()
    for name in places:
        old = before[name]
        mean = mean_products(history, places[name], 0 if name in untouched else 5)
        assert raw(graph)[name] == pytest.approx(old + LR * mean - DECAY * old, rel=1e-3, abs=1e-5), name


def test_what_is_pruned_takes_its_trace_along():
    graph, obs = small(), observations(2, 8, 2)
    hook = HebbianHook(graph, LR, DECAY)
    g = graph.hidden_ids[1]
    ran(graph, hook, obs[:4])
    gone = graph.edges_into(g)[0]
    graph.remove_edge(gone.edge_id)
    again = graph.add_edge(gone.src, g, 0.5)
    history = ran(graph, hook, obs[4:6])
    hook.apply()
    assert raw(graph)[again] == pytest.approx(
        0.5 + LR * mean_products(history, graph.place_of(again)) - DECAY * 0.5, rel=1e-4
    )
    prune_neuron(graph, g)
    ran(graph, hook, obs[6:])
    assert hook.n_steps_recorded == 8
    hook.apply_and_reset()
    assert np.isfinite(list(raw(graph).values())).all()


def test_removing_a_neuron_moves_the_traces():
    """An input in front of others goes: all slots move."""
    graph, obs = small(), observations(4, 5, 2)
    kept = {edge.edge_id for edge in graph.all_edges() if edge.src != "n0"}
    hook = HebbianHook(graph, LR, DECAY)
    history = ran(graph, hook, obs)
    graph.remove_neuron("n0")
    before = raw(graph)
    assert set(before) == kept
    hook.apply()
    for name, old in before.items():
        mean = mean_products(history, graph.place_of(name))
        assert raw(graph)[name] == pytest.approx(old + LR * mean - DECAY * old, rel=1e-4, abs=1e-6)


def test_another_graph_begins_anew():
    graph = small()
    hook = HebbianHook(graph, LR)
    ran(graph, hook, observations(0, 3, 2))
    graph.load_state_dict(small(hidden=3).state_dict())
    assert hook.n_steps_recorded == 0
    before = raw(graph)
    hook.apply()
    assert raw(graph) == before


# How it is called


def test_recording_applying_and_forgetting():
    graph = small()
    hook = HebbianHook(graph)
    with pytest.raises(ValueError, match="found no step"):
        hook.record()
    before = raw(graph)
    hook.apply_and_reset()  # nothing yet
    assert (raw(graph), hook.n_steps_recorded, hook.mean_coactivation) == (before, 0, 0.0)
    graph.forward([1.0, 2.0])
    hook.record()
    hook.record()  # the same step
    assert hook.n_steps_recorded == 1
    graph.forward([1.0, 2.0])
    hook.record()
    assert hook.n_steps_recorded == 2
    hook.apply()
    assert raw(graph) != before
    assert hook.n_steps_recorded == 2
    hook.reset()
    assert hook.n_steps_recorded == 0
    graph.add_edge(graph.input_ids[0], graph.output_ids[0])
    with pytest.raises(ValueError, match="edited"):
        hook.record()


def test_names_and_defaults():
    graph = small()
    hook = HebbianHook(graph)
    assert (hook.hebbian_lr, hook.weight_decay, hook.clip_weight, hook.respect_dale) == (1e-3, 1e-4, None, True)
    hook = HebbianHook([graph, graph], lr=0.5, decay=0.0)
    assert (hook.hebbian_lr, hook.weight_decay, hook.graphs) == (0.5, 0.0, [graph])
    hook.hebbian_lr = 0.25
    assert hook.hebbian_lr == 0.25
    for both in ({"hebbian_lr": 0.1, "lr": 0.1}, {"weight_decay": 0.1, "decay": 0.1}):
        with pytest.raises(ValueError, match="two names of one argument"):
            HebbianHook(graph, **both)
    for bad in ({"lr": -1.0}, {"decay": float("nan")}, {"clip_weight": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            HebbianHook(graph, **bad)
    with pytest.raises(ValueError, match="at least 0"):
        hook.hebbian_lr = -0.1
    with pytest.raises(ValueError, match="at least one"):
        HebbianHook([])
    with pytest.raises(TypeError, match="from_brain"):
        HebbianHook(SimpleNamespace(regions={"a": graph}))


def test_a_set_rate_counts():
    graph, twin = small(), small()
    hook, other = HebbianHook(graph, lr=0.0), HebbianHook(twin, lr=0.3)
    for one in (hook, other):
        ran(one.graphs[0], one, observations(0, 3, 2))
    other.apply()
    hook.hebbian_lr = 0.3
    hook.apply()
    assert raw(graph) == raw(twin)


def test_nothing_runs_edge_by_edge(monkeypatch):
    """One program for all edges; programs are not made anew for each step."""
    graph = small(hidden=8)
    hook = HebbianHook(graph, LR)
    graph.forward([1.0, 2.0])
    hook.record()
    hook.apply()
    for name in ("read", "write", "index_of", "get_edge"):
        monkeypatch.setattr(NeuronGraph, name, None)
    for name in ("record", "apply"):
        monkeypatch.setattr(hebbian, name, None)  # traced already
    for x in observations(0, 5, 2):
        graph.forward(x)
        hook.record()
    hook.apply()
    assert hook.n_steps_recorded == 6


def test_in_a_run_it_records_by_itself():
    graph, other, by_hand = small(), small(), small()
    hook, expected = HebbianHook([graph, other], LR), HebbianHook(by_hand, LR)
    told = CallbackList([hook])
    obs = observations(0, 6, 2)
    told.call("on_loop_start")
    before = raw(other)
    for window in (obs[:3], obs[3:]):
        for x in window:
            graph.forward(x)
            hook.record()  # not twice
        ran(by_hand, expected, window)
        told.call("on_episode_end", 0, None)
        expected.apply_and_reset()
        assert raw(graph) == raw(by_hand)
    assert raw(other) == before
    graph.forward(obs[0])
    assert hook.n_steps_recorded == 1
    told.call("on_loop_stop")
    assert hook.n_steps_recorded == 0
    graph.forward(obs[0])
    assert hook.n_steps_recorded == 0
    for name in vars(LoopCallback):
        if name.startswith("on_"):
            told.call(name, *(None,) * (LoopCallback.__dict__[name].__code__.co_argcount - 1))
    assert not told.failures


def test_a_copy_of_the_graph_is_its_own():
    graph = small()
    hook = HebbianHook(graph, LR)
    hook.on_loop_start()
    graph.forward([1.0, 2.0])
    twin = copy.deepcopy(graph)
    twin.forward([3.0, 4.0])
    insert_neuron_on_edge(twin, "e0")
    assert hook.n_steps_recorded == 1
    graph.forward([1.0, 2.0])
    assert hook.n_steps_recorded == 2


# As documented


class Env:
    """Five steps, as Gymnasium was before `terminated` and `truncated`."""

    def reset(self):
        self.t = 0
        return [0.5, -0.5]

    def step(self, action):
        self.t += 1
        return [0.5 * self.t, -0.5], 1.0, self.t == 5, {}


def acting(graph):
    return SimpleNamespace(act=lambda obs: float(graph.forward(obs)[0]), learn=lambda episode_data: {})


def test_the_example_of_one_graph():
    graph, env, episode_data = small(), Env(), None
    agent, episode, obs, before = acting(graph), range(5), env.reset(), raw(graph)

    hook = HebbianHook(graph, hebbian_lr=1e-3, weight_decay=1e-4)

    for step in episode:
        action = agent.act(obs)
        hook.record()
        obs, reward, done, _ = env.step(action)

    agent.learn(episode_data)
    assert hook.n_steps_recorded == 5
    hook.apply()
    hook.reset()
    assert raw(graph) != before
    assert hook.n_steps_recorded == 0


def test_the_example_of_a_brain():
    regions = {"sensory": small(), "motor": small("softplus", hidden=3)}
    brain, env, episode_data, training_loop = SimpleNamespace(regions=regions), Env(), None, range(2)
    before = {name: raw(graph) for name, graph in regions.items()}

    def act(obs):
        return [graph.forward(obs) for graph in regions.values()]

    agent = SimpleNamespace(act=act, learn=lambda episode_data: {})

    hook = HebbianHook.from_brain(brain, hebbian_lr=1e-3, weight_decay=1e-4)

    for episode in training_loop:
        obs = env.reset()
        done = False
        while not done:
            action = agent.act(obs)
            hook.record()  # snapshot co-activations after each forward pass
            obs, reward, done, _ = env.step(action)

        agent.learn(episode_data)
        assert hook.n_steps_recorded == 5
        hook.apply_and_reset()
    for name, graph in regions.items():
        assert all(w != before[name][edge] for edge, w in raw(graph).items())
