"""Matrix products in the form that suits them: the same numbers, gradients and batches as plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tensor_optix.loop import runtime
from tensor_optix.networks import products
from tensor_optix.networks.torsos import MLP

MATRIX = (((1,), (0,)), ((), ()))


def pair(m, k, n, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(m, k)), jnp.float32), jnp.asarray(rng.normal(size=(k, n)), jnp.float32)


SHAPES = [(1, 1, 1), (4, 4, 64), (16, 64, 2), (32, 128, 128), (33, 64, 64), (8, 200, 3), (256, 64, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_and_gradients_match_float64(shape):
    x, w = pair(*shape)
    product = jax.jit(lambda x, w: products.dot_general(x, w, MATRIX))
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * shape[1] ** 0.5}
    np.testing.assert_allclose(product(x, w), exact, **tolerance)
    g = np.random.default_rng(1).normal(size=exact.shape)
    dx, dw = jax.jit(jax.grad(lambda x, w: jnp.sum(product(x, w) * jnp.asarray(g, jnp.float32)), (0, 1)))(x, w)
    np.testing.assert_allclose(dx, g @ np.asarray(w, np.float64).T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dw, np.asarray(x, np.float64).T @ g, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 8, 3), (40, 8, 3)], ids=str)
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_a_batch_is_its_members_one_by_one(shape, axes):
    x, w = (jnp.stack([a, 2 * a, -a]) for a in pair(*shape))
    x, w = (a if axis == 0 else a[0] for a, axis in zip((x, w), axes, strict=True))

    def loss(x, w):
        return jnp.sum(jnp.square(products.dot_general(x, w, MATRIX)))

    together = jax.vmap(jax.value_and_grad(loss, (0, 1)), axes)(x, w)
    for i in range(3):
        one = jax.value_and_grad(loss, (0, 1))(
            *(a[i] if axis == 0 else a for a, axis in zip((x, w), axes, strict=True))
        )
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4)


def test_other_products_stay_what_they_are():
    x = jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4)
    w = jnp.ones((4, 5))
    numbers = (((2,), (0,)), ((), ()))
    np.testing.assert_allclose(products.dot_general(x, w, numbers), x @ w, rtol=1e-6)
    assert products.dot_general(x[0], w, MATRIX, precision="highest").shape == (3, 5)
    assert "custom" not in str(jax.make_jaxpr(lambda x: products.dot_general(x, w, MATRIX, precision="highest"))(x[0]))
    half = products.dot_general(x[0].astype(jnp.bfloat16), w.astype(jnp.bfloat16), MATRIX)
    assert half.dtype == jnp.bfloat16


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's CPU compiler")
def test_acting_for_a_few_environments_is_one_kernel():
    if not runtime.start().small_loops:
        pytest.fail("the backend was started without the limit for small loops")
    model = MLP(4, 4, (64, 64), "tanh", 1.0, nnx.Rngs(0))
    graph, state = nnx.split(model)

    def acting(state, x):
        return jax.lax.fori_loop(0, 100, lambda _, x: nnx.merge(graph, state)(x), x)

    lowered = jax.jit(acting).lower(state, jnp.ones((8, 4)))
    text = runtime.compile_program(lowered, "cpu").as_text()
    assert "xla_cpu_small_call" in text
    assert "kind=kCustom" not in text
