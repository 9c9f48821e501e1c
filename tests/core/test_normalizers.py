"""Running moments against NumPy over all samples at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core import normalizers
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer, RunningMeanStd


@pytest.fixture
def samples():
    return np.random.default_rng(0).normal([5.0, -300.0, 0.0], [0.1, 40.0, 1.0], size=(1000, 3))


@pytest.mark.parametrize("splits", [(), (1,), (1, 2, 500), (999,)])
def test_moments_do_not_depend_on_the_batches(samples, splits):
    moments = normalizers.init_moments((3,))
    for batch in np.split(samples, splits):
        moments = jax.jit(normalizers.update_moments)(moments, jnp.asarray(batch, jnp.float32))
    np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments.var, samples.var(0), rtol=1e-3)
    assert moments.count == 1000


def test_all_leading_axes_are_samples(samples):
    flat = normalizers.update_moments(normalizers.init_moments((3,)), jnp.asarray(samples, jnp.float32))
    folded = normalizers.update_moments(
        normalizers.init_moments((3,)), jnp.asarray(samples.reshape(10, 100, 3), jnp.float32)
    )
    jax.tree.map(np.testing.assert_array_equal, flat, folded)


def test_normalize(samples):
    x = jnp.asarray(samples, jnp.float32)
    moments = normalizers.update_moments(normalizers.init_moments((3,)), x)
    z = np.asarray(normalizers.normalize(moments, x))
    np.testing.assert_allclose(z.mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(z.std(0), 1.0, atol=1e-3)
    np.testing.assert_allclose(normalizers.normalize(moments, x[0]), z[0], rtol=1e-5, atol=1e-6)
    assert np.abs(normalizers.normalize(moments, x * 1e6, clip=2.0)).max() == 2.0


def test_no_samples_change_nothing():
    x = jnp.asarray([[1.0, -2.0]], jnp.float32)
    np.testing.assert_array_equal(normalizers.normalize(normalizers.init_moments((2,)), x), x)


def test_a_constant_feature_stays_finite():
    moments = normalizers.update_moments(normalizers.init_moments((1,)), jnp.full((8, 1), 7.0))
    np.testing.assert_array_equal(normalizers.normalize(moments, jnp.full((8, 1), 7.0)), 0.0)


def test_a_large_offset_keeps_its_variance():
    x = np.random.default_rng(0).normal(1e4, 1.0, 4096)
    moments = normalizers.init_moments()
    for batch in np.split(x, 8):
        moments = normalizers.update_moments(moments, jnp.asarray(batch, jnp.float32))
    np.testing.assert_allclose(moments.var, x.astype(np.float32).astype(np.float64).var(), rtol=0.02)


def test_the_count_stops_and_the_moments_go_on():
    moments = normalizers.Moments(jnp.float32(0.0), jnp.float32(1.0), jnp.float32(normalizers.MAX_COUNT))
    after = normalizers.update_moments(moments, jnp.full(2**20, 1.0))
    assert after.count == normalizers.MAX_COUNT
    np.testing.assert_allclose(after.mean, 1 / 17, rtol=1e-4)  # 2^20 of 2^24 + 2^20 samples


def test_wrong_samples_are_named():
    with pytest.raises(ValueError, match=r"shape \[3\] expected along the last axes, got an array \[5, 2\]"):
        normalizers.update_moments(normalizers.init_moments((3,)), jnp.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"shape \[3\] expected"):
        RunningMeanStd((3,)).update(np.zeros(2))


def oracle_discounted(rewards, done, gamma):
    """Discounted return so far, [T, N], per lane and episode."""
    out = np.zeros_like(rewards)
    for lane in range(rewards.shape[1]):
        total = 0.0
        for t in range(len(rewards)):
            total = gamma * total + rewards[t, lane]
            out[t, lane] = total
            total *= not done[t, lane]
    return out


@pytest.mark.parametrize("cut", [5, 13])
def test_scaled_rewards(cut):
    rng = np.random.default_rng(1)
    rewards, done = rng.normal(3.0, 1.0, (20, 4)), rng.random((20, 4)) < 0.2
    scale = normalizers.init_reward_scale(4)
    for part in (slice(0, cut), slice(cut, None)):  # the discounted return goes on from window to window
        scale, scaled = normalizers.scale_rewards(
            scale, jnp.asarray(rewards[part], jnp.float32), jnp.asarray(done[part]), 0.9, clip=1e9
        )
    spread = oracle_discounted(rewards, done, 0.9).std()
    np.testing.assert_allclose(scaled, rewards[cut:] / spread, rtol=1e-4)


def test_reward_shell_follows_the_oracle_and_keeps_the_sign():
    rng = np.random.default_rng(2)
    rewards, done = rng.normal(size=(50, 1)), rng.random((50, 1)) < 0.1
    shell = RewardNormalizer(gamma=0.9, clip=10.0)
    for reward, ended in zip(rewards[:, 0], done[:, 0], strict=True):
        shell.step(reward)
        if ended:
            shell.reset()
    expected = rewards[:, 0] / oracle_discounted(rewards, done, 0.9).std()
    scaled = shell.normalize(rewards[:, 0])
    np.testing.assert_allclose(scaled, expected, rtol=1e-3)
    assert scaled.dtype == np.float32
    assert (np.sign(scaled) == np.sign(rewards[:, 0])).all()


def test_reward_shell_for_several_environments():
    rng = np.random.default_rng(3)
    rewards, done = rng.normal(size=(50, 4)), rng.random((50, 4)) < 0.1
    shell = RewardNormalizer(gamma=0.9)
    for reward, ended in zip(rewards, done, strict=True):
        shell.step(reward)
        shell.reset(ended)
    np.testing.assert_allclose(shell.rms.var, oracle_discounted(rewards, done, 0.9).var(), rtol=1e-2)


def test_obs_shell(samples):
    for normalizer in (ObsNormalizer((3,)), ObsNormalizer(obs_shape=(3,), clip=10.0), ObsNormalizer(shape=(3,))):
        normalizer.update(samples[:1])
        normalizer.update(samples[1:])
        z = normalizer.normalize(samples)
        assert z.dtype == np.float32
        np.testing.assert_allclose(z.std(0), 1.0, atol=1e-3)
        assert normalizer.normalize(samples[0]).shape == (3,)
    with pytest.raises(ValueError, match="one of obs_shape and shape"):
        ObsNormalizer()


@pytest.mark.parametrize("make", [lambda: RunningMeanStd((3,)), lambda: ObsNormalizer((3,)), RewardNormalizer])
def test_shells_save_and_load(make, samples):
    old, new = make(), make()
    x = samples[:, 0] if isinstance(old, RewardNormalizer) else samples
    feed = (lambda n, v: [n.step(r) for r in v]) if isinstance(old, RewardNormalizer) else (lambda n, v: n.update(v))
    feed(old, x[:100])
    new.load_state_dict(old.state_dict())
    feed(old, x[100:])
    feed(new, x[100:])
    np.testing.assert_array_equal(old.normalize(x), new.normalize(x))


def test_running_mean_std_attributes(samples):
    stats = RunningMeanStd(shape=(3,), epsilon=1e-4)
    assert stats.count == 1e-4
    stats.update(samples)
    stats.update(np.zeros((0, 3)))
    np.testing.assert_allclose(stats.mean, samples.mean(0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(stats.var, samples.var(0), rtol=1e-3)
    np.testing.assert_allclose(stats.count, 1000, rtol=1e-6)
