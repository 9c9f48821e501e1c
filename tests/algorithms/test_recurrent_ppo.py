"""Recurrent PPO: what its memory carries, what it learns from, and tasks that nothing without memory masters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tensor_optix import envs
from tensor_optix.algorithms.ppo import PPO, PPOConfig
from tensor_optix.algorithms.recurrent_ppo import RecurrentPPO, RecurrentPPOConfig, Trace
from tensor_optix.config import ConfigError, RunConfig
from tensor_optix.core.normalizers import Moments
from tensor_optix.core.permutation import permutations
from tensor_optix.envs import probes
from tensor_optix.envs.memory import Recall
from tensor_optix.networks.recurrent import CELLS
from tensor_optix.plan import make_plan
from tensor_optix.policy import Policy
from tensor_optix.training import train
from tests.runs import assert_same_bits

SMALL = {
    "n_envs": 3, "n_steps": 8, "n_epochs": 1, "n_minibatches": 1, "hidden_sizes": (4,), "hidden_size": 3,
    "sequence_length": 4,
}  # fmt: skip


@functools.cache
def recurrent(env, **settings):
    return RecurrentPPO(envs.make(env), RecurrentPPOConfig(**{**SMALL, **settings}))


def hyper_of(algorithm, **changes):
    return {name: jnp.float32(value) for name, value in {**algorithm.hyperparams(), **changes}.items()}


@functools.cache
def jitted(algorithm, method):
    return jax.jit(getattr(algorithm, method))


@functools.cache
def start(env, cell="lstm"):
    """A fresh learner; what it holds depends on none of the other settings."""
    algorithm = recurrent(env, cell=cell)
    return jitted(algorithm, "init")(jax.random.key(0), hyper_of(algorithm))


def in_play(env, cell="lstm"):
    """A learner whose memories carry something, and whose policy is bold: an almost uniform one hides mistakes."""
    learner, rng = start(env, cell), np.random.default_rng(0)
    head = jax.tree.map(lambda x: x * 100.0, learner.params["actor"]["head"])
    actor = {**learner.params["actor"], "head": head}
    carry = {name: jnp.asarray(np.tanh(rng.normal(size=x.shape)), jnp.float32) for name, x in learner.carry.items()}
    return learner.replace(params={**learner.params, "actor": actor}, carry=carry)


# -- a reference, one environment and one step at a time, in float64 -----------------------------------------------


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def step_of(params, cell, obs, carry):
    """Output and carry of one observation."""
    x = obs
    for layer in (*params["encoder"].get("hidden", {}).values(), params["encoder"]["head"]):
        x = np.tanh(x @ layer["kernel"] + layer["bias"])
    memory = params["memory"]
    size = memory["recurrent"]["kernel"].shape[0]
    drive = x @ memory["inputs"]["kernel"] + memory["inputs"]["bias"]
    if cell == "lstm":
        i, f, o, g = np.split(drive + carry[:size] @ memory["recurrent"]["kernel"], 4)
        c = sigmoid(f) * carry[size:] + sigmoid(i) * np.tanh(g)
        carry = np.concatenate([sigmoid(o) * np.tanh(c), c])
    else:
        r, z = np.split(sigmoid(drive[: 2 * size] + carry @ memory["recurrent"]["kernel"]), 2)
        carry = z * carry + (1 - z) * np.tanh(drive[2 * size :] + (r * carry) @ memory["candidate"]["kernel"])
    return carry[:size] @ params["head"]["kernel"] + params["head"]["bias"], carry


def log_prob_and_entropy(out, log_std, action):
    if log_std is None:
        log_p = out - np.log(np.sum(np.exp(out - out.max()))) - out.max()
        return log_p[int(action)], -np.sum(np.exp(log_p) * log_p)
    z = (action - out) * np.exp(-log_std)
    log_p = -np.sum(0.5 * z * z + log_std + 0.5 * np.log(2 * np.pi))
    return log_p, np.sum(log_std + 0.5 * (1 + np.log(2 * np.pi)))


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def reference_sequences(params, cell, learner, rollout, last_obs, gamma, lam, length):
    """The sequences that a window is learned from, in the order of the algorithm, each a list of rows and two carries;
    and the critic's carries after the window."""
    rollout, carry = jax.tree.map(np.asarray, (rollout, learner.carry))
    steps, n_envs = rollout.reward.shape
    sequences, after = {}, []
    for n in range(n_envs):
        memories = {name: carry[name][n].astype(np.float64) for name in ("actor", "critic")}
        rows, following, carries, starting = [], [], [], False
        for t in range(steps):
            if starting:
                memories = {name: np.zeros_like(x) for name, x in memories.items()}
            carries.append(memories)
            obs = rollout.obs[t, n].astype(np.float64)
            _, actor = step_of(params["actor"], cell, obs, memories["actor"])
            value, critic = step_of(params["critic"], cell, obs, memories["critic"])
            memories = {"actor": actor, "critic": critic}
            done = bool(rollout.terminated[t, n] | rollout.truncated[t, n])
            if rollout.truncated[t, n]:
                next_value = step_of(params["critic"], cell, rollout.final_obs[t, n].astype(np.float64), critic)[0][0]
            elif rollout.terminated[t, n]:
                next_value = 0.0
            else:
                next_value = None  # that of the next row
            rows.append(
                {
                    "obs": obs,
                    "action": rollout.action[t, n],
                    "start": starting,
                    "value": value[0],
                    "log_prob": float(rollout.log_prob[t, n]),
                    "done": done,
                    "reward": float(rollout.reward[t, n]),
                }
            )
            following.append(next_value)
            starting = done
        if starting:
            memories = {name: np.zeros_like(x) for name, x in memories.items()}
        after.append(memories["critic"])
        last_value = step_of(params["critic"], cell, np.asarray(last_obs[n]).astype(np.float64), memories["critic"])[0][
            0
        ]
        ahead = 0.0
        for t in reversed(range(steps)):
            row = rows[t]
            v_next = following[t]
            if v_next is None:
                v_next = last_value if t == steps - 1 else rows[t + 1]["value"]
            ahead = row["reward"] + gamma * v_next - row["value"] + (0.0 if row["done"] else gamma * lam * ahead)
            row["advantage"], row["target"] = ahead, ahead + row["value"]
        for k in range(steps // length):
            sequences[k, n] = (rows[k * length : (k + 1) * length], carries[k * length])
    return [sequences[k, n] for k in range(steps // length) for n in range(n_envs)], np.stack(after)


def reference_loss(params, cell, sequences, hyper, config):
    """The loss of a minibatch, every sequence unrolled from the carries it begins with."""
    advantages = np.array([row["advantage"] for rows, _ in sequences for row in rows])
    mean, std = (advantages.mean(), advantages.std() + 1e-8) if config.normalize_advantages else (0.0, 1.0)
    clip, totals = hyper["clip_range"], np.zeros(3)
    for rows, carries in sequences:
        actor, critic = carries["actor"], carries["critic"]
        for row in rows:
            if row["start"]:
                actor, critic = np.zeros_like(actor), np.zeros_like(critic)
            out, actor = step_of(params["actor"], cell, row["obs"], actor)
            value, critic = step_of(params["critic"], cell, row["obs"], critic)
            log_prob, entropy = log_prob_and_entropy(out, params.get("log_std"), row["action"])
            ratio, advantage = np.exp(log_prob - row["log_prob"]), (row["advantage"] - mean) / std
            error = (value[0] - row["target"]) ** 2
            if config.clip_value:
                bounded = row["value"] + np.clip(value[0] - row["value"], -clip, clip)
                error = max(error, (bounded - row["target"]) ** 2)
            totals += [-min(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage), 0.5 * error, entropy]
    policy_loss, value_loss, entropy = totals / len(advantages)
    return policy_loss + hyper["value_coef"] * value_loss - hyper["entropy_coef"] * entropy


def reference_update(learner, cell, minibatches, hyper, config):
    """Parameters after one step of Adam for each minibatch; gradients by central differences."""
    flat = np.asarray(ravel_pytree(learner.params)[0], np.float64)

    def as_params(x):
        shapes = jax.tree.leaves(learner.params)
        pieces = np.split(x, np.cumsum([leaf.size for leaf in shapes])[:-1])
        return jax.tree.unflatten(
            jax.tree.structure(learner.params), [p.reshape(s.shape) for p, s in zip(pieces, shapes, strict=True)]
        )

    m, v = np.zeros_like(flat), np.zeros_like(flat)
    for count, sequences in enumerate(minibatches, 1):
        gradient = np.zeros_like(flat)
        for i in range(flat.size):
            up, down = flat.copy(), flat.copy()
            up[i] += 1e-5
            down[i] -= 1e-5
            high, low = (reference_loss(as_params(x), cell, sequences, hyper, config) for x in (up, down))
            gradient[i] = (high - low) / 2e-5
        norm = np.linalg.norm(gradient)
        gradient = gradient * min(1.0, hyper["max_grad_norm"] / norm)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = m / (1 - 0.9**count) / (np.sqrt(v / (1 - 0.999**count)) + hyper["adam_eps"])
        flat = flat - hyper["learning_rate"] * step
    return flat


HYPER = {
    "learning_rate": 0.02, "gamma": 0.9, "gae_lambda": 0.8, "clip_range": 0.15, "entropy_coef": 0.03,
    "value_coef": 0.4, "max_grad_norm": 0.3, "adam_eps": 1e-3,
}  # fmt: skip


class Noisy(probes.DelayedCredit):
    """Observations that differ, episodes that are cut and episodes that end, all within a small window."""

    def draw(self, key):
        return jax.random.normal(key, (), jnp.float32)

    def reward(self, state, action):
        return jnp.sin(3.0 * state.signal) + 0.5 * action.astype(jnp.float32)

    def is_terminated(self, state):
        return (state.time >= 3) & (state.signal > 0.0)

    def is_truncated(self, state, params):
        return (state.time >= 3) & (state.signal <= 0.0)

    def step_env(self, key, state, action, params):
        return probes.Probe.step_env(self, key, state, action, params)


class NoisyNumber(Noisy):
    """The same with a number for an action."""

    def action_space(self, params):
        return probes.Box(-1.0, 1.0, (1,))

    def reward(self, state, action):
        return jnp.sin(3.0 * state.signal) + 0.5 * action[0]


def collected(algorithm, learner, key):
    after, trace, _ = jitted(algorithm, "_collect")(learner, key)
    return after, trace


NOISY = [(Noisy, "lstm"), pytest.param(NoisyNumber, "gru", marks=pytest.mark.slow)]


class TestWindow:
    @pytest.mark.parametrize(("env", "cell"), NOISY)
    def test_the_sequences_are_those_of_the_reference(self, env, cell):
        algorithm = recurrent(env, cell=cell, n_steps=12)
        learner, hyper = in_play(env, cell), hyper_of(algorithm, **HYPER)
        after, trace = collected(algorithm, learner, jax.random.key(1))
        rollout = jax.tree.map(np.asarray, trace.rollout)
        assert rollout.truncated.any()
        assert rollout.terminated.any()
        assert (rollout.terminated | rollout.truncated)[-1].any()  # what comes after the window starts anew
        got, critic = jitted(algorithm, "_sequences")(learner, trace, trace.rollout.reward, after.obs, hyper)
        params = float64(learner.params)
        expected, after_critic = reference_sequences(
            params, cell, learner, rollout, after.obs, HYPER["gamma"], HYPER["gae_lambda"], 4
        )
        np.testing.assert_allclose(critic, after_critic, rtol=1e-4, atol=1e-5)
        assert len(expected) == 9
        for s, (rows, carries) in enumerate(expected):
            for name in ("actor", "critic"):
                np.testing.assert_allclose(got.carry[name][s], carries[name], rtol=1e-4, atol=1e-5)
            for t, row in enumerate(rows):
                np.testing.assert_array_equal(got.rows.action[s, t], row["action"])
                if t:  # a carry that is kept is zero already where its observation starts an episode
                    assert bool(got.starts[s, t]) == row["start"]
                for name in ("value", "advantage", "target"):
                    np.testing.assert_allclose(getattr(got.rows, name)[s, t], row[name], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("env", "cell", "clip_value"),
        [(Noisy, "lstm", True), pytest.param(NoisyNumber, "gru", False, marks=pytest.mark.slow)],
    )
    def test_an_update_is_that_of_the_reference(self, env, cell, clip_value):
        algorithm = recurrent(env, cell=cell, n_minibatches=2, clip_value=clip_value)
        learner, hyper = in_play(env, cell), hyper_of(algorithm, **HYPER)
        key_shuffle, key_collect = jax.random.split(jax.random.key(1))
        after, trace = collected(algorithm, learner, key_collect)
        sequences, _ = reference_sequences(
            float64(learner.params), cell, learner, trace.rollout, after.obs, HYPER["gamma"], HYPER["gae_lambda"], 4
        )
        order = np.asarray(permutations(key_shuffle, 1, 6)).reshape(2, 3)
        minibatches = [[sequences[i] for i in rows] for rows in order]
        expected = reference_update(learner, cell, minibatches, HYPER, algorithm.config)
        got, _ = jitted(algorithm, "window")(learner, hyper, jax.random.key(1))
        before = np.asarray(ravel_pytree(learner.params)[0])
        assert np.abs(expected - before).max() > 0.01
        np.testing.assert_allclose(ravel_pytree(got.params)[0], expected, rtol=1e-3, atol=2e-4)

    @pytest.mark.parametrize(("env", "cell"), NOISY)
    def test_the_ratio_of_a_first_minibatch_is_one(self, env, cell):
        algorithm = recurrent(env, cell=cell, normalize_observations=True)
        moments = Moments(jnp.float32([0.3, -0.2]), jnp.float32([0.1, 2.0]), jnp.float32(99))
        learner, hyper = in_play(env, cell).replace(obs_moments=moments), hyper_of(algorithm)
        after, trace = collected(algorithm, learner, jax.random.key(3))
        drawn, _ = jitted(algorithm, "_sequences")(learner, trace, trace.rollout.reward, after.obs, hyper)
        assert np.std(drawn.rows.log_prob) > 0.01
        rows, starts = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (drawn.rows, drawn.starts))
        actor = learner.params["actor"]
        out, _ = jax.jit(algorithm._actor.apply)(actor, rows.obs, drawn.carry["actor"], starts)
        log_prob = algorithm._as_distribution(out, learner.params.get("log_std", ()), rows.obs).log_prob(rows.action)
        np.testing.assert_allclose(np.exp(log_prob - rows.log_prob), 1.0, atol=1e-5)

    def test_what_an_earlier_episode_showed_does_not_change_a_later_one(self):
        algorithm = recurrent(Noisy, cell="lstm")
        learner, hyper = in_play(Noisy), hyper_of(algorithm)
        after, trace = collected(algorithm, learner, jax.random.key(4))
        done = np.asarray(trace.rollout.terminated | trace.rollout.truncated)
        begin = int(np.argmax(done[:, 0])) + 1  # the first episode that starts in environment 0
        assert 0 < begin < 7
        other = trace.rollout._replace(
            obs=trace.rollout.obs.at[:begin, 0].add(1.0), final_obs=trace.rollout.final_obs.at[:begin, 0].add(1.0)
        )
        run = jitted(algorithm, "_sequences")
        first, first_carry = run(learner, trace, trace.rollout.reward, after.obs, hyper)
        second, second_carry = run(learner, Trace(other, trace.carry), trace.rollout.reward, after.obs, hyper)
        in_time = lambda x: np.concatenate([np.asarray(x)[0::3][k] for k in range(2)])  # noqa: E731
        for name in ("value", "advantage", "target"):
            a, b = in_time(getattr(first.rows, name)), in_time(getattr(second.rows, name))
            np.testing.assert_array_equal(a[begin:], b[begin:])
            assert not np.array_equal(a[:begin], b[:begin])
        np.testing.assert_array_equal(first_carry, second_carry)

    def test_acting_with_the_policy_goes_on_where_collecting_would(self):
        """Step by step through `act`, with a carry that the caller clears, as a driver would."""
        algorithm = recurrent(Noisy, cell="lstm")
        learner = in_play(Noisy)
        after, trace = collected(algorithm, learner, jax.random.key(5))
        policy, carry = algorithm.policy(learner), learner.carry["actor"]
        done = np.asarray(trace.rollout.terminated | trace.rollout.truncated)
        assert done.any()
        for t in range(8):
            np.testing.assert_allclose(carry, trace.carry[t], rtol=1e-4, atol=1e-6)
            _, carry = jitted(algorithm, "distribution")(policy, trace.rollout.obs[t], carry)
            carry = jnp.where(done[t][:, None], jnp.float32(0.0), carry)
        np.testing.assert_allclose(after.carry["actor"], carry, rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    def test_sequence_length_changes_gradients_only(self):
        whole, cut = (recurrent(Noisy, sequence_length=length) for length in (8, 2))
        learner, hyper = in_play(Noisy), hyper_of(whole, **HYPER)
        a, _ = jitted(whole, "window")(learner, hyper, jax.random.key(6))
        b, _ = jitted(cut, "window")(learner, hyper, jax.random.key(6))
        assert_same_bits((a.env_state, a.obs, a.carry["actor"]), (b.env_state, b.obs, b.carry["actor"]))
        np.testing.assert_allclose(a.carry["critic"], b.carry["critic"], rtol=1e-5, atol=1e-6)
        assert not np.allclose(ravel_pytree(a.params)[0], ravel_pytree(b.params)[0], atol=1e-4)

    def test_fresh_episodes_start_with_an_empty_memory(self):
        algorithm = recurrent(Noisy, cell="lstm")
        learner = in_play(Noisy)
        fresh = jitted(algorithm, "reset_envs")(learner, jax.random.key(7))
        assert np.any(learner.carry["actor"])
        assert not any(np.any(x) for x in fresh.carry.values())
        assert_same_bits(fresh.params, learner.params)
        back = algorithm.restore(learner, algorithm.snapshot(start(Noisy)))
        assert_same_bits((back.env_state, back.obs, back.carry), (learner.env_state, learner.obs, learner.carry))

    def test_what_is_not_finite_in_a_memory_is_told(self):
        algorithm = recurrent(Noisy, sequence_length=2)
        learner, hyper = in_play(Noisy), hyper_of(algorithm)
        assert jitted(algorithm, "window")(learner, hyper, jax.random.key(8))[1].finite
        broken = learner.replace(carry={**learner.carry, "critic": learner.carry["critic"].at[0, 0].set(jnp.nan)})
        assert not jitted(algorithm, "window")(broken, hyper, jax.random.key(8))[1].finite

    def test_images(self):
        algorithm = recurrent("Breakout-MinAtar", activation="relu")
        hyper = hyper_of(algorithm)
        learner = jax.eval_shape(algorithm.init, jax.random.key(0), hyper)
        assert "conv" in learner.params["actor"]["encoder"]
        after, _ = jax.eval_shape(algorithm.window, learner, hyper, jax.random.key(0))
        assert after.obs.shape == (3, 10, 10, 4)


class TestActing:
    def test_one_observation_a_batch_and_a_carry_for_all(self):
        algorithm = recurrent(NoisyNumber, cell="gru")
        learner = in_play(NoisyNumber, "gru")
        policy, obs = algorithm.policy(learner), learner.obs
        act = jax.jit(algorithm.act, static_argnums=4)
        action, carry = act(policy, obs, learner.carry["actor"], jax.random.key(0), True)
        assert action.shape == (3, 1)
        assert carry.shape == (3, *algorithm.initial_carry().shape)
        for n in range(3):
            one, after = act(policy, obs[n], learner.carry["actor"][n], jax.random.key(0), True)
            np.testing.assert_allclose(one, action[n], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(after, carry[n], rtol=1e-5, atol=1e-6)
        shared, _ = act(policy, obs, algorithm.initial_carry(), jax.random.key(0), True)
        zeros, _ = act(policy, obs, jnp.zeros_like(carry), jax.random.key(0), True)
        np.testing.assert_array_equal(shared, zeros)
        assert not np.allclose(shared, action)

    def test_a_policy_remembers_until_it_is_reset(self):
        algorithm = recurrent(NoisyNumber, cell="gru")
        policy = Policy(algorithm, algorithm.policy(in_play(NoisyNumber, "gru")))
        first, second = np.float32([1.0, 0.0]), np.float32([-0.5, 0.3])
        a, b = policy(first), policy(second)
        assert not np.allclose(policy(second), b)
        policy.reset()
        np.testing.assert_array_equal(policy(first), a)
        np.testing.assert_array_equal(policy(second), b)

    def test_rows_of_a_batch_are_reset_alone(self):
        algorithm = recurrent(NoisyNumber, cell="gru")
        policy = Policy(algorithm, algorithm.policy(in_play(NoisyNumber, "gru")))
        obs = np.float32([[0.5, 0.0], [-0.3, 1.0], [0.1, -0.2]])
        fresh = policy(obs)
        policy.reset([True, False, True])
        again = policy(obs)
        np.testing.assert_array_equal(again[[0, 2]], fresh[[0, 2]])
        assert not np.allclose(again[1], fresh[1])

    def test_another_number_of_environments_is_refused(self):
        algorithm = recurrent(NoisyNumber, cell="gru")
        policy = Policy(algorithm, algorithm.policy(in_play(NoisyNumber, "gru")))
        policy.reset([True])  # nothing to forget yet
        policy(np.zeros((3, 2)))
        with pytest.raises(ValueError, match=r"remembers 3 environments and got 2: call reset\(\)"):
            policy(np.zeros((2, 2)))
        with pytest.raises(ValueError, match=r"remembers 3 environments and got 1: call reset\(\)"):
            policy.reset([True])
        policy.reset()
        assert policy(np.zeros((2, 2))).shape == (2, 1)

    def test_without_memory_nothing_has_to_be_reset(self):
        algorithm = PPO(envs.make("Pendulum-v1"), PPOConfig(n_envs=1, hidden_sizes=()))
        policy = Policy(algorithm, algorithm.policy(algorithm.init(jax.random.key(0), hyper_of(algorithm))))
        obs = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
        batch = policy(obs)
        np.testing.assert_allclose(policy(obs[1]), batch[1], rtol=1e-5, atol=1e-6)
        policy.reset()
        policy.reset([True, False])
        np.testing.assert_array_equal(policy(obs), batch)


class TestConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"cell": "rnn"}, "cell must be one of lstm, gru, got 'rnn'"),
            ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
            ({"sequence_length": 0}, "sequence_length must be at least 1, got 0"),
            ({"sequence_length": 48}, "sequence_length must divide n_steps: 48 does not divide 128"),
            ({"n_minibatches": 128}, "n_minibatches must divide the sequences .* 128 does not divide 64"),
            ({"hidden_sizes": ()}, "hidden_sizes must name a layer or more"),
            ({"n_envs": 0}, "n_envs must be at least 1, got 0"),
        ],
    )
    def test_a_wrong_setting_is_named(self, settings, message):
        with pytest.raises(ValueError, match=message):
            RecurrentPPOConfig(**settings)

    def test_a_run_names_its_settings(self):
        with pytest.raises(ConfigError, match=r"did you mean.*hidden_size"):
            make_plan(RunConfig(env="CartPole-v1", algorithm="recurrent_ppo", config={"hiden_size": 3}))


# -- learning ------------------------------------------------------------------------------------------------------

PROBE = {"n_envs": 8, "n_steps": 16, "n_epochs": 4, "n_minibatches": 2, "hidden_sizes": (16,)}
PROBE_HYPER = {"learning_rate": 5e-3, "max_grad_norm": 10.0}
SEEDS, WINDOWS = 3, 100


def recall_scores(name, settings, windows):
    """Deterministic scores [SEEDS] after training on `Recall`, as the compiled driver judges them."""
    run = RunConfig(env="Recall", algorithm=name, config=PROBE | settings, eval_episodes=64, eval_max_steps=10)
    program = make_plan(run, Recall()).program
    hyper = hyper_of(program.algorithm, **PROBE_HYPER)

    def learn(key):
        key_init, key_train, key_eval = jax.random.split(key, 3)
        learner, _ = jax.lax.scan(
            lambda learner, key: (program.algorithm.window(learner, hyper, key)[0], ()),
            program.algorithm.init(key_init, hyper),
            jax.random.split(key_train, windows),
        )
        return program.score(learner, key_eval)

    return np.asarray(jax.jit(lambda keys: jax.lax.map(learn, keys))(jax.random.split(jax.random.key(0), SEEDS)))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_a_cue_is_recalled(cell):
    scores = recall_scores("recurrent_ppo", {"hidden_size": 16, "sequence_length": 8, "cell": cell}, WINDOWS)
    np.testing.assert_array_equal(scores, Recall.optimal_return)


@pytest.mark.slow
def test_without_memory_recalling_is_chance():
    scores = recall_scores("ppo", {}, 2 * WINDOWS)
    assert np.abs(scores).max() < 5 / 8, scores  # five standard errors of 64 coins: false alarm 2e-6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("env", "solved", "chance"), [("MemoryChain-bsuite", 1.0, 0.6), ("MaskedCartPole-v1", 450, 200)]
)
def test_memory_tasks(env, solved, chance):
    """The presets solve them; PPO with the same steps does not."""
    steps = 100_000 if env == "MemoryChain-bsuite" else 600_000
    result = train(env, algorithm="recurrent_ppo", seeds=3, total_steps=steps, stop=False, progress=False)
    assert np.min(result.scores) >= solved, result.scores
    without = train(env, algorithm="ppo", seeds=3, total_steps=steps, stop=False, progress=False)
    assert np.max(without.scores) <= chance, without.scores
