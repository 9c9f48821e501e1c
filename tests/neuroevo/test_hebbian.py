"""Hebbian plasticity against loops over neurons and steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.neuroevo.graph import dale, hebbian
from tensor_optix.neuroevo.graph.arrays import Activation, Capacity, CellType, Kind, fresh_memory
from tensor_optix.neuroevo.graph.forward import step
from tensor_optix.neuroevo.graph.wiring import layered

LR, DECAY = 0.1, 0.01


def recorded(softplus=False, batch=(2,), steps=6):
    """A graph, what was recorded, and the mean products by hand."""
    capacity = Capacity(3, 2, 4, delays=2, levels=2, softplus=softplus)
    graph = layered(capacity, [4], Activation.TANH, Kind.POINT, 2, [1.0, 1.0], jax.random.key(0))
    types = graph.topology.cell_type.at[5].set(int(CellType.EXCITATORY)).at[6].set(int(CellType.INHIBITORY))
    graph = dale.enforced(graph.replace(topology=graph.topology.replace(cell_type=types)))
    rng = np.random.default_rng(0)
    memory, seen = fresh_memory(capacity, batch), hebbian.init(capacity)
    history, by_hand, count = [], np.zeros(seen.total.shape), 0
    for _ in range(steps):
        before = memory
        _, memory, values = step(graph, memory, jnp.asarray(rng.normal(size=(*batch, 3)), jnp.float32))
        seen = jax.jit(hebbian.record)(seen, values, before)
        history.insert(0, np.asarray(values, np.float64))
        for row in np.ndindex(*batch):
            count += 1
            for d in range(3):
                if d < len(history):
                    by_hand[d] += np.outer(history[0][row], history[d][row])
    return graph, seen, by_hand / count


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_products_are_of_what_was_delivered(batch):
    _, seen, by_hand = recorded(batch=batch)
    assert seen.steps == 6 * int(np.prod(batch))
    np.testing.assert_allclose(np.asarray(seen.total) / int(seen.steps), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softplus", [False, True])
def test_the_parameter_moves_by_the_rule(softplus):
    graph, seen, by_hand = recorded(softplus)
    after = hebbian.apply(graph, seen, LR, DECAY, respect_dale=False)
    old = np.asarray(graph.weights.edges, np.float64)
    expected = np.where(graph.topology.edges, old + LR * by_hand - DECAY * old, 0.0)
    np.testing.assert_allclose(after.weights.edges, expected, rtol=1e-4, atol=1e-6)


def test_dales_law_holds_afterwards():
    graph, seen, _ = recorded()
    after = dale.effective(hebbian.apply(graph, seen, 10.0, DECAY))
    assert (after[:, :, 5] >= 0).all()
    assert (after[:, :, 6] <= 0).all()
    free = dale.effective(hebbian.apply(graph, seen, 10.0, DECAY, respect_dale=False))
    assert (free[:, :, 5] < 0).any() or (free[:, :, 6] > 0).any()


def test_clipping_and_nothing_recorded():
    graph, seen, _ = recorded()
    assert np.abs(hebbian.apply(graph, seen, 10.0, 0.0, clip=0.3).weights.edges).max() <= np.float32(0.3)
    untouched = hebbian.apply(graph, hebbian.init(graph.capacity), LR, DECAY)
    np.testing.assert_array_equal(untouched.weights.edges, graph.weights.edges)
