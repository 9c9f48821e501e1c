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

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Gumbel noise of shape [..., A] for `sample`; drawn in bulk, outside a scan."""
        return jax.random.gumbel(key, shape, jnp.float32)

    def sample(self, noise: jax.Array) -> jax.Array:
        """[...] int32 by the Gumbel-max trick."""
        return jnp.argmax(self.logits + noise, axis=-1).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """[...] float32."""
        chosen = jnp.take_along_axis(self.logits, action[..., None], axis=-1, mode="clip")[..., 0]
        return chosen - jax.nn.logsumexp(self.logits, axis=-1)

    def entropy(self) -> jax.Array:
        """[...] float32, nats."""
        log_p = jax.nn.log_softmax(self.logits, axis=-1)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def to_distrax(self) -> Any:
        import distrax

        return distrax.Categorical(logits=self.logits)


class DiagonalGaussian(struct.PyTreeNode):
    """Independent normals, one for each action dimension D."""

    mean: jax.Array  # [..., D] float32
    log_std: jax.Array  # [..., D] float32

    def mode(self) -> jax.Array:
        """[..., D] float32."""
        return self.mean

    @staticmethod
    def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Standard normal noise of shape [..., D] for `sample`."""
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
