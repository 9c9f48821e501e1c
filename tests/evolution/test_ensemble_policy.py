"""Several policies as one inside the compiled program, against NumPy."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.evolution.ensemble_policy import Ensemble, EnsembleParams
from tensor_optix.policy import Policy

CARTPOLE, PENDULUM = envs.make("CartPole-v1"), envs.make("Pendulum-v1")


@dataclass(frozen=True)
class Told:
    """Acts as its parameters say, [B] or [B, D] the same for every row; counts its calls in its memory."""

    env: object
    name: str = "told"

    def initial_carry(self):
        return jnp.int32(0)

    def act(self, policy, obs, carry, key, deterministic):
        batch = obs.shape[: obs.ndim - len(self.env.obs_shape)]
        action = policy if deterministic else policy + 0 * jax.random.bits(key).astype(policy.dtype)
        return jnp.broadcast_to(action, (*batch, *policy.shape)), carry + 1


def acts(env, members, weights, batch=(), deterministic=True, key=0):
    ensemble = Ensemble(Told(env), len(members))
    params = EnsembleParams(jnp.asarray(members), jnp.asarray(weights, jnp.float32))
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (*batch, *x.shape)), ensemble.initial_carry())
    obs = jnp.zeros((*batch, *env.obs_shape))
    return ensemble.act(params, obs, carry, jax.random.key(key), deterministic)


@pytest.mark.parametrize("batch", [(), (5,)])
@pytest.mark.parametrize(
    ("members", "weights", "chosen"),
    [([0, 1, 1], [1.0, 1.0, 1.0], 1), ([0, 1, 1], [3.0, 1.0, 1.0], 0), ([1, 0], [1.0, 1.0], 0), ([1], [2.0], 1)],
)
def test_choices_are_voted_on_by_weight(members, weights, chosen, batch):
    action, carry = acts(CARTPOLE, np.asarray(members, np.int32), weights, batch)
    np.testing.assert_array_equal(action, np.full(batch, chosen))
    assert action.dtype == jnp.int32
    np.testing.assert_array_equal(carry, np.ones((*batch, len(members))))


@pytest.mark.parametrize("batch", [(), (5,)])
def test_continuous_actions_are_averaged_by_weight(batch):
    action, _ = acts(PENDULUM, np.asarray([[0.5], [-1.0]], np.float32), [3.0, 1.0], batch)
    np.testing.assert_allclose(action, np.full((*batch, 1), 0.125), rtol=1e-6)


def test_sampled_choices_follow_the_weights():
    action, _ = acts(CARTPOLE, np.asarray([0, 1], np.int32), [1.0, 3.0], (4000,), deterministic=False)
    # 0.75 within four standard errors of a binomial share
    assert abs(float(action.mean()) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)


def test_who_weighs_nothing_has_no_say():
    action, _ = acts(CARTPOLE, np.asarray([0, 1], np.int32), [0.0, 1.0], (500,), deterministic=False)
    assert (action == 1).all()
    action, _ = acts(PENDULUM, np.asarray([[0.5], [-1.0]], np.float32), [0.0, 1.0])
    np.testing.assert_allclose(action, [-1.0])


def test_it_is_a_policy_like_any_other():
    params = EnsembleParams(np.asarray([0, 1, 1], np.int32), np.ones(3, np.float32))
    policy = Policy(Ensemble(Told(CARTPOLE), 3), params)
    assert policy(np.zeros(4)) == 1
    np.testing.assert_array_equal(policy.arrays()["weights"], np.ones(3))
    policy.reset()
    np.testing.assert_array_equal(policy(np.zeros((2, 4)), key=jax.random.key(0)).shape, (2,))
