"""Random network distillation: how new an observation is, measured by what a network has not yet learned of it.

A small network learns to say what a fixed random network says about the observations met; its error is the bonus.
Burda et al. 2018, "Exploration by random network distillation", arXiv 1810.12894, sections 2.2-2.4.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from tensor_optix.core import normalizers
from tensor_optix.core.normalizers import Moments

HIDDEN = 128  # units
OBS_CLIP = 5.0  # standard deviations
BONUS_CLIP = 10.0  # standard deviations: where all observations are alike, the deviation is next to nothing

_ADAM = optax.scale_by_adam()

Params = dict[str, jax.Array]  # hidden_weights [P, 128], hidden_bias [128], out_weights [128, E], out_bias [E]
Predictor = tuple[Params, Any]  # f's parameters and Adam's state (optax.ScaleByAdamState)
Array = TypeVar("Array")  # of JAX or of NumPy


class Novelty(struct.PyTreeNode):
    """What is known of observations [*obs], P numbers each. Every leaf is an array: scan it, vmap it, save it."""

    target: Params  # of g, which stays as it is
    predictor: Params  # of f, which learns to say what g says
    opt: Any  # optax.ScaleByAdamState of the predictor
    obs_moments: Moments  # [*obs]
    error_moments: Moments  # [], of |f - g|^2


def init(key: jax.Array, obs_shape: tuple[int, ...], embedding_dim: int = 64) -> Novelty:
    """Nothing known yet of observations [*obs_shape]; both networks answer with `embedding_dim` numbers.

    ValueError where either has no numbers.
    """
    obs_dim = math.prod(obs_shape)
    if obs_dim < 1 or embedding_dim < 1:
        raise ValueError(
            f"observations and embeddings need at least one number each, got obs_shape={tuple(obs_shape)} and "
            f"embedding_dim={embedding_dim}"
        )
    key_target, key_predictor = jax.random.split(key)
    predictor, opt = init_predictor(key_predictor, obs_dim, embedding_dim)
    return Novelty(
        target=init_network(key_target, obs_dim, embedding_dim),
        predictor=predictor,
        opt=opt,
        obs_moments=normalizers.init_moments(tuple(obs_shape)),
        error_moments=normalizers.init_moments(),
    )


def bonus(novelty: Novelty, obs: jax.Array) -> jax.Array:
    """|f(x) - g(x)|^2 / std of observations [*batch, *obs] of any dtype: float32 [*batch] in 0 .. 10.

    x is the observation by its running moments, clipped to +-5. std is that of the squared errors observed so far; the
    paper (section 2.4) divides by that of their discounted sums instead. Nothing is learned. Before the first `observe`
    the means are 0 and the deviations 1, so that the bonus is the bare error, clipped.
    """
    rows, batch = _rows(novelty, obs)
    return scaled(_errors(novelty, rows), novelty.error_moments.var).reshape(batch)


def observe(novelty: Novelty, obs: jax.Array, weight: jax.Array | None = None) -> Novelty:
    """Count observations [*batch, *obs] in: first in their moments, then their errors in those of the errors.

    Rows of `weight` [*batch] 0 do not count, whatever is in them; the others have 1. None: all count.
    """
    rows, batch = _rows(novelty, obs)
    present = None if weight is None else _present(weight, batch)
    novelty = novelty.replace(obs_moments=normalizers.update_moments(novelty.obs_moments, rows, present))
    errors = _errors(novelty, rows)
    return novelty.replace(error_moments=normalizers.update_moments(novelty.error_moments, errors, present))


def train(novelty: Novelty, obs: jax.Array, weight: jax.Array | None, learning_rate: jax.Array | float) -> Novelty:
    """One step of Adam on the mean error of observations [*batch, *obs]; no moments change but Adam's.

    `weight` as in `observe`; where all of it is 0, nothing changes. `learning_rate` [] may be traced.
    """
    rows, batch = _rows(novelty, obs)
    x = _normalized(novelty, rows)
    before = (novelty.predictor, novelty.opt)
    predictor, opt = adam_step(novelty.target, before, x, _present(weight, batch), learning_rate)
    return novelty.replace(predictor=predictor, opt=opt)


# -- the parts, for those who keep the moments themselves ---------------------------------------------------


def init_network(key: jax.Array, obs_dim: int, embedding_dim: int) -> Params:
    """Normal weights of variance 2 / inputs, biases of 0. He et al. 2015."""
    key_hidden, key_out = jax.random.split(key)
    return {
        "hidden_weights": jnp.float32(math.sqrt(2 / obs_dim))
        * jax.random.normal(key_hidden, (obs_dim, HIDDEN), jnp.float32),
        "hidden_bias": jnp.zeros(HIDDEN, jnp.float32),
        "out_weights": jnp.float32(math.sqrt(2 / HIDDEN))
        * jax.random.normal(key_out, (HIDDEN, embedding_dim), jnp.float32),
        "out_bias": jnp.zeros(embedding_dim, jnp.float32),
    }


def init_predictor(key: jax.Array, obs_dim: int, embedding_dim: int) -> Predictor:
    """A network before its first step of Adam."""
    params = init_network(key, obs_dim, embedding_dim)
    return params, _ADAM.init(params)


def squared_errors(target: Params, params: Params, x: jax.Array) -> jax.Array:
    """|f(x) - g(x)|^2 of normalised rows [B, P]: float32 [B]."""
    return jnp.square(_embed(params, x) - _embed(target, x)).sum(axis=-1)


def scaled(errors: Array, variance: Any, epsilon: float = 1e-8) -> Array:
    """min(errors / (sqrt(variance) + epsilon), 10), of JAX's arrays or of NumPy's."""
    return (errors / (variance**0.5 + epsilon)).clip(max=BONUS_CLIP)


def adam_step(
    target: Params, predictor: Predictor, x: jax.Array, present: jax.Array, learning_rate: jax.Array | float
) -> Predictor:
    """One step of Adam (Kingma & Ba 2015) on the mean error of the rows [B, P] that are `present` [B] (1 or 0).

    Where none is, the predictor and Adam's moments stay as they are.
    """
    params, opt = predictor
    x = jnp.where(present[:, None] > 0, x, jnp.float32(0.0))  # times 0, a row that is not finite would still tell
    count = present.sum()

    def loss(params: Params) -> jax.Array:
        return (squared_errors(target, params, x) * present).sum() / jnp.maximum(count, jnp.float32(1.0))

    with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer count with floats
        updates, opt_after = _ADAM.update(jax.grad(loss)(params), opt)
    step_size = jnp.asarray(learning_rate, jnp.float32)
    after = (jax.tree.map(lambda p, u: p - step_size * u, params, updates), opt_after)
    return jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), after, predictor)


def _embed(params: Params, x: jax.Array) -> jax.Array:
    """[B, P] -> [B, E]."""
    hidden = jax.nn.relu(x @ params["hidden_weights"] + params["hidden_bias"][None])
    return hidden @ params["out_weights"] + params["out_bias"][None]


def _errors(novelty: Novelty, rows: jax.Array) -> jax.Array:
    """[B, *obs] -> [B]."""
    return squared_errors(novelty.target, novelty.predictor, _normalized(novelty, rows))


def _normalized(novelty: Novelty, rows: jax.Array) -> jax.Array:
    """[B, *obs] -> [B, P], clipped."""
    return normalizers.normalize(novelty.obs_moments, rows, OBS_CLIP).reshape(rows.shape[0], -1)


def _rows(novelty: Novelty, obs: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
    """[*batch, *obs] -> float32 [B, *obs], and what the batch's axes were."""
    shape = novelty.obs_moments.mean.shape
    lead = obs.ndim - len(shape)
    if lead < 0 or obs.shape[lead:] != shape:
        raise ValueError(f"observations of shape {list(shape)} expected along the last axes, got {list(obs.shape)}")
    batch = obs.shape[:lead]
    return obs.reshape((math.prod(batch), *shape)).astype(jnp.float32), batch


def _present(weight: jax.Array | None, batch: tuple[int, ...]) -> jax.Array:
    """Weights [B] float32 of a batch."""
    if weight is None:
        return jnp.ones(math.prod(batch), jnp.float32)
    if weight.shape != batch:
        raise ValueError(f"weight must have the shape {list(batch)} of the batch, got {list(weight.shape)}")
    return weight.reshape(-1).astype(jnp.float32)
