"""The network of Rainbow: shapes, dueling identities, which layers are noisy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tensor_optix.networks.categorical_values import CategoricalValues
from tensor_optix.networks.functional import Network
from tensor_optix.networks.noisy import NoisyMLP, draw_noise
from tests.runs import leaves

ACTIONS, ATOMS = 3, 5
IMAGE = (10, 10, 4)


def build(rngs, shape=(4,), hidden=(8, 6), dueling=True, noisy=True):
    return CategoricalValues(shape, ACTIONS, ATOMS, hidden, "relu", dueling, noisy, rngs)


def noise_size(**settings):
    return nnx.eval_shape(lambda: build(nnx.Rngs(0), **settings)).noise_size


@functools.cache
def parts(**settings):
    """(network, its parameters, observations [2, *shape], noise)."""
    network = Network(functools.partial(build, **settings))
    obs = jax.random.normal(jax.random.key(1), (2, *settings.get("shape", (4,))))
    return network, network.init(jax.random.key(0)), obs, draw_noise(jax.random.key(2), (noise_size(**settings),))


@pytest.mark.parametrize("shape", [(4,), IMAGE])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
@pytest.mark.parametrize(("dueling", "noisy"), [*itertools.product((False, True), repeat=2)])
def test_shapes_and_noise(shape, hidden, dueling, noisy):
    settings = {"shape": shape, "hidden": hidden, "dueling": dueling, "noisy": noisy}
    network, size = Network(functools.partial(build, **settings)), noise_size(**settings)
    params = jax.eval_shape(network.init, jax.random.key(0))
    obs = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    for given in (None, *([(size,), (2, size)] if noisy else [])):
        noise = given and jax.ShapeDtypeStruct(given, jnp.float32)
        assert jax.eval_shape(network.apply, params, obs, noise).shape == (2, ACTIONS, ATOMS)
    width = 4 if shape == (4,) else 8 * 8 * 16
    streams = [ATOMS, ACTIONS * ATOMS] if dueling else [ACTIONS * ATOMS]
    shared = hidden[:-1] if dueling else ()
    own = hidden[len(shared) :]
    layers = list(itertools.pairwise((width, *shared)))
    width = (width, *shared)[-1]
    layers += [pair for n_out in streams for pair in itertools.pairwise((width, *own, n_out))]
    assert size == (sum(a + b for a, b in layers) if noisy else 0)
    weights = sum(a * b + b for a, b in layers) * (2 if noisy else 1) + (3 * 3 * 4 * 16 + 16 if shape == IMAGE else 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == weights


@pytest.mark.slow
def test_an_image_goes_through_one_convolution_without_noise():
    network, params, obs, noise = parts(shape=IMAGE, hidden=(8,))
    assert sorted({name.split("'")[1] for name in leaves(params)}) == ["advantage", "image", "value"]
    assert not any("sigma" in name or "mlp" in name for name in leaves(params["image"]))
    as_bits = (obs > 0).astype(jnp.uint8)
    got = network.apply(params, as_bits, noise)
    np.testing.assert_array_equal(got, network.apply(params, as_bits.astype(jnp.float32), noise))
    gradient = jax.grad(lambda p: jnp.square(network.apply(p, obs, noise)).sum())(params)
    assert all(np.any(g) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("noisy", [False, True])
class TestDueling:
    def noise_of(self, noise, noisy):
        return noise if noisy else None

    def test_the_mean_over_actions_is_the_value_stream(self, noisy):
        """sum_a (v + a - mean a) / A = v, for every atom."""
        network, params, obs, noise = parts(noisy=noisy)
        noise = self.noise_of(noise, noisy)
        silent = jax.tree.map(jnp.zeros_like, params["advantage"])
        value_alone = network.apply(params | {"advantage": silent}, obs, noise)
        np.testing.assert_array_equal(value_alone, np.broadcast_to(value_alone[:, :1], value_alone.shape))
        np.testing.assert_allclose(network.apply(params, obs, noise).mean(1), value_alone[:, 0], rtol=1e-5, atol=1e-5)

    def test_an_advantage_alike_for_all_actions_changes_nothing(self, noisy):
        network, params, obs, noise = parts(noisy=noisy)
        noise = self.noise_of(noise, noisy)
        advantage = params["advantage"]
        shift = jnp.tile(jnp.arange(ATOMS, dtype=jnp.float32), ACTIONS)  # another for every atom
        if noisy:
            last = max(advantage["layers"])
            head = advantage["layers"][last]
            shifted = advantage | {"layers": advantage["layers"] | {last: head | {"bias": head["bias"] + shift}}}
        else:
            head = advantage["head"]
            shifted = advantage | {"head": head | {"bias": head["bias"] + shift}}
        got = network.apply(params | {"advantage": shifted}, obs, noise)
        np.testing.assert_allclose(got, network.apply(params, obs, noise), rtol=1e-4, atol=1e-5)


def test_without_dueling_it_is_a_plain_noisy_network():
    network, params, obs, noise = parts(dueling=False)
    plain = Network(lambda rngs: NoisyMLP(4, ACTIONS * ATOMS, (8, 6), "relu", rngs))
    expected = plain.apply(params["advantage"], obs, noise).reshape(2, ACTIONS, ATOMS)
    np.testing.assert_array_equal(network.apply(params, obs, noise), expected)


def test_observations_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 3\); expected a vector \[n\] or an image"):
        noise_size(shape=(3, 3))
