"""Returns against naive O(T^2) float64 oracles, limiting cases and laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core import returns

T, N = 13, 4
GAMMA, LAMBDA = 0.9, 0.7


@pytest.fixture
def trace():
    """A [T, N] window in which episodes terminate and are truncated at different times in every lane."""
    rng = np.random.default_rng(0)
    terminated = rng.random((T, N)) < 0.2
    truncated = (rng.random((T, N)) < 0.2) & ~terminated
    done = terminated | truncated
    v_tm1 = rng.normal(size=(T, N))
    v_last, v_final = rng.normal(size=N), rng.normal(size=(T, N))
    following = np.concatenate([v_tm1[1:], v_last[None]])
    return {
        "r_t": rng.normal(size=(T, N)),
        "v_tm1": v_tm1,
        "v_t": np.where(done, v_final, following),
        "v_last": v_last,
        "v_final": v_final,
        "terminated": terminated,
        "done": done,
        "log_ratio": rng.normal(size=(T, N)),
    }


def arrays(trace, *names):
    return [jnp.asarray(trace[name], bool if trace[name].dtype == bool else jnp.float32) for name in names]


def episode_end(done, t):
    """Last index of the episode in play at t (or of the trace)."""
    ends = np.flatnonzero(done[t:])
    return t + ends[0] if len(ends) else len(done) - 1


def oracle_n_step(trace, n, lane, t):
    """n rewards, then the bootstrap; straight from the definition."""
    last = min(t + n - 1, episode_end(trace["done"][:, lane], t))
    rewards = sum(GAMMA ** (k - t) * trace["r_t"][k, lane] for k in range(t, last + 1))
    return rewards + GAMMA ** (last - t + 1) * (not trace["terminated"][last, lane]) * trace["v_t"][last, lane]


def oracle_lambda(trace, lambda_, lane, t):
    """The weighted mean of all n-step returns up to the end of the episode."""
    horizon = episode_end(trace["done"][:, lane], t) - t + 1
    total = lambda_ ** (horizon - 1) * oracle_n_step(trace, horizon, lane, t)
    for n in range(1, horizon):
        total += (1 - lambda_) * lambda_ ** (n - 1) * oracle_n_step(trace, n, lane, t)
    return total


def oracle_vtrace(trace, rho_bar, c_bar, lane, t):
    """Eq. 1 of the paper: a sum over the rest of the episode of products of clipped ratios."""
    ratio = np.exp(np.clip(trace["log_ratio"][:, lane], -10, 10))
    total = trace["v_tm1"][t, lane]
    for s in range(t, episode_end(trace["done"][:, lane], t) + 1):
        discount = GAMMA * (not trace["terminated"][s, lane])
        delta = min(rho_bar, ratio[s]) * (
            trace["r_t"][s, lane] + discount * trace["v_t"][s, lane] - trace["v_tm1"][s, lane]
        )
        total += GAMMA ** (s - t) * np.prod(np.minimum(c_bar, ratio[t:s])) * delta
    return total


def grid(f):
    return np.array([[f(lane, t) for lane in range(N)] for t in range(T)])


GAE_ARGS = ("r_t", "v_tm1", "v_t", "terminated", "done")
LAMBDA_ARGS = ("r_t", "v_t", "terminated", "done")
VTRACE_ARGS = ("r_t", "v_tm1", "v_t", "terminated", "done", "log_ratio")


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_gae_targets_are_the_lambda_returns_of_the_oracle(trace, lambda_):
    advantages, targets = returns.gae(*arrays(trace, *GAE_ARGS), GAMMA, lambda_)
    expected = grid(lambda lane, t: oracle_lambda(trace, lambda_, lane, t))
    np.testing.assert_allclose(targets, expected, atol=2e-6)
    np.testing.assert_allclose(advantages, expected - trace["v_tm1"], atol=2e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_lambda_returns(trace, lambda_):
    actual = returns.lambda_returns(*arrays(trace, *LAMBDA_ARGS), GAMMA, lambda_)
    np.testing.assert_allclose(actual, grid(lambda lane, t: oracle_lambda(trace, lambda_, lane, t)), atol=2e-6)


@pytest.mark.parametrize("n", [1, 2, 5, T, T + 3])
def test_n_step_returns(trace, n):
    actual = returns.n_step_returns(*arrays(trace, *LAMBDA_ARGS), GAMMA, n)
    np.testing.assert_allclose(actual, grid(lambda lane, t: oracle_n_step(trace, n, lane, t)), atol=2e-6)


def test_n_equal_to_the_trace_is_lambda_one(trace):
    args = arrays(trace, *LAMBDA_ARGS)
    np.testing.assert_allclose(
        returns.n_step_returns(*args, GAMMA, T), returns.lambda_returns(*args, GAMMA, 1.0), atol=2e-6
    )


@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (2.0, 0.8), (1e6, 1e6)])
def test_vtrace(trace, rho_bar, c_bar):
    targets, advantages = returns.vtrace(*arrays(trace, *VTRACE_ARGS), GAMMA, rho_bar=rho_bar, c_bar=c_bar)
    expected = grid(lambda lane, t: oracle_vtrace(trace, rho_bar, c_bar, lane, t))
    np.testing.assert_allclose(targets, expected, rtol=2e-5, atol=2e-5)
    following = np.where(trace["done"], trace["v_t"], np.concatenate([expected[1:], trace["v_t"][-1:]]))
    rho = np.minimum(rho_bar, np.exp(trace["log_ratio"]))
    wanted = rho * (trace["r_t"] + GAMMA * ~trace["terminated"] * following - trace["v_tm1"])
    np.testing.assert_allclose(advantages, wanted, rtol=2e-5, atol=2e-5)


def test_on_policy_vtrace_is_gae_at_the_same_lambda(trace):
    *args, log_ratio = arrays(trace, *VTRACE_ARGS)
    targets, _ = returns.vtrace(*args, jnp.zeros_like(log_ratio), GAMMA, LAMBDA)
    np.testing.assert_allclose(targets, returns.gae(*args, GAMMA, LAMBDA)[1], atol=2e-6)


def test_log_ratio_is_clipped(trace):
    *args, log_ratio = arrays(trace, *VTRACE_ARGS)
    far = returns.vtrace(*args, log_ratio * 1e4, GAMMA, rho_bar=1e9, c_bar=1e9)
    near = returns.vtrace(*args, jnp.sign(log_ratio) * 10, GAMMA, rho_bar=1e9, c_bar=1e9)
    for a, b in zip(far, near, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def test_terminated_ignores_the_value_and_truncated_uses_it():
    one, yes, no = jnp.ones(1), jnp.ones(1, bool), jnp.zeros(1, bool)
    assert returns.gae(one, 0 * one, 5 * one, yes, yes, 0.5, 1.0)[1][0] == 1.0
    assert returns.gae(one, 0 * one, 5 * one, no, yes, 0.5, 1.0)[1][0] == 3.5


@pytest.mark.parametrize("name", ["gae", "lambda_returns", "vtrace"])
@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_one_trace_of_two_episodes_is_two_traces(trace, name, how):
    names = {"gae": GAE_ARGS, "lambda_returns": LAMBDA_ARGS, "vtrace": VTRACE_ARGS}[name]
    cut = {k: v.copy() for k, v in trace.items()}
    cut["terminated"][5], cut["done"][5] = how == "terminated", True
    args = arrays(cut, *names)
    extra = (GAMMA,) if name == "vtrace" else (GAMMA, LAMBDA)
    f = getattr(returns, name)
    whole, first, second = (f(*part, *extra) for part in (args, [a[:6] for a in args], [a[6:] for a in args]))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, joined)


@pytest.mark.parametrize("name", ["gae", "lambda_returns", "vtrace"])
def test_batched_is_lane_by_lane_jitted_or_not(trace, name):
    names = {"gae": GAE_ARGS, "lambda_returns": LAMBDA_ARGS, "vtrace": VTRACE_ARGS}[name]
    args = arrays(trace, *names)
    f = lambda *a: getattr(returns, name)(*a, GAMMA, LAMBDA)  # noqa: E731
    batched = f(*args)
    for other in (jax.jit(f)(*args), jax.vmap(f, in_axes=1, out_axes=1)(*args)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), batched, other)


def test_next_values(trace):
    actual = returns.next_values(*arrays(trace, "v_tm1", "v_last", "done", "v_final"))
    np.testing.assert_allclose(actual, trace["v_t"].astype(np.float32))


def test_compute_gae_agrees_with_gae(trace):
    expected = returns.gae(*arrays(trace, *GAE_ARGS), GAMMA, LAMBDA)
    actual = returns.compute_gae(
        trace["r_t"],
        trace["v_tm1"],
        trace["done"],
        GAMMA,
        LAMBDA,
        trace["v_last"],
        truncated=trace["done"] & ~trace["terminated"],
        final_values=trace["v_final"],
    )
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_compute_gae_by_hand():
    # delta = [1 + .5*2 - 1, 1 - 2] = [1, -1]; A_1 = -1; A_0 = 1 + .5*.5*(-1).
    advantages, value_targets = returns.compute_gae([1.0, 1.0], [1.0, 2.0], [False, True], 0.5, 0.5, last_value=100.0)
    np.testing.assert_allclose(advantages, [0.75, -1.0])
    np.testing.assert_allclose(value_targets, [1.75, 1.0])


def test_compute_vtrace_targets_agrees_with_vtrace(trace):
    lane, done = 1, trace["done"][:, 1]
    values = np.append(trace["v_tm1"][:, lane], trace["v_last"][lane])
    cut = {k: v[:, lane] if v.ndim > 1 else v for k, v in trace.items()} | {"terminated": done, "v_t": values[1:]}
    expected = returns.vtrace(*arrays(cut, *VTRACE_ARGS), GAMMA, rho_bar=1.5, c_bar=0.9)
    actual = returns.compute_vtrace_targets(
        cut["r_t"], values, np.zeros(T), cut["log_ratio"], done, GAMMA, rho_bar=1.5, c_bar=0.9
    )
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_host_faces_name_the_wrong_shape():
    with pytest.raises(ValueError, match=r"values must have the shape of rewards \[2\], got \[3\]"):
        returns.compute_gae([1.0, 1.0], [1.0, 1.0, 1.0], [0, 0])
    with pytest.raises(ValueError, match="one row more than rewards"):
        returns.compute_vtrace_targets([1.0], [1.0], [0.0], [0.0], [0])
    with pytest.raises(ValueError, match="final_values"):
        returns.compute_gae([1.0], [1.0], [1], truncated=[1])
    with pytest.raises(ValueError, match="n >= 1"):
        returns.n_step_returns(jnp.ones(2), jnp.ones(2), jnp.zeros(2, bool), jnp.zeros(2, bool), 0.9, 0)


@pytest.mark.parametrize("shuffle", [True, False])
def test_minibatches_hold_every_row_once_and_together(shuffle):
    data = {"a": np.arange(10), "b": np.arange(10)[:, None] * 2}
    batches = list(returns.make_minibatches(data, 4, shuffle, rng=np.random.default_rng(0)))
    assert [len(batch["a"]) for batch in batches] == [4, 4, 2]
    rows = np.concatenate([batch["a"] for batch in batches])
    assert (list(rows) == list(range(10))) == (not shuffle)
    assert sorted(rows) == list(range(10))
    assert all((batch["b"][:, 0] == 2 * batch["a"]).all() for batch in batches)


def test_minibatches_refuse_bad_input_at_the_call():
    with pytest.raises(ValueError, match="one length"):
        returns.make_minibatches({"a": np.arange(3), "b": np.arange(4)}, 2)
    with pytest.raises(ValueError, match="at least 1"):
        returns.make_minibatches({"a": np.arange(3)}, 0)


def test_the_older_module_path_works():
    from tensor_optix.core.trajectory_buffer import compute_gae, make_minibatches

    assert compute_gae is returns.compute_gae
    assert make_minibatches is returns.make_minibatches
