"""The trend test and the noise scale against NumPy and SciPy oracles, limiting cases and invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tensor_optix.core import convergence

SIZE = 20
trend = jax.jit(convergence.rank_trend)
noise = jax.jit(convergence.noise_scale)


def right_aligned(values, size=SIZE, filler=-7.0):
    out = np.full(size, filler, np.float32)
    out[size - len(values) :] = values
    return jnp.asarray(out), jnp.int32(len(values))


def naive_trend(values):
    """The steps of the module's docstring in float64."""
    n = len(values)
    ranks = stats.rankdata(values) - (n + 1) / 2
    time = np.arange(n) - (n - 1) / 2
    slope = (ranks @ time) / (time @ time)
    residual = ranks - slope * time
    power = residual @ residual
    r = np.clip((residual[1:] @ residual[:-1]) / max(power, 1e-6), 0, 0.99)
    n_eff = np.clip(n * (1 - r) / (1 + r), 2, n)
    t = slope * np.sqrt((time @ time) / n * n_eff / ((power + n / 12) / (n - 2)))
    f = max(n_eff - 2, 1)
    z = np.sign(t) * (8 * f + 1) / (8 * f + 3) * np.sqrt(f * np.log1p(t * t / f))
    smooth = [values[0], *(np.median(values[i - 1 : i + 2]) for i in range(1, n - 1))]
    smooth.append(np.median([values[-1], smooth[-1], 3 * smooth[-1] - 2 * smooth[-2]]))
    gain = n * ((smooth - np.mean(smooth)) @ time) / (time @ time)
    return z, gain, r, n_eff


@pytest.mark.parametrize("n", [4, 5, 9, SIZE])
@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_the_naive_form(n, ties):
    rng = np.random.default_rng(n)
    for _ in range(20):
        values = rng.normal(size=n) + 0.2 * np.arange(n)
        values = np.round(values) if ties else values
        z, gain, r, n_eff = naive_trend(values)
        got = trend(*right_aligned(values))
        np.testing.assert_allclose(got.z, z, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(got.gain, gain, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got.autocorrelation, r, atol=1e-4)
        np.testing.assert_allclose(got.effective_n, n_eff, rtol=1e-3)


def test_one_freak_score_leaves_the_gain_alone():
    values = np.arange(SIZE, dtype=np.float64)
    rise = float(trend(*right_aligned(values)).gain)
    for place in (3, SIZE - 1):
        freak = values.copy()
        freak[place] -= 1000.0
        assert float(trend(*right_aligned(freak)).gain) == pytest.approx(rise, rel=0.05)


@pytest.mark.parametrize("level", [0.0, -200.0, 1e-30, 3e38])
def test_identical_scores_say_nothing(level):
    got = trend(*right_aligned(np.full(SIZE, level)))
    assert float(got.z) == 0.0
    assert float(got.gain) == 0.0
    assert [float(x) for x in noise(*right_aligned(np.full(SIZE, level)))] == [0.0, 0.0]


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_too_few_scores_say_nothing(n):
    values = np.arange(n, dtype=np.float32)
    got = trend(*right_aligned(values))
    assert (float(got.z), float(got.gain)) == (0.0, 0.0)
    assert [float(x) for x in noise(*right_aligned(values))] == [0.0, 0.0]


def test_what_is_not_counted_is_not_seen():
    values = np.random.default_rng(3).normal(size=9)
    a = trend(*right_aligned(values, filler=-1e9))
    b = trend(*right_aligned(values, filler=1e9))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_any_increasing_map_leaves_the_test_unchanged():
    values = np.random.default_rng(4).normal(size=SIZE).astype(np.float32)
    expected = trend(*right_aligned(values)).z
    for mapped in (values * 1e-6, values * 1e6, np.exp(values), values**3):
        assert float(trend(*right_aligned(mapped)).z) == float(expected)
    assert float(trend(*right_aligned(-values)).z) == -float(expected)


@pytest.mark.parametrize(("a", "b"), [(2.0**-20, 0.0), (2.0**20, 0.0), (1.0, 2.0**11), (2.0**-4, -(2.0**7))])
def test_gain_and_noise_scale_exactly(a, b):
    values = np.round(np.random.default_rng(5).normal(size=SIZE) * 64).astype(np.float32)
    mapped = (a * values + b).astype(np.float32)
    assert float(trend(*right_aligned(mapped)).gain) == a * float(trend(*right_aligned(values)).gain)
    for x, y in zip(noise(*right_aligned(mapped)), noise(*right_aligned(values)), strict=True):
        assert float(x) == a * float(y)


def test_false_alarm_rate_is_the_stated_one():
    """4000 flat streams: standard error 0.35 %; the bounds are more than 5 of them away."""
    streams = jnp.asarray(np.random.default_rng(6).normal(size=(4000, SIZE)), jnp.float32)
    z = jax.vmap(convergence.rank_trend, (0, None))(streams, jnp.int32(SIZE)).z
    assert 0.03 < float(jnp.mean(z > 1.645)) < 0.07


def test_autocorrelation_is_paid_for():
    """AR(1) noise with phi = 0.6 would raise more than 20 % of false alarms if its autocorrelation were ignored."""
    shocks = np.random.default_rng(7).normal(size=(4000, SIZE + 50))
    streams = np.zeros_like(shocks)
    for t in range(1, shocks.shape[1]):
        streams[:, t] = 0.6 * streams[:, t - 1] + shocks[:, t]
    z = jax.vmap(convergence.rank_trend, (0, None))(jnp.asarray(streams[:, 50:], jnp.float32), jnp.int32(SIZE)).z
    assert float(jnp.mean(z > 1.645)) < 0.12


def test_perfect_order_is_significant_and_finite():
    z = float(trend(*right_aligned(np.arange(SIZE))).z)
    assert 3 < z < 20


def test_noise_of_gaussian_scores_around_a_line():
    """Mean over 2000 streams: standard error below 0.5 %."""
    rng = np.random.default_rng(8)
    streams = jnp.asarray(3.0 * rng.normal(size=(2000, SIZE)) + 5.0 * np.arange(SIZE), jnp.float32)
    short, wander = jax.vmap(convergence.noise_scale, (0, None))(streams, jnp.int32(SIZE))
    assert abs(float(short.mean()) - 3.0) < 0.15
    assert 3.0 <= float(wander.mean()) < 3.6


def test_one_freak_score_does_not_own_the_noise():
    values = np.random.default_rng(9).normal(size=SIZE)
    freak = values.copy()
    freak[10] += 1000.0
    assert float(noise(*right_aligned(freak))[0]) < 0.5 * np.std(freak)


def test_median_of_newest():
    values = jnp.asarray([9.0, 9.0, 3.0, 1.0, 2.0], jnp.float32)
    assert float(convergence.median_of_newest(values, jnp.int32(5))) == 2.0
    assert float(convergence.median_of_newest(values[::-1], jnp.int32(5))) == 9.0
    assert float(convergence.median_of_newest(values, jnp.int32(2))) == 2.0


def test_push_keeps_the_newest_last():
    window = jnp.arange(4, dtype=jnp.float32)
    np.testing.assert_array_equal(convergence.push(window, jnp.float32(9.0)), [1.0, 2.0, 3.0, 9.0])


def test_jit_and_lanes():
    rng = np.random.default_rng(10)
    streams = jnp.asarray(rng.normal(size=(5, SIZE)), jnp.float32)
    counts = jnp.asarray([0, 3, 4, 11, SIZE], jnp.int32)
    batched = jax.vmap(convergence.rank_trend)(streams, counts)
    for lane in range(5):
        alone = convergence.rank_trend(streams[lane], counts[lane])
        np.testing.assert_allclose(batched.z[lane], alone.z, rtol=1e-5, atol=1e-6)
