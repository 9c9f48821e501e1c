"""The forward pass and its gradients against the oracle, and what must not change them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.neuroevo.graph.arrays import (
    Activation,
    Capacity,
    Kind,
    Role,
    empty,
    forgotten,
    fresh_memory,
)
from tensor_optix.neuroevo.graph.capacity import grown, pad_graph, pad_memory
from tensor_optix.neuroevo.graph.forward import step
from tests.neuroevo.graphs import CLAMP, MODES, observations, packed, placed, random_oracle, run_oracle, spread
from tests.neuroevo.oracle import Neuron, Oracle

STEPS = 12
BOTH = pytest.mark.parametrize("capacity", MODES, ids=["clamp", "softplus"])


@functools.partial(jax.jit, static_argnames="through_delays")
def episode(graph, memory, obs, through_delays=False):
    """Outputs, memory at the end and all values; obs [T, *batch, I]."""

    def one(memory, x):
        out, memory, values = step(graph, memory, x, through_delays=through_delays)
        return memory, (out, values)

    memory, (outs, values) = jax.lax.scan(one, memory, obs)
    return outs, memory, values


def case(seed, capacity, **kinds):
    oracle, slots = random_oracle(seed, capacity, **kinds)
    obs = observations(seed, STEPS, len(oracle.input_ids))
    graph, memory = packed(oracle, slots, capacity)
    return oracle, slots, obs, graph, memory, placed(obs, oracle, slots, capacity)


def stack(trees):
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


@BOTH
def test_every_value_of_an_episode_is_the_oracles(capacity):
    for seed in range(12):
        oracle, slots, obs, graph, memory, seen = case(seed, capacity)
        outs, memory, values = episode(graph, memory, seen)
        expected = spread(run_oracle(oracle, obs), slots, capacity)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=2e-6)
        np.testing.assert_array_equal(outs, values[:, capacity.inputs : capacity.first_hidden])
        remembered = packed(oracle, slots, capacity)[1]
        np.testing.assert_allclose(memory.past, remembered.past, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(memory.cell, remembered.cell, rtol=1e-5, atol=2e-6)


def test_random_graphs_have_everything():
    """What the tests above go through: without this they could pass on graphs of nothing."""
    graphs = [random_oracle(seed, c)[0] for seed in range(12) for c in MODES]
    neurons = [n for g in graphs for n in g.neurons.values() if n.role != "input"]
    assert len({(n.kind, n.cell_type) for n in neurons}) == 15
    assert len({n.activation for n in neurons if n.kind == "point"}) == 5
    assert {d for g in graphs for _, _, d in g.edges} == {0, 1, 2, 3}
    assert any(u == v for g in graphs for u, v, _ in g.edges)
    assert {g.depth() for g in graphs} >= {2, 3, 4}


@BOTH
def test_batches_equal_one_by_one(capacity):
    _, _, _, graph, memory, seen = case(1, capacity)
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(STEPS, 2, 3, capacity.inputs)).astype(np.float32)
    outs, after, values = episode(graph, fresh_memory(capacity, (2, 3)), seen)
    assert outs.shape == (STEPS, 2, 3, capacity.outputs)
    for i in range(2):
        for j in range(3):
            one_outs, one_after, one_values = episode(graph, memory, seen[:, i, j])
            np.testing.assert_allclose(outs[:, i, j], one_outs, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(values[:, i, j], one_values, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(after.past[i, j], one_after.past, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(after.cell[i, j], one_after.cell, rtol=1e-5, atol=1e-6)


@BOTH
def test_vmap_over_different_graphs_equals_one_by_one(capacity):
    cases = [case(seed, capacity) for seed in range(6)]
    graphs, memories = stack([c[3] for c in cases]), stack([c[4] for c in cases])
    outs, after, values = jax.vmap(episode)(graphs, memories, np.stack([c[5] for c in cases]))
    for i, (_, _, _, graph, memory, seen) in enumerate(cases):
        one_outs, one_after, one_values = episode(graph, memory, seen)
        np.testing.assert_allclose(outs[i], one_outs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(values[i], one_values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after.cell[i], one_after.cell, rtol=1e-5, atol=1e-6)


@BOTH
def test_deeper_levels_change_no_bit(capacity):
    deeper = dataclasses.replace(capacity, levels=capacity.levels + 3)
    for seed in range(4):
        _, _, _, graph, memory, seen = case(seed, capacity)
        shallow, deep = episode(graph, memory, seen), episode(graph.replace(capacity=deeper), memory, seen)
        for a, b in zip(jax.tree.leaves(shallow), jax.tree.leaves(deep), strict=True):
            np.testing.assert_array_equal(a, b)


def test_one_level_too_few_does():
    """Or the test above would show nothing."""
    shallower = dataclasses.replace(CLAMP, levels=1)
    _, _, _, graph, memory, seen = case(0, CLAMP)
    assert not np.allclose(episode(graph, memory, seen)[2], episode(graph.replace(capacity=shallower), memory, seen)[2])


@BOTH
def test_padding_changes_nothing(capacity):
    larger = dataclasses.replace(capacity, inputs=6, hidden=14, delays=5, levels=6)
    places = [*range(capacity.inputs), *range(6, 6 + capacity.outputs)]
    places += range(6 + capacity.outputs, 6 + capacity.outputs + capacity.hidden)
    for seed in range(2):
        _, _, _, graph, memory, seen = case(seed, capacity)
        _, memory, _ = episode(graph, memory, seen[:6])
        outs, _, values = episode(graph, memory, seen[6:])
        wide = np.pad(seen[6:], [(0, 0), (0, 6 - capacity.inputs)])
        more = episode(pad_graph(graph, larger), pad_memory(memory, capacity, larger), wide)
        np.testing.assert_allclose(more[0], outs, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(more[2][:, places], values, rtol=1e-6, atol=1e-6)
        assert not np.delete(np.asarray(more[2]), places, axis=1).any()
        batch = pad_memory(stack([memory, memory]), capacity, larger)
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(pad_memory(memory, capacity, larger)), strict=True):
            np.testing.assert_array_equal(a, np.stack([b, b]))


def test_capacity_grows_to_powers_of_two_and_never_shrinks():
    assert grown(CLAMP, hidden=10, delays=5) == dataclasses.replace(CLAMP, hidden=16, delays=8)
    assert grown(CLAMP, hidden=9, levels=1) == CLAMP
    with pytest.raises(ValueError, match="hidden=8"):
        pad_graph(empty(CLAMP), dataclasses.replace(CLAMP, hidden=8))
    with pytest.raises(ValueError, match="outputs"):
        pad_graph(empty(CLAMP), dataclasses.replace(CLAMP, outputs=4))
    with pytest.raises(ValueError, match="Dale"):
        pad_graph(empty(CLAMP), dataclasses.replace(CLAMP, softplus=True))


def test_a_capacity_of_points_without_delays_runs():
    capacity = Capacity(
        inputs=2, outputs=1, hidden=2, delays=0, levels=2, activations=(Activation.LINEAR, Activation.TANH)
    )
    oracle = Oracle(longest=0)
    for name, neuron in enumerate([Neuron("input"), Neuron("input"), Neuron("output", bias=0.25)]):
        oracle.add(name, neuron)
    oracle.add(3, Neuron("hidden", activation="tanh"))
    oracle.edges = {(0, 3, 0): 0.5, (1, 3, 0): -1.0, (3, 2, 0): 2.0, (1, 2, 0): 1.0}
    graph, memory = packed(oracle, {0: 0, 1: 1, 2: 2, 3: 4}, capacity)
    outs, memory, _ = episode(graph, memory, np.array([[1.0, 0.5]], np.float32))
    np.testing.assert_allclose(outs, [[0.25 + 0.5 + 2 * np.tanh(0.0)]], rtol=1e-6)
    outs, memory, _ = episode(graph, memory, np.array([[2.0, 0.5]], np.float32))
    np.testing.assert_allclose(outs, [[0.25 + 0.5 + 2 * np.tanh(0.5)]], rtol=1e-6)
    assert not jax.tree.leaves(memory)


@BOTH
def test_what_the_masks_hide_has_no_influence(capacity):
    _, _, _, graph, memory, seen = case(3, capacity)
    clean = episode(graph, memory, seen)
    rng = np.random.default_rng(5)
    absent = np.asarray(graph.topology.role) == Role.ABSENT
    inputs = np.asarray(graph.topology.role) == Role.INPUT
    point = np.asarray(graph.topology.kind) == Kind.POINT

    def garbage(x, where):
        where = np.broadcast_to(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x.shape)
        return jnp.asarray(np.where(where, rng.normal(0, 30, x.shape), x).astype(np.float32))

    weights = graph.weights
    poisoned = graph.replace(
        weights=weights.replace(
            edges=garbage(weights.edges, ~np.asarray(graph.topology.edges)),
            bias=garbage(weights.bias, absent | inputs),
            gates=garbage(weights.gates, absent | point),
        )
    )
    other = seen.copy()
    other[:, absent[: capacity.inputs]] = -1e3
    dirty = episode(poisoned, memory, other)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)
    assert absent.sum() >= 4
    assert not np.asarray(dirty[2])[:, absent].any()
    assert not np.asarray(dirty[1].past)[:, absent].any()
    assert not np.asarray(dirty[1].cell)[absent].any()


@BOTH
def test_an_episode_that_starts_again_forgets(capacity):
    _, _, _, graph, memory, seen = case(2, capacity)
    _, used, _ = episode(graph, fresh_memory(capacity, (2,)), np.stack([seen, seen], axis=1))
    again = forgotten(used, jnp.array([True, False]))
    for fresh, old, now in zip(*map(jax.tree.leaves, (memory, used, again)), strict=True):
        np.testing.assert_array_equal(now[0], fresh)
        np.testing.assert_array_equal(now[1], old[1])
        assert old.any()


# Gradients


def loss_weights(outs):
    return np.cos(np.arange(outs.size)).reshape(outs.shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames="through_delays")
def gradients(graph, memory, obs, through_delays):
    def loss(weights):
        outs, _, _ = episode(graph.replace(weights=weights), memory, obs, through_delays=through_delays)
        return jnp.sum(outs * loss_weights(outs))

    return jax.grad(loss)(graph.weights)


def trace(oracle, obs):
    """The oracle before each step."""
    states = [oracle.copy()]
    for x in obs:
        states.append(states[-1].copy())
        states[-1].step(x)
    return states


def oracle_loss(oracle, unchanged, obs, slots, capacity, through_delays):
    """The loss of a changed oracle; what gradients do not pass through is remembered by the unchanged one."""
    outs = np.zeros((len(obs), capacity.outputs))
    for t, x in enumerate(obs):
        for n, value in zip(oracle.output_ids, oracle.step(x, unchanged[t], through_delays)[0], strict=True):
            outs[t, slots[n] - capacity.inputs] = value
    return float(np.sum(outs * loss_weights(outs)))


def difference(oracle, change, *rest, size=1e-5):
    sides = []
    for by in (size, -size):
        moved = oracle.copy()
        change(moved, by)
        sides.append(oracle_loss(moved, *rest))
    return (sides[0] - sides[1]) / (2 * size)


def change_edge(edge):
    def change(oracle, by):
        oracle.edges[edge] += by

    return change


def change_bias(name):
    def change(oracle, by):
        oracle.neurons[name].bias += by

    return change


def change_gate(name, place):
    def change(oracle, by):
        oracle.neurons[name].gates[place] += by

    return change


def used_gates(neuron):
    return 0 if neuron.kind == "point" else 9 if neuron.kind.endswith("gru") else 12


@BOTH
@pytest.mark.parametrize("through_delays", [pytest.param(False, marks=pytest.mark.slow), True])
def test_gradients_are_central_differences_of_the_oracle(capacity, through_delays):
    """Every edge, bias and gate, over 5 steps; in float64, so that the differences are exact to 1e-8 or so."""
    for seed in range(2):
        oracle, slots, obs, graph, memory, seen = case(seed, capacity, density=0.25)
        rest = (trace(oracle, obs[:5]), obs[:5], slots, capacity, through_delays)
        found = gradients(graph, memory, seen[:5], through_delays)
        expected = jax.tree.map(lambda x: np.zeros(x.shape), found)
        for u, v, d in oracle.edges:
            expected.edges[d, slots[v], slots[u]] = difference(oracle, change_edge((u, v, d)), *rest)
        for n, neuron in oracle.neurons.items():
            if neuron.role != "input":
                expected.bias[slots[n]] = difference(oracle, change_bias(n), *rest)
            for place in range(used_gates(neuron)):
                expected.gates[slots[n], place] = difference(oracle, change_gate(n, place), *rest)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert np.abs(b).max() > 3e-3
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-6)


@BOTH
def test_what_is_not_there_has_no_gradient(capacity):
    for seed in range(3):
        _, _, _, graph, memory, seen = case(seed, capacity)
        found = gradients(graph, memory, seen[:5], True)
        edges = np.asarray(graph.topology.edges)
        assert not np.asarray(found.edges)[~edges].any()
        assert np.asarray(found.edges)[edges].any()
        assert not np.asarray(found.bias)[np.asarray(graph.topology.role) <= Role.INPUT].any()
        assert not np.asarray(found.gates)[np.asarray(graph.topology.kind) == Kind.POINT].any()


def lone_cell(kind):
    """input -> cell -> output, nothing delayed."""
    oracle = Oracle(longest=3)
    oracle.add(0, Neuron("input"))
    oracle.add(1, Neuron("output"))
    oracle.add(2, Neuron("hidden", kind, gates=[0.3, -0.4, 0.2, 0.5, 0.6, -0.1, 0.7, 0.9, 0.1, 0.2, 0.4, 0.3]))
    oracle.edges = {(0, 2, 0): 0.8, (2, 1, 0): 1.3}
    return oracle, {0: 0, 1: CLAMP.inputs, 2: CLAMP.first_hidden}


@functools.partial(jax.jit, static_argnames="through_delays")
def last_gradients(graph, memory, obs, through_delays):
    """Of the last output, by observations and by weights."""

    def last(obs, weights):
        return episode(graph.replace(weights=weights), memory, obs, through_delays=through_delays)[0][-1, 0]

    return jax.grad(last, (0, 1))(obs, graph.weights)


@pytest.mark.parametrize("through_delays", [False, True])
@pytest.mark.parametrize(
    "kind",
    ["gru", "trainable_lstm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lstm", "trainable_gru"))],
)
def test_gradients_through_time_reach_trainable_cells_only(kind, through_delays):
    """The first observation reaches the last output through the cell's memory alone."""
    oracle, slots = lone_cell(kind)
    graph, memory = packed(oracle, slots, CLAMP)
    obs = jnp.zeros((4, CLAMP.inputs), jnp.float32).at[:, 0].set(jnp.array([1.0, -0.5, 0.2, 0.7]))

    by_obs, by_weights = last_gradients(graph, memory, obs, through_delays)
    trains = kind.startswith("trainable")
    assert by_obs[-1, 0] != 0
    assert (by_obs[:-1, 0] != 0).all() == trains
    assert (by_obs[:-1, 0] != 0).any() == trains
    assert by_weights.gates[slots[2]].any()


@pytest.mark.parametrize("through_delays", [False, True])
def test_gradients_pass_delayed_edges_only_if_asked(through_delays):
    oracle = Oracle(longest=3)
    oracle.add(0, Neuron("input"))
    oracle.add(1, Neuron("output"))
    oracle.add(2, Neuron("hidden", activation="tanh"))
    oracle.edges = {(0, 2, 0): 0.8, (2, 1, 2): 1.3}
    slots = {0: 0, 1: CLAMP.inputs, 2: CLAMP.first_hidden}
    graph, memory = packed(oracle, slots, CLAMP)
    obs = jnp.ones((5, CLAMP.inputs), jnp.float32)
    found = gradients(graph, memory, obs, through_delays).edges
    assert (found[0, slots[2], slots[0]] != 0) == through_delays
    assert found[2, slots[1], slots[2]] != 0
