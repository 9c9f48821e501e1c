"""LSTM and GRU against their equations in NumPy, and a window against its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.networks.functional import Network
from tensor_optix.networks.recurrent import CELLS, RecurrentNetwork, carry_size, forget

SIZE, WIDTH, N_OUT = 5, 6, 3
T, N = 7, 4


def network(cell, obs_shape=(2,), hidden_sizes=(8, WIDTH)):
    return Network(lambda rngs: RecurrentNetwork(obs_shape, N_OUT, hidden_sizes, "tanh", cell, SIZE, 1.0, rngs))


@pytest.fixture(scope="module", params=CELLS)
def made(request):
    net = network(request.param)
    return request.param, net, jax.jit(net.init)(jax.random.key(0))


def inputs(cell, obs_shape=(2,), seed=0):
    rng = np.random.default_rng(seed)
    obs = jnp.asarray(rng.normal(size=(T, N, *obs_shape)), jnp.float32)
    carry = jnp.asarray(0.5 * rng.normal(size=(N, carry_size(cell, SIZE))), jnp.float32)
    starts = np.zeros((T, N), bool)
    starts[3, 1] = starts[0, 2] = starts[6, 3] = starts[2, 3] = True
    return obs, carry, jnp.asarray(starts)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def numpy_step(cell, params, obs, carry):
    """Output and carry of one observation of one environment, float64; gate by gate."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = np.asarray(obs, np.float64)
    for layer in (*p["encoder"].get("hidden", {}).values(), p["encoder"]["head"]):
        x = np.tanh(x @ layer["kernel"] + layer["bias"])
    memory, carry = p["memory"], np.asarray(carry, np.float64)
    w, b, u = memory["inputs"]["kernel"], memory["inputs"]["bias"], memory["recurrent"]["kernel"]
    gate = lambda k, h: x @ w[:, k * SIZE : (k + 1) * SIZE] + b[k * SIZE : (k + 1) * SIZE] + h  # noqa: E731
    part = lambda k, h: h @ u[:, k * SIZE : (k + 1) * SIZE]  # noqa: E731
    if cell == "lstm":
        h, c = carry[:SIZE], carry[SIZE:]
        i, f, o = (sigmoid(gate(k, part(k, h))) for k in range(3))
        c = f * c + i * np.tanh(gate(3, part(3, h)))
        h = o * np.tanh(c)
        carry = np.concatenate([h, c])
    else:
        h = carry
        r, z = (sigmoid(gate(k, part(k, h))) for k in range(2))
        h = z * h + (1.0 - z) * np.tanh(gate(2, (r * h) @ memory["candidate"]["kernel"]))
        carry = h
    return h @ p["head"]["kernel"] + p["head"]["bias"], carry


def test_a_step_follows_the_equations(made):
    cell, net, params = made
    obs, carry, _ = inputs(cell)
    out, after = jax.jit(net.apply)(params, obs[0], carry)
    for n in range(N):
        expected_out, expected_carry = numpy_step(cell, params, obs[0, n], carry[n])
        np.testing.assert_allclose(out[n], expected_out, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after[n], expected_carry, rtol=1e-5, atol=1e-6)


def test_one_observation_without_a_batch(made):
    cell, net, params = made
    obs, carry, _ = inputs(cell)
    out, after = jax.jit(net.apply)(params, obs[0, 0], carry[0])
    assert out.shape == (N_OUT,)
    np.testing.assert_allclose(out, numpy_step(cell, params, obs[0, 0], carry[0])[0], rtol=1e-5, atol=1e-6)
    assert after.shape == (carry_size(cell, SIZE),)


def test_a_window_is_its_steps_with_zeros_where_an_episode_starts(made):
    cell, net, params = made
    obs, carry, starts = inputs(cell)
    out, after = jax.jit(net.apply)(params, obs, carry, starts)
    assert out.shape == (T, N, N_OUT)
    assert after.shape == (T, N, carry_size(cell, SIZE))
    for n in range(N):
        memory = np.asarray(carry[n])
        for t in range(T):
            memory = np.zeros_like(memory) if starts[t, n] else memory
            expected, memory = numpy_step(cell, params, obs[t, n], memory)
            np.testing.assert_allclose(out[t, n], expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(after[t, n], memory, rtol=1e-5, atol=1e-6)


def test_nothing_of_an_earlier_episode_reaches_a_later_one(made):
    cell, net, params = made
    obs, carry, starts = inputs(cell)
    run = jax.jit(net.apply)
    out, after = run(params, obs, carry, starts)
    changed_out, changed_after = run(params, obs.at[:3, 1].add(10.0), carry.at[1].set(jnp.nan), starts)
    np.testing.assert_array_equal(out[3:, 1], changed_out[3:, 1])
    np.testing.assert_array_equal(after[3:, 1], changed_after[3:, 1])
    assert not np.array_equal(out[:3, 1], changed_out[:3, 1])
    others = np.array([0, 2, 3])
    np.testing.assert_array_equal(out[:, others], changed_out[:, others])


def test_no_gradient_flows_back_over_the_start_of_an_episode(made):
    cell, net, params = made
    obs, carry, starts = inputs(cell)
    flow = jax.jit(jax.grad(lambda obs: net.apply(params, obs, carry, starts)[0][5, 1].sum()))(obs)
    assert (np.abs(flow[3:6, 1]).max(axis=-1) > 0).all()
    assert not np.any(flow[:3])
    assert not np.any(flow[6:])


def test_every_gate_starts_orthogonal_and_the_forget_gate_open(made):
    cell, _, params = made
    memory = params["memory"]
    kernels = [memory["recurrent"]["kernel"], *([memory["candidate"]["kernel"]] if cell == "gru" else [])]
    blocks = [k for kernel in kernels for k in np.split(np.asarray(kernel), kernel.shape[1] // SIZE, axis=1)]
    assert len(blocks) == {"lstm": 4, "gru": 3}[cell]
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(SIZE), atol=1e-5)
    assert not np.array_equal(blocks[0], blocks[1])
    bias = np.asarray(memory["inputs"]["bias"]).reshape(-1, SIZE)
    np.testing.assert_array_equal(bias, np.repeat([[0], [1], [0], [0]] if cell == "lstm" else [[0]] * 3, SIZE, axis=1))


def test_images_are_encoded_by_the_convolution(made):
    cell = made[0]
    net = network(cell, obs_shape=(5, 5, 2), hidden_sizes=(WIDTH,))
    obs, carry, starts = inputs(cell, obs_shape=(5, 5, 2))
    params = jax.jit(net.init)(jax.random.key(1))
    assert "conv" in params["encoder"]
    out, _ = jax.jit(net.apply)(params, obs, carry, starts)
    assert out.shape == (T, N, N_OUT)


def test_members_are_independent(made):
    cell, net, _ = made
    obs, carry, starts = inputs(cell)
    many = jax.jit(jax.vmap(net.init))(jax.random.split(jax.random.key(3), 2))
    both, _ = jax.jit(jax.vmap(net.apply, (0, None, None, None)))(many, obs, carry, starts)
    for i in range(2):
        alone, _ = jax.jit(net.apply)(jax.tree.map(lambda x, i=i: x[i], many), obs, carry, starts)
        np.testing.assert_allclose(both[i], alone, rtol=1e-5, atol=1e-6)
    assert not np.allclose(both[0], both[1])


def test_forget():
    carry = jnp.ones((2, 3, 4))
    got = forget(carry, jnp.asarray([[True, False, False], [False, False, True]]))
    assert got.sum() == 4 * 4
    assert not np.any(got[0, 0])
    assert not np.any(got[1, 2])
