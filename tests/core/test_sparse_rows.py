"""Rows replaced a few at a time: the same as replacing them all, and no work where nothing is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core.sparse_rows import update_rows


def replaced(mask, per_round):
    tree = (jnp.arange(len(mask), dtype=jnp.float32), jnp.zeros((len(mask), 2), jnp.int32))

    def rows_of(index):
        assert index.shape == (per_round,)
        assert index.dtype == jnp.int32
        return 100.0 + index.astype(jnp.float32), jnp.stack([index, -index], axis=1)

    return jax.jit(lambda m: update_rows(m, rows_of, tree, per_round))(mask)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33, 20_000])  # the last is searched, not compared
@pytest.mark.parametrize("per_round", [1, 2, 5])
def test_exactly_the_rows_asked_for_are_replaced(n, per_round):
    rng = np.random.default_rng(n * 10 + per_round)
    for p in (0.0, 0.1, 0.5, 1.0) if n < 100 else (0.0, 0.0003):
        mask = rng.random(n) < p
        values, pairs = replaced(jnp.asarray(mask), min(per_round, n))
        index = np.arange(n)
        np.testing.assert_array_equal(values, np.where(mask, 100.0 + index, index))
        np.testing.assert_array_equal(pairs, np.where(mask[:, None], np.stack([index, -index], 1), 0))


def test_one_round_for_every_few_rows():
    calls = []

    def rows_of(index):
        jax.debug.callback(lambda i: calls.append(np.asarray(i).tolist()), index, ordered=True)
        return jnp.float32(index)

    mask = jnp.asarray([False, True, False, True, True, False])
    jax.block_until_ready(update_rows(mask, rows_of, jnp.zeros(6), 2))
    jax.effects_barrier()
    assert calls == [[1, 3], [4, 6]]  # 6 stands for no row
    calls.clear()
    jax.block_until_ready(update_rows(jnp.zeros(6, bool), rows_of, jnp.zeros(6), 2))
    jax.effects_barrier()
    assert calls == []


def test_the_batch_axis_of_a_vmap_is_independent():
    masks = jnp.asarray([[True, False, True], [False, False, False], [True, True, True]])
    out = jax.vmap(lambda m: update_rows(m, lambda i: 10.0 + i.astype(jnp.float32), jnp.zeros(3), 1))(masks)
    np.testing.assert_array_equal(out, np.where(masks, 10.0 + np.arange(3), 0.0))
