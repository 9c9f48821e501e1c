"""The projection of a distribution against a plain float64 loop, on its exact cases, and as a pure function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core import categorical_projection as c51

PROJECT = jax.jit(c51.project)
N = 51


def reference(probs, reward, discount, v_min, v_max):
    """Bellemare et al. 2017, Algorithm 1, row by row and atom by atom; a place on an atom gives that atom all."""
    n_atoms, spacing = probs.shape[-1], (v_max - v_min) / (probs.shape[-1] - 1)
    projected = np.zeros_like(probs)
    for row in range(len(probs)):
        for j in range(n_atoms):
            shifted = min(max(reward[row] + discount[row] * (v_min + j * spacing), v_min), v_max)
            place = (shifted - v_min) / spacing
            low, high = int(np.floor(place)), int(np.ceil(place))
            if low == high:
                projected[row, low] += probs[row, j]
            else:
                projected[row, low] += probs[row, j] * (high - place)
                projected[row, high] += probs[row, j] * (place - low)
    return projected


def distributions(rng, rows, n_atoms=N):
    probs = rng.dirichlet(np.full(n_atoms, 0.3), rows)
    return probs / probs.sum(-1, keepdims=True)


def projected(probs, reward, discount, v_min, v_max, project=PROJECT):
    as_f32 = (jnp.asarray(x, jnp.float32) for x in (probs, reward, discount, v_min, v_max))
    return np.asarray(project(*as_f32))


@pytest.mark.parametrize(("v_min", "v_max"), [(-10.0, 10.0), (0.0, 100.0), (-3.7, 1.1), (1000.0, 1010.0)])
def test_agrees_with_the_loop(v_min, v_max):
    """Rewards inside and far outside the support; discounts 0, 1 and between, of each row its own."""
    rng, width = np.random.default_rng(0), v_max - v_min
    reward = np.concatenate([rng.normal(0, width, 60), [1e6, -1e6, v_min, v_max], rng.uniform(-1, 1, 32)])
    discount = rng.choice([0.0, 1.0, 0.99, 0.97, 0.3], len(reward))
    probs = distributions(rng, len(reward))
    got = projected(probs, reward, discount, v_min, v_max)
    # float32 places an atom to about 1e-7 of the numbers it is made of, counted in spacings.
    tolerance = 1e-6 + 4e-7 * max(abs(v_min), abs(v_max), 3 * width) / (width / (N - 1))
    np.testing.assert_allclose(got, reference(probs, reward, discount, v_min, v_max), atol=tolerance)
    np.testing.assert_allclose(got.sum(-1), 1.0, atol=1e-6)
    assert (got >= 0).all()


def test_an_atom_that_falls_on_an_atom_gives_it_all_its_mass():
    """Support 0..50, rewards whole: every shifted atom falls on one."""
    rng = np.random.default_rng(1)
    probs = distributions(rng, 8).astype(np.float32)
    shift = np.arange(-4, 4) * 3
    got = projected(probs, shift, np.ones(8), 0.0, 50.0)
    np.testing.assert_allclose(got, reference(probs.astype(np.float64), shift, np.ones(8), 0.0, 50.0), atol=2e-7)
    terminal = projected(probs, np.arange(8) * 6.0, np.zeros(8), 0.0, 50.0)
    np.testing.assert_allclose(terminal, np.eye(N)[np.arange(8) * 6], atol=1e-6)
    assert (np.count_nonzero(terminal, axis=-1) == 1).all()


@pytest.mark.parametrize(("v_min", "v_max"), [(-10.0, 10.0), (-3.7, 1.1), (0.1, 0.7)])
def test_nothing_moves_without_reward_and_discount(v_min, v_max):
    probs = distributions(np.random.default_rng(2), 4).astype(np.float32)
    np.testing.assert_array_equal(projected(probs, np.zeros(4), np.ones(4), v_min, v_max), probs)


def test_the_mean_is_that_of_the_bellman_update_inside_the_support():
    rng = np.random.default_rng(3)
    probs, reward, discount = distributions(rng, 64), rng.uniform(-1, 1, 64), rng.uniform(0, 0.9, 64)
    got = projected(probs, reward, discount, -10.0, 10.0)
    means = [np.asarray(c51.mean(jnp.asarray(p, jnp.float32), jnp.float32(-10), jnp.float32(10))) for p in (probs, got)]
    np.testing.assert_allclose(means[0], probs @ np.linspace(-10, 10, N), atol=1e-5)
    np.testing.assert_allclose(means[1], reward + discount * means[0], atol=1e-4)


def test_outside_the_support_all_mass_is_at_its_end():
    probs = distributions(np.random.default_rng(4), 2)
    got = projected(probs, [np.inf, -np.inf], [0.99, 0.99], -1.0, 1.0)
    np.testing.assert_allclose(got, np.eye(N)[[N - 1, 0]], atol=1e-6)


def test_any_leading_axes_and_vmap():
    rng = np.random.default_rng(5)
    probs, reward = distributions(rng, 6).reshape(2, 3, N), rng.normal(size=(2, 3))
    discount = np.full((2, 3), 0.9)
    got = projected(probs, reward, discount, -5.0, 5.0)
    flat = projected(probs.reshape(6, N), reward.ravel(), discount.ravel(), -5.0, 5.0)
    np.testing.assert_allclose(got.reshape(6, N), flat, atol=2e-6)
    lanes = jax.vmap(c51.project, (0, 0, 0, None, None))
    np.testing.assert_allclose(projected(probs, reward, discount, -5.0, 5.0, lanes), got, atol=2e-6)
    two = projected(distributions(rng, 3, 2), rng.normal(size=3), np.full(3, 0.5), -1.0, 1.0)
    np.testing.assert_allclose(two.sum(-1), 1.0, atol=1e-6)


def test_no_gradient_passes():
    probs = jnp.asarray(distributions(np.random.default_rng(6), 3), jnp.float32)
    some = jnp.asarray([0.5, -0.2, 0.1], jnp.float32)

    def total(probs, reward):
        projected = c51.project(probs, reward, some, jnp.float32(-1), jnp.float32(1))
        return jnp.sum(projected * c51.atoms(N, jnp.float32(-1), jnp.float32(1))[None])

    for gradient in jax.grad(total, (0, 1))(probs, some):
        np.testing.assert_array_equal(gradient, 0.0)


def test_a_support_that_is_none_shows():
    probs = jnp.full((1, N), 1 / N, jnp.float32)
    for v_min, v_max in ((1.0, 1.0), (2.0, 1.0)):
        assert np.isnan(projected(probs, [0.0], [1.0], v_min, v_max)).all()
        assert np.isnan(c51.atoms(N, jnp.float32(v_min), jnp.float32(v_max))).any()
    with pytest.raises(ValueError, match="at least 2 atoms, got 1"):
        c51.atoms(1, jnp.float32(0), jnp.float32(1))


def test_atoms():
    np.testing.assert_allclose(c51.atoms(5, jnp.float32(-1), jnp.float32(3)), [-1, 0, 1, 2, 3])
