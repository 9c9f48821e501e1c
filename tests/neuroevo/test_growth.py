"""When a graph grows, prunes and merges: signals against NumPy, each decision on its own, error rates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.neuroevo.graph import edits, growth
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Kind, Role, fresh_memory
from tensor_optix.neuroevo.graph.forward import step
from tensor_optix.neuroevo.graph.growth import Activity, GrowthConfig, Told
from tensor_optix.neuroevo.graph.levels import fits
from tensor_optix.neuroevo.graph.wiring import layered

CONFIG = GrowthConfig(min_score_buffer=20, grow_cooldown=5, maturation_window=3, merge_check_interval=4)
CAPACITY = Capacity(3, 2, 8, delays=2, levels=6)
BASE = layered(CAPACITY, [4], Activation.TANH, Kind.POINT, 1, [1.0, 1.0], jax.random.key(3))
FIRST = CAPACITY.first_hidden
BUSY = jax.tree.map(jnp.ones_like, BASE.weights)


def activity_of(values, size=None):
    """Of values [steps, N]."""
    values = np.asarray(values, np.float32)
    size = np.abs(values).mean(axis=0) if size is None else np.asarray(size, np.float32)
    return Activity(*map(jnp.asarray, (values.mean(axis=0), size, values.T @ values / len(values))))


def told(score=0.0, values=None, size=None, gradient=BUSY, seed=0):
    rng = np.random.default_rng(seed)
    n = CAPACITY.neurons
    values = rng.normal(size=(64, n)) if values is None else values
    size = np.ones(n) if size is None else size
    return Told(jnp.float32(score), activity_of(values, size), gradient)


_step = jax.jit(growth.step, static_argnums=0)


def through(scores, config=CONFIG, graph=BASE, gradient=BUSY, values=None, size=None):
    """The last decision after a series of evaluations."""
    state, memory = growth.init(config, CAPACITY), fresh_memory(CAPACITY, (2,))
    grew = []
    for i, score in enumerate(scores):
        seen = told(score, None if values is None else values(i), size, gradient, seed=i)
        decided = _step(config, graph, state, memory, seen, jax.random.key(i))
        graph, state, memory = decided.graph, decided.growth, decided.memory
        grew.append(bool(decided.grew))
    return decided, np.flatnonzero(grew)


def wave(n, period=12.0):
    return np.sin(np.arange(n) * 2 * np.pi / period)


def oracle(scores, config):
    """Two of the signals in plain NumPy: of the newest scores, and of all."""
    slope, error, _ = line(scores[-2 * config.min_score_buffer :])
    return not slope > config.slope * error, line(scores)[2] > config.autocorrelation / np.sqrt(len(scores))


def line(scores):
    """Slope, its standard error, autocorrelation of the residuals."""
    x = np.arange(len(scores), dtype=float)
    slope, level = np.polyfit(x, scores, 1)
    residual = scores - slope * x - level
    r = np.clip((residual[1:] * residual[:-1]).sum() / (residual**2).sum(), -0.99, 0.99)
    n = len(scores)
    effective = np.clip(n * (1 - r) / (1 + r), 2, n)
    error = np.sqrt((residual**2).sum() / max(effective - 2, 1) / ((x - x.mean()) ** 2).sum())
    return slope, error, r


class TestSignals:
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
    def test_slope_and_autocorrelation_by_hand(self, scale):
        rng = np.random.default_rng(0)
        seen = set()
        for n in (8, 40, 200):
            for trend in (0.0, 0.02, 0.5):
                for memory in (0.0, 0.9):
                    noise = rng.normal(size=n)
                    for i in range(1, n):
                        noise[i] += memory * noise[i - 1]
                    scores = (noise + trend * np.arange(n)) * scale - 5 * scale
                    state = growth.init(CONFIG, CAPACITY)
                    row = np.zeros(growth.SCORES, np.float32)
                    row[growth.SCORES - n :] = scores
                    state = state.replace(scores=jnp.asarray(row), n_scores=jnp.int32(n))
                    stands, structured, _ = growth.signals(CONFIG, state)
                    assert (bool(stands), bool(structured)) == oracle(scores, CONFIG)
                    seen.add((bool(stands), bool(structured)))
        assert len(seen) >= 3

    def test_utilisation_is_the_share_of_hidden_neurons_with_gradients(self):
        gradient = jax.tree.map(jnp.zeros_like, BASE.weights)
        assert growth.utilisation(CONFIG, BASE, gradient) == 0
        bias = gradient.bias.at[FIRST].set(1e-3).at[0].set(1.0)  # an input does not count
        edges = gradient.edges.at[0, FIRST + 1, 0].set(1e-3).at[1, FIRST + 2, FIRST + 1].set(-1e-3)
        some = gradient.replace(bias=bias, edges=edges)
        assert growth.utilisation(CONFIG, BASE, some) == pytest.approx(3 / 4)


def test_a_score_that_once_rose_stands_when_it_has_stood_for_long_enough():
    """Learning at first, then nothing any more: what is long ago does not say that the score rises."""
    scores = 0.15 * np.minimum(np.arange(120), 40) + np.random.default_rng(0).normal(size=120)
    state = growth.init(CONFIG, CAPACITY)
    for n, expected in ((20, False), (40, False), (80, True), (120, True)):
        row = np.zeros(growth.SCORES, np.float32)
        row[growth.SCORES - n :] = scores[:n]
        state = state.replace(scores=jnp.asarray(row), n_scores=jnp.int32(n))
        assert bool(growth.signals(CONFIG, state)[0]) == expected
        slope, error, _ = line(scores[:n])
        assert slope > CONFIG.slope * error  # of all of them


@pytest.mark.parametrize("delays", [0, 1, 3])
def test_neurons_are_inserted_wherever_they_fit(delays):
    """What `insertable` says is what every single insertion does."""
    capacity = Capacity(2, 2, 6, delays=delays, levels=3)
    rng, n = np.random.default_rng(delays), capacity.neurons
    wide = layered(capacity, [5], Activation.TANH, Kind.POINT, delays, [1.0, 1.0], jax.random.key(0))
    insert = jax.jit(lambda graph, *place: edits.insert(graph, *place).ok)
    seen = set()
    for _ in range(4):
        edges = np.asarray(wide.topology.edges) & (rng.random((1 + delays, n, n)) < 0.6)
        edges[0, 5, 4] = True  # a chain of two hidden neurons
        graph = wide.replace(topology=wide.topology.replace(edges=jnp.asarray(edges)))
        if not fits(graph):
            continue
        says = np.asarray(growth.insertable(graph))
        for place in np.argwhere(edges):
            assert bool(insert(graph, *map(jnp.int32, place))) == says[tuple(place)]
            seen.add((int(place[0]), bool(says[tuple(place)])))
    assert {(0, True), (0, False)} <= seen


class TestGrowing:
    def test_all_three_signals(self):
        _, at = through(wave(40))
        assert at[0] == 19  # with the twentieth score
        assert (np.diff(at) == CONFIG.grow_cooldown).all()

    def test_not_while_the_score_rises(self):
        _, at = through(wave(40) + 2.0 * np.arange(40))
        assert at.size == 0

    def test_not_where_neurons_are_idle(self):
        idle = jax.tree.map(jnp.zeros_like, BASE.weights)
        _, at = through(wave(40), gradient=idle, config=dataclasses.replace(CONFIG, prune_neuron_threshold=0.0))
        assert at.size == 0

    def test_not_beyond_the_limit_nor_beyond_the_room(self):
        decided, at = through(wave(30), dataclasses.replace(CONFIG, max_neurons=10))
        assert at.size == 1
        decided, at = through(wave(60))
        assert (decided.graph.topology.role != Role.ABSENT).sum() <= CAPACITY.neurons
        assert decided.growth.counts[0] == at.size

    @pytest.mark.parametrize("op", sorted(growth.GROW_EDITS))
    def test_the_function_is_preserved_in_the_middle_of_an_episode(self, op):
        config = dataclasses.replace(CONFIG, grow_op=op)
        state = growth.init(config, CAPACITY)
        for i, score in enumerate(wave(25)):
            state = growth.remembered(config, BASE, state, told(score, seed=i))
        rng = np.random.default_rng(0)
        memory = fresh_memory(CAPACITY, (2,))
        for _ in range(4):
            _, memory, _ = step(BASE, memory, jnp.asarray(rng.normal(size=(2, 3)), jnp.float32))
        decided = _step(config, BASE, state, memory, told(0.3), jax.random.key(0))
        assert decided.grew
        assert decided.changed
        before, after = (BASE, memory), (decided.graph, decided.memory)
        for _ in range(5):
            obs = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
            outs = []
            for graph, past in (before, after):
                out, past, _ = step(graph, past, obs)
                outs.append((out, past))
            np.testing.assert_allclose(outs[0][0], outs[1][0], atol=1e-6)
            before, after = (BASE, outs[0][1]), (decided.graph, outs[1][1])

    def test_scores_that_are_no_numbers_are_passed_over(self):
        scores = wave(40)
        scores[::3] = np.nan
        decided, _ = through(scores)
        assert decided.growth.n_scores == np.isfinite(scores).sum()
        assert np.isfinite(decided.growth.scores).all()


def test_neurons_are_not_inserted_beside_relays_while_there_is_another_place():
    config = dataclasses.replace(CONFIG, grow_op="insert_edge")
    capacity = Capacity(1, 1, 8, delays=1, levels=8)
    graph = layered(capacity, [2], Activation.TANH, Kind.POINT, 0, [1.0], jax.random.key(0))
    targets = []
    for _ in range(6):
        place, there = growth.growing_place(config, graph, told(), jax.random.key(0), within=True)
        assert there
        targets.append((int(place[2]), int(place[1])))
        graph = edits.insert(graph, *place).graph
    assert sorted(targets[:4]) == [(0, 2), (0, 3), (2, 1), (3, 1)]  # every edge of the start once
    assert growth.relays(graph).sum() >= 4
    assert bool(fits(graph))


class TestPruning:
    def test_weak_edges_go_when_they_are_old(self):
        edges = BASE.weights.edges.at[0, FIRST, 0].set(5e-4).at[0, FIRST, 1].set(5e-4)
        weak = BASE.replace(weights=BASE.weights.replace(edges=edges))
        decided, _ = through(np.zeros(CONFIG.prune_edge_patience - 1), graph=weak)
        assert decided.graph.topology.edges[0, FIRST, 0]
        decided, _ = through(np.zeros(CONFIG.prune_edge_patience), graph=weak)
        assert not decided.graph.topology.edges[0, FIRST, :2].any()
        assert decided.growth.counts[1] == 2
        assert (decided.graph.topology.edges.sum() == BASE.topology.edges.sum() - 2).all()

    def test_a_neuron_that_does_nothing_goes(self):
        quiet = np.ones(CAPACITY.neurons)
        quiet[FIRST + 2] = 0.0
        idle = BUSY.replace(bias=BUSY.bias.at[FIRST + 2].set(0.0))
        decided, _ = through(np.zeros(12), size=quiet, gradient=idle)
        assert decided.graph.topology.role[FIRST + 2] == Role.ABSENT
        assert decided.growth.counts[1] >= 1
        decided, _ = through(np.zeros(12), size=quiet)  # it still learns
        assert decided.graph.topology.role[FIRST + 2] == Role.HIDDEN

    def test_the_last_ones_stay(self):
        config = dataclasses.replace(CONFIG, min_hidden_neurons=3)
        idle = jax.tree.map(jnp.zeros_like, BASE.weights)
        decided, _ = through(np.zeros(30), config, size=np.zeros(CAPACITY.neurons), gradient=idle)
        assert (decided.graph.topology.role == Role.HIDDEN).sum() == 3


class TestMerging:
    def test_concordance_by_hand(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(500, 6))
        x[:, 1] = x[:, 0]
        x[:, 2] = 2 * x[:, 0]  # correlated and not the same
        x[:, 3] = x[:, 0] + 1
        x[:, 4:] = 0.25
        found = np.asarray(growth.concordance(activity_of(x)))
        for i in range(4):
            for j in range(4):
                cov = np.cov(x[:, i], x[:, j], ddof=0)
                expected = 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (x[:, i].mean() - x[:, j].mean()) ** 2)
                np.testing.assert_allclose(found[i, j], expected, atol=1e-4)
        assert found[0, 1] > 0.9999
        assert found[0, 2] < 0.9
        assert found[0, 3] < 0.9
        assert found[4, 5] == 0  # neither does anything

    def test_two_that_do_the_same_become_one(self):
        twin = edits.split(BASE, FIRST + 1).graph  # the copy is in FIRST + 4

        def alike(i):
            values = np.random.default_rng(100 + i).normal(size=(64, CAPACITY.neurons))
            values[:, FIRST + 4] = values[:, FIRST + 1]
            return values

        decided, _ = through(np.zeros(3), graph=twin, values=alike)
        assert decided.growth.counts[2] == 0  # not due, and not mature
        decided, _ = through(np.zeros(4), graph=twin, values=alike)
        assert decided.growth.counts[2] == 1
        assert decided.graph.topology.role[FIRST + 4] == Role.ABSENT
        np.testing.assert_allclose(decided.graph.weights.edges[:, CAPACITY.inputs:FIRST, FIRST + 1],
                                   BASE.weights.edges[:, CAPACITY.inputs:FIRST, FIRST + 1], rtol=1e-5)  # fmt: skip

    def test_one_that_leads_to_the_other_stays_and_the_function_with_it(self):
        """A relay behind a relay has a smaller slot, or a larger one; both are the value of the neuron before."""
        graph = edits.insert(BASE, jnp.int32(0), jnp.int32(CAPACITY.inputs), jnp.int32(FIRST)).graph
        first = FIRST + 4
        for place, gone in (((0, first, FIRST), first), ((0, CAPACITY.inputs, first), first + 1)):
            chain = edits.insert(graph, *map(jnp.int32, place)).graph
            assert chain.topology.role[first + 1] == Role.HIDDEN

            def equal(i):
                values = np.random.default_rng(i).normal(size=(64, CAPACITY.neurons))
                values[:, first + 1] = values[:, first]
                return values

            decided, _ = through(np.zeros(4), graph=chain, values=equal)
            assert decided.growth.counts[2] == 1
            assert np.flatnonzero(decided.graph.topology.role != chain.topology.role).tolist() == [gone]
            obs = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
            memory = fresh_memory(CAPACITY, (6,))
            np.testing.assert_allclose(step(decided.graph, memory, obs)[0], step(BASE, memory, obs)[0], atol=1e-6)

    def test_others_do_not(self):
        def rising_together(i):
            return i + np.random.default_rng(i).normal(size=(64, CAPACITY.neurons))

        decided, _ = through(np.zeros(40), values=rising_together)
        assert decided.growth.counts[2] == 0


def test_a_plateau_alone_is_enough_where_asked_for():
    scores = np.random.default_rng(0).normal(size=40)
    _, at = through(scores, dataclasses.replace(CONFIG, grow_trigger="plateau"))
    assert at[0] == 19
    _, at = through(scores)
    assert at.size == 0
    _, at = through(scores + np.arange(40), dataclasses.replace(CONFIG, grow_trigger="plateau"))
    assert at.size == 0


def test_false_growth_on_a_plateau_of_independent_scores():
    """At one look: the share of 4000 series that two of the signals would let grow; the normal law says 2.3 %."""
    rng = np.random.default_rng(0)

    @jax.jit
    @jax.vmap
    def both(scores):
        state = growth.init(CONFIG, CAPACITY).replace(scores=scores, n_scores=jnp.int32(growth.SCORES))
        stands, structured, _ = growth.signals(CONFIG, state)
        return stands & structured

    share = float(both(jnp.asarray(rng.normal(size=(4000, growth.SCORES)), jnp.float32)).mean())
    assert 0.01 < share < 0.03
    rising = rng.normal(size=(4000, growth.SCORES)) + 0.05 * np.arange(growth.SCORES)
    assert float(both(jnp.asarray(rising, jnp.float32)).mean()) < 0.005


@pytest.mark.parametrize(
    ("setting", "value"),
    [("grow_op", "duplicate"), ("grow_trigger", "dormant"), ("min_score_buffer", 2), ("min_score_buffer", 201),
     ("prune_edge_patience", 0), ("prune_edge_patience", 40_000), ("grow_cooldown", 1.5), ("maturation_window", True),
     ("max_neurons", 0), ("min_hidden_neurons", -1), ("prune_edge_threshold", -1.0), ("grad_eps", -1e-6),
     ("prune_neuron_threshold", float("nan")), ("merge_similarity_threshold", float("inf")), ("slope", "2"),
     ("autocorrelation", -1), ("grow_grad_threshold", None)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ValueError, match=setting):
        dataclasses.replace(CONFIG, **{setting: value})


def test_what_does_nothing_goes_without_a_trace():
    """A neuron that never fires is no linear one: what a linear one would hand on is not handed on."""
    kind = np.array(BASE.topology.activation)
    kind[FIRST + 2] = Activation.RELU
    dead = BASE.replace(
        topology=BASE.topology.replace(activation=jnp.asarray(kind)),
        weights=BASE.weights.replace(bias=BASE.weights.bias.at[FIRST + 2].set(-100.0)),
    )
    config = dataclasses.replace(CONFIG, maturation_window=1, min_prune_observations=1)
    silent = np.ones(CAPACITY.neurons)
    silent[FIRST + 2] = 0.0
    idle = BUSY.replace(bias=BUSY.bias.at[FIRST + 2].set(0.0))
    decided, _ = through(np.zeros(3), config, graph=dead, gradient=idle, size=silent)
    assert decided.growth.counts[1] == 1
    memory, after, rng = fresh_memory(CAPACITY), fresh_memory(CAPACITY), np.random.default_rng(0)
    for _ in range(4):
        obs = jnp.asarray(rng.normal(size=3), jnp.float32)
        out, memory, _ = step(dead, memory, obs)
        same, after, _ = step(decided.graph, after, obs)
        np.testing.assert_allclose(same, out, rtol=1e-6, atol=1e-7)
