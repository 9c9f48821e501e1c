"""Prioritised sampling: exact probabilities, weights, priorities that are no numbers, removal, annealing.

Chi-square tests: fixed seeds, a false alarm has probability 1e-6 each (Wilson and Hilferty's normal approximation).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core import prioritized, sum_tree

ALPHAS = [0.0, 0.5, 1.0]
INSERT, UPDATE, REMOVE = jax.jit(prioritized.insert), jax.jit(prioritized.update), jax.jit(prioritized.remove)
LEAF = jax.jit(sum_tree.leaf)
SAMPLE = jax.jit(prioritized.sample, static_argnums=2)


@partial(jax.jit, static_argnums=2)
def draw(state, keys, batch):
    return jax.vmap(lambda key: prioritized.sample(state, key, batch, 1, 1.0)[0])(keys)


def rows(*index):
    return jnp.asarray(index, jnp.int32)


def filled(td_error, alpha, capacity=None, eps=1e-6):
    td_error = np.asarray(td_error, np.float32)
    index = np.arange(td_error.shape[0], dtype=np.int32)
    state = INSERT(prioritized.init(capacity or td_error.shape[0]), index, jnp.float32(alpha))
    return UPDATE(state, index, td_error, jnp.float32(alpha), jnp.float32(eps))


def leaves(state):
    return np.asarray(LEAF(state.tree, np.arange(state.tree.capacity, dtype=np.int32)))


def counts(state, batch=16, draws=4000, seed=0):
    """How often each row is drawn in `draws` batches."""
    keys = jax.random.split(jax.random.key(seed), draws)
    index = draw(state, keys, batch)
    return np.bincount(np.asarray(index).ravel(), minlength=state.tree.capacity)


def surprise(counts, probability):
    """Standard normal score of a chi-square statistic; above 4.75 with probability 1e-6."""
    assert (counts[probability == 0] == 0).all()
    counts, probability = counts[probability > 0], probability[probability > 0]
    expected = counts.sum() * probability / probability.sum()
    freedom = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))


def test_surprise_is_calibrated_and_can_fail():
    rng = np.random.default_rng(0)
    p = np.linspace(1, 5, 40) / np.linspace(1, 5, 40).sum()
    scores = [surprise(rng.multinomial(64_000, p), p) for _ in range(500)]
    assert abs(np.mean(scores)) < 0.25
    assert 0.85 < np.std(scores) < 1.15
    assert surprise(rng.multinomial(64_000, p), np.sqrt(p)) > 4.75


@pytest.mark.parametrize("alpha", ALPHAS)
def test_frequencies_are_the_probabilities(alpha):
    """Stratified counts vary less than independent ones, so the test is one-sided and the alarm rarer than stated."""
    td_error = np.random.default_rng(1).exponential(size=37) - 0.5
    p = (np.abs(td_error) + 1e-6) ** alpha
    state = filled(td_error, alpha)
    assert surprise(counts(state, batch=1, draws=64_000), p / p.sum()) < 4.75
    assert surprise(counts(state), p / p.sum()) < 4.75


@pytest.mark.parametrize("alpha", ALPHAS)
def test_frequencies_after_updates_and_removals(alpha):
    rng = np.random.default_rng(2)
    state, raw = filled(np.zeros(40), alpha, capacity=48), np.full(48, 0.0)
    raw[:40] = 1e-6
    for _ in range(20):
        index, error = rng.permutation(40)[:8], rng.normal(size=8)
        state = UPDATE(state, rows(*index), jnp.asarray(error, jnp.float32), jnp.float32(alpha), jnp.float32(1e-6))
        raw[index] = np.abs(error) + 1e-6
    gone = rng.permutation(40)[:10]
    state = REMOVE(state, rows(*gone))
    p = np.where(raw > 0, raw**alpha, 0.0)
    p[gone] = 0.0
    np.testing.assert_allclose(leaves(state), p, rtol=1e-5)
    assert sum_tree.check_valid(state.tree)
    assert surprise(counts(state, batch=1, draws=64_000), p / p.sum()) < 4.75


@pytest.mark.parametrize("capacity", [48, 70_000])
def test_alpha_0_is_exactly_uniform(capacity):
    """Every inserted row has the same leaf and its share of the mass to the bit, whatever its error."""
    rng = np.random.default_rng(3)
    state = filled(rng.exponential(size=48) * 1e4, 0.0, capacity)
    np.testing.assert_array_equal(leaves(state)[:48], 1.0)
    assert float(sum_tree.total(state.tree)) == 48
    # One draw of 48 takes one from each of 48 equal ranges: every row exactly once.
    index, weights = SAMPLE(state, jax.random.key(0), 48, 48, 0.7)
    np.testing.assert_array_equal(np.sort(index), np.arange(48))
    np.testing.assert_array_equal(weights, 1.0)


def test_draws_are_stratified():
    """Of k draws the j-th lies in the j-th of k equal ranges of the total mass."""
    td_error = np.random.default_rng(4).exponential(size=500).astype(np.float32)
    state = filled(td_error, 0.7)
    above = np.cumsum(leaves(state), dtype=np.float64)
    for seed in range(20):
        index = np.asarray(SAMPLE(state, jax.random.key(seed), 64, 500, 0.4)[0])
        low, high = np.arange(64) * above[-1] / 64, np.arange(1, 65) * above[-1] / 64
        assert (above[index] >= low * (1 - 1e-5)).all()
        assert (above[index] - leaves(state)[index] <= high * (1 + 1e-5)).all()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_follow_the_formula(beta):
    td_error = np.random.default_rng(5).exponential(size=100) + 0.01
    state = filled(td_error, 0.6, capacity=1000)
    index, weights = SAMPLE(state, jax.random.key(1), 32, jnp.int32(100), jnp.float32(beta))
    p = (np.abs(np.float32(td_error)).astype(np.float64) + 1e-6) ** 0.6
    expected = (100 * p / p.sum()) ** -beta
    expected = expected[np.asarray(index)] / expected[np.asarray(index)].max()
    np.testing.assert_allclose(weights, expected, rtol=2e-5)
    assert (weights.dtype, index.dtype) == (jnp.float32, jnp.int32)
    assert float(weights.max()) == 1.0


def test_new_rows_get_the_greatest_priority_so_far():
    state = INSERT(prioritized.init(10), rows(0, 1), jnp.float32(0.5))
    np.testing.assert_array_equal(leaves(state)[:3], [1, 1, 0])
    state = UPDATE(state, rows(0), jnp.asarray([-3.0]), jnp.float32(0.5), jnp.float32(1.0))
    np.testing.assert_allclose(leaves(INSERT(state, rows(2), jnp.float32(0.5)))[:3], [2, 1, 2])
    state = UPDATE(state, rows(0), jnp.asarray([0.0]), jnp.float32(0.5), jnp.float32(1.0))
    assert float(state.max_priority) == 4  # of all that were seen, not of those in store


def test_a_priority_is_raised_to_alpha_once():
    """An earlier buffer raised a new row's priority to alpha twice: 1000**0.25 = 5.6 in the place of 31.6."""
    state = filled([1000.0], 0.5, capacity=4)
    state = INSERT(state, rows(1), jnp.float32(0.5))
    np.testing.assert_allclose(leaves(state)[:2], np.sqrt(1000.0), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_errors_that_are_no_numbers_count_as_the_greatest(bad):
    state = filled([1.0, 2.0, 3.0], 1.0, capacity=5)
    state = UPDATE(state, rows(0, 1), jnp.asarray([bad, 7.0]), jnp.float32(1.0), jnp.float32(0.0))
    np.testing.assert_allclose(leaves(state), [7, 7, 3, 0, 0], rtol=1e-6)
    assert float(state.max_priority) == 7
    assert sum_tree.check_valid(state.tree)


@pytest.mark.parametrize(("error", "alpha"), [(3e38, 1.0), (1e30, 8.0), (0.0, 0.6), (1e-30, 8.0)])
def test_extreme_errors_leave_the_others_drawable(error, alpha):
    """Sums neither overflow nor lose the row: it can be drawn again once the others are gone."""
    state = filled(np.full(50, error), alpha, eps=0.0)
    assert np.isfinite(float(sum_tree.total(state.tree)))
    assert (leaves(state) > 0).all()
    assert sum_tree.check_valid(state.tree)
    index, weights = SAMPLE(state, jax.random.key(0), 50, 50, 1.0)
    np.testing.assert_array_equal(np.sort(index), np.arange(50))
    assert np.isfinite(np.asarray(weights)).all()


def test_removed_rows_stay_out():
    """A late update of a removed row, or of one never inserted, does not bring it back, nor its error the maximum."""
    state = REMOVE(filled(np.ones(6), 1.0, capacity=8), rows(2, 5))
    state = UPDATE(state, rows(2, 7, -1, 8), jnp.full(4, 99.0), jnp.float32(1.0), jnp.float32(0.0))
    np.testing.assert_allclose(leaves(state), [1, 1, 0, 1, 1, 0, 0, 0], rtol=1e-5)
    assert float(state.max_priority) < 2
    assert (counts(state, draws=500)[[2, 5, 6, 7]] == 0).all()
    assert leaves(INSERT(state, rows(2), jnp.float32(1.0)))[2] >= 1


def test_without_rows_the_draw_is_0():
    index, weights = SAMPLE(prioritized.init(30), jax.random.key(0), 4, 0, 0.4)
    np.testing.assert_array_equal(index, 0)
    np.testing.assert_array_equal(weights, 1.0)


def test_beta_rises_to_1():
    assert float(prioritized.beta(0, 100, 0.4)) == np.float32(0.4)
    assert float(prioritized.beta(100, 100, 0.4)) == 1.0
    assert float(prioritized.beta(10**6, 100, 0.4)) == 1.0
    np.testing.assert_allclose(prioritized.beta(jnp.int32(50), jnp.int32(100), jnp.float32(0.4)), 0.7, rtol=1e-6)
    assert float(prioritized.beta(0, 0, 0.4)) == np.float32(0.4)
    assert prioritized.beta(0, 100, 0.4).dtype == jnp.float32


def test_compiled_in_a_scan_with_hyperparameters_traced():
    """One trace serves all alphas, betas and epsilons; carried state keeps its types; lanes are independent."""
    traces = []

    @jax.jit
    @jax.vmap
    def run(key, alpha, beta, eps):
        traces.append(1)

        def step(state, inputs):
            key, t = inputs
            key_draw, key_error = jax.random.split(key)
            state = prioritized.insert(state, t * 4 + jnp.arange(4, dtype=jnp.int32), alpha)
            index, weights = prioritized.sample(state, key_draw, 8, (t + 1) * 4, beta)
            return prioritized.update(state, index, jax.random.normal(key_error, (8,)), alpha, eps), weights

        keys = jax.random.split(key, 20)
        return jax.lax.scan(step, prioritized.init(90), (keys, jnp.arange(20, dtype=jnp.int32)))

    grid = [jnp.asarray(x, jnp.float32) for x in ([0.0, 0.6, 0.6], [0.4, 0.4, 0.9], [1e-6, 1e-6, 1e-2])]
    state, weights = run(jax.random.split(jax.random.key(0), 3), *grid)
    run(jax.random.split(jax.random.key(1), 3), *[x * jnp.float32(0.5) for x in grid])
    assert len(traces) == 1
    assert jax.vmap(lambda s: sum_tree.check_valid(s.tree))(state).all()
    np.testing.assert_array_equal(weights[0], 1.0)
    assert (np.asarray(weights[1:]) < 1).any()
    assert (np.asarray(state.tree.nodes) > 0).sum() >= 3 * 80
