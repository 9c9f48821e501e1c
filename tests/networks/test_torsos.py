"""Torsos and the functional face of a network."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tensor_optix.networks.functional import Network
from tensor_optix.networks.torsos import ACTIVATIONS, CNN, MLP, orthogonal, torso
from tests.runs import assert_same_bits, leaves

KEY = jax.random.key(0)


def network(shape=(4,), n_out=3, hidden=(16, 8), activation="tanh", head_gain=0.01):
    return Network(lambda rngs: torso(shape, n_out, hidden, activation, head_gain, rngs))


@functools.cache
def parts(shape=(4,), **settings):
    """(network, its parameters)."""
    made = network(shape, **settings)
    return made, made.init(KEY)


def kernels(params):
    return {name: leaf for name, leaf in leaves(params).items() if "kernel" in name}


# --- initialisation ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (3, 3, 4, 16), (2, 2, 1, 16)])
@pytest.mark.parametrize("gain", [1.0, math.sqrt(2.0), 0.01])
def test_kernels_are_orthogonal(shape, gain):
    kernel = np.asarray(orthogonal(gain)(KEY, shape), np.float64)
    assert kernel.shape == shape
    matrix = kernel.reshape(-1, shape[-1])
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, gain**2 * np.eye(min(matrix.shape)), atol=1e-5 * gain**2)


def test_kernels_have_no_preferred_sign():
    """2000 draws of 4x4: each entry's mean within 5 standard errors of 0 (each has standard deviation 1/2)."""
    drawn = jax.jit(jax.vmap(lambda k: orthogonal(1.0)(k, (4, 4))))(jax.random.split(KEY, 2000))
    assert np.abs(np.asarray(drawn).mean(0)).max() < 5 * 0.5 / math.sqrt(2000)
    np.testing.assert_allclose(np.asarray(drawn).std(0), 0.5, atol=0.06)


def test_gains_of_layers():
    _, params = parts()
    found = {name: np.linalg.norm(kernel, 2) for name, kernel in kernels(params).items()}
    heads = [value for name, value in found.items() if "head" in name]
    hidden = [value for name, value in found.items() if "hidden" in name]
    np.testing.assert_allclose(heads, [0.01], rtol=1e-4)
    np.testing.assert_allclose(hidden, [math.sqrt(2)] * 2, rtol=1e-4)
    _, image = parts((10, 10, 4))
    (conv,) = [np.linalg.norm(k.reshape(-1, 16), 2) for name, k in kernels(image).items() if "conv" in name]
    np.testing.assert_allclose(conv, math.sqrt(2), rtol=1e-4)


def test_biases_start_at_zero():
    for shape in ((4,), (10, 10, 4)):
        biases = [leaf for name, leaf in leaves(parts(shape)[1]).items() if "bias" in name]
        assert biases
        assert all(not leaf.any() for leaf in biases)


# --- shapes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("shape", [(4,), (10, 10, 4), (2, 5, 1)])
def test_leading_axes_pass_through(shape, batch):
    made, params = parts(shape)
    out = made.apply(params, jnp.ones((*batch, *shape), jnp.float32))
    assert out.shape == (*batch, 3)
    assert out.dtype == jnp.float32


def test_the_torso_fits_the_observation():
    build = functools.partial(torso, n_out=2, hidden_sizes=(8,), activation="relu", head_gain=1.0, rngs=nnx.Rngs(0))
    assert isinstance(build((3,)), MLP)
    assert isinstance(build(()), MLP)
    assert isinstance(build((6, 6, 1)), CNN)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 5)])
def test_other_observations_are_refused(shape):
    with pytest.raises(ValueError, match=r"no torso for observations of shape \(.*flatten the observation"):
        network(shape).init(KEY)


def test_no_hidden_layer_is_linear():
    made, params = parts(hidden=())
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    (kernel,) = kernels(params).values()
    np.testing.assert_allclose(made.apply(params, x), x @ kernel, atol=1e-6)


def test_the_mlp_by_hand():
    made, params = parts(activation="relu", head_gain=1.0)
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    first, second, head = (
        params["hidden"][0]["kernel"],
        params["hidden"][1]["kernel"],
        params["head"]["kernel"],
    )
    expected = np.maximum(np.maximum(x @ first, 0) @ second, 0) @ head
    np.testing.assert_allclose(made.apply(params, jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bool_])
def test_images_of_small_types_are_read_as_numbers(dtype):
    made, params = parts((10, 10, 4), head_gain=1.0)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 10, 10, 4)), jnp.uint8).astype(dtype)
    as_float = made.apply(params, image.astype(jnp.float32))
    np.testing.assert_array_equal(made.apply(params, image), as_float)
    assert np.abs(np.asarray(as_float)).max() > 0


def test_an_image_smaller_than_the_kernel():
    _, params = parts((2, 5, 1), head_gain=1.0)
    (conv,) = [k for name, k in kernels(params).items() if "conv" in name]
    assert conv.reshape(-1, 16).shape == (2 * 3 * 1, 16)


def test_the_convolution_sees_every_pixel():
    made, params = parts((10, 10, 4), head_gain=1.0)
    slope = jax.grad(lambda x: jnp.sum(jnp.square(made.apply(params, x))))(jnp.ones((10, 10, 4), jnp.float32))
    assert (np.asarray(slope) != 0).all()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_matter(name):
    x = jnp.linspace(-2, 2, 12, dtype=jnp.float32).reshape(3, 4)
    params = parts(head_gain=1.0)[1]
    out = network(activation=name, head_gain=1.0).apply(params, x)
    others = [network(activation=other, head_gain=1.0).apply(params, x) for other in ACTIVATIONS if other != name]
    assert np.isfinite(out).all()
    assert all(not np.allclose(out, other) for other in others)


# --- the functional face ----------------------------------------------------------------------------------------------
def test_same_key_same_parameters_other_key_other_kernels():
    made, params = parts()
    assert_same_bits(params, made.init(KEY))
    assert_same_bits(params, jax.jit(network().init)(KEY))
    other = kernels(made.init(jax.random.key(1)))
    assert all(not np.array_equal(kernel, other[name]) for name, kernel in kernels(params).items())


def test_layers_of_one_shape_get_different_kernels():
    _, params = parts((8,), hidden=(8, 8))
    first, second = (params["hidden"][i]["kernel"] for i in (0, 1))
    assert not np.array_equal(first, second)


def test_parameters_are_plain_float32_arrays():
    _, params = parts((10, 10, 4))
    assert isinstance(params, dict)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_nothing_is_kept_between_calls():
    made, params = parts()
    before = jax.tree.map(lambda p: np.array(p), params)
    x = jnp.ones((2, 4), jnp.float32)
    first = made.apply(params, x)
    made.apply(jax.tree.map(lambda p: p + 1, params), x)
    jax.jit(made.apply)(params, x)  # tracers must not stay in the cached structure
    np.testing.assert_array_equal(made.apply(params, x), first)
    assert_same_bits(params, before)
    with jax.checking_leaks():
        jax.eval_shape(network().apply, params, x)


def test_first_use_under_jit():
    made, x = network(), jnp.ones((2, 4), jnp.float32)
    inside = jax.jit(lambda key: made.apply(made.init(key), x))(KEY)
    np.testing.assert_allclose(made.apply(made.init(KEY), x), inside, atol=1e-6)


def test_members_under_vmap():
    made = network(head_gain=1.0)
    keys = jax.random.split(KEY, 3)
    params = jax.vmap(made.init)(keys)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), jnp.float32)
    out = jax.vmap(made.apply)(params, x)
    for i in range(3):
        alone = made.init(keys[i])
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(a, b[i], atol=1e-6)
        np.testing.assert_allclose(made.apply(alone, x[i]), out[i], atol=1e-5)


def test_gradients_reach_every_parameter():
    for shape in ((4,), (10, 10, 4)):
        made, params = parts(shape, head_gain=1.0)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(16, *shape)), jnp.float32)
        slopes = jax.grad(lambda p, made=made, x=x: jnp.sum(jnp.square(made.apply(p, x) - 1)))(params)
        assert all(np.abs(leaf).max() > 0 for leaf in leaves(slopes).values())


def test_keys_are_consumed_once(checked_keys):
    jax.jit(network().init).lower(KEY)
