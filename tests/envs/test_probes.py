"""Each rung does what it says: legal, learnable, and with the values that its docstring states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.envs import probes
from tensor_optix.envs.checker import check_environment

BEST = {
    "SignalAction": lambda obs: (obs[:, 0] > 0).astype(jnp.int32),
    "MatchNumber": lambda obs: obs[:, :1] / 2.0,  # 2 * observation, in units of the bound 4
}
ANY = lambda obs: jnp.ones(obs.shape[0], jnp.int32)  # noqa: E731


@pytest.mark.parametrize("rung", probes.LADDER)
def test_the_contract_is_followed(rung):
    assert [p for p in check_environment(rung(), steps=20) if p.level == "error"] == []


@pytest.mark.parametrize("rung", probes.LADDER)
def test_the_stated_return_is_reached(rung):
    policy = BEST.get(rung.__name__, ANY)
    stats = envs.evaluate(envs.make(rung), lambda obs, key: policy(obs), jax.random.key(0), 256, 20)
    assert stats.completed.all()
    # Signals are coin flips: a mean of 256 within 5 standard errors, false alarm 6e-7.
    tolerance = 5 / 16 if rung is probes.SignalValue else 1e-6
    np.testing.assert_allclose(stats.returns.mean(), rung.optimal_return, atol=tolerance)


def test_time_limit_truncates_and_ending_terminates():
    for rung, terminates in ((probes.TimeLimit, False), (probes.Ending, True)):
        env = envs.make(rung)
        state, _ = env.reset(jax.random.key(0), 1)
        for _ in range(5):
            state, out = env.step(jax.random.key(1), state, jnp.zeros(1, jnp.int32))
        assert out.terminated[0] == terminates
        assert out.truncated[0] == (not terminates)


def test_the_first_action_decides_delayed_credit():
    env = envs.make(probes.DelayedCredit)
    for first in (0, 1):
        state, _ = env.reset(jax.random.key(0), 1)
        rewards = []
        for t in range(5):
            state, out = env.step(jax.random.key(1), state, jnp.int32([first if t == 0 else 1 - first]))
            rewards.append(float(out.reward[0]))
        assert rewards == [0.0, 0.0, 0.0, 0.0, 2.0 * first - 1.0]


def test_wrong_policies_fail():
    for rung, policy, expected in (
        (probes.BestAction, lambda obs: jnp.zeros(64, jnp.int32), -1.0),
        (probes.SignalAction, lambda obs: (obs[:, 0] < 0).astype(jnp.int32), -1.0),
        (probes.MatchNumber, lambda obs: -obs[:, :1] / 2.0, -4.0),
    ):
        stats = envs.evaluate(envs.make(rung), lambda obs, key, p=policy: p(obs), jax.random.key(0), 64, 5)
        np.testing.assert_allclose(stats.returns, expected)
