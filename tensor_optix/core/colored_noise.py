"""Gaussian noise that is correlated over time: white, pink, red, by an exponent.

Independent noise at each step averages out and never gets far; noise with a spectrum of 1/f explores many systems best
(Eberhard et al. 2023, "Pink noise is all you need"). Made by the method of Timmer & König 1995: random Fourier
coefficients of the wanted power, transformed back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def colored_noise(key: jax.Array, shape: tuple[int, ...], exponent: float) -> jax.Array:
    """float32 `shape` [T, ...]: standard normal at each time, power over frequency f as f**-exponent along T.

    exponent: static; 0 white, 1 pink, 2 red. Along the other axes all is independent.
    """
    if exponent == 0.0 or shape[0] == 1:
        return jax.random.normal(key, shape, jnp.float32)
    steps = shape[0]
    # One period holds the sequence twice, so that its end does not run into its beginning.
    period = 2 * steps
    frequency = np.fft.rfftfreq(period)
    frequency[0] = frequency[1]  # the mean of a sequence varies as its slowest wave does
    share = frequency**-exponent
    share[[0, -1]] /= 2  # the other coefficients stand for two frequencies each, f and -f
    share /= share.sum()
    # A coefficient c adds 2 Re(c e^iwt) / period, of variance 4 Var(Re c) / period^2; the two ends are real, and once.
    scale = period / 2 * np.sqrt(share)
    scale[[0, -1]] *= 2
    tail = (1,) * (len(shape) - 1)
    real, imaginary = jax.random.normal(key, (2, len(scale), *shape[1:]), jnp.float32)
    has_phase = np.ones_like(scale)
    has_phase[[0, -1]] = 0.0
    spectrum = jax.lax.complex(
        real * jnp.asarray(scale.reshape(-1, *tail), jnp.float32),
        imaginary * jnp.asarray((scale * has_phase).reshape(-1, *tail), jnp.float32),
    )
    return jnp.fft.irfft(spectrum, n=period, axis=0)[:steps].astype(jnp.float32)
