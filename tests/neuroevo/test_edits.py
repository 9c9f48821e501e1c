"""Edits against the oracle's, in the middle of episodes; what they preserve, refuse and leave behind."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.neuroevo.graph import dale, edits
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Kind, Role
from tensor_optix.neuroevo.graph.forward import step
from tests.neuroevo.graphs import CLAMP, MODES, observations, packed, placed, random_oracle, run_oracle, spread
from tests.neuroevo.oracle import Impossible, Neuron, Oracle

BOTH = pytest.mark.parametrize("capacity", MODES, ids=["clamp", "softplus"])
BEFORE, AFTER = 5, 8
OPS = {
    "insert": edits.insert,
    "split": edits.split,
    "add_input": edits.add_input,
    "add_edge": edits.add_edge,
    "prune_edge": edits.prune_edge,
    "prune_neuron": edits.prune_neuron,
    "merge": edits.merge,
}
effective, fits = jax.jit(dale.effective), jax.jit(edits.fits)


@functools.lru_cache
def compiled(op, **static):
    """Graph, memory and arguments to the edited graph, its memory and ok."""

    def edit(graph, memory, *args):
        edited = OPS[op](graph, *args, **static)
        return edited.graph, edits.carried(edited, memory), edited.ok

    return jax.jit(edit)


def integers(*xs):
    return [jnp.int32(x) for x in xs]


@jax.jit
def episode(graph, memory, obs):
    """The memory at the end and all values; obs [T, *batch, I]."""

    def one(memory, x):
        _, memory, values = step(graph, memory, x)
        return memory, values

    return jax.lax.scan(one, memory, obs)


def mid_episode(seed, capacity, **kinds):
    """An oracle after a few steps, its slots, graph and memory, and the observations to come."""
    oracle, slots = random_oracle(seed, capacity, **kinds)
    run_oracle(oracle, observations(seed, BEFORE, len(oracle.input_ids)))
    return oracle, slots, *packed(oracle, slots, capacity)


def attempt(oracle, capacity, op, *args):
    """The oracle after an edit and what is new in it; None where it cannot be done."""
    oracle = oracle.copy()
    try:
        new = getattr(oracle, op)(*args)
        deep = oracle.depth() > capacity.levels
    except Impossible:
        return None
    hidden = sum(n.role == "hidden" for n in oracle.neurons.values())
    full = hidden > capacity.hidden or len(oracle.input_ids) > capacity.inputs
    return None if deep or full else (oracle, new)


def slots_after(oracle, slots, new, graph):
    """Slots of the edited oracle's neurons; a new neuron is wherever the package put it."""
    slots = {n: at for n, at in slots.items() if n in oracle.neurons}
    if new is not None:
        (slots[new],) = set(np.flatnonzero(np.asarray(graph.topology.role))) - set(slots.values())
    return slots


def assert_is(graph, memory, oracle, slots, capacity):
    """The same neurons, edges, weights as they act, and memories; nothing else."""
    expected, remembered = packed(oracle, slots, capacity)
    for name in ("role", "kind", "activation", "cell_type", "edges"):
        np.testing.assert_array_equal(getattr(graph.topology, name), getattr(expected.topology, name), err_msg=name)
    np.testing.assert_allclose(effective(graph), effective(expected), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(graph.weights.bias, expected.weights.bias, rtol=1e-6)
    np.testing.assert_array_equal(graph.weights.gates, expected.weights.gates)
    size = 1 + np.abs(remembered.past).max()
    np.testing.assert_allclose(memory.past, remembered.past, rtol=2e-5, atol=2e-6 * size)
    lstm = np.array([slots[n] for n, neuron in oracle.neurons.items() if neuron.kind.endswith("lstm")], int)
    np.testing.assert_allclose(memory.cell[lstm], remembered.cell[lstm], rtol=2e-5, atol=2e-6 * size)


def assert_sound(graph, capacity):
    """Edges join neurons that are there and enter no input, zeros are where nothing is, and signs are lawful."""
    role = np.asarray(graph.topology.role)
    edges = np.asarray(graph.topology.edges)
    absent = role == Role.ABSENT
    assert not edges[:, absent].any()
    assert not edges[:, :, absent].any()
    assert not edges[:, role == Role.INPUT].any()
    assert not np.asarray(graph.weights.edges)[~edges].any()
    for x in (graph.topology.kind, graph.topology.activation, graph.topology.cell_type, graph.weights.gates):
        assert not np.asarray(x)[absent].any()
    assert not np.asarray(graph.weights.bias)[role <= Role.INPUT].any()
    assert (np.asarray(effective(graph)) * np.asarray(graph.topology.cell_type) >= 0).all()
    assert fits(graph)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def edge_slots(edge, slots):
    u, v, d = edge
    return integers(d, slots[v], slots[u])


def both_edit(oracle, slots, graph, memory, capacity, op, args, name, given):
    """Edits the package's graph and the oracle, sees that they agree, goes on for some steps, sees it again."""
    expected = attempt(oracle, capacity, name, *args)
    after, carried, ok = compiled(op)(graph, memory, *given)
    assert bool(ok) == (expected is not None), (name, args)
    if expected is None:
        assert_same_bits((after, carried), (graph, memory))
        return False
    changed, new = expected
    slots = slots_after(changed, slots, new, after)
    assert_is(after, carried, changed, slots, capacity)
    assert_sound(after, capacity)
    obs = observations(11, AFTER, len(changed.input_ids))
    _, values = episode(after, carried, placed(obs, changed, slots, capacity))
    wanted = spread(run_oracle(changed, obs), slots, capacity)
    np.testing.assert_allclose(values, wanted, rtol=2e-5, atol=2e-6 * (1 + np.abs(wanted).max()))
    return True


# Each edit


@BOTH
def test_insert_is_the_oracles(capacity):
    done, delays = 0, set()
    for seed in range(4):
        oracle, slots, graph, memory = mid_episode(seed, capacity)
        for edge in list(oracle.edges)[::5]:
            here = edge_slots(edge, slots)
            if both_edit(oracle, slots, graph, memory, capacity, "insert", [edge], "insert_on_edge", here):
                done += 1
                delays.add(edge[2])
    assert done > 20
    assert delays == {0, 1, 2, 3}


@BOTH
def test_split_is_the_oracles(capacity):
    done = 0
    for seed in range(5):
        oracle, slots, graph, memory = mid_episode(seed, capacity)
        for n in [n for n, neuron in oracle.neurons.items() if neuron.role == "hidden"]:
            share = (0.5, 0.25, 0.9)[done % 3]
            given = [jnp.int32(slots[n]), jnp.float32(share)]
            done += both_edit(oracle, slots, graph, memory, capacity, "split", [n, share], "split", given)
    assert done == 25


@BOTH
def test_add_input_is_the_oracles(capacity):
    for seed in range(4):
        oracle, slots, graph, memory = mid_episode(seed, capacity)
        assert both_edit(oracle, slots, graph, memory, capacity, "add_input", [], "add_input", [])


@BOTH
def test_add_edge_is_the_oracles(capacity):
    """Between neurons of all roles, lawful or not, there already or not, in circles or not."""
    done, refused = 0, 0
    rng = np.random.default_rng(3)
    for seed in range(5):
        oracle, slots, graph, memory = mid_episode(seed, capacity, cell_types=(-1, 0, 0, 1))
        for _ in range(16):
            u, v = rng.choice(list(oracle.neurons), 2)
            d, weight = int(rng.integers(0, capacity.delays + 1)), float(rng.choice([0.0, 0.5, -0.5]))
            given = [*edge_slots((u, v, d), slots), jnp.float32(weight)]
            if oracle.neurons[v].role == "input" or weight * oracle.neurons[u].cell_type < 0:
                after, carried, ok = compiled("add_edge")(graph, memory, *given)
                assert not ok
                assert_same_bits((after, carried), (graph, memory))
                continue
            edge = [u, v, d, weight]
            made = both_edit(oracle, slots, graph, memory, capacity, "add_edge", edge, "add_free_edge", given)
            done, refused = done + made, refused + (not made)
    assert done > 15
    assert refused > 5


@BOTH
def test_prune_edge_is_the_oracles(capacity):
    for seed in range(2):
        oracle, slots, graph, memory = mid_episode(seed, capacity)
        for edge in list(oracle.edges)[::6]:
            here = edge_slots(edge, slots)
            assert both_edit(oracle, slots, graph, memory, capacity, "prune_edge", [edge], "prune_edge", here)


@BOTH
def test_prune_neuron_is_the_oracles(capacity):
    """Sparse graphs with few long edges, or most paths are too long to hand on."""
    done, refused = 0, 0
    for seed in range(8):
        oracle, slots = random_oracle(seed, capacity, density=0.15)
        oracle.edges = {(u, v, d): raw for (u, v, d), raw in oracle.edges.items() if d < 2 or seed % 4 == 0}
        run_oracle(oracle, observations(seed, BEFORE, len(oracle.input_ids)))
        graph, memory = packed(oracle, slots, capacity)
        for n in [n for n, neuron in oracle.neurons.items() if neuron.role == "hidden"][:3]:
            here = integers(slots[n])
            made = both_edit(oracle, slots, graph, memory, capacity, "prune_neuron", [n], "prune_neuron", here)
            done, refused = done + made, refused + (not made)
    assert done > 8
    assert refused > 0


@BOTH
def test_the_relay_of_an_lstm_neuron_takes_over_its_values_and_no_cell(capacity):
    """A cell's memory is of LSTM neurons; elsewhere it is 0."""
    oracle, slots, graph, memory = mid_episode(0, capacity, kinds=["lstm"])
    edge = next(e for e in oracle.edges if e[2] > 0 and oracle.neurons[e[0]].kind == "lstm")
    assert oracle.neurons[edge[0]].cell != 0
    after, carried, ok = compiled("insert")(graph, memory, *edge_slots(edge, slots))
    assert ok
    assert carried.past[:, np.asarray(after.topology.role) != np.asarray(graph.topology.role)].any()
    np.testing.assert_array_equal(carried.cell, memory.cell)


def test_prune_neuron_without_handing_on():
    oracle, slots, graph, memory = mid_episode(1, CLAMP)
    n = next(n for n, neuron in oracle.neurons.items() if neuron.role == "hidden")
    after, carried, ok = compiled("prune_neuron", redistribute=False)(graph, memory, *integers(slots[n]))
    oracle.prune_neuron(n, redistribute=False)
    assert ok
    assert_is(after, carried, oracle, slots_after(oracle, slots, None, after), CLAMP)


@BOTH
def test_merge_is_the_oracles(capacity):
    """All pairs of hidden neurons, of few sorts so that many may merge."""
    done, refused, own = 0, 0, 0
    for seed in range(6):
        oracle, slots, _, memory = mid_episode(seed, capacity, density=0.2, kinds=["lstm", "gru"], cell_types=(-1, 1))
        hidden = [n for n, neuron in oracle.neurons.items() if neuron.role == "hidden"]
        for n in hidden:
            oracle.neurons[n].activation = "tanh"
        graph, memory = packed(oracle, slots, capacity)
        for a in hidden[:3]:
            for b in hidden:
                here = integers(slots[a], slots[b])
                made = both_edit(oracle, slots, graph, memory, capacity, "merge", [a, b], "merge", here)
                done, refused = done + made, refused + (not made)
                own += made and any(u in (a, b) and v in (a, b) for u, v, _ in oracle.edges)
    assert done > 5
    assert own > 2
    assert refused > 20


# What is preserved


@functools.lru_cache
def mapped(edit):
    """Values of an episode and ok after each of many edits of the same graph in the middle of it."""

    def edited_episode(graph, memory, obs, case):
        edited = edit(graph, *case)
        return episode(edited.graph, edits.carried(edited, memory), obs)[1], edited.ok

    return jax.jit(jax.vmap(edited_episode, (None, None, None, 0)))


def differences(edit, cases, capacity, seed):
    """How far all values of a few steps after an edit are from those without it, [cases, T, N], and ok [cases].

    edit: (graph, *case) -> Edited. Values of neurons that were not there before count as equal. Also: the graph.
    """
    oracle, slots, graph, memory = mid_episode(seed, capacity)
    obs = placed(observations(seed + 50, AFTER, len(oracle.input_ids)), oracle, slots, capacity)
    _, plain = episode(graph, memory, obs)
    values, ok = mapped(edit)(graph, memory, obs, [jnp.asarray(x) for x in cases])
    old = np.asarray(graph.topology.role) != Role.ABSENT
    return np.where(old, np.abs(values - plain[None]), 0.0), np.asarray(ok), graph


def edges_of(capacity, seed):
    """Slots of all edges: delays, to, from."""
    oracle, slots = random_oracle(seed, capacity)
    places = [(d, slots[v], slots[u]) for u, v, d in oracle.edges]
    return [np.array(x, np.int32) for x in zip(*places, strict=True)]


@BOTH
def test_insert_on_any_edge_preserves_the_function(capacity):
    for seed in range(3):
        cases = [x[:40] for x in edges_of(capacity, seed)]
        gaps, ok, _ = differences(edits.insert, cases, capacity, seed)
        assert gaps[ok].max() < 1e-6
        assert ok.sum() > 20
        assert set(cases[0][ok]) == {0, 1, 2, 3}


@BOTH
def test_split_of_any_neuron_preserves_the_function(capacity):
    hidden = np.arange(capacity.first_hidden, capacity.neurons, dtype=np.int32)
    cases = [np.repeat(hidden, 3), np.tile(np.array([0.5, 0.1, 1.0], np.float32), len(hidden))]
    kinds = set()
    for seed in range(3):
        gaps, ok, graph = differences(edits.split, cases, capacity, seed)
        np.testing.assert_array_equal(ok, np.asarray(graph.topology.role)[cases[0]] == Role.HIDDEN)
        assert gaps[ok].max() < (4e-6 if capacity.softplus else 1e-6)  # a share of 0 is 8e-7 under softplus
        assert gaps[ok & (cases[1] < 1)].max() < 1e-6
        kinds |= set(np.asarray(graph.topology.kind)[cases[0][ok]])
    assert len(kinds) == 5


def one_more_input(graph, _):
    return edits.add_input(graph)


@BOTH
def test_add_input_and_add_edge_preserve_the_function(capacity):
    every = np.indices((capacity.delays + 1, capacity.neurons, capacity.neurons), np.int32).reshape(3, -1)
    for seed in range(2):
        gaps, ok, _ = differences(one_more_input, [np.zeros(1, np.int32)], capacity, seed)
        assert ok.all()
        assert gaps.max() < 1e-6
        gaps, ok, graph = differences(edits.add_edge, list(every), capacity, seed)
        assert gaps.max() < (4e-6 if capacity.softplus else 1e-6)  # a weight of 0 is 8e-7 under softplus
        role, edges = np.asarray(graph.topology.role), np.asarray(graph.topology.edges)
        possible = (role[every[2]] > 0) & (role[every[1]] > Role.INPUT) & ~edges[tuple(every)]
        late = every[0] > 0
        np.testing.assert_array_equal(ok[late], possible[late])
        assert not ok[~possible].any()
        assert 0 < ok[~late].sum() < possible[~late].sum()


def there_and_back(swap):
    """A split, and a merge of the two halves into the old neuron or (swap) into the new one."""

    def edit(graph, neuron, share):
        halves = edits.split(graph, neuron, share)
        new = jnp.argmax(halves.graph.topology.role != graph.topology.role).astype(jnp.int32)
        merged = edits.merge(halves.graph, *((new, neuron) if swap else (neuron, new)))
        merged = merged.replace(ok=merged.ok & halves.ok)
        return merged.replace(source=merged.source.at[new].set(neuron)) if swap else merged

    return edit


@BOTH
@pytest.mark.parametrize("swap", [False, True])
def test_merge_of_two_halves_preserves_the_function(capacity, swap):
    """Of every kind, self-edges included; where the neuron's value is after a swap is no matter."""
    hidden = np.arange(capacity.first_hidden, capacity.neurons, dtype=np.int32)
    cases = [hidden, np.full(len(hidden), 0.3, np.float32)]
    edit = there_and_back(swap)
    for seed in range(3):
        gaps, ok, graph = differences(edit, cases, capacity, seed)
        np.testing.assert_array_equal(ok, np.asarray(graph.topology.role)[hidden] == Role.HIDDEN)
        if swap:
            gaps[np.arange(len(hidden)), :, hidden] = 0.0
        assert gaps[ok].max() < 1e-6


@BOTH
def test_merge_of_twins_with_edges_to_themselves_preserves_the_function(capacity):
    """Twins that each remember themselves: the one that stays must not count its own memory twice."""
    oracle = Oracle(capacity.softplus, capacity.delays)
    oracle.add(0, Neuron("input"))
    oracle.add(1, Neuron("output", activation="tanh"))
    for n in (2, 3):
        oracle.add(n, Neuron("hidden", activation="tanh", cell_type=-1, bias=0.25))
        for edge, weight in {(0, n, 0): 0.8, (n, n, 1): -0.6, (n, 1, 1): -0.4}.items():
            oracle.edges[edge] = 0.0
            oracle.set_weight(edge, weight)
    slots = {0: 0, 1: capacity.inputs, 2: capacity.first_hidden, 3: capacity.first_hidden + 4}
    obs = observations(0, BEFORE + AFTER, 1)
    run_oracle(oracle, obs[:BEFORE])
    graph, memory = packed(oracle, slots, capacity)
    after, carried, ok = compiled("merge")(graph, memory, *integers(slots[2], slots[3]))
    assert ok
    _, values = episode(after, carried, placed(obs[BEFORE:], oracle, slots, capacity))
    wanted = spread(run_oracle(oracle, obs[BEFORE:]), slots, capacity)
    assert np.abs(wanted[:, slots[3]]).min() > 0.01
    np.testing.assert_allclose(np.delete(values, slots[3], 1), np.delete(wanted, slots[3], 1), rtol=1e-5, atol=1e-6)


@BOTH
def test_pruning_an_edge_of_weight_zero_preserves_the_function(capacity):
    oracle, slots, graph, memory = mid_episode(2, capacity)
    obs = placed(observations(9, AFTER, len(oracle.input_ids)), oracle, slots, capacity)
    for edge in list(oracle.edges)[::7]:
        oracle.set_weight(edge, 0.0)
        graph, memory = packed(oracle, slots, capacity)
        after, carried, ok = compiled("prune_edge")(graph, memory, *edge_slots(edge, slots))
        assert ok
        _, plain = episode(graph, memory, obs)
        _, values = episode(after, carried, obs)
        np.testing.assert_allclose(values, plain, rtol=1e-6, atol=3e-6 if capacity.softplus else 1e-6)


# What is refused


def small():
    """0 -> 3 (relu) -> 4 (tanh) -> 1, 0 -> 5 (gru) -> 1, 5 -> 1 after 2; names are in the order of slots."""
    oracle = Oracle(longest=2)
    oracle.add(0, Neuron("input"))
    oracle.add(1, Neuron("output"))
    oracle.add(3, Neuron("hidden", activation="relu"))
    oracle.add(4, Neuron("hidden", activation="tanh"))
    oracle.add(5, Neuron("hidden", "gru", gates=[0.5] * 9 + [0.0] * 3))
    edges = [(0, 3, 0), (3, 4, 0), (4, 1, 0), (0, 5, 0), (5, 1, 2), (3, 3, 1), (4, 5, 2)]
    oracle.edges = {edge: 0.5 + 0.1 * i for i, edge in enumerate(edges)}
    return oracle


FULL = Capacity(inputs=1, outputs=1, hidden=3, delays=2, levels=3, gated=True)
ROOM = dataclasses.replace(FULL, hidden=4)
DEEP = dataclasses.replace(ROOM, levels=4)
IN, OUT, A, B, C, NONE, BEYOND = 0, 1, 2, 3, 4, 5, 60  # slots

REFUSED = {
    "insert: full": (FULL, "insert", (2, OUT, C)),
    "insert: too deep": (ROOM, "insert", (0, B, A)),
    "insert: no such edge": (DEEP, "insert", (1, OUT, B)),
    "insert: no such neuron": (DEEP, "insert", (0, OUT, NONE)),
    "insert: no such slot": (DEEP, "insert", (2, BEYOND, C)),
    "insert: no such delay": (DEEP, "insert", (3, OUT, C)),
    "insert: delay below 0": (DEEP, "insert", (-1, OUT, C)),
    "split: full": (FULL, "split", (A,)),
    "split: an input": (ROOM, "split", (IN,)),
    "split: an output": (ROOM, "split", (OUT,)),
    "split: no neuron": (ROOM, "split", (NONE,)),
    "split: no such slot": (FULL, "split", (BEYOND,)),
    "add_input: full": (ROOM, "add_input", ()),
    "add_edge: exists": (ROOM, "add_edge", (2, OUT, C)),
    "add_edge: circle": (ROOM, "add_edge", (0, A, B)),
    "add_edge: circle of one": (ROOM, "add_edge", (0, A, A)),
    "add_edge: into an input": (ROOM, "add_edge", (1, IN, A)),
    "add_edge: from nothing": (ROOM, "add_edge", (1, A, NONE)),
    "add_edge: to nothing": (ROOM, "add_edge", (1, NONE, A)),
    "add_edge: no such slot": (FULL, "add_edge", (1, BEYOND, A)),
    "add_edge: too long": (ROOM, "add_edge", (3, A, B)),
    "add_edge: delay below 0": (ROOM, "add_edge", (-1, A, B)),
    "add_edge: too deep": (ROOM, "add_edge", (0, A, OUT)),
    "prune_edge: no such edge": (ROOM, "prune_edge", (1, OUT, B)),
    "prune_edge: no such delay": (ROOM, "prune_edge", (3, OUT, C)),
    "prune_edge: delay below 0": (ROOM, "prune_edge", (-1, OUT, C)),
    "prune_edge: no such slot": (FULL, "prune_edge", (2, C, BEYOND)),
    "prune_neuron: an input": (ROOM, "prune_neuron", (IN,)),
    "prune_neuron: an output": (ROOM, "prune_neuron", (OUT,)),
    "prune_neuron: no neuron": (ROOM, "prune_neuron", (NONE,)),
    "prune_neuron: no such slot": (FULL, "prune_neuron", (BEYOND,)),
    "prune_neuron: a path too long": (ROOM, "prune_neuron", (C,)),
    "merge: with itself": (ROOM, "merge", (A, A)),
    "merge: another activation": (ROOM, "merge", (A, B)),
    "merge: another kind": (ROOM, "merge", (A, C)),
    "merge: an input": (ROOM, "merge", (IN, A)),
    "merge: an output": (ROOM, "merge", (A, OUT)),
    "merge: two outputs": (ROOM, "merge", (OUT, OUT)),
    "merge: no neuron": (ROOM, "merge", (NONE, NONE)),
    "merge: no such slot": (FULL, "merge", (C, BEYOND)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_leaves_every_bit(name):
    capacity, op, args = REFUSED[name]
    oracle = small()
    run_oracle(oracle, observations(0, 4, 1))
    graph, memory = packed(oracle, {0: IN, 1: OUT, 3: A, 4: B, 5: C}, capacity)
    after, carried, ok = compiled(op)(graph, memory, *integers(*args))
    assert not ok
    assert_same_bits((after, carried), (graph, memory))


def test_nearly_the_same_can_be_done():
    """The neighbours of what is refused: or everything might be refused."""
    oracle = small()
    run_oracle(oracle, observations(0, 4, 1))
    for capacity, op, args in [
        (ROOM, "insert", (2, OUT, C)),
        (DEEP, "insert", (0, B, A)),
        (ROOM, "split", (A,)),
        (dataclasses.replace(ROOM, inputs=2), "add_input", ()),
        (ROOM, "add_edge", (1, OUT, C)),
        (ROOM, "add_edge", (0, B, C)),
        (ROOM, "add_edge", (2, A, A)),
        (ROOM, "prune_edge", (2, OUT, C)),
        (ROOM, "prune_neuron", (B,)),
    ]:
        shift = capacity.inputs - 1  # slots behind a second input's
        slots = {0: 0, 1: 1 + shift, 3: 2 + shift, 4: 3 + shift, 5: 4 + shift}
        graph, memory = packed(oracle, slots, capacity)
        assert compiled(op)(graph, memory, *integers(*args))[2], (op, args)


@pytest.mark.parametrize("fault", ["cell type", "leads to the other", None])
def test_merge_is_refused_for_what_differs(fault):
    oracle = small()
    oracle.neurons[4].activation = "relu"
    del oracle.edges[3, 4, 0]
    if fault == "cell type":
        oracle.neurons[3].cell_type = 1
    if fault == "leads to the other":
        oracle.edges[3, 5, 0] = oracle.edges[5, 4, 0] = 0.5
    graph, memory = packed(oracle, {0: IN, 1: OUT, 3: A, 4: B, 5: C}, ROOM)
    for pair in ((A, B), (B, A)):
        after, carried, ok = compiled("merge")(graph, memory, *integers(*pair))
        assert ok == (fault is None)
        if fault:
            assert_same_bits((after, carried), (graph, memory))


def test_a_merge_that_makes_a_chain_too_long_is_refused():
    """a is late and leads nowhere, b is early and leads to a chain: together the chain would start late."""
    oracle = Oracle(longest=1)
    for n, role in enumerate(["input", "output"] + 4 * ["hidden"]):
        oracle.add(n, Neuron(role))
    oracle.edges = {(0, 2, 0): 1.0, (2, 3, 0): 1.0, (0, 4, 0): 1.0, (4, 5, 0): 1.0, (5, 1, 0): 1.0}
    for levels, possible in ((3, False), (4, True)):
        capacity = Capacity(inputs=1, outputs=1, hidden=4, levels=levels, gated=True)
        graph, memory = packed(oracle, {n: n for n in range(6)}, capacity)
        assert compiled("merge")(graph, memory, *integers(3, 4))[2] == possible


def test_a_relay_needs_linear_neurons():
    capacity = Capacity(inputs=1, outputs=1, hidden=1, activations=(Activation.TANH,))
    oracle = Oracle(longest=1)
    oracle.add(0, Neuron("input"))
    oracle.add(1, Neuron("output", activation="tanh"))
    oracle.edges = {(0, 1, 0): 1.0}
    graph, _ = packed(oracle, {0: 0, 1: 1}, capacity)
    with pytest.raises(ValueError, match="LINEAR"):
        edits.insert(graph, *integers(0, 1, 0))


# Sequences


def random_edit(rng, oracle, slots):
    """One that may or may not be possible: the package's name, its arguments, the oracle's name, its arguments."""
    names = list(oracle.neurons)
    hidden = [n for n in names if oracle.neurons[n].role == "hidden"]
    op = str(rng.choice(list(OPS), p=[0.2, 0.15, 0.05, 0.2, 0.15, 0.1, 0.15]))
    edge = list(oracle.edges)[rng.integers(len(oracle.edges))]
    if op == "insert":
        return op, edge_slots(edge, slots), "insert_on_edge", [edge]
    if op == "prune_edge":
        return op, edge_slots(edge, slots), op, [edge]
    if op == "add_input":
        return op, [], op, []
    if op == "add_edge":
        v = int(rng.choice([n for n in names if oracle.neurons[n].role != "input"]))
        u, d = int(rng.choice(names)), int(rng.integers(0, 3))
        weight = float(np.float32(rng.uniform(0, 0.4) * (oracle.neurons[u].cell_type or rng.choice([-1, 1]))))
        return op, [*edge_slots((u, v, d), slots), jnp.float32(weight)], "add_free_edge", [u, v, d, weight]
    if op == "merge":
        pairs = [(a, b) for a in hidden for b in hidden if a != b]
        alike = [(a, b) for a, b in pairs if oracle.neurons[a].sort() == oracle.neurons[b].sort()] or pairs
        if alike:
            a, b = alike[rng.integers(len(alike))]
            return op, integers(slots[a], slots[b]), op, [a, b]
    if not hidden:
        return "add_input", [], "add_input", []
    n = int(rng.choice(hidden))
    if op == "prune_neuron" and len(hidden) > 2:
        return op, integers(slots[n]), op, [n]
    share = float(rng.choice([0.25, 0.5, 0.75]))
    return "split", [jnp.int32(slots[n]), jnp.float32(share)], "split", [n, share]


@BOTH
def test_sequences_of_edits_agree_with_the_oracle(capacity):
    """30 edits with a step of the episode after each."""
    done, refused = dict.fromkeys(OPS, 0), 0
    for seed in range(4):
        rng = np.random.default_rng([seed, 7])
        oracle, slots, graph, memory = mid_episode(seed, capacity, density=0.12)
        for _ in range(30):
            op, given, name, args = random_edit(rng, oracle, slots)
            expected = attempt(oracle, capacity, name, *args)
            after, carried, ok = compiled(op)(graph, memory, *given)
            assert bool(ok) == (expected is not None), (name, args)
            if expected is None:
                refused += 1
                assert_same_bits((after, carried), (graph, memory))
            else:
                done[op] += 1
                oracle, new = expected
                slots = slots_after(oracle, slots, new, after)
            graph, memory = after, carried
            assert_is(graph, memory, oracle, slots, capacity)
            assert_sound(graph, capacity)
            obs = rng.normal(size=(1, len(oracle.input_ids))).astype(np.float32)
            memory, values = episode(graph, memory, placed(obs, oracle, slots, capacity))
            wanted = spread(run_oracle(oracle, obs), slots, capacity)
            np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5 * (1 + np.abs(wanted).max()))
            assert np.abs(wanted).max() < 1e3
    assert all(done.values()), done
    assert refused > 10


# As arrays


@BOTH
def test_edits_map_over_different_graphs_and_batches(capacity):
    cases = [mid_episode(seed, capacity) for seed in range(3)]
    places = [edge_slots(list(oracle.edges)[3], slots) for oracle, slots, _, _ in cases]
    stacked = jax.tree.map(
        lambda *xs: jnp.stack(xs), *[(g, m, *p) for (_, _, g, m), p in zip(cases, places, strict=True)]
    )
    together = jax.vmap(compiled("insert"))(*stacked)
    for i, ((_, _, graph, memory), place) in enumerate(zip(cases, places, strict=True)):
        alone = compiled("insert")(graph, memory, *place)
        assert alone[2]
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)
        batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]).reshape(3, 1, *x.shape), memory)
        many = compiled("insert")(graph, batch, *place)[1]
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(alone[1]), strict=True):
            np.testing.assert_allclose(a[2, 0], 3 * b, rtol=1e-6)


@pytest.mark.parametrize("op", OPS)
def test_edits_keep_types(op):
    """A graph may be carried through a scan of edits."""
    _, _, graph, memory = mid_episode(0, CLAMP)
    args = {"insert": 3, "add_edge": 3, "prune_edge": 3, "add_input": 0, "merge": 2}.get(op, 1)
    made = jax.eval_shape(compiled(op), graph, memory, *integers(*range(args)))[:2]
    for new, old in zip(jax.tree.leaves(made), jax.tree.leaves((graph, memory)), strict=True):
        assert (new.shape, new.dtype, new.weak_type) == (old.shape, old.dtype, False)


# Parameters


@BOTH
def test_learnable_parameters_are_those_of_what_is_there(capacity):
    oracle, slots, graph, _ = mid_episode(0, capacity)
    found = edits.learnable(graph.topology)
    expected = jax.tree.map(lambda x: np.zeros(x.shape, bool), graph.weights)
    for u, v, d in oracle.edges:
        expected.edges[d, slots[v], slots[u]] = True
    for n, neuron in oracle.neurons.items():
        if neuron.role != "input":
            expected.bias[slots[n]] = True
            used = {"point": 0, "gru": 9, "lstm": 12}[neuron.kind.removeprefix("trainable_")]
            expected.gates[slots[n], :used] = True
    assert_same_bits(found, expected)


@BOTH
def test_an_insert_keeps_every_other_parameter_to_the_bit(capacity):
    """And so what an optimiser knows of it."""
    oracle, slots, graph, memory = mid_episode(0, capacity)
    edge = next(e for e in oracle.edges if e[2] == 2)
    after, _, ok = compiled("insert")(graph, memory, *edge_slots(edge, slots))
    assert ok
    kept = edits.kept(graph, after)
    assert kept.edges.sum() == len(oracle.edges) - 1
    assert kept.bias.sum() == sum(n.role != "input" for n in oracle.neurons.values())
    assert not kept.edges[edge[2], slots[edge[1]], slots[edge[0]]]
    np.testing.assert_array_equal(kept.gates, edits.learnable(graph.topology).gates)


def test_a_new_neuron_in_the_slot_of_an_old_one_keeps_nothing():
    """Weights of the same value by chance are not the same weights."""
    oracle, slots, graph, memory = mid_episode(0, CLAMP)
    n = next(n for n, neuron in oracle.neurons.items() if neuron.role == "hidden")
    first = next(at for at in range(CLAMP.first_hidden, CLAMP.neurons) if at not in slots.values())
    edge = next(e for e in oracle.edges if n not in e and e[2] == 2)
    one, memory, ok = compiled("insert")(graph, memory, *edge_slots(edge, slots))
    assert ok
    assert one.topology.role[first] == Role.HIDDEN
    gone, memory, ok = compiled("prune_neuron")(one, memory, *integers(first))
    assert ok
    again, _, ok = compiled("insert")(gone, memory, *edge_slots(next(e for e in oracle.edges if e[2] == 3), slots))
    assert ok
    assert not edits.kept(one, gone).bias[first]
    assert not edits.kept(gone, again).bias[first]


def test_zero_under_softplus_is_named_once():
    from tests.neuroevo import oracle

    assert oracle.ZERO == dale.ZERO
    assert {k.name for k in Kind} == {k.upper() for k in oracle.KINDS}
    assert {a.name for a in Activation} == {a.upper() for a in oracle.ACTIVATIONS}
