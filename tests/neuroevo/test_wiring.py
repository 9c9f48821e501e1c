"""Graphs to start from: what their weights are drawn from, with and without Dale's law."""

import jax
import numpy as np
import pytest

from tensor_optix.neuroevo.graph import dale
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, Kind
from tensor_optix.neuroevo.graph.wiring import layered


def drawn(softplus, inhibitory, seeds=200):
    """Weights as they act from 20 hidden neurons to 10 others, [S, 10, 20], and the types of the first."""
    capacity = Capacity(2, 1, 30, levels=3, softplus=softplus)

    def one(key):
        graph = layered(capacity, [20, 10], Activation.TANH, Kind.POINT, 0, [1.0], key, inhibitory)
        return dale.effective(graph)[0, 23:33, 3:23], graph.topology.cell_type

    weights, types = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds))
    return np.asarray(weights), np.asarray(types)[0, 3:23]


@pytest.mark.parametrize("softplus", [False, True])
def test_what_excites_and_what_inhibits_are_in_balance(softplus):
    weights, types = drawn(softplus, 0.2)
    np.testing.assert_array_equal(types, [1] * 16 + [-1] * 4)
    assert (weights * types >= 0).all()
    received, spread = weights.sum(axis=-1), np.square(weights).sum(axis=-1)
    assert abs(received.mean()) < 4 * received.std() / np.sqrt(received.size)
    assert abs(spread.mean() - 1) < 4 * spread.std() / np.sqrt(spread.size)
    assert np.abs(weights[..., 16:]).mean() == pytest.approx(4 * np.abs(weights[..., :16]).mean(), rel=0.03)


@pytest.mark.parametrize(("inhibitory", "sign"), [(0.0, 1), (1.0, -1)])
def test_one_type_alone(inhibitory, sign):
    weights, types = drawn(False, inhibitory)
    assert (types == sign).all()
    assert np.square(weights).sum(axis=-1).mean() == pytest.approx(1.0, rel=0.02)


def test_without_the_law_signs_are_free():
    weights, types = drawn(False, None)
    assert (types == 0).all()
    assert 0.48 < (weights > 0).mean() < 0.52
