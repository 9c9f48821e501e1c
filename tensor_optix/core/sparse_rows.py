"""Work on the few rows of a batch that need it, inside compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_COMPARISONS = 16_384  # some microseconds


def update_rows(mask: jax.Array, rows_of: Callable[[jax.Array], Any], tree: Any, per_round: int) -> Any:
    """`tree` with the rows where `mask` [N] is true replaced by `rows_of(index)`.

    tree: leaves [N, ...]. rows_of: int32 indices [per_round] -> leaves [per_round, ...]; an index of N stands for no
    row and its result is dropped. The work is done `per_round` rows at a time in a loop of ceil(sum(mask) / per_round)
    rounds, so none where `mask` is all false. Rows are taken by rank and put back by a gather: a scatter would keep
    XLA's CPU compiler from making one kernel of a loop around this.
    """
    wanted = jnp.arange(per_round, dtype=jnp.int32)
    # Comparing everything is one kernel, a binary search about thirty: dear to compile where little is searched.
    method = "compare_all" if mask.shape[0] * per_round <= _COMPARISONS else "scan_unrolled"

    def one_round(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        left, tree = carry
        rank = jnp.cumsum(left, dtype=jnp.int32) - jnp.int32(1)
        index = jnp.searchsorted(rank, wanted, method=method).astype(jnp.int32)
        fresh = rows_of(index)
        now = left & (rank < per_round)
        source = jnp.clip(rank, 0, per_round - 1)

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            picked = new.at[source].get(mode="promise_in_bounds").astype(old.dtype)
            return jnp.where(now.reshape(now.shape + (1,) * (old.ndim - 1)), picked, old)

        return left & ~now, jax.tree.map(put, tree, fresh)

    return jax.lax.while_loop(lambda carry: jnp.any(carry[0]), one_round, (mask, tree))[1]
