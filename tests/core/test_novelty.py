"""Random network distillation against NumPy in float64, and what it is for: the bonus falls where one has been."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.core import novelty
from tensor_optix.core.finite import all_finite
from tensor_optix.envs.exploration import DeepSea
from tests.runs import assert_same_bits

LR = 1e-3
init = jax.jit(novelty.init, static_argnums=(1, 2))
observe, train, bonus = jax.jit(novelty.observe), jax.jit(novelty.train), jax.jit(novelty.bonus)


def noise(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def learned(state, obs, steps=1, lr=LR, weight=None):
    """`observe` once and `train` some times."""
    state = observe(state, obs, weight)
    for _ in range(steps):
        state = train(state, obs, weight, lr)
    return state


class Oracle:
    """The same in NumPy, in float64, over all observations ever seen at once."""

    def __init__(self, state):
        self.target, self.params = wide(state.target), wide(state.predictor)
        self.seen, self.errors_seen = [], []
        self.m = {name: np.zeros_like(leaf) for name, leaf in self.params.items()}
        self.v, self.steps = dict(self.m), 0

    def normalized(self, rows):
        seen = np.concatenate(self.seen)
        return np.clip((rows - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8), -5, 5)

    def embed(self, params, x):
        hidden = np.maximum(x @ params["hidden_weights"] + params["hidden_bias"], 0)
        return hidden, hidden @ params["out_weights"] + params["out_bias"]

    def errors(self, rows):
        x = self.normalized(rows)
        return np.square(self.embed(self.params, x)[1] - self.embed(self.target, x)[1]).sum(1)

    def observe(self, rows):
        self.seen.append(rows.astype(np.float64))
        self.errors_seen.append(self.errors(rows))

    def bonus(self, rows):
        return np.minimum(self.errors(rows) / (np.concatenate(self.errors_seen).std() + 1e-8), 10)

    def train(self, rows, lr):
        x = self.normalized(rows)
        hidden, says = self.embed(self.params, x)
        d_out = 2 * (says - self.embed(self.target, x)[1]) / len(rows)
        d_hidden = d_out @ self.params["out_weights"].T * (hidden > 0)
        gradients = {
            "hidden_weights": x.T @ d_hidden,
            "hidden_bias": d_hidden.sum(0),
            "out_weights": hidden.T @ d_out,
            "out_bias": d_out.sum(0),
        }
        self.steps += 1
        for name, g in gradients.items():
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g**2
            m, v = self.m[name] / (1 - 0.9**self.steps), self.v[name] / (1 - 0.999**self.steps)
            self.params[name] = self.params[name] - lr * m / (np.sqrt(v) + 1e-8)


# -- against the oracle -------------------------------------------------------------------------------------


def test_errors_moments_and_steps_are_those_of_the_oracle():
    state = init(jax.random.key(0), (3,), 8)
    oracle = Oracle(state)
    start = dict(oracle.params)
    other = noise(50, 3, seed=9) * np.float32([1, 10, 100]) + np.float32([0, -5, 40])  # some of it is clipped
    for i, n in enumerate((40, 7, 40)):
        rows = noise(n, 3, seed=i) * np.float32([0.2, 2, 30]) + np.float32([0, -5, 40])
        state = observe(state, rows)
        oracle.observe(rows)
        seen, errors = np.concatenate(oracle.seen), np.concatenate(oracle.errors_seen)
        np.testing.assert_allclose(state.obs_moments.mean, seen.mean(0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(state.obs_moments.var, seen.var(0), rtol=1e-4)
        np.testing.assert_allclose(state.error_moments.mean, errors.mean(), rtol=1e-4)
        np.testing.assert_allclose(state.error_moments.var, errors.var(), rtol=1e-3)
        assert state.obs_moments.count == state.error_moments.count == len(seen)
        np.testing.assert_allclose(bonus(state, other), oracle.bonus(other), rtol=1e-3)
        state = train(state, rows, None, 0.01)
        oracle.train(rows, 0.01)
        for name, leaf in oracle.params.items():
            # Where the gradient is next to nothing, Adam makes a step of its rounding: some entries may be off.
            off = np.abs(state.predictor[name] - leaf) > 1e-5 + 1e-4 * np.abs(leaf)
            assert off.mean() < 0.01, (name, off.mean())
            assert np.abs(leaf - start[name]).max() > 0.005
    assert (oracle.bonus(other) == 10).any()
    assert (oracle.bonus(other) < 9).any()


def test_before_any_data_the_bonus_is_the_bare_error():
    state = init(jax.random.key(1), (2,))
    x = noise(30, 2, scale=0.3)
    target, params = wide(state.target), wide(state.predictor)
    f, g = (Oracle.embed(None, p, np.asarray(x, np.float64))[1] for p in (params, target))
    expected = np.minimum(np.square(f - g).sum(1), 10)
    assert (expected < 10).any()
    np.testing.assert_allclose(bonus(state, x), expected, rtol=1e-4)
    far = bonus(state, np.float32([[1e30, -1e30], [np.inf, 0]]))
    assert np.isfinite(far).all()


def test_where_everything_is_alike_the_bonus_is_bounded():
    state = learned(init(jax.random.key(1), (2,)), jnp.ones((64, 2)), steps=3)
    assert all_finite(state)
    found = np.asarray(bonus(state, jnp.ones((4, 2))))
    assert ((found >= 0) & (found <= 10)).all()


# -- what the bonus is for ----------------------------------------------------------------------------------


def test_the_bonus_falls_where_it_was_trained_and_stays_elsewhere():
    places = jnp.eye(12, dtype=jnp.float32)
    state = observe(init(jax.random.key(0), (12,)), places)
    early = np.asarray(bonus(state, places))
    trained = state
    for _ in range(300):
        trained = train(trained, places[:6], None, LR)
    late = np.asarray(bonus(trained, places))
    assert (late[:6] < 0.02 * early[:6]).all()
    assert (late[6:] > 0.3 * early[6:]).all()
    jax.tree.map(np.testing.assert_array_equal, trained.target, state.target)
    jax.tree.map(np.testing.assert_array_equal, trained.obs_moments, state.obs_moments)
    jax.tree.map(np.testing.assert_array_equal, trained.error_moments, state.error_moments)


def test_the_learning_rate_is_that_of_the_step():
    """Adam's first step is the learning rate long, wherever there is a gradient."""
    state, rows = init(jax.random.key(0), (3,)), noise(20, 3)
    for lr in (1e-3, 1e-2):
        moved = train(state, rows, None, jnp.float32(lr)).predictor["out_bias"] - state.predictor["out_bias"]
        np.testing.assert_allclose(np.abs(moved), lr, rtol=1e-3)
    assert_same_bits(train(state, rows, None, 0.0).predictor, state.predictor)


def dive(env, key, eta, windows=300, n_envs=4):
    """Q-learning on a table, noise of 5 % on its actions, `eta` times the bonus: bool [windows], treasure found."""
    depth = env.env.depth
    key_novelty, key_env, key_windows = jax.random.split(key, 3)

    def step(carry, key, q):
        key_tie, key_noise, key_step = jax.random.split(key, 3)
        env_state, obs = carry
        worth = obs @ q + jnp.float32(1e-6) * jax.random.normal(key_tie, (n_envs, 2))
        other = jax.random.bernoulli(key_noise, 0.05, (n_envs,))
        action = jnp.where(other, worth.argmin(-1), worth.argmax(-1)).astype(jnp.int32)
        env_state, out = env.step(key_step, env_state, action)
        return (env_state, out.obs), (obs.argmax(-1), action, out.reward, out.final_obs)

    def update(q, row):
        cell, action, reward, after = row
        wanted = reward + jnp.float32(0.99) * (after @ q).max(-1)  # the end is no cell: its worth is 0
        return q.at[cell, action].add(jnp.float32(0.3) * (wanted - q[cell, action])), None

    def window(carry, key):
        state, place, q = carry
        place, (cell, action, reward, after) = jax.lax.scan(
            lambda carry, key: step(carry, key, q), place, jax.random.split(key, depth)
        )
        state = novelty.observe(state, after)
        total = reward + eta * novelty.bonus(state, after)
        state, _ = jax.lax.scan(lambda s, _: (novelty.train(s, after, None, 3e-4), None), state, length=4)
        q, _ = jax.lax.scan(update, q, (cell, action, total, after), reverse=True)
        return (state, place, q), (reward > 0.5).any()

    start = novelty.init(key_novelty, env.obs_shape, 16), env.reset(key_env, n_envs), jnp.zeros((depth**2, 2))
    return jax.lax.scan(window, start, jax.random.split(key_windows, windows))[1]


@pytest.mark.slow
def test_the_bonus_finds_what_noise_does_not():
    """1200 episodes of the deep sea, where uniform play needs 1024 on average and Q-learning is drawn to the left."""
    env = envs.make(DeepSea, depth=10)
    run = jax.jit(jax.vmap(jax.vmap(lambda key, eta: dive(env, key, eta), (0, None)), (None, 0)))
    found = np.asarray(run(jax.random.split(jax.random.key(0), 10), jnp.float32([0.0, 0.1])))
    without, with_bonus = found.any(-1).sum(-1)  # 0 and 10 of 10 seeds when this was written
    assert without <= 1
    assert with_bonus >= 9
    assert (found[1, :, -20:].mean(-1) > 0.8).sum() >= 8  # and goes there from then on


# -- weights and shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [1e6, np.nan, np.inf])
def test_rows_of_weight_zero_change_nothing(garbage):
    rows = noise(12, 3)
    place = np.array([0, 1, 3, 4, 6, 7, 8, 10, 11, 12, 13, 15])
    weight = np.isin(np.arange(16), place)
    state = init(jax.random.key(0), (3,))
    zeros, other = np.zeros((16, 3), np.float32), np.full((16, 3), garbage, np.float32)
    zeros[place] = other[place] = rows
    padded = learned(state, zeros, 3, weight=weight)
    assert_same_bits(padded, learned(state, other, 3, weight=weight.astype(np.float32)))
    alone = learned(state, rows, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), padded, alone)
    assert padded.obs_moments.count == padded.error_moments.count == 12


@pytest.mark.parametrize("before", [0, 5])
def test_where_no_row_counts_nothing_changes(before):
    state = init(jax.random.key(0), (3,))
    if before:
        state = learned(state, noise(before, 3))
    rows, none = np.full((4, 3), np.nan, np.float32), np.zeros(4, np.float32)
    assert_same_bits(learned(state, rows, weight=none), state)


def test_all_leading_axes_are_one_batch():
    state = init(jax.random.key(0), (2, 3))
    rows, weight = noise(20, 2, 3), np.arange(20) % 3 > 0
    flat = learned(state, rows, weight=weight)
    folded = learned(state, rows.reshape(4, 5, 2, 3), weight=weight.reshape(4, 5))
    assert_same_bits(flat, folded)
    found = bonus(flat, rows.reshape(4, 5, 2, 3))
    assert (found.shape, found.dtype) == ((4, 5), jnp.float32)
    np.testing.assert_array_equal(found.reshape(-1), bonus(flat, rows))
    np.testing.assert_allclose(bonus(flat, rows[0]), found[0, 0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (6, 5, 2)])
def test_images_and_numbers(shape):
    rows = np.random.default_rng(0).integers(0, 256, (9, *shape), np.uint8)
    state = learned(init(jax.random.key(0), shape, 4), jnp.asarray(rows))
    assert state.obs_moments.mean.shape == shape
    np.testing.assert_allclose(state.obs_moments.mean, rows.mean(0), rtol=1e-5)
    found = bonus(state, jnp.asarray(rows))
    np.testing.assert_array_equal(found, bonus(state, rows.astype(np.float32)))
    assert (np.asarray(found) > 0).all()
    assert all_finite(state)


# -- inside compiled programs -------------------------------------------------------------------------------


def test_members_are_independent_inside_a_scan_and_compile_once():
    """A scan of windows under vmap, every member with its own key, observations and learning rate; traced once."""
    traces = []

    def window(state, rows, lr):
        traces.append(None)
        state = novelty.observe(state, rows)
        found = novelty.bonus(state, rows)
        return novelty.train(state, rows.reshape(-1, 3), None, lr), found

    def run(key, windows, lr):
        return jax.lax.scan(lambda state, rows: window(state, rows, lr), novelty.init(key, (3,), 8), windows)

    keys = jax.random.split(jax.random.key(0), 3)
    windows = jnp.asarray(noise(3, 4, 5, 2, 3))  # [members, windows, T, N, obs]
    rates = jnp.float32([1e-3, 0.0, 1e-2])
    together = jax.jit(jax.vmap(run))
    states, found = together(keys, windows, rates)
    assert found.shape == (3, 4, 5, 2)
    assert len(traces) == 1
    together(keys[::-1], windows + 1, rates * 2)
    assert len(traces) == 1
    alone = jax.jit(run)
    for i in range(3):
        one = alone(keys[i], windows[i], rates[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5), (states, found), one)
    assert all(len(np.unique(leaf)) > 1 for leaf in (states.predictor["out_bias"][:, 0], found[:, -1, 0, 0]))


def test_the_state_is_made_of_strong_types_and_keys_are_used_once(checked_keys):
    state = jax.eval_shape(lambda key: learned(novelty.init(key, (3,)), jnp.ones((4, 3))), jax.random.key(0))
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.weak_type]
    state = novelty.init(jax.random.key(0), (3,))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    assert all_finite(state)
    assert not all_finite(novelty.observe(state, jnp.full((4, 3), jnp.nan)))


def test_seeds_differ_in_both_networks():
    a, b = (init(jax.random.key(seed), (3,)) for seed in (0, 1))
    networks = [a.target, a.predictor, b.target, b.predictor]
    for name in ("hidden_weights", "out_weights"):
        assert len({np.asarray(each[name]).tobytes() for each in networks}) == 4
        np.testing.assert_allclose(a.target[name].var(), 2 / a.target[name].shape[0], rtol=0.3)


# -- arguments ----------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named():
    state = novelty.init(jax.random.key(0), (2, 3))
    with pytest.raises(ValueError, match=r"shape \[2, 3\] expected along the last axes, got \[4, 6\]"):
        novelty.bonus(state, jnp.zeros((4, 6)))
    with pytest.raises(ValueError, match=r"weight must have the shape \[4\] of the batch, got \[3\]"):
        novelty.observe(state, jnp.zeros((4, 2, 3)), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"obs_shape=\(0,\) and embedding_dim=64"):
        novelty.init(jax.random.key(0), (0,))
    with pytest.raises(ValueError, match="embedding_dim=0"):
        novelty.init(jax.random.key(0), (3,), 0)
