"""Adam with a count for each parameter: as optax's where nothing changes, from the beginning where something does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tensor_optix.neuroevo.graph.adam import forget, topology_aware_adam

PARAMS = {"a": jnp.asarray([1.0, -2.0, 3.0], jnp.float32), "b": jnp.ones((2, 2), jnp.float32)}


def grads(i):
    rng = np.random.default_rng(i)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)


def run(optimizer, params, steps, state=None, first=0, **extra):
    state = optimizer.init(params) if state is None else state
    update = jax.jit(optimizer.update)
    for i in range(first, first + steps):
        updates, state = update(grads(i), state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}, {"amsgrad": True}, {"betas": (0.5, 0.9), "eps": 1e-3}])
def test_without_changes_it_is_adam(settings):
    b1, b2 = settings.get("betas", (0.9, 0.999))
    scale = optax.scale_by_amsgrad if settings.get("amsgrad") else optax.scale_by_adam
    with jax.numpy_dtype_promotion("standard"):
        chain = optax.chain(
            optax.add_decayed_weights(settings.get("weight_decay", 0.0)),
            scale(b1, b2, settings.get("eps", 1e-8)),
            optax.scale(-0.01),
        )
        theirs, _ = run(chain, PARAMS, 30)
    ours, _ = run(topology_aware_adam(0.01, **settings), PARAMS, 30)
    close(ours, theirs)


def test_what_is_forgotten_begins_anew_and_the_rest_goes_on():
    optimizer = topology_aware_adam(0.01)
    params, state = run(optimizer, PARAMS, 20)
    kept = {"a": jnp.asarray([True, False, True]), "b": jnp.zeros((2, 2), bool)}
    after, _ = run(optimizer, params, 10, forget(state, kept), first=20)
    untouched, _ = run(optimizer, params, 10, state, first=20)
    fresh, _ = run(optimizer, params, 10, first=20)
    np.testing.assert_array_equal(after["a"][jnp.asarray([0, 2])], untouched["a"][jnp.asarray([0, 2])])
    np.testing.assert_array_equal(after["a"][1], fresh["a"][1])
    np.testing.assert_array_equal(after["b"], fresh["b"])
    # The first step of something new has the size of a first step.
    first, _ = run(optimizer, params, 1, forget(state, kept), first=20)
    np.testing.assert_allclose(np.abs(first["b"] - params["b"]), 0.01, rtol=1e-3)


def test_a_mask_in_the_update_is_the_same():
    optimizer = topology_aware_adam(0.01)
    params, state = run(optimizer, PARAMS, 5)
    kept = jax.tree.map(lambda p: jnp.zeros(p.shape, bool), PARAMS)
    a, _ = optimizer.update(grads(9), state, params, kept=kept)
    b, _ = optimizer.update(grads(9), forget(state, kept), params)
    close(a, b)


def test_where_there_is_nothing_nothing_moves():
    optimizer = topology_aware_adam(0.01)
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(nothing, optimizer.init(PARAMS), PARAMS)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"betas must lie in \[0, 1\)"):
        topology_aware_adam(0.01, betas=(1.0, 0.9))
    with pytest.raises(ValueError, match="eps must be positive"):
        topology_aware_adam(0.01, eps=0.0)
    optimizer = topology_aware_adam(0.01, weight_decay=0.1)
    with pytest.raises(ValueError, match="weight_decay needs the parameters"):
        optimizer.update(PARAMS, optimizer.init(PARAMS))
