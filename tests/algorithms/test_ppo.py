"""PPO's window: what is collected, what is learned from it, and what it refuses."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.algorithms.ppo import HYPERPARAMS, LIMITS, PPO, PPOConfig, Rollout
from tensor_optix.config import ConfigError, RunConfig
from tensor_optix.core.normalizers import Moments
from tensor_optix.envs import probes
from tensor_optix.envs.spaces import Box, Discrete
from tensor_optix.plan import make_plan
from tests.runs import assert_same_bits

SMALL = {"n_envs": 4, "n_steps": 16, "n_epochs": 1, "n_minibatches": 1, "hidden_sizes": (8,)}


@functools.cache
def ppo(env, **settings):
    return PPO(envs.make(env), PPOConfig(**{**SMALL, **settings}))


def hyper_of(algorithm, **changes):
    return {name: jnp.float32(value) for name, value in {**algorithm.hyperparams(), **changes}.items()}


@functools.cache
def jitted(algorithm, method):
    return jax.jit(getattr(algorithm, method))


def start(algorithm, seed=0):
    return jitted(algorithm, "init")(jax.random.key(seed), hyper_of(algorithm))


def with_bold_policy(learner):
    """Fresh policies are almost uniform, which hides mistakes in what they are asked."""
    actor = dict(learner.params["actor"])
    actor["head"] = jax.tree.map(lambda x: x * 100.0, actor["head"])
    return learner.replace(params={**learner.params, "actor": actor})


def with_constant_value(learner, value):
    critic = dict(learner.params["critic"])
    head = critic["head"]
    critic["head"] = {"kernel": jnp.zeros_like(head["kernel"]), "bias": jnp.full_like(head["bias"], value)}
    return learner.replace(params={**learner.params, "critic": critic})


def collecting_keys(algorithm, key):
    """What `_collect` draws from: a key for the actions and one for each step."""
    return jax.random.split(key, 1 + algorithm.config.n_steps)


def collect_and_batch(algorithm, learner, key, hyper):
    """What `window` learns from, and the rollout it comes from."""
    _, obs, rollout, _ = algorithm._collect(learner, collecting_keys(algorithm, key))
    return rollout, algorithm._batch(learner, rollout, rollout.reward, obs, hyper)


MOMENTS = {
    "CartPole-v1": Moments(jnp.float32([0.3, -0.2, 0.01, 0.1]), jnp.float32([0.1, 2.0, 0.01, 3.0]), jnp.float32(99)),
    "Pendulum-v1": Moments(jnp.float32([0.5, -0.5, 1.0]), jnp.float32([0.2, 0.4, 9.0]), jnp.float32(99)),
}


@pytest.fixture(scope="module", params=MOMENTS)
def collected(request):
    algorithm = ppo(request.param, normalize_observations=True)
    learner = with_bold_policy(start(algorithm)).replace(obs_moments=MOMENTS[request.param])
    run = jax.jit(functools.partial(collect_and_batch, algorithm))
    rollout, batch = run(learner, jax.random.key(1), hyper_of(algorithm))
    return algorithm, learner, rollout, batch


class TestActingIsLearning:
    def test_the_ratio_of_a_first_minibatch_is_one(self, collected):
        algorithm, learner, _, batch = collected
        dist = algorithm._distribution(learner.params["actor"], learner.params.get("log_std", ()), batch.obs)
        ratio = np.exp(np.asarray(dist.log_prob(batch.action), np.float64) - np.asarray(batch.log_prob, np.float64))
        assert np.std(batch.log_prob) > 0.1  # a bold policy
        np.testing.assert_allclose(ratio, 1.0, atol=1e-6)

    def test_rows_keep_time_and_environment_together(self, collected):
        _, _, rollout, batch = collected
        np.testing.assert_array_equal(batch.action, np.asarray(rollout.action).reshape(64, *rollout.action.shape[2:]))
        np.testing.assert_array_equal(batch.log_prob, np.asarray(rollout.log_prob).ravel())

    def test_observations_are_normalised_by_the_moments_that_acted(self, collected):
        algorithm, learner, rollout, batch = collected
        mean, var = (np.asarray(x, np.float64) for x in (learner.obs_moments.mean, learner.obs_moments.var))
        flat = np.asarray(rollout.obs, np.float64).reshape(64, -1)
        np.testing.assert_allclose(batch.obs, np.clip((flat - mean) / np.sqrt(var), -10, 10), rtol=1e-4, atol=1e-5)
        policy = algorithm.policy(learner)
        acting = algorithm.distribution(policy, rollout.obs.reshape(64, -1))
        raw = algorithm._distribution(policy.actor, policy.log_std, rollout.obs.reshape(64, -1))
        np.testing.assert_allclose(acting.log_prob(batch.action), batch.log_prob, atol=1e-5)
        assert np.abs(raw.log_prob(batch.action) - batch.log_prob).max() > 0.01

    def test_the_window_merges_its_raw_observations_afterwards(self):
        algorithm = ppo("CartPole-v1", normalize_observations=True)
        learner, hyper, key = start(algorithm), hyper_of(algorithm), jax.random.key(2)
        after, stats = jitted(algorithm, "window")(learner, hyper, key)
        keys = jax.random.split(jax.random.key(2), 2 + algorithm.config.n_steps)  # the first one shuffles
        _, _, rollout, _ = jitted(algorithm, "_collect")(learner, keys[1:])
        flat = np.asarray(rollout.obs, np.float64).reshape(64, -1)
        assert after.obs_moments.count == 64
        np.testing.assert_allclose(after.obs_moments.mean, flat.mean(0), atol=1e-5)
        np.testing.assert_allclose(after.obs_moments.var, flat.var(0), rtol=1e-3, atol=1e-6)
        # One epoch in one minibatch: the ratio is 1 all along, and the normalised advantages cancel.
        assert abs(stats.losses["approx_kl"]) < 1e-6
        assert abs(stats.losses["policy_loss"]) < 1e-5


# -- ends of episodes ----------------------------------------------------------------------------------------------


def reference_gae(critic, rewards, rollout, last_obs, gamma, lam):
    """Advantages and targets [T, N], one environment and one step at a time."""
    steps, n_envs = rewards.shape
    advantages, values = np.zeros((steps, n_envs)), np.zeros((steps, n_envs))
    for n in range(n_envs):
        ahead = 0.0
        for t in reversed(range(steps)):
            terminated, truncated = rollout.terminated[t, n], rollout.truncated[t, n]
            if truncated:
                following = critic(rollout.final_obs[t, n])
            else:
                following = critic(last_obs[n] if t == steps - 1 else rollout.obs[t + 1, n])
            if terminated or truncated:
                ahead = 0.0
            values[t, n] = critic(rollout.obs[t, n])
            delta = rewards[t, n] + (0.0 if terminated else gamma * following) - values[t, n]
            ahead = delta + gamma * lam * ahead
            advantages[t, n] = ahead
    return advantages, advantages + values


def numpy_critic(params, obs):
    x = np.asarray(obs, np.float64)
    for layer in params["hidden"].values():
        x = np.tanh(x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64))
    return float((x @ np.asarray(params["head"]["kernel"], np.float64))[0] + params["head"]["bias"][0])


def made_rollout(algorithm, terminated, truncated, rng):
    shape = terminated.shape
    normal = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
    size = algorithm.env.obs_shape
    return Rollout(
        obs=normal(*shape, *size),
        action=jnp.zeros(shape, jnp.int32),
        log_prob=normal(*shape),
        reward=normal(*shape),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        final_obs=normal(*shape, *size) * 3.0,
    )


def ends(kind, shape=(16, 4)):
    rng, none, every = np.random.default_rng(3), np.zeros(shape, bool), np.ones(shape, bool)
    lone, column, half, some = none.copy(), none.copy(), rng.random(shape) < 0.5, rng.random(shape) < 0.2
    lone[-1, -1] = True
    column[:, 1] = True
    return {
        "no end": (none, none),
        "all truncated": (none, every),
        "all terminated": (every, none),
        "the last row truncated": (none, lone),
        "the last row terminated": (lone, none),
        "one environment truncated all along": (none, column),
        "half truncated": (none, half),
        "mixed": (some, half & ~some),
    }[kind]


ENDS = (
    "no end",
    "all truncated",
    "all terminated",
    "the last row truncated",
    "the last row terminated",
    "one environment truncated all along",
    "half truncated",
    "mixed",
)


class TestEnds:
    @pytest.mark.parametrize("kind", ENDS)
    def test_truncation_bootstraps_from_the_final_observation_and_termination_does_not(self, kind):
        algorithm, rng = ppo("CartPole-v1"), np.random.default_rng(5)
        learner = start(algorithm)
        rollout = made_rollout(algorithm, *ends(kind), rng)
        last_obs = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
        hyper = hyper_of(algorithm, gamma=0.9, gae_lambda=0.8)
        batch = jitted(algorithm, "_batch")(learner, rollout, rollout.reward, last_obs, hyper)
        critic = functools.partial(numpy_critic, learner.params["critic"])
        rewards = np.asarray(rollout.reward, np.float64)
        advantages, targets = reference_gae(critic, rewards, rollout, last_obs, 0.9, 0.8)
        np.testing.assert_allclose(batch.advantage, advantages.ravel(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(batch.target, targets.ravel(), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", ENDS)
    def test_final_values_are_read_where_an_episode_was_truncated_only(self, kind):
        algorithm, learner = ppo("CartPole-v1"), start(ppo("CartPole-v1"))
        terminated, truncated = ends(kind)
        rollout = made_rollout(algorithm, terminated, truncated, np.random.default_rng(6))
        elsewhere = jnp.where(rollout.truncated[..., None], rollout.final_obs, jnp.float32(jnp.nan))
        got = jitted(algorithm, "_final_values")(learner, rollout._replace(final_obs=elsewhere))
        expected = [[numpy_critic(learner.params["critic"], o) for o in row] for row in rollout.final_obs]
        np.testing.assert_allclose(got, np.where(truncated, expected, 0.0), rtol=1e-4, atol=1e-5)

    def test_a_window_smaller_than_one_round_of_final_values(self):
        algorithm = ppo("CartPole-v1", n_envs=1, n_steps=2)
        learner, every = start(algorithm), np.ones((2, 1), bool)
        rollout = made_rollout(algorithm, ~every, every, np.random.default_rng(7))
        got = jitted(algorithm, "_final_values")(learner, rollout)
        expected = [[numpy_critic(learner.params["critic"], o) for o in row] for row in rollout.final_obs]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("rung", "at_the_end"), [(probes.TimeLimit, 1 + 0.9 * 7), (probes.Ending, 1.0)])
    def test_targets_of_a_collected_window(self, rung, at_the_end):
        """With lambda 0 and a critic that says 7 everywhere, targets are 1 + gamma 7, but 1 where the task ended."""
        algorithm = ppo(rung)
        learner = with_constant_value(start(algorithm), 7.0)
        hyper = hyper_of(algorithm, gamma=0.9, gae_lambda=0.0)
        rollout, batch = jax.jit(functools.partial(collect_and_batch, algorithm))(learner, jax.random.key(0), hyper)
        ended = np.zeros((16, 4), bool)
        ended[4::5] = True
        np.testing.assert_array_equal(rollout.terminated | rollout.truncated, ended)
        expected = np.where(ended, at_the_end, 1 + 0.9 * 7)
        np.testing.assert_allclose(batch.target, expected.ravel(), rtol=1e-5)


class TestWindows:
    def test_episodes_go_on_from_window_to_window(self):
        """Episodes of 5 steps in windows of 3: they end in the windows that hold steps 5, 10 and 15."""
        algorithm = ppo(probes.TimeLimit, n_steps=3)
        learner, hyper, ended, returns = start(algorithm), hyper_of(algorithm), [], []
        for key in jax.random.split(jax.random.key(0), 5):
            learner, stats = jitted(algorithm, "window")(learner, hyper, key)
            ended.append(int(stats.episodes))
            returns.append(float(stats.return_sum))
        assert ended == [0, 4, 0, 4, 4]
        assert returns == [0.0, 20.0, 0.0, 20.0, 20.0]
        assert learner.window == 5

    def test_the_next_window_acts_on_the_last_observation(self):
        algorithm = ppo("CartPole-v1")
        learner = start(algorithm)
        env_state, obs, first, _ = jitted(algorithm, "_collect")(learner, collecting_keys(algorithm, jax.random.key(1)))
        learner = learner.replace(env_state=env_state, obs=obs)
        *_, second, _ = jitted(algorithm, "_collect")(learner, collecting_keys(algorithm, jax.random.key(2)))
        np.testing.assert_array_equal(first.obs[0], start(algorithm).obs)
        np.testing.assert_array_equal(second.obs[0], obs)
        for t in range(15):
            done = np.asarray(first.terminated[t] | first.truncated[t])
            np.testing.assert_array_equal(np.asarray(first.obs[t + 1])[~done], np.asarray(first.final_obs[t])[~done])

    def test_annealing_falls_linearly_to_zero(self):
        algorithm = ppo("CartPole-v1", anneal_windows=4)
        hyper, learner = hyper_of(algorithm), start(algorithm)
        for window, left in ((0, 1.0), (1, 0.75), (3, 0.25), (4, 0.0), (9, 0.0)):
            got = algorithm._annealed(learner.replace(window=jnp.int32(window)), hyper)
            for name, value in hyper.items():
                share = left if name in ("learning_rate", "clip_range") else 1.0
                np.testing.assert_allclose(got[name], share * value, rtol=1e-6, err_msg=name)
        window = jitted(algorithm, "window")
        moved, _ = window(learner, hyper, jax.random.key(0))
        ended, _ = window(learner.replace(window=jnp.int32(4)), hyper, jax.random.key(0))
        assert_same_bits(ended.params, learner.params)
        assert not np.array_equal(moved.params["critic"]["head"]["bias"], learner.params["critic"]["head"]["bias"])

    def test_without_annealing_the_window_does_not_matter(self):
        algorithm = ppo("CartPole-v1")
        learner = start(algorithm).replace(window=jnp.int32(10**6))
        hyper = hyper_of(algorithm)
        assert algorithm._annealed(learner, hyper) == hyper

    def test_images_and_the_convolution(self):
        algorithm = ppo("Breakout-MinAtar", n_steps=8, hidden_sizes=(16,), activation="relu")
        learner, hyper = start(algorithm), hyper_of(algorithm)
        assert algorithm.env.obs_shape == (10, 10, 4)
        assert learner.params["actor"]["conv"]["kernel"].size == 3 * 3 * 4 * 16
        assert learner.params["actor"]["mlp"]["head"]["kernel"].shape == (16, algorithm.env.n_actions)
        after, stats = jitted(algorithm, "window")(learner, hyper, jax.random.key(0))
        assert after.obs.shape == (4, 10, 10, 4)
        assert stats.finite
        before, now = (x.params["actor"]["conv"]["kernel"] for x in (learner, after))
        assert not np.array_equal(before, now)

    def test_continuous_actions(self):
        algorithm = ppo("Pendulum-v1", initial_log_std=-0.5)
        learner, hyper = start(algorithm), hyper_of(algorithm)
        np.testing.assert_array_equal(learner.params["log_std"], np.float32([-0.5]))
        _, obs, rollout, _ = jitted(algorithm, "_collect")(learner, collecting_keys(algorithm, jax.random.key(0)))
        assert rollout.action.shape == (16, 4, 1)
        assert rollout.action.dtype == np.float32
        assert rollout.log_prob.shape == rollout.reward.shape == (16, 4)
        assert obs.shape == (4, 3)
        after, stats = jitted(algorithm, "window")(learner, hyper, jax.random.key(0))
        assert stats.finite
        assert not np.array_equal(after.params["log_std"], learner.params["log_std"])
        action, _ = algorithm.act(algorithm.policy(learner), obs, (), jax.random.key(1), False)
        assert action.shape == (4, 1)


# -- numbers that are none -----------------------------------------------------------------------------------------


class Poisonable:
    """Episodes of 5 steps; the state holds what is added to reward and observation, and after how many steps."""

    default_params = None

    def observation_space(self, params):
        return Box(-1.0, 1.0, (1,))

    def action_space(self, params):
        return Discrete(2)

    def reset_env(self, key, params):
        zero = jnp.float32(0.0)
        return jnp.zeros(1), {"steps": jnp.int32(0), "at": jnp.int32(-1), "reward": zero, "obs": zero}

    def step_env(self, key, state, action, params):
        steps = state["steps"] + 1
        now = steps == state["at"]
        reward = 1.0 + jnp.where(now, state["reward"], 0.0)
        obs = jnp.where(now, state["obs"], 0.1 * steps)[None]
        return obs, state | {"steps": steps}, reward, steps >= 5, {}

    def is_truncated(self, state, params):
        return jnp.zeros((), bool)


@pytest.fixture(scope="module")
def healthy():
    algorithm = ppo(Poisonable, n_epochs=2, n_minibatches=4)
    return algorithm, start(algorithm)


class TestNonFinite:
    def finite(self, algorithm, learner):
        after, stats = jitted(algorithm, "window")(learner, hyper_of(algorithm), jax.random.key(0))
        assert stats.finite.shape == ()
        assert after.window == learner.window + 1
        return bool(stats.finite)

    def test_a_healthy_window_is_finite(self, healthy):
        assert self.finite(*healthy)

    @pytest.mark.parametrize("where", ["reward", "obs"])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_bad_number_from_one_environment(self, healthy, where, value):
        algorithm, learner = healthy
        env = dict(learner.env_state.env)
        env["at"] = env["at"].at[2].set(3)
        env[where] = env[where].at[2].set(value)
        assert not self.finite(algorithm, learner.replace(env_state=learner.env_state.replace(env=env)))

    @pytest.mark.parametrize("part", ["actor", "critic"])
    def test_one_bad_parameter(self, healthy, part):
        algorithm, learner = healthy
        head = dict(learner.params[part]["head"])
        head["kernel"] = head["kernel"].at[0, 0].set(jnp.nan)
        params = {**learner.params, part: {**learner.params[part], "head": head}}
        assert not self.finite(algorithm, learner.replace(params=params))

    def test_one_bad_moment_of_the_optimiser(self, healthy):
        algorithm, learner = healthy
        opt = learner.opt._replace(nu=learner.opt.nu.at[0].set(jnp.inf))
        assert not self.finite(algorithm, learner.replace(opt=opt))


# -- configuration -------------------------------------------------------------------------------------------------

BAD = [
    ({"n_envs": 0}, "n_envs must be at least 1, got 0"),
    ({"n_steps": -1}, "n_steps must be at least 1, got -1"),
    ({"n_epochs": 0}, "n_epochs must be at least 1, got 0"),
    ({"n_minibatches": 0}, "n_minibatches must be at least 1, got 0"),
    ({"n_minibatches": 5}, "n_minibatches must divide n_envs * n_steps: 5 does not divide 4 * 16 = 64"),
    ({"anneal_windows": -2}, "anneal_windows must be 0 (constant) or more, got -2"),
    ({"activation": "tan"}, "activation must be one of tanh, relu, elu, silu, gelu, got 'tan'"),
]
BAD_INPUT = [
    ({"n_steps": 2.5}, "n_steps must be a whole number, got 2.5"),
    ({"n_steps": True}, "n_steps must be a whole number, got True"),
    ({"hidden_sizes": [64, 0]}, "hidden_sizes must be a list of positive whole numbers, got [64, 0]"),
    ({"hidden_sizes": 64}, "hidden_sizes must be a list of positive whole numbers, got 64"),
    ({"clip_value": 1}, "clip_value must be true or false, got 1"),
    ({"initial_log_std": float("nan")}, "initial_log_std must be a finite number, got nan"),
    ({"activation": 3}, "activation must be a name, got 3"),
    ({"n_minibatch": 4}, "unknown PPOConfig setting 'n_minibatch'; did you mean 'n_minibatches'? known: "),
]


class TestConfiguration:
    @pytest.mark.parametrize(("settings", "sentence"), BAD, ids=str)
    def test_a_bad_setting_is_one_sentence(self, settings, sentence):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            PPOConfig(**{**SMALL, **settings})

    @pytest.mark.parametrize(("settings", "sentence"), BAD + BAD_INPUT, ids=str)
    def test_so_it_is_in_a_run(self, settings, sentence):
        run = RunConfig(env="CartPole-v1", config={**SMALL, **settings})
        with pytest.raises(ConfigError) as caught:
            make_plan(run)
        assert str(caught.value).startswith(sentence)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", sorted(HYPERPARAMS))
    def test_a_hyperparameter_outside_its_limits(self, name):
        low, high = LIMITS[name]
        for value in (low - 1.0, high * 2 + 1.0):
            with pytest.raises(ConfigError, match=f"hyperparameter {name} must lie in"):
                make_plan(RunConfig(env="CartPole-v1", hyperparams={name: value}))

    def test_equal_settings_are_one_static_value(self):
        assert hash(PPOConfig(**SMALL)) == hash(PPOConfig(**SMALL))
        assert PPOConfig(**SMALL) != PPOConfig()
