"""Action distributions: what a policy head's output means.

Small structs with the few closed forms that a policy gradient needs. `to_distrax` hands the same distribution to
code that speaks distrax; distrax is imported there, at first use, because it loads TensorFlow where that is installed.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

_LOG_2PI = math.log(2.0 * math.pi)


class Categorical(struct.PyTreeNode):
    """A choice among A actions."""

    logits: jax.Array  # [..., A] float32, any normalisation

    def mode(self) -> jax.Array:
        """[...] int32."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of what `sample` takes."""
        return self.logits.shape[:-1]

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Uniform numbers for `sample`; drawn in bulk, outside a scan."""
        return jax.random.uniform(key, shape, jnp.float32)

    def sample(self, noise: jax.Array) -> jax.Array:
        """[...] int32 by inversion of the cumulative distribution; noise [...] uniform in [0, 1)."""
        below = jnp.cumsum(jax.nn.softmax(self.logits, axis=-1), axis=-1)
        # Times the sum as rounded: where that is below 1, the gap would go to the last action, however unlikely.
        return jnp.sum(noise[..., None] * below[..., -1:] >= below[..., :-1], axis=-1, dtype=jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """[...] float32."""
        # A mask instead of a gather, whose gradient would be a scatter: slow on a CPU.
        taken = action[..., None] == jax.lax.broadcasted_iota(action.dtype, self.logits.shape, self.logits.ndim - 1)
        chosen = jnp.sum(jnp.where(taken, self.logits, jnp.float32(0.0)), axis=-1)
        return chosen - jax.nn.logsumexp(self.logits, axis=-1)

    def entropy(self) -> jax.Array:
        """[...] float32, nats."""
        # An impossible action (logit -inf) adds 0, not 0 * -inf.
        log_p = jnp.maximum(jax.nn.log_softmax(self.logits, axis=-1), jnp.finfo(jnp.float32).min)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def to_distrax(self) -> Any:
        import distrax

        return distrax.Categorical(logits=self.logits)


class MaskedCategorical(Categorical):
    """A choice among actions of which some have probability 0: these are never sampled.

    A cumulative sum that is added up in blocks may rise by a rounding error where it should not.
    """

    def sample(self, noise: jax.Array) -> jax.Array:
        """[...] int32 by inversion over the possible actions; noise [...] uniform in [0, 1)."""
        probability = jax.nn.softmax(self.logits, axis=-1)
        possible = probability > 0
        below = jnp.where(possible, jnp.cumsum(probability, axis=-1), jnp.float32(0.0))
        wanted = noise * below.max(axis=-1)
        return jnp.argmax(possible & (below > wanted[..., None]), axis=-1).astype(jnp.int32)


class DiagonalGaussian(struct.PyTreeNode):
    """Independent normals, one for each action dimension D."""

    mean: jax.Array  # [..., D] float32
    log_std: jax.Array  # [..., D] float32

    def mode(self) -> jax.Array:
        """[..., D] float32."""
        return self.mean

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of what `sample` takes."""
        return self.mean.shape

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Standard normal numbers for `sample`; drawn in bulk, outside a scan."""
        return jax.random.normal(key, shape, jnp.float32)

    def sample(self, noise: jax.Array) -> jax.Array:
        """[..., D] float32, unbounded."""
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: jax.Array) -> jax.Array:
        """[...] float32."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(jnp.float32(0.5) * (z * z + jnp.float32(_LOG_2PI)) + self.log_std, axis=-1)

    def entropy(self) -> jax.Array:
        """[...] float32, nats (differential: may be negative)."""
        return jnp.sum(self.log_std + jnp.float32(0.5 * (1.0 + _LOG_2PI)), axis=-1)

    def to_distrax(self) -> Any:
        import distrax

        return distrax.MultivariateNormalDiag(self.mean, jnp.exp(self.log_std))


class SquashedGaussian(struct.PyTreeNode):
    """tanh of independent normals: actions in (-1, 1) (Haarnoja et al. 2018, appendix C)."""

    mean: jax.Array  # [..., D] float32, before the tanh
    log_std: jax.Array  # [..., D] float32

    def mode(self) -> jax.Array:
        """[..., D] float32: tanh of the mean, which is the median."""
        return jnp.tanh(self.mean)

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Standard normal numbers for `sample_and_log_prob`; drawn in bulk, outside a scan."""
        return jax.random.normal(key, shape, jnp.float32)

    def sample_and_log_prob(self, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., D] and [...] float32; both differentiable in the parameters. noise: [..., D] standard normal."""
        raw = self.mean + jnp.exp(self.log_std) * noise
        density = -jnp.float32(0.5) * (noise * noise + jnp.float32(_LOG_2PI)) - self.log_std
        return jnp.tanh(raw), jnp.sum(density - log_tanh_slope(raw), axis=-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """[...] float32 for actions [..., D] within (-1, 1); one at the border counts as the last float before it."""
        limit = jnp.float32(1.0 - 2.0**-24)
        raw = jnp.arctanh(jnp.clip(action, -limit, limit))
        z = (raw - self.mean) * jnp.exp(-self.log_std)
        density = -jnp.float32(0.5) * (z * z + jnp.float32(_LOG_2PI)) - self.log_std
        return jnp.sum(density - log_tanh_slope(raw), axis=-1)

    def to_distrax(self) -> Any:
        import distrax

        return distrax.Transformed(
            distrax.MultivariateNormalDiag(self.mean, jnp.exp(self.log_std)), distrax.Block(distrax.Tanh(), 1)
        )


def log_tanh_slope(x: jax.Array) -> jax.Array:
    """log(1 - tanh(x)^2), exact also where tanh(x) rounds to 1: 2 (log 2 - x - softplus(-2 x))."""
    return jnp.float32(2.0) * (jnp.float32(math.log(2.0)) - x - jax.nn.softplus(-jnp.float32(2.0) * x))
