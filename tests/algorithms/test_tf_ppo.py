"""PPO in TensorFlow: updates against the loss written out in NumPy, and the laws of acting and learning."""

import gymnasium as gym
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tensor_optix.algorithms.host_actions import Categorical, Gaussian  # noqa: E402
from tensor_optix.core.normalizers import ObsNormalizer  # noqa: E402
from tensor_optix.core.types import EpisodeData, HyperparamSet  # noqa: E402
from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline  # noqa: E402
from tests.tf_parts import agent_of, assert_same, everything, window  # noqa: E402

GAMMA, LAMBDA, CLIP, VF, ENT, LR = 0.9, 0.8, 0.2, 0.5, 0.03, 0.1
EXACT = {
    "gamma": GAMMA, "gae_lambda": LAMBDA, "clip_ratio": CLIP, "vf_coef": VF, "entropy_coef": ENT,
    "learning_rate": LR, "n_epochs": 2, "minibatch_size": 1000,
}  # fmt: skip


# -- the oracle: float64, advantages by the definition, gradients by differences ------------------------------


def forward(flat, obs, n_outputs, hidden=3):
    """A tanh layer and a linear one, out of one flat vector in Keras' order."""
    d = obs.shape[-1]
    shapes = [(d, hidden), (hidden,), (hidden, n_outputs), (n_outputs,)]
    parts = np.split(flat, np.cumsum([int(np.prod(s)) for s in shapes])[:-1])
    w1, b1, w2, b2 = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    return np.tanh(obs @ w1 + b1) @ w2 + b2


def log_prob_entropy(kind, outputs, actions):
    if kind == "discrete":
        log_p = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
        return log_p[np.arange(len(actions)), actions], -(np.exp(log_p) * log_p).sum(-1)
    mean, log_std = outputs[:, :2], np.clip(outputs[:, 2:], -5, 2)
    z = np.arctanh(np.clip(actions, -1 + 1e-6, 1 - 1e-6)) if kind == "squashed" else actions
    log_p = -0.5 * ((z - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    if kind == "squashed":
        log_p = log_p - np.log(1 - np.tanh(z) ** 2)
    return log_p.sum(-1), (log_std + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)


def advantages_of(data, value):
    """sum over k of (gamma lambda)^k delta_{t+k}, within the episode and the segment."""
    n = len(data.rewards)
    starts = data.metadata.get("segment_starts", [0])
    last_obs = np.asarray(data.final_obs) if "segment_starts" in data.metadata else np.asarray(data.final_obs)[None]
    ends = [*starts[1:], n]
    v, out = value(np.asarray(data.observations, np.float64)), np.zeros(n)
    for segment, (start, end) in enumerate(zip(starts, ends, strict=True)):
        for t in range(start, end):
            weight = 1.0
            for k in range(t, end):
                done = data.terminated[k] or data.truncated[k]
                if data.terminated[k]:
                    following = 0.0
                elif done:
                    following = value(np.asarray(data.metadata["final_observations"][k], np.float64)[None])[0]
                else:
                    following = value(last_obs[segment][None].astype(np.float64))[0] if k == end - 1 else v[k + 1]
                out[t] += weight * (data.rewards[k] + GAMMA * following - v[k])
                weight *= GAMMA * LAMBDA
                if done:
                    break
    return out, out + v


def oracle(kind, data, actor, critic, n_outputs, max_norm, epochs=2):
    """Parameters and mean losses after SGD on the whole window, `epochs` times."""
    obs, actions = np.asarray(data.observations, np.float64), np.asarray(data.actions)
    gains, targets = advantages_of(data, lambda o: forward(critic, o, 1)[:, 0])
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    old = data.log_probs
    if old is None:
        old = log_prob_entropy(kind, forward(actor, obs, n_outputs), actions)[0]
    flat, size, seen = np.concatenate([actor, critic]), len(actor), []

    def losses(flat):
        log_p, entropy = log_prob_entropy(kind, forward(flat[:size], obs, n_outputs), actions)
        ratio = np.exp(log_p - old)
        policy = -np.minimum(ratio * gains, np.clip(ratio, 1 - CLIP, 1 + CLIP) * gains).mean()
        value = 0.5 * ((forward(flat[size:], obs, 1)[:, 0] - targets) ** 2).mean()
        return np.array([policy, value, entropy.mean(), (ratio - 1 - (log_p - old)).mean()])

    for _ in range(epochs):
        seen.append(losses(flat))
        grad = np.empty_like(flat)
        for i in range(len(flat)):
            step = np.zeros_like(flat)
            step[i] = 1e-6
            grad[i] = (losses(flat + step) - losses(flat - step)) @ [1, VF, -ENT, 0] / 2e-6
        grad *= min(1.0, max_norm / np.linalg.norm(grad))
        flat = flat - LR * grad
    return flat[:size], flat[size:], np.mean(seen, axis=0)


def flat_of(model):
    return np.concatenate([w.ravel() for w in model.get_weights()]).astype(np.float64)


def check_against_oracle(kind, agent, data, n_outputs, max_norm):
    actor, critic, losses = oracle(kind, data, flat_of(agent._actor), flat_of(agent._critic), n_outputs, max_norm)
    diagnostics = agent.learn(data)
    names = ("policy_loss", "value_loss", "entropy", "approx_kl")
    np.testing.assert_allclose([diagnostics[n] for n in names], losses, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(flat_of(agent._actor), actor, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(flat_of(agent._critic), critic, rtol=2e-4, atol=2e-6)
    assert diagnostics["n_updates"] == 2


def sgd_agent(kind, max_norm=1e6, **settings):
    return agent_of(kind, {**EXACT, "max_grad_norm": max_norm}, tf.keras.optimizers.SGD(0.5), **settings)


class TestUpdate:
    def test_discrete_with_the_behaviours_log_probs_and_clipping(self):
        rng = np.random.default_rng(1)
        data = window("discrete", log_probs=np.log(rng.uniform(0.2, 0.9, 12)))
        check_against_oracle("discrete", sgd_agent("discrete", 0.05), data, 2, 0.05)

    @pytest.mark.parametrize("kind", ["gaussian", "squashed"])
    def test_gaussian(self, kind):
        agent = sgd_agent("gaussian", squash=kind == "squashed")
        data = window("gaussian", seed=2)
        data.actions = np.clip(data.actions, -0.9, 0.9)
        outputs = forward(flat_of(agent._actor), np.asarray(data.observations, np.float64), 4)
        noise = np.random.default_rng(3).normal(size=12) * 0.1
        data.log_probs = log_prob_entropy(kind, outputs, data.actions)[0] + noise  # with tanh's density, if squashed
        check_against_oracle(kind, agent, data, 4, 1e6)

    def test_windows_of_both_pipelines_with_truncations(self):
        def limited():
            return gym.wrappers.TimeLimit(First3(gym.make("CartPole-v1")), 4)

        agent = sgd_agent("discrete", 0.5)
        for pipeline in (
            BatchPipeline(limited(), agent, 10, seed=0),
            VectorBatchPipeline([limited] * 2, agent, 6, seed=0),
        ):
            pipeline.setup()
            data = next(iter(pipeline.episodes()))
            assert any(data.truncated)
            check_against_oracle("discrete", agent, data, 2, 0.5)
            pipeline.teardown()

    def test_a_minibatch_of_one_row_still_moves_the_policy(self):
        agent = agent_of("discrete", {"minibatch_size": 1, "n_epochs": 1, "entropy_coef": 0.0})
        before = flat_of(agent._actor)
        diagnostics = agent.learn(window("discrete", n=5))
        assert diagnostics["n_updates"] == 5
        assert np.isfinite(list(diagnostics.values())).all()
        assert (flat_of(agent._actor) != before).any()


class First3(gym.ObservationWrapper):
    """The first three numbers of an observation."""

    def __init__(self, env):
        super().__init__(env)
        space = env.observation_space
        self.observation_space = gym.spaces.Box(space.low[:3], space.high[:3])

    def observation(self, observation):
        return observation[:3]


@pytest.fixture(scope="module")
def still():
    """A discrete agent that learns at a rate of 0: its policy never changes."""
    return agent_of("discrete", {"learning_rate": 0.0, "n_epochs": 2, "minibatch_size": 5})


class TestLearning:
    def test_the_ratio_is_one_before_any_update(self, still):
        diagnostics = still.learn(window("discrete", n=20))
        assert abs(diagnostics["approx_kl"]) < 1e-9  # about half the squared deviation of the ratio from 1
        assert abs(diagnostics["policy_loss"]) < 1e-5  # advantages have mean 0, so only ratios of 1 leave 0

    def test_one_trace_whatever_the_window_and_the_hyperparameters(self, still):
        for n, params in ((7, {}), (40, {"clip_ratio": 0.3, "n_epochs": 3}), (13, {"minibatch_size": 4, "vf_coef": 1})):
            still.set_hyperparams(HyperparamSet({**params, "learning_rate": 0.0}))
            still.learn(window("discrete", n=n))
            still.learn(window("discrete", n=n, log_probs=np.full(n, -0.7)))
            still.act_batch(np.zeros((n, 3)))
        graph = still._compiled
        for function in (graph.update, graph.actor.function, graph.critic.function):
            assert function.experimental_get_tracing_count() == 1

    def test_a_window_without_usable_rows_changes_nothing(self):
        agent, data = agent_of("discrete", normalizers=True), window("discrete")
        data.observations += 5.0
        agent.learn(data)
        before = everything(agent)
        for n in (0, 1):
            nothing = window("discrete", n=n, terminated=[False] * n, final_obs=None)
            assert agent.learn(nothing) == {}
        assert_same(everything(agent), before)
        assert agent.learn(window("discrete", n=1, terminated=[True], final_obs=None))["n_updates"] > 0
        assert (agent._obs_normalizer.rms.mean > 3.0).all()  # of what came in, not of what was normalised
        assert agent._obs_normalizer.rms.count == pytest.approx(13, abs=0.1)  # 12 rows and 1, each once

    def test_data_made_by_others(self, still):
        data = EpisodeData([[0.0, 1.0, 2.0]] * 3, [0, 1, 1], [1, 0, 2], [False, False, True], [False] * 3, [], 0)
        assert np.isfinite(list(still.learn(data).values())).all()

    def test_nan_comes_out_as_a_diagnostic(self):
        agent = agent_of("discrete", {"n_epochs": 1})
        data = window("discrete")
        data.observations[2] = np.nan
        assert not np.isfinite(agent.learn(data)["policy_loss"])
        assert agent.act(np.zeros(3)) == 0  # the weights are NaN by now
        assert agent.act_deterministic(np.zeros(3)) == 0

    def test_moments_stay_when_the_learning_rate_changes(self):
        agent = agent_of("discrete")
        agent.learn(window("discrete"))
        moments = [v.value.numpy() for v in agent._optimizer.variables if "momentum" in v.path or "iteration" in v.path]
        agent.set_hyperparams(HyperparamSet({"learning_rate": 0.002}, 9))
        assert float(agent._optimizer.learning_rate) == pytest.approx(0.002)
        assert_same(
            [v.value.numpy() for v in agent._optimizer.variables if "momentum" in v.path or "iteration" in v.path],
            moments,
        )
        assert agent.get_hyperparams().params["learning_rate"] == 0.002
        assert agent.get_hyperparams().episode_id == 9

    def test_bad_windows_are_named(self, still):
        with pytest.raises(ValueError, match=r"from 0 to 1, got"):
            still.learn(window("discrete", actions=[0] * 11 + [2]))
        with pytest.raises(ValueError, match=r"for each of 12 rows, got 3"):
            still.learn(window("discrete", log_probs=[0.0] * 3))
        with pytest.raises(ValueError, match=r"first ones \(3,\)|must have shape \(3,\)"):
            still.act(np.zeros(4))


class TestActing:
    def test_kinds_of_actions(self, still):
        gaussian = agent_of("gaussian")
        obs = np.random.default_rng(0).normal(size=(5, 3))
        assert type(still.act(obs[0])) is int
        assert type(still.act_deterministic(obs[0])) is int
        assert still.act_batch(obs).shape == (5,)
        assert gaussian.act(obs[0]).shape == (2,)
        assert gaussian.act(obs[0]).dtype == np.float32
        assert gaussian.act_batch(obs).shape == gaussian.act_batch_deterministic(obs).shape == (5, 2)
        probs = still.action_probs(obs[0])
        assert probs.dtype == np.float32
        assert probs.sum() == pytest.approx(1.0)
        expected = forward(flat_of(gaussian._actor), obs, 4)[:, :2]
        np.testing.assert_allclose(gaussian.act_batch_deterministic(obs), expected, atol=1e-5)

    def test_seeds(self):
        obs = np.zeros((50, 3))
        one, same, other = (agent_of("gaussian", seed=seed) for seed in (1, 1, 2))
        one.act_batch_deterministic(obs)  # draws nothing
        first = one.act_batch(obs)
        np.testing.assert_array_equal(first, same.act_batch(obs))
        assert (first != other.act_batch(obs)).all()

    def test_a_categorical_is_sampled_by_its_probabilities(self):
        logits = np.log(np.array([0.5, 0.0, 0.3, 0.2])[None] + 1e-45).repeat(20_000, 0)
        logits[:, 1] = -np.inf
        counts = np.bincount(Categorical().sample(logits, np.random.default_rng(0)), minlength=4) / 20_000
        np.testing.assert_allclose(counts, [0.5, 0.0, 0.3, 0.2], atol=0.015)  # four standard errors
        assert counts[1] == 0

    def test_a_gaussian_is_sampled_by_its_moments(self):
        outputs = np.tile([0.3, -0.5, np.log(0.1), np.log(0.4)], (20_000, 1))
        gaussian = Gaussian(2, squash=False)
        gaussian.bounds.set([-2.0, 0.0], [2.0, 1.0])
        actions = gaussian.sample(outputs, np.random.default_rng(0))
        np.testing.assert_allclose(actions.mean(0), [0.6, 0.25], atol=0.01)
        np.testing.assert_allclose(actions.std(0), [0.2, 0.2], rtol=0.03)

    @pytest.mark.parametrize("squash", [False, True])
    def test_recorded_actions_are_inverted(self, squash):
        gaussian, rng = Gaussian(3, squash), np.random.default_rng(0)
        gaussian.bounds.set([-2.0, 0.0, -np.inf], [2.0, 10.0, np.inf])
        z = rng.normal(size=(100, 3))
        unit = np.tanh(z) if squash else z
        by_hand = np.stack([2 * unit[:, 0], 5 * (unit[:, 1] + 1), unit[:, 2]], axis=-1)
        np.testing.assert_allclose(gaussian.bounds.to_action(unit), by_hand, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gaussian.targets(by_hand.astype(np.float32), 6), z, rtol=1e-3, atol=1e-4)
        edge = gaussian.targets(np.array([[2.0, 10.0, 1.0]]), 6)
        assert np.isfinite(edge).all()

    def test_the_bounds_are_reached(self):
        agent = agent_of("gaussian", squash=True)
        agent.set_action_bounds(np.array([-2.0, 0.0]), np.array([2.0, 8.0]))
        actions = agent.act_batch(np.random.default_rng(0).normal(size=(2000, 3)))
        assert (actions.min(0) < [-1.8, 0.5]).all()
        assert (actions.max(0) > [1.8, 7.5]).all()
        assert (np.abs(actions - [0, 4]) <= [2, 4]).all()
        with pytest.raises(ValueError, match="must have 2 numbers each"):
            agent.set_action_bounds([-1.0], [1.0])

    def test_nan_outputs_are_the_middle(self):
        assert Gaussian(1, False).sample(np.array([[np.nan, 0.0]]), np.random.default_rng(0)) == 0.0

    def test_observations_are_normalised_and_frozen_within_a_window(self):
        normalizer = ObsNormalizer((3,))
        normalizer.update(np.random.default_rng(0).normal(5.0, 2.0, size=(100, 3)))
        agent, plain = agent_of("discrete", obs_normalizer=normalizer), agent_of("discrete")
        obs = np.array([4.0, 5.0, 6.0])
        np.testing.assert_allclose(agent.action_probs(obs), plain.action_probs(normalizer.normalize(obs)), rtol=1e-6)
        count = normalizer.rms.count
        agent.act(obs)
        assert normalizer.rms.count == count


class TestConstruction:
    def test_an_actor_of_the_wrong_width(self):
        from tensor_optix.algorithms.tf_ppo_continuous import TFGaussianPPOAgent
        from tests.tf_parts import network

        agent = TFGaussianPPOAgent(network(2), network(1), tf.keras.optimizers.Adam(), 2, HyperparamSet({}))
        with pytest.raises(ValueError, match=r"actor must give \[N, 4\] .*, got \[None, 2\]"):
            agent.act(np.zeros(3))
        assert agent.get_hyperparams().params["learning_rate"] == pytest.approx(1e-3)  # the optimizer's own

    def test_hyperparameters_are_checked_and_kept(self):
        agent = agent_of("discrete", {"mine": True, "count": 5, "clip_ratio": 0.25})
        agent.set_hyperparams(HyperparamSet({"mine": 0.7, "count": 6.2, "n_epochs": 3.0}))
        params = agent.get_hyperparams().params
        assert params["mine"] is True
        assert params["count"] == 6
        assert isinstance(params["n_epochs"], int)
        assert params["clip_ratio"] == 0.25
        params["clip_ratio"] = 9.0
        assert agent.get_hyperparams().params["clip_ratio"] == 0.25
        with pytest.raises(ValueError, match="gamma must be from 0 to 1"):
            agent.set_hyperparams(HyperparamSet({"gamma": 1.5}))
        with pytest.raises(TypeError, match="HyperparamSet"):
            agent.set_hyperparams({"gamma": 0.5})
        assert agent.get_hyperparams().params["gamma"] == 0.99

    def test_bounds_for_the_tuner(self):
        agent = agent_of("gaussian")
        assert set(agent.default_param_bounds) == {"learning_rate", "gamma", "clip_ratio", "entropy_coef"}
        assert agent.default_log_params == {"learning_rate"}
        assert agent.is_on_policy


@pytest.mark.slow
def test_cartpole_is_solved_within_100k_steps():
    from tensor_optix.algorithms.tf_ppo import TFPPOAgent
    from tests.tf_parts import network

    nets = network(2, 0, (64, 64), 4), network(1, 50, (64, 64), 4)
    settings = {"n_epochs": 20, "minibatch_size": 256, "gamma": 0.98, "gae_lambda": 0.8, "entropy_coef": 0.0}
    agent = TFPPOAgent(*nets, tf.keras.optimizers.Adam(1e-3), HyperparamSet({"learning_rate": 1e-3, **settings}))
    pipeline = VectorBatchPipeline([lambda: gym.make("CartPole-v1")] * 8, agent, 32, seed=0)
    pipeline.setup()
    windows = iter(pipeline.episodes())
    test_envs = [gym.make("CartPole-v1") for _ in range(10)]
    best = 0.0
    for steps in range(256, 100_001, 256):
        agent.learn(next(windows))
        if steps % (256 * 40) == 0:
            best = max(best, np.mean([return_of(env, agent, 1000 + i) for i, env in enumerate(test_envs)]))
        if best >= 475:
            break
    pipeline.teardown()
    assert best >= 475


def return_of(env, agent, seed):
    obs, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(agent.act_deterministic(obs))
        total, over = total + reward, terminated or truncated
    return total
