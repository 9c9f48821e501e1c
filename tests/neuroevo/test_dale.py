"""Dale's law: parameters and weights translate into each other, and signs hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.dale import ZERO, enforced, raw_of
from tests.neuroevo.graphs import CLAMP, MODES, SOFTPLUS, packed, random_oracle
from tests.neuroevo.oracle import softplus_inverse

effective = jax.jit(dale.effective)
parameters = jax.jit(raw_of, static_argnums=0)
BOTH = pytest.mark.parametrize("capacity", MODES, ids=["clamp", "softplus"])
SIGNS = [-1, 0, 1]
E = 120


def all_edges(capacity, raw):
    """A graph with an edge from each sort of neuron for every raw weight, repeated to E of them."""
    raw = np.resize(np.asarray(raw, np.float32), E)
    capacity = dataclasses.replace(capacity, inputs=3, outputs=len(raw), hidden=0, delays=1)
    graph, _ = packed(*random_oracle(0, capacity, inputs=3, outputs=len(raw), hidden=0, density=0.0), capacity)
    topology = graph.topology.replace(
        cell_type=graph.topology.cell_type.at[:3].set(jnp.array(SIGNS, jnp.int8)),
        edges=graph.topology.edges.at[0, 3:, :3].set(True),
    )
    edges = graph.weights.edges.at[0, 3:, :3].set(jnp.asarray(raw, jnp.float32)[:, None])
    return graph.replace(topology=topology, weights=graph.weights.replace(edges=edges))


def of(matrix):
    """The weights [E, 3] of `all_edges`."""
    return np.asarray(matrix)[0, 3:, :3]


def with_weights(graph, weights):
    return graph.replace(weights=graph.weights.replace(edges=weights))


def translated(graph, weights):
    """The graph whose weights are to act as `weights`."""
    edges = parameters(graph.capacity, graph.topology, weights)
    assert edges.dtype == jnp.float32
    return with_weights(graph, jnp.where(graph.topology.edges, edges, jnp.float32(0.0)))


SIZES = np.concatenate([[1e-5, 1e-4, 1e-3], np.linspace(0.01, 3, 50), [5, 10, 20, 50, 200]]).astype(np.float32)


@BOTH
def test_a_lawful_weight_becomes_itself(capacity):
    graph = all_edges(capacity, SIZES)
    lawful = graph.weights.edges * graph.topology.cell_type.astype(jnp.float32)[None, None, :]
    lawful = jnp.where(graph.topology.cell_type[None, None, :] == 0, -graph.weights.edges, lawful)
    found = of(effective(translated(graph, lawful)))
    np.testing.assert_allclose(found, np.resize(SIZES, (E, 1)) * np.array([[-1, -1, 1]]), rtol=2e-6)


@BOTH
def test_of_the_wrong_sign_becomes_nothing(capacity):
    graph = all_edges(capacity, np.concatenate([SIZES, -SIZES, [0.0]]))
    weights = of(graph.weights.edges)
    found = of(effective(translated(graph, graph.weights.edges)))
    wrong = weights * np.array([SIGNS]) < 0
    assert wrong.sum() > 100
    assert (np.abs(found[wrong | (weights == 0)]) <= 1e-6).all()
    if not capacity.softplus:
        assert not found[wrong].any()
    np.testing.assert_array_equal(found[:, 1], weights[:, 1])
    assert (found * np.array([SIGNS]) >= 0).all()


def test_a_parameter_becomes_itself_under_softplus():
    raw = np.concatenate([np.linspace(ZERO, -2, 60), np.linspace(-2, 40, 60)]).astype(np.float32)
    graph = all_edges(SOFTPLUS, raw)
    again = translated(graph, effective(graph))
    np.testing.assert_allclose(of(again.weights.edges), of(graph.weights.edges), rtol=2e-6, atol=2e-6)


def test_softplus_is_the_oracles():
    graph = all_edges(SOFTPLUS, SIZES)
    found = of(translated(graph, graph.weights.edges).weights.edges)[:, 2]
    np.testing.assert_allclose(found, [softplus_inverse(float(s)) for s in np.resize(SIZES, E)], rtol=1e-5, atol=1e-5)


def test_a_weight_of_zero_is_the_named_parameter():
    graph = all_edges(SOFTPLUS, [0.0])
    zero = translated(graph, graph.weights.edges)
    np.testing.assert_array_equal(of(zero.weights.edges)[0], [ZERO, 0.0, ZERO])
    np.testing.assert_allclose(of(effective(zero))[0], [-8.3e-7, 0.0, 8.3e-7], rtol=0.01)


def test_clamped_parameters_are_the_weights_that_act():
    graph = all_edges(CLAMP, np.concatenate([SIZES, -SIZES]))
    np.testing.assert_array_equal(effective(graph), graph.weights.edges)


@BOTH
def test_what_is_no_edge_does_not_act(capacity):
    graph, _ = packed(*random_oracle(4, capacity), capacity)
    garbage = jnp.full_like(graph.weights.edges, 3.0)
    found = effective(with_weights(graph, garbage))
    edges = np.asarray(graph.topology.edges)
    assert not np.asarray(found)[~edges].any()
    assert np.asarray(found)[edges].all()


@BOTH
def test_enforcing_twice_is_enforcing_once(capacity):
    rng = np.random.default_rng(0)
    graph = all_edges(capacity, rng.normal(size=40))
    once = enforced(graph)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(enforced(once)), strict=True):
        np.testing.assert_array_equal(a, b)
    before, after = of(graph.weights.edges), of(once.weights.edges)
    wrong = before * np.array([SIGNS]) < 0
    assert wrong.any()
    np.testing.assert_array_equal(after, before if capacity.softplus else np.where(wrong, 0, before))
    assert (of(effective(once)) * np.array([SIGNS]) >= 0).all()


@BOTH
def test_every_edge_has_a_gradient_and_nothing_else(capacity):
    graph = all_edges(capacity, np.linspace(ZERO, 14, 30))
    slopes = jax.jit(jax.grad(lambda edges: effective(with_weights(graph, edges)).sum()))(graph.weights.edges)
    edges = np.asarray(graph.topology.edges)
    assert not np.asarray(slopes)[~edges].any()
    assert (np.abs(np.asarray(slopes)[edges]) > 1e-7).all()
    if capacity.softplus:
        expected = 1 / (1 + np.exp(-of(graph.weights.edges).astype(float)))
        np.testing.assert_allclose(of(slopes), np.array([[-1, 1, 1]]) * np.where([1, 0, 1], expected, 1), rtol=1e-5)


def test_translating_is_finite_and_so_are_its_slopes():
    """Of weights of every size and sign, with what the law does not allow."""
    sizes = np.concatenate([[0, 1e-30, 1e-8, 8e-7, 9e-7, 1e-3, 1, 90, 1e4], [-1e-30, -1, -1e4]])
    graph = all_edges(SOFTPLUS, sizes)
    found = parameters(graph.capacity, graph.topology, graph.weights.edges)
    slopes = jax.jit(jax.grad(lambda w: raw_of(graph.capacity, graph.topology, w).sum()))(graph.weights.edges)
    assert np.isfinite(found).all()
    assert np.isfinite(slopes).all()
