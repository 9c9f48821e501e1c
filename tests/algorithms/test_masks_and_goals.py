"""Actions that are not allowed are never taken, and goals of the past are learned from, by every algorithm they fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.algorithms import registry
from tensor_optix.core import action_mask
from tensor_optix.core.replay import Transitions
from tensor_optix.envs.goal_tasks import BitFlip, PointReach
from tensor_optix.envs.probes import Probe
from tensor_optix.envs.spaces import Box, Dict, Discrete
from tests.laws.test_algorithms import OFF_POLICY, SMALL, hyper_of

N_ACTIONS = 5
DISCRETE = [name for name in registry.names() if "discrete" in registry.get(name).action_kinds]
OFF = [name for name in registry.names() if not registry.get(name).is_on_policy]


class Minefield(Probe):
    """Two of 5 actions are allowed, others ones at every step; any other brings NaN. The higher one of the two pays."""

    length = 4

    def observation_space(self, params):
        return Dict({"noise": Box(-1.0, 1.0, (1,)), "action_mask": Box(0.0, 1.0, (N_ACTIONS,))})

    def action_space(self, params):
        return Discrete(N_ACTIONS)

    def draw(self, key):
        return jax.random.uniform(key)

    def mask(self, state):
        first = (10.0 * state.signal).astype(jnp.int32) + state.time
        return jnp.zeros(N_ACTIONS).at[first % N_ACTIONS].set(1.0).at[(first + 2) % N_ACTIONS].set(1.0)

    def observe(self, state):
        return {"noise": state.signal[None], "action_mask": self.mask(state)}

    def reward(self, state, action):
        mask = self.mask(state)
        best = N_ACTIONS - 1 - jnp.argmax(mask[::-1])
        return jnp.where(mask[action] > 0, (action == best).astype(jnp.float32), jnp.nan)


def mines(name, **settings):
    cls = registry.get(name)
    settings = {**SMALL[name], **settings}
    return cls(envs.make(Minefield), cls.config_type(**settings))


@functools.cache
def run(algorithm, windows):
    def program(key):
        key_init, key_windows = jax.random.split(key)
        hyper = hyper_of(algorithm)
        learner = algorithm.init(key_init, hyper)
        step = lambda learner, key: algorithm.window(learner, hyper, key)  # noqa: E731
        return jax.lax.scan(step, learner, jax.random.split(key_windows, windows))

    return jax.jit(program)(jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(pytest.param(name, {}, marks=() if name == "dqn" else pytest.mark.slow) for name in DISCRETE),
        ("ppo", {"normalize_observations": True}),
        pytest.param("recurrent_ppo", {"normalize_observations": True}, marks=pytest.mark.slow),
        pytest.param("rainbow", {"noisy": False}, marks=pytest.mark.slow),
    ],
)
def test_no_action_is_taken_that_is_not_allowed(name, change):
    algorithm = mines(name, **change)
    learner, stats = run(algorithm, 6)
    assert stats.finite.all(), "an action was taken that was not allowed"
    state, obs = algorithm.env.reset(jax.random.key(1), 64)
    del state
    policy, carry = algorithm.policy(learner), algorithm.initial_carry()
    allowed = np.asarray(algorithm.env.action_mask(obs))
    for deterministic in (True, False):
        act = jax.jit(lambda policy, obs, key, d=deterministic: algorithm.act(policy, obs, carry, key, d)[0])
        action = np.asarray(act(policy, obs, jax.random.key(2)))
        assert np.take_along_axis(allowed, action[:, None], axis=1).all()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", ["dqn", "rainbow"])
def test_targets_are_of_allowed_actions(name, double):
    """An action that is not allowed and looks far better than all others does not change them."""
    plain = {"distributional": False, "noisy": False, "prioritized": False} if name == "rainbow" else {}
    algorithm = mines(name, double=double, n_step=1, **plain)
    hyper = hyper_of(algorithm)
    agent = algorithm.init_agent(jax.random.key(0), hyper)
    _, obs = algorithm.env.reset(jax.random.key(1), 8)
    mask = np.asarray(algorithm.env.action_mask(obs))
    tempting = jnp.where(mask, jnp.float32(0.0), jnp.float32(50.0))

    def targets(extra):
        with pytest.MonkeyPatch.context() as patch:
            apply = algorithm._network.apply
            shape = (8, N_ACTIONS, 1) if name == "rainbow" else (8, N_ACTIONS)
            patch.setattr(algorithm._network, "apply", lambda *inputs: apply(*inputs) + extra.reshape(shape))
            zeros, ones = jnp.zeros(8), jnp.ones(8)
            batch = Transitions(obs, jnp.zeros(8, jnp.int32), zeros, ones, obs, ones)
            if name == "dqn":
                return np.asarray(algorithm.targets(agent, batch))
            return np.asarray(algorithm._target(agent, batch, None, None, hyper))

    np.testing.assert_array_equal(targets(tempting), targets(jnp.zeros_like(tempting)))
    assert not np.array_equal(targets(-tempting + 50.0), targets(jnp.zeros_like(tempting)))


def test_values_of_actions_that_are_not_allowed():
    algorithm = mines("dqn", double=False)
    agent = algorithm.init_agent(jax.random.key(0), hyper_of(algorithm))
    _, obs = algorithm.env.reset(jax.random.key(1), 8)
    values = algorithm.values(agent.online.params, obs)
    allowed = np.asarray(algorithm.env.action_mask(obs))
    np.testing.assert_array_equal(np.asarray(values)[~allowed], action_mask.NEVER)
    assert (np.abs(np.asarray(values)[allowed]) < 100).all()


GOAL_ENVS = {"discrete": BitFlip, "continuous": PointReach}


def with_goals(name, **settings):
    cls = registry.get(name)
    base = SMALL[name] | {"n_step": 1}
    return cls(envs.make(GOAL_ENVS[cls.action_kinds[0]]), cls.config_type(**(base | settings)))


@pytest.mark.slow
@pytest.mark.parametrize("name", OFF)
def test_hindsight_is_on_where_there_are_goals_and_matters(name):
    algorithm, plain = with_goals(name), with_goals(name, hindsight="off")
    assert "hindsight_share" in algorithm.hyperparams()
    assert "hindsight_share" not in plain.hyperparams()
    learner, stats = run(algorithm, 2)
    assert stats.finite.all()
    assert learner.goals.achieved.shape == (*learner.replay.end.shape, algorithm.env.goals.size)
    other, _ = run(plain, 2)
    assert other.goals == ()
    same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (learner.params, other.params)), strict=True)]
    assert not all(same)
    assert algorithm.replay_bytes() > plain.replay_bytes()


def test_what_is_learned_from_is_relabelled_with_goals_that_were_reached():
    algorithm = with_goals("dqn", batch_size=64, replay_size=200)
    learner, _ = run(algorithm, 4)

    class Read(Exception):
        pass

    def update(self, agent, batch, *_):
        raise Read(batch)

    spy = type("Spied", (type(algorithm),), {"update": update})(algorithm.env, algorithm.config)
    hyper = hyper_of(algorithm, hindsight_share=1.0)
    drawn, noise, key = jax.random.bits(jax.random.key(0), (64,), jnp.uint32), (), jax.random.key(1)
    with pytest.raises(Read) as caught:
        spy._update(learner, hyper, (learner.agent, (), (), learner.updates, {}), (drawn, noise, key))
    (batch,), goals = caught.value.args, algorithm.env.goals
    desired = np.asarray(batch.obs[:, slice(*goals.desired)])
    np.testing.assert_array_equal(desired, batch.next_obs[:, slice(*goals.desired)])
    reached = (np.asarray(goals.reached(batch.next_obs)) == desired).all(axis=1)
    going = np.asarray(batch.discount) > 0  # elsewhere the next observation is of another episode
    np.testing.assert_array_equal(batch.reward[going], np.where(reached, 0.0, -1.0)[going])
    assert not reached[going].any(), "reaching a goal ends the task"
    np.testing.assert_array_equal(batch.reward[~going], 0.0)
    assert (~going).any()


def test_hindsight_that_cannot_be_is_refused():
    cls = registry.get("dqn")
    with pytest.raises(ValueError, match="needs an environment with goals, and CartPole-v1 has none"):
        cls(envs.make("CartPole-v1"), cls.config_type(**OFF_POLICY | {"n_step": 1, "hindsight": "future"}))
    with pytest.raises(ValueError, match="hindsight relabels single steps, got n_step=2"):
        cls.config_type(**OFF_POLICY | {"hindsight": "final"})
    with pytest.raises(ValueError, match="Unknown HER strategy 'past'"):
        cls.config_type(**OFF_POLICY | {"n_step": 1, "hindsight": "past"})
    assert "hindsight_share" not in cls(envs.make(BitFlip), cls.config_type(**OFF_POLICY)).hyperparams()
