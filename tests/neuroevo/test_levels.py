"""Levels and circles against searches that follow every chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.neuroevo.graph.arrays import empty
from tensor_optix.neuroevo.graph.levels import fits, levels
from tests.neuroevo.graphs import CLAMP, packed, random_oracle

SIZE, FIRST = 9, 3


def random_dags(count, seed=0):
    """[count, SIZE, SIZE] bool, to, from, in a random order of the neurons; none leads to an input."""
    rng = np.random.default_rng(seed)
    out = np.zeros((count, SIZE, SIZE), bool)
    for edges in out:
        order = rng.permutation(np.arange(FIRST, SIZE))
        density = rng.uniform(0.1, 0.9)
        edges[FIRST:, :FIRST] = rng.random((SIZE - FIRST, FIRST)) < density
        for i, v in enumerate(order):
            for u in order[:i]:
                edges[v, u] = rng.random() < density
    return out


def longest_chain(edges, v):
    """Neurons that are no inputs on the longest chain that ends in v, by trying all."""
    return int(v >= FIRST) + max((longest_chain(edges, u) for u in np.flatnonzero(edges[v])), default=0)


@functools.lru_cache
def compiled(most):
    return jax.jit(jax.vmap(lambda edges: levels(edges, most, FIRST)))


def test_levels_are_longest_chains():
    dags = random_dags(60)
    expected = np.array([[longest_chain(edges, v) for v in range(SIZE)] for edges in dags])
    found, ok = compiled(SIZE)(dags)
    assert found.dtype == jnp.int32
    assert ok.all()
    np.testing.assert_array_equal(found, expected)
    assert set(expected.max(axis=1)) >= {2, 3, 4, 5, 6}


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5])
def test_a_graph_is_refused_from_one_level_too_deep_on(most):
    dags = random_dags(60)
    depth = np.array([max(longest_chain(edges, v) for v in range(SIZE)) for edges in dags])
    found, ok = compiled(most)(dags)
    np.testing.assert_array_equal(ok, depth <= most)
    fit = np.asarray(ok)
    np.testing.assert_array_equal(found[fit], compiled(SIZE)(dags)[0][fit])


def reach(edges, start):
    found, front = {start}, [start]
    while front:
        front = [v for u in front for v in np.flatnonzero(edges[:, u]) if v not in found]
        found.update(front)
    return np.isin(np.arange(len(edges)), list(found))


def test_circles_are_found_whatever_their_length():
    dags = random_dags(60, seed=1)
    closed = []
    for edges in dags:
        for v in range(FIRST, SIZE):
            for u in range(FIRST, SIZE):
                if u == v or reach(edges, v)[u]:  # v leads to u: an edge from u to v closes the circle
                    circle = edges.copy()
                    circle[v, u] = True
                    closed.append(circle)
    assert len(closed) > 400
    for most in (3, SIZE):
        _, ok = compiled(most)(np.stack(closed[:: len(closed) // 300]))
        assert not ok.any()


def test_delayed_circles_fit():
    found = 0
    for seed in range(10):
        oracle, slots = random_oracle(seed)
        graph, _ = packed(oracle, slots, CLAMP)
        assert fits(graph)
        found += any((v, u, d) in oracle.edges for u, v, d in oracle.edges if d > 0)
    assert found > 5


def test_an_empty_graph_fits():
    assert fits(empty(CLAMP))
