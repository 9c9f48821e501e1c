"""Action distributions against distrax, sampling frequencies, and the edges of sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.networks.distributions import Categorical, DiagonalGaussian, SquashedGaussian, log_tanh_slope

LARGEST = np.float32(1 - 2**-24)  # largest float32 below 1


def normal(*shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(params=[(5,), (7, 3), (2, 4, 6)], ids=str)
def categorical(request):
    return Categorical(normal(*request.param, scale=2.0))


@pytest.fixture(params=[(1,), (7, 3), (2, 4, 2)], ids=str)
def gaussian(request):
    return DiagonalGaussian(normal(*request.param), normal(*request.param, seed=1, scale=0.5))


class TestCategorical:
    def test_agrees_with_distrax(self, categorical):
        theirs = categorical.to_distrax()
        np.testing.assert_allclose(categorical.entropy(), theirs.entropy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(categorical.mode(), theirs.mode())
        assert categorical.mode().dtype == jnp.int32
        for a in range(categorical.logits.shape[-1]):
            action = jnp.full(categorical.noise_shape, a, jnp.int32)
            np.testing.assert_allclose(categorical.log_prob(action), theirs.log_prob(action), rtol=1e-5, atol=1e-6)

    def test_normalisation_does_not_matter(self, categorical):
        shifted = Categorical(categorical.logits + 7)
        action = categorical.mode()
        np.testing.assert_allclose(shifted.log_prob(action), categorical.log_prob(action), atol=1e-5)
        np.testing.assert_allclose(shifted.entropy(), categorical.entropy(), atol=1e-5)

    def test_huge_logits_stay_finite(self):
        dist = Categorical(jnp.asarray([1e4, 0.0, -1e9], jnp.float32))
        assert dist.entropy() == 0
        assert dist.log_prob(jnp.int32(0)) == 0
        assert dist.log_prob(jnp.int32(1)) == -1e4
        slopes = jax.grad(lambda x: Categorical(x).entropy() + Categorical(x).log_prob(jnp.int32(0)))(dist.logits)
        assert np.isfinite(slopes).all()

    def test_uniform_has_the_largest_entropy(self):
        np.testing.assert_allclose(Categorical(jnp.zeros(8, jnp.float32)).entropy(), np.log(8), rtol=1e-6)

    def test_sampling_frequencies(self):
        """200 000 draws; each frequency within 5 standard errors: false alarm below 3e-6 in all. Fixed seed."""
        dist, n = Categorical(jnp.asarray([0.5, -1.0, 2.0, 0.0, -4.0], jnp.float32)), 200_000
        noise = Categorical.noise(jax.random.key(0), (n,))
        drawn = jax.vmap(dist.sample)(noise)
        assert drawn.dtype == jnp.int32
        share, p = np.bincount(drawn, minlength=5) / n, np.asarray(jax.nn.softmax(dist.logits))
        assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / n)).all()

    def test_inversion_by_hand(self):
        dist = Categorical(jnp.log(jnp.asarray([0.25, 0.5, 0.25], jnp.float32)))
        drawn = [int(dist.sample(jnp.float32(u))) for u in (0.0, 0.2, 0.3, 0.7, 0.8, LARGEST)]
        assert drawn == [0, 0, 1, 1, 2, 2]

    @pytest.mark.parametrize("never", [-1e9, -np.inf])
    @pytest.mark.parametrize(
        "n", [2, 18, pytest.param(3, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
    )
    def test_impossible_actions_are_never_drawn(self, n, never):
        rng = np.random.default_rng(n)
        logits = (3 * rng.normal(size=(2000, n))).astype(np.float32)
        forbidden = rng.random((2000, n)) < 0.3
        forbidden[::2, -1] = True  # the sum of the others rounds to less than 1 in many rows
        forbidden[1::4, 0] = True
        forbidden[forbidden.all(axis=1), 0] = False
        dist = Categorical(jnp.asarray(np.where(forbidden, np.float32(never), logits)))
        for u in (0.0, 0.5, 1 - 2**-20, 1 - 2**-23, LARGEST):
            for sample in (dist.sample, jax.jit(dist.sample)):
                drawn = np.asarray(sample(jnp.full(2000, u, jnp.float32)))
                assert ((drawn >= 0) & (drawn < n)).all()
                assert not forbidden[np.arange(2000), drawn].any(), u

    def test_certain_action(self):
        for action in range(4):
            dist = Categorical(jnp.where(jnp.arange(4) == action, jnp.float32(0), jnp.float32(-1e9)))
            drawn = jax.vmap(dist.sample)(Categorical.noise(jax.random.key(action), (1000,)))
            assert (np.asarray(drawn) == action).all()


class TestDiagonalGaussian:
    def test_agrees_with_distrax(self, gaussian):
        theirs = gaussian.to_distrax()
        np.testing.assert_allclose(gaussian.entropy(), theirs.entropy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(gaussian.mode(), theirs.mode())
        action = normal(*gaussian.mean.shape, seed=2, scale=3.0)
        np.testing.assert_allclose(gaussian.log_prob(action), theirs.log_prob(action), rtol=1e-4, atol=1e-4)

    def test_by_hand(self):
        dist = DiagonalGaussian(jnp.asarray([1.0, 0.0], jnp.float32), jnp.log(jnp.asarray([2.0, 1.0], jnp.float32)))
        expected = -0.5 - np.log(2.0) - np.log(2 * np.pi)  # one coordinate a standard deviation away
        np.testing.assert_allclose(dist.log_prob(jnp.asarray([3.0, 0.0], jnp.float32)), expected, rtol=1e-6)
        np.testing.assert_allclose(dist.entropy(), 1 + np.log(2 * np.pi) + np.log(2.0), rtol=1e-6)

    def test_samples_have_the_mean_and_covariance(self):
        """100 000 draws, within 5 standard errors each: false alarm below 4e-6 in all. Fixed seed."""
        n, std = 100_000, np.asarray([0.5, 2.0])
        dist = DiagonalGaussian(jnp.asarray([3.0, -1.0], jnp.float32), jnp.log(jnp.asarray(std, jnp.float32)))
        drawn = np.asarray(jax.vmap(dist.sample)(DiagonalGaussian.noise(jax.random.key(0), (n, 2))), np.float64)
        assert (np.abs(drawn.mean(0) - [3.0, -1.0]) < 5 * std / np.sqrt(n)).all()
        assert (np.abs(drawn.std(0) - std) < 5 * std / np.sqrt(2 * n)).all()
        assert abs(np.corrcoef(drawn.T)[0, 1]) < 5 / np.sqrt(n)

    def test_score_function_has_mean_zero(self):
        """The gradient of log_prob over own samples: within 5 standard errors of 0."""
        dist, n = DiagonalGaussian(jnp.zeros(2, jnp.float32), jnp.asarray([0.3, -0.7], jnp.float32)), 50_000
        actions = jax.vmap(dist.sample)(DiagonalGaussian.noise(jax.random.key(1), (n, 2)))
        slope = jax.vmap(jax.grad(lambda d, a: d.log_prob(a)), (None, 0))(dist, actions)
        for leaf in jax.tree.leaves(slope):
            leaf = np.asarray(leaf, np.float64)
            assert (np.abs(leaf.mean(0)) < 5 * leaf.std(0) / np.sqrt(n)).all()


def test_noise_is_sized_for_the_distribution(categorical, gaussian):
    for dist in (categorical, gaussian):
        noise = dist.noise(jax.random.key(0), dist.noise_shape)
        action = dist.sample(noise)
        assert noise.dtype == jnp.float32
        assert action.shape == dist.mode().shape
        assert action.dtype == dist.mode().dtype
        assert dist.log_prob(action).shape == dist.entropy().shape == batch_shape(dist)
        other = dist.noise(jax.random.key(1), dist.noise_shape)
        assert not np.array_equal(noise, other)


def batch_shape(dist):
    return (dist.logits if isinstance(dist, Categorical) else dist.mean).shape[:-1]


class TestSquashedGaussian:
    def dist(self, shape=(50, 3), scale=1.0):
        return SquashedGaussian(normal(*shape, scale=scale), normal(*shape, seed=1, scale=0.5))

    def exact(self, dist, noise):
        """Action and log-probability in float64, log(1 - tanh^2) written as the logarithm of 4 / (e^x + e^-x)^2."""
        mean, log_std, noise = (np.asarray(x, np.float64) for x in (dist.mean, dist.log_std, noise))
        raw = mean + np.exp(log_std) * noise
        slope = 2 * (np.log(2) - np.logaddexp(raw, -raw))
        density = -0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - log_std
        return np.tanh(raw), (density - slope).sum(-1)

    @pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])  # at 30 tanh is 1 to the last bit
    def test_sample_and_its_log_probability(self, scale):
        dist = self.dist(scale=scale)
        noise = SquashedGaussian.noise(jax.random.key(0), dist.mean.shape)
        action, log_prob = dist.sample_and_log_prob(noise)
        expected_action, expected = self.exact(dist, noise)
        np.testing.assert_allclose(action, expected_action, atol=1e-6)
        np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-4)

    def test_log_probability_of_a_recorded_action(self):
        dist = self.dist(scale=0.5)
        noise = SquashedGaussian.noise(jax.random.key(1), dist.mean.shape)
        action, log_prob = dist.sample_and_log_prob(noise)
        inside = np.abs(action).max(-1) < 0.999
        assert inside.sum() > 20
        np.testing.assert_allclose(dist.log_prob(action)[inside], log_prob[inside], rtol=1e-3, atol=2e-3)
        theirs = dist.to_distrax().log_prob(action)
        np.testing.assert_allclose(dist.log_prob(action)[inside], theirs[inside], rtol=1e-3, atol=2e-3)

    def test_the_density_integrates_to_one(self):
        dist = SquashedGaussian(jnp.asarray([0.4], jnp.float32), jnp.asarray([-0.3], jnp.float32))
        grid = np.linspace(-1, 1, 20_001)[1:-1].astype(np.float32)
        wide = SquashedGaussian(*(jnp.broadcast_to(x, (grid.size, 1)) for x in (dist.mean, dist.log_std)))
        density = np.exp(np.asarray(wide.log_prob(jnp.asarray(grid[:, None])), np.float64))
        np.testing.assert_allclose(density.sum() * (grid[1] - grid[0]), 1.0, atol=2e-3)

    def test_the_border_is_finite_with_its_gradient(self):
        dist = self.dist(shape=(3,))
        edge = jnp.asarray([1.0, -1.0, 0.0], jnp.float32)
        assert np.isfinite(dist.log_prob(edge))
        far = jnp.asarray([100.0, -100.0, 0.0], jnp.float32)
        slopes = jax.grad(lambda x: log_tanh_slope(x).sum())(far)
        np.testing.assert_allclose(slopes, [-2.0, 2.0, 0.0], atol=1e-6)
        grads = jax.grad(lambda mean: SquashedGaussian(mean, dist.log_std).sample_and_log_prob(edge)[1])(far)
        assert np.isfinite(grads).all()

    def test_mode(self):
        dist = self.dist()
        np.testing.assert_allclose(dist.mode(), np.tanh(dist.mean), rtol=1e-6)
