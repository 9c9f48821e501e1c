"""Returns, advantages and value targets.

Time is the leading axis; every further axis is a batch, and all arrays have the same shape [T, ...]. A scan over rows
[N] of a time-major [T, N] window is also the fastest form on a CPU (faster than vmap over traces, unrolling or an
associative scan).

At index t: `v_tm1` values the observation acted on, `r_t` is the reward of that action, `v_t` values the observation
that it led to, of the same episode: where one ended, the final observation and not the first of the next episode.
`terminated` says that nothing follows (it cuts the bootstrap), `done` that the episode ended in either way (it cuts the
trace). So a truncated episode bootstraps from its `v_t`, and so does the last row. `next_values` builds `v_t`.

The pure functions are for compiled code. `compute_gae`, `compute_vtrace_targets` and `make_minibatches` are their NumPy
faces for the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Importance ratios are exp of a difference of log probabilities; beyond e**10 it says only "very different".
MAX_LOG_RATIO = 10.0


def next_values(v_tm1: jax.Array, v_last: jax.Array, done: jax.Array, v_final: jax.Array) -> jax.Array:
    """`v_t` [T, ...] from the values acted on.

    Args:
        v_tm1: [T, ...] float32, values of the observations acted on.
        v_last: [...] float32, value of the observation after the last step (of the next episode if one ended there).
        done: [T, ...] bool, an episode ended with this step.
        v_final: [T, ...] float32, values of the final observations; read only where `done`.
    """
    following = jnp.concatenate([v_tm1[1:], v_last[None]])
    return jnp.where(done, v_final, following)


def gae(
    r_t: jax.Array,
    v_tm1: jax.Array,
    v_t: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    gamma: jax.Array | float,
    lambda_: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates and the lambda-returns they imply.

        delta_t = r_t + gamma (1 - terminated_t) v_t - v_tm1
        A_t     = delta_t + gamma lambda (1 - done_t) A_{t+1},    target_t = A_t + v_tm1

    All arrays [T, ...]; `gamma` and `lambda_` are scalars. Returns two float32 [T, ...]. Gradients are not stopped.
    Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation", eq. 16.
    """
    gamma, lambda_ = _scalar(gamma), _scalar(lambda_)
    delta = r_t + gamma * _without(terminated) * v_t - v_tm1
    advantages = _discounted_sums(delta, gamma * lambda_ * _without(done))
    return advantages, advantages + v_tm1


def lambda_returns(
    r_t: jax.Array,
    v_t: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    gamma: jax.Array | float,
    lambda_: jax.Array | float,
) -> jax.Array:
    """Lambda-returns, float32 [T, ...].

        G_t = r_t + gamma (1 - terminated_t) ((1 - lambda_t) v_t + lambda_t G_{t+1})

    with lambda_t = 0 where the episode ended and in the last row. Needs no `v_tm1`, unlike `gae`.
    Sutton & Barto 2018, "Reinforcement learning", eq. 12.19 in its recursive form.
    """
    gamma = _scalar(gamma)
    trace = _scalar(lambda_) * _without(done)
    trace = trace.at[-1].set(0.0)
    discount = gamma * _without(terminated)
    return _discounted_sums(r_t + discount * (jnp.float32(1.0) - trace) * v_t, discount * trace)


def n_step_returns(
    r_t: jax.Array, v_t: jax.Array, terminated: jax.Array, done: jax.Array, gamma: jax.Array | float, n: int
) -> jax.Array:
    """n-step returns, float32 [T, ...]: n rewards, then the value there; fewer where the episode or the trace ends.

    `n` is static. ValueError if it is below 1. Sutton & Barto 2018, eq. 7.1.
    """
    if n < 1:
        raise ValueError(f"n_step_returns needs n >= 1, got {n}")
    discount = _scalar(gamma) * _without(terminated)
    ends = done.at[-1].set(True)

    def longer(_: jax.Array, returns: jax.Array) -> jax.Array:
        following = jnp.concatenate([returns[1:], returns[-1:]])
        return r_t + discount * jnp.where(ends, v_t, following)

    return jax.lax.fori_loop(1, min(n, r_t.shape[0]), longer, r_t + discount * v_t)


def vtrace(
    r_t: jax.Array,
    v_tm1: jax.Array,
    v_t: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    log_ratio: jax.Array,
    gamma: jax.Array | float,
    lambda_: jax.Array | float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """V-trace value targets and policy gradient advantages.

        rho_t = min(rho_bar, pi/mu),  c_t = lambda min(c_bar, pi/mu)
        delta_t = rho_t (r_t + gamma (1 - terminated_t) v_t - v_tm1)
        vs_t - v_tm1 = delta_t + gamma (1 - done_t) c_t (vs_{t+1} - v_t)
        A_t = rho_t (r_t + gamma (1 - terminated_t) vs_{t+1} - v_tm1)

    where vs_{t+1} is `v_t` if the episode ended at t or t is the last row. `log_ratio` [T, ...] is log pi - log mu of
    the action taken, clipped to +-10. On policy and with both bars at 1 the targets are the lambda-returns.
    Returns two float32 [T, ...]. Espeholt et al. 2018, "IMPALA", eq. 1 and section 4.2.
    """
    gamma = _scalar(gamma)
    ratio = jnp.exp(jnp.clip(log_ratio, jnp.float32(-MAX_LOG_RATIO), jnp.float32(MAX_LOG_RATIO)))
    rho = jnp.minimum(jnp.float32(rho_bar), ratio)
    c = _scalar(lambda_) * jnp.minimum(jnp.float32(c_bar), ratio)
    discount, unbroken = gamma * _without(terminated), _without(done)
    error = r_t + discount * v_t - v_tm1
    correction = _discounted_sums(rho * error, gamma * c * unbroken)  # vs_t - v_tm1
    following = jnp.concatenate([correction[1:], jnp.zeros_like(correction[:1])])
    advantages = rho * (error + gamma * unbroken * following)
    return correction + v_tm1, advantages


def _discounted_sums(x: jax.Array, factor: jax.Array) -> jax.Array:
    """y_t = x_t + factor_t y_{t+1} with y_T = 0, along the leading axis."""

    def backward(following: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_t, factor_t = row
        total = x_t + factor_t * following
        return total, total

    _, sums = jax.lax.scan(backward, jnp.zeros_like(x[0]), (x, factor), reverse=True)
    return sums


def _without(flag: jax.Array) -> jax.Array:
    return jnp.float32(1.0) - flag.astype(jnp.float32)


def _scalar(x: jax.Array | float) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def compute_gae(
    rewards: Any,
    values: Any,
    dones: Any,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    last_value: Any = 0.0,
    *,
    truncated: Any = None,
    final_values: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns of one window on the host, float32 [T] (or [T, N]) each.

    Args:
        rewards: [T] or [T, N].
        values: [T] or [T, N], values of the observations acted on.
        dones: [T] or [T, N], the episode ended, in either way.
        gamma: Discount.
        gae_lambda: Lambda of the trace.
        last_value: [] or [N], value of the observation after the last step; ignored where that step is done.
        truncated: Which of the dones were cut by a time limit; they bootstrap from `final_values`. Without it every
            done cuts the bootstrap.
        final_values: Values of the final observations, same shape as `rewards`; read where `truncated`.

    ValueError for shapes that differ. Computed in float64. Source: see `gae`.
    """
    rewards = np.asarray(rewards, np.float64)
    values, done = _same_shape(rewards, "values", values), _same_shape(rewards, "dones", dones).astype(bool)
    following = np.concatenate(
        [values[1:], np.broadcast_to(np.asarray(last_value, np.float64), rewards.shape[1:])[None]]
    )
    bootstrap = np.where(done, 0.0, following)
    if truncated is not None:
        if final_values is None:
            raise ValueError("compute_gae got truncated but no final_values; give the values of the final observations")
        cut = _same_shape(rewards, "truncated", truncated).astype(bool)
        bootstrap = np.where(cut, _same_shape(rewards, "final_values", final_values), bootstrap)
        done = done | cut
    advantages = _discounted_sums_host(rewards + gamma * bootstrap - values, gamma * gae_lambda * ~done)
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def compute_vtrace_targets(
    rewards: Any,
    values: Any,
    behaviour_log_probs: Any,
    current_log_probs: Any,
    dones: Any,
    gamma: float = 0.99,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """V-trace targets and advantages of one trace on the host, float32 [T] (or [T, N]) each.

    `values` is [T+1] (or [T+1, N]): those of the observations acted on, then the one after the last step. Every done
    cuts the bootstrap. Log-ratios are clipped to +-10. ValueError for shapes that differ. Computed in float64.
    Source: see `vtrace`.
    """
    rewards = np.asarray(rewards, np.float64)
    values = np.asarray(values, np.float64)
    if values.shape != (len(rewards) + 1, *rewards.shape[1:]):
        raise ValueError(
            f"values must have one row more than rewards {list(rewards.shape)}, got {list(values.shape)}; "
            "append the value of the observation after the last step"
        )
    behaviour = _same_shape(rewards, "behaviour_log_probs", behaviour_log_probs)
    current = _same_shape(rewards, "current_log_probs", current_log_probs)
    ratio = np.exp(np.clip(current - behaviour, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    rho, c = np.minimum(rho_bar, ratio), np.minimum(c_bar, ratio)
    discount = gamma * ~_same_shape(rewards, "dones", dones).astype(bool)
    error = rewards + discount * values[1:] - values[:-1]
    correction = _discounted_sums_host(rho * error, discount * c)
    following = np.concatenate([correction[1:], np.zeros_like(correction[:1])])
    advantages = rho * (error + discount * following)
    return (correction + values[:-1]).astype(np.float32), advantages.astype(np.float32)


def make_minibatches(
    data: Mapping[str, Any], size: int, shuffle: bool = True, rng: np.random.Generator | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of `data` (arrays with the same leading axis) in batches of `size`; the last one may be smaller.

    Every row appears exactly once, rows of all arrays stay together. `rng` makes the shuffle reproducible.
    ValueError for no arrays, arrays of different lengths, or a size below 1.
    """
    arrays = {name: np.asarray(value) for name, value in data.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"make_minibatches needs arrays of one length, got {lengths or 'none'}")
    if size < 1:
        raise ValueError(f"the minibatch size must be at least 1, got {size}")
    length = next(iter(lengths.values()))
    order = (rng or np.random.default_rng()).permutation(length) if shuffle else np.arange(length)
    return ({name: array[order[i : i + size]] for name, array in arrays.items()} for i in range(0, length, size))


def _discounted_sums_host(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    sums = np.empty_like(x)
    total = np.zeros(x.shape[1:])
    for t in range(len(x) - 1, -1, -1):
        total = x[t] + factor[t] * total
        sums[t] = total
    return sums


def _same_shape(rewards: np.ndarray, name: str, value: Any) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.shape != rewards.shape:
        raise ValueError(f"{name} must have the shape of rewards {list(rewards.shape)}, got {list(array.shape)}")
    return array
