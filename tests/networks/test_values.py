"""Dueling streams and the value of a continuous action: shapes, identities, images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.networks.functional import Network
from tensor_optix.networks.values import ActionValue, Dueling

VECTOR, IMAGE = (5,), (6, 6, 2)


def rows(shape, n=7, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, *shape)), jnp.float32)


@pytest.mark.parametrize("shape", [VECTOR, IMAGE])
def test_dueling_values_average_to_the_states_value(shape):
    network = Network(lambda rngs: Dueling(shape, 3, (16, 8), "relu", rngs))
    params = network.init(jax.random.key(0))
    values = network.apply(params, rows(shape))
    assert values.shape == (7, 3)
    # The mean over actions is the state's value: the advantages have mean 0, whatever their stream says.
    moved = {**params, "advantage": jax.tree.map(lambda x: 2 * x, params["advantage"])}
    other = network.apply(moved, rows(shape))
    np.testing.assert_allclose(other.mean(-1), values.mean(-1), rtol=1e-4, atol=1e-5)
    assert not np.allclose(other, values)
    with pytest.raises(ValueError, match="at least 2 hidden_sizes"):
        Network(lambda rngs: Dueling(shape, 3, (16,), "relu", rngs)).init(jax.random.key(0))


@pytest.mark.parametrize("shape", [VECTOR, IMAGE])
def test_the_value_of_an_action_depends_on_both(shape):
    network = Network(lambda rngs: ActionValue(shape, 2, (16, 16), "relu", rngs))
    params = network.init(jax.random.key(0))
    obs, action = rows(shape), rows((2,), seed=1)
    value = network.apply(params, obs, action)
    assert value.shape == (7, 1)
    for other in (network.apply(params, -obs, action), network.apply(params, obs, -action)):
        assert (np.abs(other - value) > 1e-4).all()
