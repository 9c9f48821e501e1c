"""What every PPO does with a minibatch: the clipped loss of Schulman et al. 2017 and one step of Adam along it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from tensor_optix.algorithms import flat_adam
from tensor_optix.algorithms.contract import Hyperparams
from tensor_optix.algorithms.flat_adam import Trained
from tensor_optix.networks.distributions import Categorical, DiagonalGaussian

# What `window` and `update` report, means over their minibatches.
LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl")


class Batch(NamedTuple):
    """Rows that the update draws minibatches from; one leading axis, or two where rows come in sequences."""

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


def clipped_loss(
    dist: Categorical | DiagonalGaussian,
    value: jax.Array,
    rows: Batch,
    hyper: Hyperparams,
    normalize_advantages: bool,
    clip_value: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped surrogate + value + entropy (equation 9 of Schulman et al. 2017) of a minibatch: [] and `LOSSES`.

    dist, value: what the networks say now, in the shape of the rows.
    """
    half, clip = jnp.float32(0.5), hyper["clip_range"]
    advantage = rows.advantage
    if normalize_advantages and advantage.size > 1:  # of one row nothing would be left
        advantage = (advantage - advantage.mean()) / (advantage.std() + jnp.float32(1e-8))
    log_ratio = dist.log_prob(rows.action) - rows.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
    squared = jnp.square(value - rows.target)
    if clip_value:
        bounded = rows.value + jnp.clip(value - rows.value, -clip, clip)
        squared = jnp.maximum(squared, jnp.square(bounded - rows.target))
    value_loss = half * squared.mean()
    entropy = dist.entropy().mean()
    loss = policy_loss + hyper["value_coef"] * value_loss - hyper["entropy_coef"] * entropy
    approx_kl = (ratio - 1 - log_ratio).mean()  # Schulman's k3 estimator
    return loss, dict(zip(LOSSES, (policy_loss, value_loss, entropy, approx_kl), strict=True))


def descend(
    loss: Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]],
    unravel: Callable[[jax.Array], Any],
    hyper: Hyperparams,
    carry: tuple[jax.Array, Any],
) -> tuple[tuple[jax.Array, Any], dict[str, jax.Array]]:
    """One step of Adam on (parameters [P], optimiser state) along the gradient of `loss`, its norm clipped before."""
    before = Trained(*carry)
    grads, losses = jax.grad(loss, has_aux=True)(unravel(before.params))
    after = flat_adam.step(before, grads, hyper["learning_rate"], hyper["adam_eps"], hyper["max_grad_norm"])
    return (after.params, after.opt), losses


def descend_over(
    order: jax.Array,
    batch: Any,
    params: Any,
    opt: Any,
    loss: Callable[[Any, Any, Hyperparams], tuple[jax.Array, dict[str, jax.Array]]],
    hyper: Hyperparams,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """`descend` for each minibatch, the rows `order` [U, M] int32 of `batch`, on `loss(params, rows, hyper)`.

    Returns parameters, optimiser state and mean losses.
    """
    flat, unravel = ravel_pytree(params)

    def step(carry: tuple[jax.Array, Any], index: jax.Array) -> tuple[tuple[jax.Array, Any], dict[str, jax.Array]]:
        rows = rows_at(batch, index)
        return descend(lambda params: loss(params, rows, hyper), unravel, hyper, carry)

    (flat, opt), losses = jax.lax.scan(step, (flat, opt), order)
    return unravel(flat), opt, jax.tree.map(partial(jnp.mean, axis=0), losses)


def rows_at(tree: Any, index: jax.Array) -> Any:
    """The rows `index` [M] of leaves [R, ...]; every index below R."""
    return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), tree)


def annealed(hyper: Hyperparams, window: jax.Array, anneal_windows: int) -> Hyperparams:
    """Learning rate and clip range on their way down to 0 after `anneal_windows`; 0 windows: constant."""
    if not anneal_windows:
        return hyper
    done = window.astype(jnp.float32) / jnp.float32(anneal_windows)
    left = jnp.maximum(jnp.float32(0.0), jnp.float32(1.0) - done)
    return hyper | {name: hyper[name] * left for name in ("learning_rate", "clip_range")}
