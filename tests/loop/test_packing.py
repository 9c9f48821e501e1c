"""Scalars packed into vectors come back as they were, one by one and in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.loop.packing import pack


def tree(shape):
    rng = np.random.default_rng(0)
    return {
        "float": jnp.asarray(rng.normal(size=shape), jnp.float32),
        "ints": (jnp.asarray(rng.integers(9, size=shape), jnp.int32), jnp.asarray(rng.integers(9, size=shape))),
        "flag": jnp.asarray(rng.random(shape) < 0.5),
        "vector": jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32),
        "other": jnp.asarray(rng.normal(size=shape), jnp.float32),
        "key": jax.random.split(jax.random.key(1), shape) if shape else jax.random.key(1),
    }


@pytest.mark.parametrize("shape", [(), (4,)], ids=str)
def test_round_trip(shape):
    back = jax.jit(lambda t: pack(t, shape))(tree(shape)).unpack()
    assert jax.tree.structure(back) == jax.tree.structure(tree(shape))
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree(shape)), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(), (4,)], ids=str)
def test_scalars_of_a_dtype_share_one_vector_and_the_rest_stays(shape):
    packed = pack(tree(shape), shape)
    assert {name: v.shape for name, v in packed.vectors.items()} == {
        "float32": (*shape, 2),
        "int32": (*shape, 2),
        "bool": (*shape, 1),
    }
    assert [leaf.shape for leaf in packed.rest] == [shape, (*shape, 3)]  # the key and the vector


def test_packed_rows_may_be_stacked_and_unpacked():
    rows = jax.vmap(lambda t: pack(t, ()))(tree((5,)))
    np.testing.assert_array_equal(rows.unpack()["other"], tree((5,))["other"])


def test_the_host_packs_without_a_device():
    host = {name: np.asarray(x) for name, x in tree((4,)).items() if name in ("float", "flag", "vector", "other")}
    packed = pack(host, (4,))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(packed))
    device = pack(jax.tree.map(jnp.asarray, host), (4,))
    assert jax.tree.structure(packed) == jax.tree.structure(device)
    for a, b in zip(jax.tree.leaves(packed), jax.tree.leaves(device), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
