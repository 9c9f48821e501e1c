"""What recurrent PPO learns from where windows come from elsewhere: sequences in which not all rows count.

The compiled algorithm collects windows that its sequences divide. A host's may have any length, and rows of which
nobody knows what they led to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tensor_optix.algorithms.clipped_surrogate import LOSSES, Batch, clipped_loss, descend, rows_at
from tensor_optix.algorithms.contract import Hyperparams
from tensor_optix.algorithms.recurrent_ppo import RecurrentPPO
from tensor_optix.core.types import EpisodeData
from tensor_optix.core.window_returns import Segments


class Drawn(NamedTuple):
    """S sequences of L rows to learn from, each of one environment."""

    rows: Batch  # [S, L, ...]
    starts: Any  # [S, L] bool, the observation starts an episode
    counts: Any  # [S, L] bool, a row that is learned from; the others only go through the memory, or fill up
    hidden: Any  # [S, C] float32, before the first row


def episode_starts(data: EpisodeData, segments: Segments) -> np.ndarray:
    """[T] bool: rows that the window calls so (as a list of rows or a mask), and those after an episode's end."""
    done = np.asarray(data.terminated, bool) | np.asarray(data.truncated, bool)
    starts = np.append(False, done[:-1])
    starts[segments.starts[segments.lengths > 0]] = False  # the row before is another environment's
    given = np.asarray(() if data.episode_starts is None else data.episode_starts)
    starts[np.flatnonzero(given) if given.dtype == bool else given.astype(np.int64)] = True
    return starts


def cut(segments: Segments, usable: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A window in sequences of `length` rows within one segment: rows [S, L] int64, and [S, L] bool, which count.

    The last sequence of a segment is filled up with its last row. A sequence without a usable row is left out.
    """
    firsts = [np.arange(start, start + n, length) for start, n in zip(segments.starts, segments.lengths, strict=True)]
    ends = np.repeat(segments.starts + segments.lengths, [len(each) for each in firsts])[:, None]
    rows = np.concatenate(firsts)[:, None] + np.arange(length)
    inside = np.minimum(rows, ends - 1)
    counts = (rows < ends) & usable[inside]
    kept = counts.any(axis=1)
    return inside[kept], counts[kept]


def update(
    algorithm: RecurrentPPO,
    params: Any,
    opt: Any,
    drawn: Drawn,
    order: jax.Array,
    n_updates: jax.Array,
    hyper: Hyperparams,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """`n_updates` steps: parameters, optimiser state, mean losses.

    Args:
        drawn: the sequences; advantages not normalised.
        order: [U, M] int32, the sequences of each minibatch; those from `n_updates` on are not used.
        n_updates: [] int32, at least 1, traced: windows of many lengths share one program.
        hyper: all but gamma and gae_lambda are read.
    """
    flat, unravel = ravel_pytree(params)

    def step(i: jax.Array, carry: tuple[Any, dict[str, jax.Array]]) -> tuple[Any, dict[str, jax.Array]]:
        part = rows_at(drawn, order[i])
        after, losses = descend(lambda params: _loss(algorithm, params, part, hyper), unravel, hyper, carry[0])
        return after, jax.tree.map(jnp.add, carry[1], losses)

    zeros = dict.fromkeys(LOSSES, jnp.float32(0.0))
    (flat, opt), sums = jax.lax.fori_loop(0, n_updates, step, ((flat, opt), zeros))
    return unravel(flat), opt, jax.tree.map(lambda x: x / n_updates.astype(jnp.float32), sums)


def _loss(
    algorithm: RecurrentPPO, params: Any, drawn: Drawn, hyper: Hyperparams
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The algorithm's loss of a minibatch of M sequences, over the rows that count: at least one of each sequence."""
    rows, starts, counts = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), drawn[:3])  # [L, M, ...]
    actor, critic = jnp.split(drawn.hidden, 2, axis=-1)
    out, _ = algorithm._actor.apply(params["actor"], rows.obs, actor, starts)
    value, _ = algorithm._values(params["critic"], rows.obs, critic, starts)
    log_std = params.get("log_std", ())
    return counted_loss(lambda out, obs: algorithm._as_distribution(out, log_std, obs), out, value, rows, counts, hyper)


def counted_loss(
    distribution: Callable[[jax.Array, jax.Array], Any],
    out: jax.Array,
    value: jax.Array,
    rows: Batch,
    counts: jax.Array,
    hyper: Hyperparams,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The clipped loss over the rows that count, at least one: [] and `LOSSES`.

    Args:
        distribution: of a row's output and observation.
        out, value: what the networks say of the rows, [L, M, ...] and [L, M].
        rows: [L, M, ...]; their advantages are normalised.
        counts: [L, M] bool.
        hyper: those of the loss.
    """
    total = jnp.sum(counts, dtype=jnp.float32)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(counts, x, jnp.float32(0.0))) / total

    def of_row(out: jax.Array, value: jax.Array, row: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        return clipped_loss(distribution(out, row.obs), value, row, hyper, normalize_advantages=False, clip_value=False)

    centred = rows.advantage - mean(rows.advantage)
    normalized = centred / (jnp.sqrt(mean(jnp.square(centred))) + jnp.float32(1e-8))
    advantage = jnp.where(total > 1, normalized, rows.advantage)  # of one row nothing would be left
    loss, losses = jax.vmap(jax.vmap(of_row))(out, value, rows._replace(advantage=advantage))
    return mean(loss), jax.tree.map(mean, losses)
