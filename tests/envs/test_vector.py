"""Stepping N environments: the same as gymnax up to the first end, an exact reset after it, lanes apart."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tensor_optix import envs
from tensor_optix.envs.spaces import Box, Dict, Discrete, Tuple, action_spec, to_array
from tensor_optix.loop.runtime import compile_program


def rollout(env, key, n, steps):
    """States, outputs and actions of a random rollout, time first."""

    # Not a scan over split keys: the key-reuse checker (jax 0.10.2) takes those under vmap for consumed.
    def one(state, t):
        key_action, key_step = jax.random.split(jax.random.fold_in(key_steps, t))
        action = env.sample_action(key_action, n)
        after, out = env.step(key_step, state, action)
        return after, (state.env, out, action)

    key_reset, key_steps = jax.random.split(key)
    state, _ = env.reset(key_reset, n)
    return jax.lax.scan(one, state, jnp.arange(steps))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "MountainCar-v0"])
def test_same_transitions_as_gymnax_until_the_first_reset(env_id):
    env = envs.make(env_id)
    _, (states, out, actions) = jax.jit(lambda key: rollout(env, key, 3, 220))(jax.random.key(0))
    peer, params = gymnax.make(env_id)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        played = actions * 2.0 if env_id == "Pendulum-v1" else actions  # [-1, 1] to the torque's bounds
        # From every state that we were in, gymnax's own auto-resetting step; its keys matter only to its resets.
        step = jax.jit(jax.vmap(jax.vmap(lambda s, a: peer.step(jax.random.key(9), s, a, params))))
        obs, _, reward, terminated, truncated, info = step(states, played)
    np.testing.assert_allclose(out.final_obs, info["final_observation"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.reward, reward, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out.terminated, terminated)
    np.testing.assert_array_equal(out.truncated, truncated & ~terminated)
    done = np.asarray(out.done)
    assert done.any()
    np.testing.assert_allclose(np.asarray(out.obs)[~done], np.asarray(obs)[~done], rtol=1e-5, atol=1e-5)
    assert (np.asarray(out.obs)[done] != np.asarray(out.final_obs)[done]).any(axis=-1).all()


def test_the_compiler_takes_a_game_with_many_comparisons():
    """With kernels of several results, one of XLA's options for the CPU, it aborted the process here (jax 0.10.2)."""
    env = envs.make("SpaceInvaders-MinAtar")
    key = jax.random.key(0)
    compiled = compile_program(jax.jit(lambda key: rollout(env, key, 16, 8)).lower(key), "cpu")
    state, _ = compiled(key)
    assert np.isfinite(state.episode_return).all()


def test_fresh_episodes_are_drawn_as_gymnax_draws_them():
    # Kolmogorov-Smirnov against uniform(-0.05, 0.05), all four components: false alarm below 4e-4, fixed seed.
    from scipy.stats import kstest

    env = envs.make("CartPole-v1")
    _, (_, out, _) = jax.jit(lambda key: rollout(env, key, 64, 200))(jax.random.key(1))
    fresh = np.asarray(out.obs)[np.asarray(out.done)]
    assert len(fresh) > 300
    assert min(kstest(column, "uniform", (-0.05, 0.1)).pvalue for column in fresh.T) > 1e-4
    assert len(np.unique(fresh, axis=0)) == len(fresh)


@struct.dataclass
class CountState:
    """Counts down from a drawn start; the id shows which draw a lane got."""

    left: jax.Array
    draw: jax.Array


class Countdown:
    """Terminates when the count reaches zero; truncates at the same time if asked to."""

    default_params = None

    def __init__(self, both=False, longest=6):
        self.both, self.longest = both, longest

    def reset_env(self, key, params):
        key_left, key_draw = jax.random.split(key)
        left = jax.random.randint(key_left, (), 1, self.longest)
        state = CountState(left, jax.random.uniform(key_draw))
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        state = state.replace(left=state.left - 1)
        return self.observe(state), state, jnp.float32(1.0), state.left <= 0, {}

    def observe(self, state):
        return jnp.stack([state.left.astype(jnp.float32), state.draw])

    def is_truncated(self, state, params):
        return (state.left <= 0) & self.both

    def observation_space(self, params):
        return Box(0.0, 6.0, (2,))

    def action_space(self, params):
        return Discrete(2)


def with_ended(env, n, ended):
    """A state of which exactly the lanes in `ended` end at the next step."""
    state, _ = env.reset(jax.random.key(3), n)
    left = jnp.where(jnp.asarray(ended), 1, 5).astype(jnp.int32)
    return state.replace(env=state.env.replace(left=left))


@pytest.mark.parametrize("n", [1, 3, 16])
def test_exactly_the_ended_lanes_are_reset(n):
    env, key = envs.make(Countdown()), jax.random.key(5)
    step = jax.jit(lambda state: env.step(key, state, jnp.zeros(n, jnp.int32)))
    all_fresh, all_out = step(with_ended(env, n, np.ones(n, bool)))
    assert len(np.unique(all_fresh.env.draw)) == n
    rng = np.random.default_rng(n)
    for ended in (np.zeros(n, bool), rng.random(n) < 0.2, rng.random(n) < 0.5, rng.random(n) < 0.9):
        state = with_ended(env, n, ended)
        after, out = step(state)
        np.testing.assert_array_equal(out.terminated, ended)
        # A lane's draw depends on the key and its index only, not on which others ended.
        np.testing.assert_array_equal(after.env.left, np.where(ended, all_fresh.env.left, 4))
        np.testing.assert_array_equal(after.env.draw, np.where(ended, all_fresh.env.draw, state.env.draw))
        np.testing.assert_array_equal(out.obs, np.where(ended[:, None], all_out.obs, out.final_obs))


def test_members_do_not_touch_each_other():
    env = envs.make(Countdown())
    n = 16
    keys = jax.random.split(jax.random.key(0), 4)
    member = lambda key: rollout(env, key, n, 40)[1][1]  # noqa: E731
    together, run = jax.jit(jax.vmap(member))(keys), jax.jit(member)
    for index, key in enumerate(keys):
        alone = run(key)
        jax.tree.map(lambda a, b, m=index: np.testing.assert_array_equal(a[m], b), together, alone)


@pytest.mark.slow
def test_jit_changes_nothing():
    env = envs.make(Countdown())
    state = with_ended(env, 4, [True, False, True, False])
    args = (jax.random.key(1), state, jnp.zeros(4, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, env.step(*args), jax.jit(env.step)(*args))


def test_terminated_wins_over_truncated():
    env = envs.make(Countdown(both=True))
    _, out = env.step(jax.random.key(1), with_ended(env, 2, [True, False]), jnp.zeros(2, jnp.int32))
    assert out.terminated.tolist() == [True, False]
    assert out.truncated.tolist() == [False, False]


def test_episode_sums_are_those_of_the_rewards():
    env = envs.make(Countdown())
    state, (_, out, _) = jax.jit(lambda key: rollout(env, key, 5, 30))(jax.random.key(2))
    state, sums = env.drain(state)
    reward, done = np.asarray(out.reward), np.asarray(out.done)
    last_end = [np.flatnonzero(done[:, lane]).max() for lane in range(5)]
    assert sums.return_sum == sum(reward[: end + 1, lane].sum() for lane, end in enumerate(last_end))
    assert sums.length_sum == sum(end + 1 for end in last_end)
    assert sums.episodes == done.sum()
    np.testing.assert_array_equal(state.episode_length, [30 - end - 1 for end in last_end])
    assert env.drain(state)[1].episodes == 0


def test_types_do_not_waver_between_reset_and_step():
    env = envs.make("CartPole-v1")  # its time is a Python integer
    state, obs = env.reset(jax.random.key(0), 2)
    after, out = env.step(jax.random.key(1), state, jnp.zeros(2, jnp.int32))
    types = lambda tree: [(x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]  # noqa: E731
    assert types(state) == types(after)
    assert not any(weak for _, weak in types((state, obs, out)))
    assert out.reward.dtype == jnp.float32
    assert out.terminated.dtype == out.truncated.dtype == bool


class Wandering(Countdown):
    def step_env(self, key, state, action, params):
        return *super().step_env(key, state, action, params)[:1], state.replace(draw=jnp.int32(0)), 1.0, False, {}


def test_a_state_that_changes_its_type_is_named():
    env = envs.make(Wandering())
    state, _ = env.reset(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"state\.draw is float32\[\] after reset and int32\[\] after step"):
        env.step(jax.random.key(1), state, jnp.zeros(2, jnp.int32))


class SelfResetting(Countdown):
    """Starts new episodes itself, always at the count of 3."""

    def reset(self, key, params):
        return self.reset_env(key, params)

    def step(self, key, state, action, params):
        obs, after, reward, terminated, _ = self.step_env(key, state, action, params)
        fresh = CountState(jnp.int32(3), jnp.float32(0.5))
        state = jax.tree.map(lambda a, b: jnp.where(terminated, a, b), fresh, after)
        return self.observe(state), state, reward, terminated, False, {"final_observation": obs}


class Forwarding:
    """A wrapper as people write them: overrides one method, forwards the rest."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)

    def step(self, key, state, action, params):
        obs, state, reward, *rest = self.env.step(key, state, action, params)
        return obs, state, reward * 10.0, *rest


@pytest.mark.parametrize(("env", "reward"), [(SelfResetting(), 1.0), (Forwarding(SelfResetting()), 10.0)])
def test_a_step_of_ones_own_is_used(env, reward):
    env = envs.make(env)
    state = with_ended(env, 2, [True, False])
    after, out = jax.jit(env.step)(jax.random.key(0), state, jnp.zeros(2, jnp.int32))
    assert after.env.left.tolist() == [3, 4]
    assert out.obs[:, 0].tolist() == [3.0, 4.0]
    assert out.final_obs[:, 0].tolist() == [0.0, 4.0]
    assert out.reward.tolist() == [reward, reward]


def test_equal_descriptions_share_one_compilation():
    traces = []

    def run(env, key):
        traces.append(env.name)
        return env.reset(key, 2)[1]

    jitted = jax.jit(run, static_argnums=0)
    one, two = envs.make("CartPole-v1"), envs.make("CartPole-v1")
    assert one == two
    for env in (one, two):
        jitted(env, jax.random.key(0))
    shorter = envs.make("CartPole-v1", one.params.replace(max_steps_in_episode=10))
    assert shorter != one
    assert shorter.max_episode_steps == 10
    jitted(shorter, jax.random.key(0))
    assert traces == ["CartPole-v1", "CartPole-v1"]
    mine = Countdown()
    assert envs.make(mine) == envs.make(mine)
    assert envs.make(mine) != envs.make(Countdown())
    assert envs.make(Countdown) == envs.make(Countdown)
    assert envs.make(Countdown, longest=9) != envs.make(Countdown)


def test_wrong_number_of_environments():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        envs.make(Countdown()).reset(jax.random.key(0), 0)


def test_actions_are_scaled_to_their_bounds():
    spec = action_spec(Box((-2.0, 0.0, -jnp.inf), (2.0, 10.0, jnp.inf), (3,)))
    np.testing.assert_allclose(spec.to_env(jnp.float32([-1.0, -1.0, -7.0])), [-2.0, 0.0, -7.0])
    np.testing.assert_allclose(spec.to_env(jnp.float32([0.5, 0.0, 0.25])), [1.0, 5.0, 0.25])
    np.testing.assert_allclose(spec.to_env(jnp.float32([9.0, 9.0, 9.0])), [2.0, 10.0, 9.0])
    grid = action_spec(Box(-1.0, 1.0, (2, 2)))
    assert grid.n == 4
    assert grid.to_env(jnp.zeros(4)).shape == (2, 2)


def test_unsupported_action_spaces_are_named():
    import gymnasium.spaces as gym

    assert action_spec(gym.Discrete(3, start=2)).to_env(jnp.int32(1)) == 3
    assert action_spec(gym.Box(-1.0, 3.0, (2,))).center == (1.0, 1.0)
    for space in (Tuple((Discrete(2),)), Box(0, 3, (1,), jnp.int32)):
        with pytest.raises(ValueError, match="expected Discrete, MultiDiscrete, MultiBinary or a floating point Box"):
            action_spec(space)
    with pytest.raises(ValueError, match="every low must be below its high"):
        action_spec(Box(1.0, 1.0, (1,)))


def test_observations_become_one_array():
    image = jnp.zeros((4, 4, 3), jnp.uint8)
    assert to_array(image, Box(0, 255, (4, 4, 3), jnp.uint8)).dtype == jnp.uint8
    assert to_array(jnp.ones((2, 3), jnp.int32), Box(0, 9, (2, 3))).shape == (6,)
    assert to_array(jnp.float32(3.0), Box(0, 9, ())).tolist() == [3.0]
    assert to_array(jnp.int32(2), Discrete(4)).tolist() == [0.0, 0.0, 1.0, 0.0]
    space = Dict({"b": Box(0, 9, (2,)), "a": Tuple((Discrete(2), Box(0, 9, (1, 1))))})
    obs = {"a": (jnp.int32(1), jnp.full((1, 1), 7.0)), "b": jnp.float32([5.0, 6.0])}
    assert to_array(obs, space).tolist() == [5.0, 6.0, 0.0, 1.0, 7.0]


def test_properties_name_the_right_one():
    env = envs.make("Pendulum-v1")
    assert (env.action_kind, env.action_dim, env.obs_shape, env.max_episode_steps) == ("continuous", 1, (3,), 200)
    with pytest.raises(ValueError, match="use action_dim"):
        _ = env.n_actions
    with pytest.raises(ValueError, match="use n_actions"):
        _ = envs.make("CartPole-v1").action_dim
