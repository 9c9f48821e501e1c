"""Noise whose power falls as a power of the frequency: its moments at each time, its spectrum, its independence."""

import jax
import numpy as np
import pytest

from tensor_optix.core.colored_noise import colored_noise

MANY = 4000


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 64])
def test_standard_normal_at_each_time(steps, exponent):
    x = np.asarray(colored_noise(jax.random.key(0), (steps, MANY), exponent), np.float64)
    assert x.shape == (steps, MANY)
    np.testing.assert_allclose(x.mean(1), 0.0, atol=5 / np.sqrt(MANY))
    np.testing.assert_allclose(x.var(1), 1.0, atol=5 * np.sqrt(2 / MANY))
    kurtosis = (x**4).mean(1) / x.var(1) ** 2
    np.testing.assert_allclose(kurtosis, 3.0, atol=5 * np.sqrt(24 / MANY))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_power_falls_as_it_should(exponent):
    x = np.asarray(colored_noise(jax.random.key(1), (256, MANY), exponent), np.float64)
    power = (np.abs(np.fft.rfft(x, axis=0)) ** 2).mean(1)[1:]
    slope = np.polyfit(np.log(np.fft.rfftfreq(256)[1:]), np.log(power), 1)[0]
    assert abs(slope + exponent) < 0.05


def test_sequences_are_independent_and_their_ends_do_not_meet():
    x = np.asarray(colored_noise(jax.random.key(2), (64, MANY, 2), 1.0), np.float64)
    assert abs((x[..., 0] * x[..., 1]).mean()) < 0.05
    neighbours, ends = (x[1:] * x[:-1]).mean(), (x[0] * x[-1]).mean()
    assert neighbours > 0.6
    assert ends < 0.1
