"""Running moments, and the observation and reward normalisers built on them.

The pure part is for compiled code: moments are a pytree, and merging a batch is one function. The classes at the end
are the same mathematics for the host, in NumPy and float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

# Above this, adding 1 to a float32 count does nothing. From here on the oldest samples are forgotten at the pace of the
# newest, so that the moments go on following the data.
MAX_COUNT = 2.0**24


@struct.dataclass
class Moments:
    """Mean and variance of all samples so far; of about the last 2**24 once there are more."""

    mean: jax.Array  # [...] float32
    var: jax.Array  # [...] float32, of the population (divided by count)
    count: jax.Array  # [] float32, whole, at most MAX_COUNT


def init_moments(shape: tuple[int, ...] = ()) -> Moments:
    """Moments of no samples; normalising with them changes nothing."""
    return Moments(jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32), jnp.float32(0.0))


def update_moments(moments: Moments, batch: jax.Array, weight: jax.Array | None = None) -> Moments:
    """Merge samples [..., *shape] into `moments` of [*shape]; leading axes are all sample axes.

    Samples whose `weight` [...] is 0 do not count, whatever is in them; the others have 1. None: all count.

    Exact however the samples are split into batches, up to rounding and until MAX_COUNT. Chan, Golub & LeVeque 1979,
    "Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1, written with variances so
    that nothing grows.
    """
    shape = moments.mean.shape
    lead = batch.ndim - len(shape)
    if lead < 0 or batch.shape[lead:] != shape:
        raise ValueError(
            f"samples of shape {list(shape)} expected along the last axes, got an array {list(batch.shape)}"
        )
    samples = batch.reshape((-1, *shape)).astype(jnp.float32)
    if weight is None:
        n = jnp.float32(samples.shape[0])
        batch_mean = samples.mean(axis=0)
        batch_var = jnp.square(samples - batch_mean[None]).mean(axis=0)
    else:
        present = weight.reshape(-1, *(1,) * len(shape)) > 0
        n = present.sum(dtype=jnp.int32).astype(jnp.float32)
        some = jnp.maximum(n, jnp.float32(1.0))
        batch_mean = jnp.where(present, samples, jnp.float32(0.0)).sum(axis=0) / some
        batch_var = jnp.where(present, jnp.square(samples - batch_mean[None]), jnp.float32(0.0)).sum(axis=0) / some
    total = moments.count + n
    share = n / jnp.maximum(total, jnp.float32(1.0))
    delta = batch_mean - moments.mean
    var = moments.var * (jnp.float32(1.0) - share) + batch_var * share
    var = var + jnp.square(delta) * share * (jnp.float32(1.0) - share)
    return Moments(moments.mean + delta * share, var, jnp.minimum(total, jnp.float32(MAX_COUNT)))


def normalize(moments: Moments, x: jax.Array, clip: float = 10.0, epsilon: float = 1e-8) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon), clipped to +-clip, float32; `x` is [..., *shape]."""
    shape = (1,) * (x.ndim - moments.mean.ndim) + moments.mean.shape
    centered = x.astype(jnp.float32) - moments.mean.reshape(shape)
    scaled = centered * jax.lax.rsqrt(moments.var + jnp.float32(epsilon)).reshape(shape)
    return jnp.clip(scaled, jnp.float32(-clip), jnp.float32(clip))


@struct.dataclass
class RewardScale:
    """Running spread of the discounted return, by which rewards are divided."""

    moments: Moments  # of the discounted return, shape []
    discounted: jax.Array  # [N] float32, discounted return so far of the episode in play


def init_reward_scale(n_envs: int) -> RewardScale:
    """A reward scale of no samples for N environments."""
    return RewardScale(init_moments(), jnp.zeros(n_envs, jnp.float32))


def scale_rewards(
    scale: RewardScale,
    r_t: jax.Array,
    done: jax.Array,
    gamma: jax.Array | float,
    clip: float = 10.0,
    epsilon: float = 1e-8,
) -> tuple[RewardScale, jax.Array]:
    """Divide a window of rewards by the standard deviation of the discounted return, that window included.

    `r_t` and `done` are [T, N]. Rewards are not centred: their sign is what the task says. The discounted return
    R = gamma R + r starts anew after each `done`. Returns the new scale and float32 [T, N] within +-clip.
    Engstrom et al. 2020, "Implementation matters in deep policy gradients", section 3.
    """
    gamma = jnp.asarray(gamma, jnp.float32)

    def forward(discounted: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, ended = row
        discounted = gamma * discounted + reward
        return jnp.where(ended, jnp.float32(0.0), discounted), discounted

    discounted, seen = jax.lax.scan(forward, scale.discounted, (r_t, done))
    moments = update_moments(scale.moments, seen)
    scaled = r_t * jax.lax.rsqrt(moments.var + jnp.float32(epsilon))
    return RewardScale(moments, discounted), jnp.clip(scaled, jnp.float32(-clip), jnp.float32(clip))


class RunningMeanStd:
    """Running mean and variance on the host, in float64.

    Args:
        shape: Shape of one sample.
        epsilon: Weight of the starting guess (mean 0, variance 1), in samples.
    """

    def __init__(self, shape: tuple[int, ...] = (), epsilon: float = 1e-4) -> None:
        self.mean = np.zeros(shape, np.float64)
        self.var = np.ones(shape, np.float64)
        self.count = float(epsilon)

    def update(self, x: Any) -> None:
        """Merge one sample [*shape] or a batch [..., *shape], which may be empty. ValueError for other shapes."""
        samples = _samples(x, self.mean.shape)
        if len(samples) == 0:
            return
        total = self.count + len(samples)
        share = len(samples) / total
        delta = samples.mean(axis=0) - self.mean
        self.mean = self.mean + delta * share
        self.var = self.var * (1.0 - share) + samples.var(axis=0) * share + delta**2 * share * (1.0 - share)
        self.count = total

    def normalize(self, x: Any, clip: float = 10.0) -> np.ndarray:
        """(x - mean) / sqrt(var + 1e-8), clipped to +-clip, float32."""
        scaled = (np.asarray(x, np.float64) - self.mean) / np.sqrt(self.var + 1e-8)
        return np.clip(scaled, -clip, clip).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Everything to save, as NumPy arrays and floats."""
        return {"mean": self.mean.copy(), "var": self.var.copy(), "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`. ValueError if it was saved for another shape."""
        mean, var = np.array(state["mean"], np.float64), np.array(state["var"], np.float64)
        if mean.shape != self.mean.shape or var.shape != self.mean.shape:
            raise ValueError(f"saved moments have shape {list(mean.shape)}, expected {list(self.mean.shape)}")
        self.mean, self.var, self.count = mean, var, float(state["count"])


class ObsNormalizer:
    """Brings every feature of an observation to mean 0 and variance 1.

    Args:
        obs_shape: Shape of one observation (`shape=` is the same).
        clip: Bound of the result, in standard deviations.
    """

    def __init__(
        self, obs_shape: tuple[int, ...] | None = None, clip: float = 10.0, *, shape: tuple[int, ...] | None = None
    ) -> None:
        if (obs_shape is None) == (shape is None):
            raise ValueError(f"give one of obs_shape and shape, got obs_shape={obs_shape} and shape={shape}")
        self.clip = float(clip)
        self.rms = RunningMeanStd(tuple(shape if obs_shape is None else obs_shape))  # type: ignore[arg-type]

    def update(self, obs: Any) -> None:
        """Merge one observation or a batch of them."""
        self.rms.update(obs)

    def rearrange(self, source: Sequence[int | None]) -> None:
        """Observations, vectors, are others from now on: number i is what number `source[i]` was, None: a new one.

        Of new ones nothing is known: their mean is 0 and their variance 1.

        Raises:
            ValueError: there was no such number, or observations are no vectors.
        """
        shape = list(self.rms.mean.shape)
        if len(shape) != 1 or any(i is not None and not 0 <= i < shape[0] for i in source):
            raise ValueError(f"the normaliser is for observations of shape {shape}, got the source {list(source)}")
        mean, var = (
            [x[i] if i is not None else new for i in source] for x, new in ((self.rms.mean, 0.0), (self.rms.var, 1.0))
        )
        self.rms.mean, self.rms.var = np.array(mean, np.float64), np.array(var, np.float64)

    def normalize(self, obs: Any) -> np.ndarray:
        """float32, same shape as `obs`."""
        return self.rms.normalize(obs, self.clip)

    def state_dict(self) -> dict[str, Any]:
        """Everything to save, as NumPy arrays and floats."""
        return self.rms.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`."""
        self.rms.load_state_dict(state)


class RewardNormalizer:
    """Divides rewards by the running standard deviation of the discounted return; their sign stays.

    Call `step(reward)` after every step and `reset()` after every end of an episode; an agent that is given one
    does both. For several environments at once `reward` is an array, and `reset(mask)` names those that ended.

    Args:
        gamma: Discount of the running return.
        clip: Bound of a normalised reward.
        epsilon: Added to the variance.
    """

    def __init__(self, gamma: float = 0.99, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        self.gamma, self.clip, self.epsilon = float(gamma), float(clip), float(epsilon)
        self.rms = RunningMeanStd()
        self._discounted: np.ndarray = np.zeros(())

    def step(self, reward: Any) -> None:
        """Account for the rewards of one step, [] or [N]."""
        self._discounted = self.gamma * self._discounted + np.asarray(reward, np.float64)
        self.rms.update(self._discounted)

    def reset(self, done: Any = None) -> None:
        """Start a new episode: everywhere, or where `done` [N]."""
        keep = 0.0 if done is None else ~np.asarray(done, bool)
        self._discounted = self._discounted * keep

    def observe_window(self, rewards: np.ndarray, dones: np.ndarray, present: np.ndarray | None = None) -> None:
        """`step` and `reset` over a window [T, N] in one go; rows where not `present` are passed over."""
        present = np.ones(rewards.shape, bool) if present is None else present
        if self._discounted.shape != rewards.shape[1:]:
            self._discounted = np.zeros(rewards.shape[1:])
        seen = np.empty(rewards.shape)
        for t in range(len(rewards)):
            seen[t] = self.gamma * self._discounted + rewards[t]
            self._discounted = np.where(present[t], np.where(dones[t], 0.0, seen[t]), self._discounted)
        self.rms.update(seen[present])

    def normalize(self, rewards: Any) -> np.ndarray:
        """float32, same shape as `rewards`."""
        scaled = np.asarray(rewards, np.float64) / np.sqrt(self.rms.var + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Everything to save, as NumPy arrays and floats."""
        return {**self.rms.state_dict(), "discounted": self._discounted.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`."""
        self.rms.load_state_dict(state)
        self._discounted = np.array(state["discounted"], np.float64)


def _samples(x: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(x, np.float64)
    lead = array.ndim - len(shape)
    if lead < 0 or array.shape[lead:] != shape:
        raise ValueError(
            f"samples of shape {list(shape)} expected along the last axes, got an array {list(array.shape)}"
        )
    return array.reshape((-1, *shape))
