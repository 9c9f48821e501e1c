"""Noisy layers: moments over the noise against the closed form, both forms of noise, initialisation, gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tensor_optix.networks.functional import Network
from tensor_optix.networks.noisy import NoisyLinear, NoisyMLP, draw_noise, split_noise

N_IN, N_OUT = 7, 5
KEY = jax.random.key(0)


@functools.cache
def linear():
    """(network, parameters with sigmas of all sizes)."""
    network = Network(lambda rngs: NoisyLinear(N_IN, N_OUT, rngs))
    params, rng = network.init(KEY), np.random.default_rng(0)
    return network, {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for name, leaf in params.items()}


def in_float64(params):
    return (np.asarray(params[n], np.float64) for n in ("kernel", "bias", "sigma_kernel", "sigma_bias"))


def test_one_sample_is_the_written_out_formula():
    network, params = linear()
    kernel, bias, sigma_kernel, sigma_bias = in_float64(params)
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=(4, N_IN)), rng.normal(size=N_IN + N_OUT)
    of_input, of_output = noise[:N_IN], noise[N_IN:]
    expected = x @ (kernel + sigma_kernel * np.outer(of_input, of_output)) + bias + sigma_bias * of_output
    got = network.apply(params, jnp.asarray(x, jnp.float32), jnp.asarray(noise, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_noise_for_each_row_is_noise_for_all_rows_row_by_row():
    network, params = linear()
    x = jax.random.normal(jax.random.key(1), (3, 4, N_IN))
    noise = draw_noise(jax.random.key(2), (3, 4, N_IN + N_OUT))
    got = network.apply(params, x, noise)
    for i in np.ndindex(3, 4):
        alone = network.apply(params, x[i][None], noise[i])[0]
        np.testing.assert_allclose(got[i], alone, rtol=1e-4, atol=1e-4)


def test_mean_and_variance_over_the_noise():
    """f(e)^2 = |e| has mean sqrt(2 / pi); inputs and outputs draw apart. 40000 draws, seeds fixed: each of 10 means
    lies within 5 standard errors (a false alarm in 2e5 seeds), variances within a tenth."""
    network, params = linear()
    kernel, bias, sigma_kernel, sigma_bias = in_float64(params)
    x, draws, second = np.random.default_rng(3).normal(size=(2, N_IN)), 40_000, math.sqrt(2 / math.pi)
    noise = draw_noise(jax.random.key(4), (draws, N_IN + N_OUT))
    outputs = jax.jit(jax.vmap(network.apply, (None, None, 0)))(params, jnp.asarray(x, jnp.float32), noise)
    outputs = np.asarray(outputs, np.float64)
    # Var = m (m sum_i x_i^2 sigma_io^2 + sigma_o^2), m = E f^2: the bias' noise is that of the outputs.
    variance = second * (second * x**2 @ sigma_kernel**2 + sigma_bias**2)
    error = np.abs(outputs.mean(0) - (x @ kernel + bias)) / np.sqrt(variance / draws)
    assert error.max() < 5, error
    np.testing.assert_allclose(outputs.var(0), variance, rtol=0.1)


def test_without_noise_it_is_the_mean_layer_and_sigmas_do_not_matter():
    network, params = linear()
    x = jax.random.normal(jax.random.key(5), (3, N_IN))
    kernel, bias, _, _ = in_float64(params)
    got = network.apply(params, x)
    np.testing.assert_allclose(got, np.asarray(x) @ kernel + bias, rtol=1e-4, atol=1e-4)
    louder = params | {name: params[name] * 100 for name in ("sigma_kernel", "sigma_bias")}
    np.testing.assert_array_equal(network.apply(louder, x), got)
    np.testing.assert_allclose(network.apply(params, x, jnp.zeros(N_IN + N_OUT)), got, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [False, True])
def test_gradients_reach_means_and_sigmas(rows):
    network, params = linear()
    x = jax.random.normal(jax.random.key(6), (3, N_IN))
    noise = draw_noise(jax.random.key(7), ((3,) if rows else ()) + (N_IN + N_OUT,))
    loss = lambda params, noise: jnp.square(network.apply(params, x, noise)).sum()  # noqa: E731
    gradients = jax.grad(loss)(params, noise)
    assert all(np.count_nonzero(g) == g.size for g in gradients.values())
    step = 1e-2
    for name in ("kernel", "sigma_kernel", "sigma_bias"):  # central differences along one entry
        where = (0,) * params[name].ndim
        up, down = (params | {name: params[name].at[where].add(s)} for s in (step, -step))
        slope = (float(loss(up, noise)) - float(loss(down, noise))) / (2 * step)
        np.testing.assert_allclose(gradients[name][where], slope, rtol=2e-2, atol=1e-2)
    quiet = jax.grad(loss)(params, None)
    assert not np.any(quiet["sigma_kernel"])
    assert not np.any(quiet["sigma_bias"])


def test_initialisation_is_that_of_the_paper():
    n_in, n_out = 64, 400
    params = Network(lambda rngs: NoisyLinear(n_in, n_out, rngs)).init(KEY)
    bound = 1 / math.sqrt(n_in)
    np.testing.assert_allclose(params["sigma_kernel"], 0.5 * bound, rtol=1e-6)
    np.testing.assert_allclose(params["sigma_bias"], 0.5 * bound, rtol=1e-6)
    for mean in (params["kernel"], params["bias"]):  # uniform: extremes near the bound, variance bound^2 / 3
        assert 0.97 * bound < np.abs(mean).max() <= bound
        np.testing.assert_allclose(np.var(mean), bound**2 / 3, rtol=0.15)
    assert not np.array_equal(params["kernel"][0], params["bias"])


def test_drawn_noise_is_the_signed_root_of_a_normal():
    noise = np.asarray(draw_noise(KEY, (3, 1000)), np.float64)
    normal = np.asarray(jax.random.normal(KEY, (3, 1000), jnp.float32), np.float64)
    np.testing.assert_allclose(np.sign(noise) * noise**2, normal, atol=1e-6)


def test_layers_of_an_mlp_take_their_own_piece_of_the_noise():
    network = Network(lambda rngs: NoisyMLP(3, 2, (4,), "tanh", rngs))
    params = network.init(KEY)
    noise = draw_noise(jax.random.key(1), (3 + 4 + 4 + 2,))
    x = jax.random.normal(jax.random.key(2), (6, 3))
    first, second = (Network(lambda rngs, n=n: NoisyLinear(*n, rngs)) for n in ((3, 4), (4, 2)))
    hidden = jnp.tanh(first.apply(params["layers"][0], x, noise[:7]))
    expected = second.apply(params["layers"][1], hidden, noise[7:])
    np.testing.assert_allclose(network.apply(params, x, noise), expected, rtol=1e-5, atol=1e-6)
    changed = network.apply(params, x, noise.at[-1].add(1.0)) - network.apply(params, x, noise)
    assert np.count_nonzero(changed[:, 0]) == 0  # the last number is of the last output alone
    assert np.count_nonzero(changed[:, 1]) == 6


def test_noise_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="noise must have 5 numbers along its last axis, got shape \\(4,\\)"):
        split_noise(jnp.zeros(4), (2, 3))
    assert split_noise(None, (2, 3)) == [None, None]
    layers = NoisyMLP(3, 2, (4,), "relu", nnx.Rngs(0))
    assert layers.noise_size == 13
