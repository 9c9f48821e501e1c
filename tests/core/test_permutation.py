"""Permutations: every row is one, keys matter, and positions and neighbours are as good as random."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core.permutation import permutations

MIXED = [8, 16, 32, 128, 1024, 8192]  # powers of two: integer mixing
SORTED = [1, 2, 3, 4, 5, 7, 12, 100, 1000]  # the fall-back


def draw(count, n, seed=0):
    return np.asarray(permutations(jax.random.key(seed), count, n))


def chi_square(counts):
    """Deviation of a chi-square statistic from its mean, in standard deviations; `counts` of equally likely cells."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("n", MIXED + SORTED)
def test_every_row_is_a_permutation(n):
    p = permutations(jax.random.key(n), 20, n)
    assert p.shape == (20, n)
    assert p.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(p, axis=1), np.tile(np.arange(n), (20, 1)))


@pytest.mark.parametrize("n", [64, 1024, 100])
def test_rows_and_keys_differ(n):
    rows = np.concatenate([draw(20, n, seed=1), draw(20, n, seed=2)])
    assert len({row.tobytes() for row in rows}) == 40
    # Two random permutations agree in one place on average; 12 or more have probability below 1e-8 each.
    agreements = [np.sum(a == b) for a, b in itertools.combinations(rows, 2)]
    assert max(agreements) < 12
    assert abs(np.mean(agreements) - 1) < 0.3  # 780 pairs: 8 standard errors


def test_same_key_same_bits_jit_or_not():
    key = jax.random.key(3)
    jitted = jax.jit(permutations, static_argnums=(1, 2))
    for n in (256, 100):
        np.testing.assert_array_equal(jitted(key, 4, n), permutations(key, 4, n))
        np.testing.assert_array_equal(jitted(key, 4, n), jitted(key, 4, n))


def test_keys_are_consumed_once(checked_keys):
    for n in (64, 12):
        jax.jit(permutations, static_argnums=(1, 2)).lower(jax.random.key(0), 3, n)


@pytest.mark.parametrize("n", [8, 64, 12])
def test_each_position_is_uniform(n):
    """False alarm: about 1e-6 per position (5 standard deviations of a chi-square); the seed is fixed."""
    p = draw(10_000, n)
    for position in range(n):
        assert chi_square(np.bincount(p[:, position], minlength=n)) < 5


@pytest.mark.parametrize("n", [64, 256])
def test_neighbours_are_independent(n):
    """Correlation over 10 000 n pairs: without replacement it is -1/(n-1); standard error about 1e-3."""
    p = draw(10_000, n).astype(np.float64)
    for lag in (1, 2, n // 2):
        a, b = p[:, :-lag].ravel(), p[:, lag:].ravel()
        assert abs(np.corrcoef(a, b)[0, 1] + 1 / (n - 1)) < 0.01


def test_neighbours_fall_into_all_pairs_of_minibatches():
    """What PPO needs: rows that were neighbours in time land in unrelated minibatches (quarters here).

    For n = 64 each of the 16 pairs of quarters has probability 1/4 * 15/63 or 1/4 * 16/63. Standard error 0.0017.
    """
    quarter = np.argsort(draw(20_000, 64), axis=1) // 16  # [row, time] -> minibatch
    for t in (0, 17, 62):
        table = np.zeros((4, 4))
        np.add.at(table, (quarter[:, t], quarter[:, t + 1]), 1 / len(quarter))
        expected = np.full((4, 4), 16 / 63 / 4) - np.eye(4) / 63 / 4
        assert np.abs(table - expected).max() < 0.012


def test_all_orders_of_a_small_set_occur():
    """Fall-back, 6 orders of 3: false alarm below 1e-5."""
    counts = np.unique(draw(6000, 3), axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert chi_square(counts) < 6


@pytest.mark.parametrize(("count", "n"), [(0, 8), (1, 0), (-1, 4), (2, -8)])
def test_nonsense_is_refused(count, n):
    with pytest.raises(ValueError, match=f"got {count} and {n}"):
        permutations(jax.random.key(0), count, n)
