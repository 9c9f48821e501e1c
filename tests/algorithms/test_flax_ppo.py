"""PPO in JAX as a host agent: what it acts on, learns from and reports."""

import itertools
from collections.abc import Callable

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tensor_optix.adapters.jax.flax_evaluator import FlaxEvaluator
from tensor_optix.algorithms import host_ppo
from tensor_optix.algorithms.flax_ppo import FlaxPPOAgent, minibatch_order
from tensor_optix.algorithms.flax_ppo_continuous import FlaxGaussianPPOAgent
from tensor_optix.algorithms.ppo import Batch, PPOConfig
from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.host import LoopController
from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline
from tests.equivalence import test_ppo_reference as reference
from tests.runs import assert_same_bits

KINDS = ("discrete", "continuous")
OBS, CHOICES, DIMS = 3, 3, 2
LOW, HIGH = [-2.0, 0.0], [2.0, 10.0]
HYPER = {"n_epochs": 2, "minibatch_size": 16, "learning_rate": 0.01}


def agent_of(kind, seed=0, params=HYPER, obs_dim=OBS, **options):
    options.setdefault("hidden_sizes", (4,))
    if kind == "discrete":
        return FlaxPPOAgent(obs_dim, CHOICES, HyperparamSet(dict(params)), seed=seed, **options)
    agent = FlaxGaussianPPOAgent(obs_dim, DIMS, HyperparamSet(dict(params)), seed=seed, **options)
    agent.set_action_bounds(LOW, HIGH)
    return agent


def window_of(kind, rows=24, seed=0, **fields):
    """A window of noise; the task ends at its last row, so that every row is usable."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, CHOICES, rows) if kind == "discrete" else rng.normal(size=(rows, DIMS))
    fields = {
        "observations": rng.normal(size=(rows, OBS)).astype(np.float32),
        "actions": actions,
        "rewards": list(rng.normal(size=rows)),
        "terminated": [False] * (rows - 1) + [True],
        "truncated": [False] * rows,
        "infos": [{}] * rows,
        "episode_id": 0,
    } | fields
    return EpisodeData(**fields)


class Noisy(gymnasium.Env):
    """Observations of noise, rewards that depend on the action; ends in either way."""

    def __init__(self, kind, seed):
        self.kind, self.rng = kind, np.random.default_rng(seed)
        self.observation_space = gymnasium.spaces.Box(-9, 9, (OBS,), np.float32)
        bounds = np.float32(LOW), np.float32(HIGH)
        self.action_space = gymnasium.spaces.Discrete(CHOICES) if kind == "discrete" else gymnasium.spaces.Box(*bounds)

    def reset(self, *, seed=None, options=None):
        return self.rng.normal(size=OBS).astype(np.float32), {}

    def step(self, action):
        reward = float(np.sum(action) + self.rng.normal())
        ends = self.rng.random(2) < 0.15
        return self.reset()[0], reward, bool(ends[0]), bool(ends[1]), {}


def pipeline_of(which, kind, agent, steps=8):
    envs = [lambda i=i: Noisy(kind, i) for i in range(3)]
    return BatchPipeline(envs[0](), agent, 3 * steps) if which == "one" else VectorBatchPipeline(envs, agent, steps)


def collected(which, kind, agent, count=1):
    return list(itertools.islice(pipeline_of(which, kind, agent).episodes(), count))


def present(agent):
    return jax.tree.map(np.array, (agent._params, agent._opt))


# -- laws of the first minibatch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_is_one_before_any_update(kind):
    """No step is taken at learning rate 0, so every minibatch is a first one."""
    agent = agent_of(kind, params={**HYPER, "learning_rate": 0.0})
    data = collected("several", kind, agent)[0]
    result = agent.learn(data)
    assert abs(result["approx_kl"]) < 1e-10  # k3 is half the squared log-ratio: 1e-5 for each
    assert abs(result["policy_loss"]) < 1e-5  # of normalised advantages nothing is left


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_that_a_window_brings_are_the_behaviour_policys(kind):
    agent = agent_of(kind, params={**HYPER, "learning_rate": 0.0})
    data = window_of(kind)
    rows = unit_actions(kind, data.actions)
    dist, _ = reference.forward(reference.as_float64(agent._params), np.asarray(data.observations, np.float64))
    ratio = np.exp(np.linspace(-0.3, 0.2, 24))
    data.log_probs = list(dist.log_prob(rows) - np.log(ratio))
    np.testing.assert_allclose(agent.learn(data)["approx_kl"], (ratio - 1 - np.log(ratio)).mean(), rtol=1e-3)


def unit_actions(kind, actions):
    """The policy's actions in its own range, by the formula."""
    actions, low, high = np.asarray(actions), np.array(LOW), np.array(HIGH)
    return actions if kind == "discrete" else 2.0 * (actions - low) / (high - low) - 1.0


# -- one window against NumPy --------------------------------------------------------------------------------------


def naive_gae(data, critic, gamma, lam):
    """One segment and one row at a time, float64."""
    starts = [*data.metadata.get("segment_starts", [0]), data.length]
    finals, last = data.metadata["final_observations"], np.asarray(data.final_obs).reshape(-1, OBS)
    gains, targets = np.zeros(data.length), np.zeros(data.length)
    for segment, (start, end) in enumerate(itertools.pairwise(starts)):
        ahead = 0.0
        for t in reversed(range(start, end)):
            ended = data.terminated[t] or data.truncated[t]
            following = finals[t] if ended else last[segment] if t == end - 1 else data.observations[t + 1]
            value = critic(data.observations[t])
            delta = data.rewards[t] + (0.0 if data.terminated[t] else gamma * critic(following)) - value
            ahead = delta + (0.0 if ended else gamma * lam * ahead)
            gains[t], targets[t] = ahead, ahead + value
    return gains, targets


@pytest.mark.parametrize("which", ["one", "several"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_learned_from_as_by_the_equations(kind, which):
    params = {
        "n_epochs": 2, "minibatch_size": 8, "learning_rate": 0.03, "clip_ratio": 0.1, "entropy_coef": 0.02,
        "vf_coef": 0.7, "gamma": 0.9, "gae_lambda": 0.8, "max_grad_norm": 0.4, "adam_eps": 1e-3,
    }  # fmt: skip
    agent = agent_of(kind, params=params)
    data = collected(which, kind, agent)[0]
    assert any(data.terminated)
    assert any(data.truncated)
    start, rng = reference.as_float64(agent._params), np.random.default_rng()
    rng.bit_generator.state = agent._rng.bit_generator.state
    result = agent.learn(data)

    def critic(obs):
        return reference.mlp(start["critic"], np.asarray(obs, np.float64))[0]

    gains, targets = naive_gae(data, critic, 0.9, 0.8)
    obs, actions = np.asarray(data.observations, np.float64), unit_actions(kind, data.actions)
    dist, value = reference.forward(start, obs)
    batch = Batch(obs, actions, dist.log_prob(actions), value, gains, targets)
    hyper = {**params, "clip_range": 0.1, "value_coef": 0.7}
    order = minibatch_order(rng, 24, 8, 2)
    flat, _, _, norms, parts = reference.reference_update(start, batch, hyper, PPOConfig(), order)
    assert max(norms) > 0.4
    np.testing.assert_allclose(reference.flatten(reference.as_float64(agent._params)), flat, atol=1e-4)
    for name, expected in parts.items():
        np.testing.assert_allclose(result[name], expected, rtol=2e-3, atol=2e-5, err_msg=name)
    assert result["n_updates"] == 6
    np.testing.assert_allclose(result["explained_var"], 1 - np.var(targets - value) / np.var(targets), atol=1e-4)


def test_minibatches_are_passes_over_the_window():
    rng = np.random.default_rng(0)
    order = minibatch_order(rng, 24, 8, 3)
    assert order.shape == (9, 8)
    for one_pass in order.reshape(3, 24):
        assert sorted(one_pass) == list(range(24))
    assert not np.array_equal(order[:3], order[3:6])
    order = minibatch_order(rng, 20, 8, 2)  # 2 passes of 20 rows are 5 parts; none is shorter than the others
    assert (np.bincount(order.ravel(), minlength=20) == 2).all()
    assert minibatch_order(rng, 20, 64, 4).shape == (5, 16)  # the window is smaller than a minibatch
    assert minibatch_order(rng, 1, 64, 4).shape == (4, 1)
    assert minibatch_order(rng, 100, 64, 1).shape == (2, 64)


def test_a_minibatch_of_one_row_keeps_its_advantage():
    agent = agent_of("discrete", params={**HYPER, "learning_rate": 0.0})
    data = window_of("discrete", rows=1, rewards=[5.0])
    value = float(agent._critic(np.float32(data.observations))[0])
    np.testing.assert_allclose(agent.learn(data)["policy_loss"], -(5.0 - value), rtol=1e-5)


# -- windows of every kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_window_of_lists(kind):
    agent = agent_of(kind)
    data = window_of(kind, terminated=[False] * 24)
    data.observations, data.actions = data.observations.tolist(), data.actions.tolist()
    before = present(agent)
    result = agent.learn(data)  # nobody knows what its last row led to
    assert set(result) == {"policy_loss", "value_loss", "entropy", "approx_kl", "explained_var", "n_updates"}
    assert all(type(value) is float and np.isfinite(value) for value in result.values())
    assert not np.array_equal(before[0]["actor"]["head"]["kernel"], agent._params["actor"]["head"]["kernel"])


def test_a_window_without_a_usable_row_changes_nothing():
    agent = agent_of("discrete", reward_normalizer=RewardNormalizer(), normalize_observations=True)
    before, normalizers = present(agent), [n.state_dict() for n in (agent.reward_normalizer, agent.obs_normalizer)]
    empty = window_of("discrete", rows=1)
    for name in ("observations", "actions", "rewards", "terminated", "truncated"):
        setattr(empty, name, [])
    for data in (window_of("discrete", rows=1, terminated=[False]), empty):
        assert agent.learn(data) == {}
        assert_same_bits(present(agent), before)
        assert_same_bits([n.state_dict() for n in (agent.reward_normalizer, agent.obs_normalizer)], normalizers)


@pytest.mark.slow
def test_images_take_a_cnn():
    agent = FlaxPPOAgent((6, 6, 2), 2, HyperparamSet(dict(HYPER)), hidden_size=8)
    images = np.random.default_rng(0).integers(0, 255, (4, 6, 6, 2)).astype(np.uint8)
    assert agent._params["actor"]["mlp"]["hidden"][1]["kernel"].shape == (8, 8)
    assert agent.act_batch(images).shape == (4,)
    data = window_of("discrete", rows=4, observations=images, actions=[0, 1, 0, 1])
    assert np.isfinite(agent.learn(data)["policy_loss"])


def test_nothing_is_compiled_anew():
    """Windows of one bucket, other hyperparameters, loaded weights: the programs stay those of the first window."""
    traces = []

    class Actor(nnx.Module):
        def __init__(self, rngs):
            self.out = nnx.Linear(OBS, CHOICES, rngs=rngs)

        def __call__(self, x):
            traces.append(x.shape)
            return self.out(x)

    agent = agent_of("discrete", actor=Actor(nnx.Rngs(0)))
    agent.learn(window_of("discrete", rows=32))
    agent.act_batch(np.zeros((2, OBS), np.float32))
    count = len(traces)
    assert count
    for rows, changes in ((32, {"n_epochs": 3}), (25, {"gamma": 0.9}), (17, {"learning_rate": 0.1, "clip_ratio": 0.3})):
        agent.set_hyperparams(HyperparamSet({**HYPER, **changes}))
        agent.learn(window_of("discrete", rows=rows))
        agent.act_batch(np.ones((2, OBS)))
    agent.perturb_weights(0.1)
    agent.learn(window_of("discrete", rows=31, log_probs=[-1.0] * 31))
    assert len(traces) == count, traces[count:]
    agent.learn(window_of("discrete", rows=33))  # the next bucket
    assert len(traces) > count


def test_agents_of_equal_networks_share_their_programs():
    assert agent_of("discrete")._programs is agent_of("discrete", seed=1)._programs
    assert agent_of("discrete")._programs is not agent_of("discrete", hidden_sizes=(5,))._programs


# -- acting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind):
    obs = np.random.default_rng(0).normal(size=(64, OBS)).astype(np.float32)
    one, same, other = agent_of(kind, 1), agent_of(kind, 1), agent_of(kind, 2)
    first = one.act_batch(obs)
    np.testing.assert_array_equal(first, same.act_batch(obs))
    assert not np.array_equal(first, other.act_batch(obs))
    assert not np.array_equal(first, one.act_batch(obs))
    assert not np.array_equal(one._params["actor"]["head"]["kernel"], other._params["actor"]["head"]["kernel"])


@pytest.mark.parametrize("kind", KINDS)
def test_acting_deterministically_draws_nothing(kind):
    agent, twin = agent_of(kind), agent_of(kind)
    obs = np.random.default_rng(0).normal(size=(8, OBS)).astype(np.float32)
    batch = agent.act_batch_deterministic(obs)
    for row, action in zip(obs, batch, strict=True):
        np.testing.assert_allclose(agent.act_deterministic(row), action, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(agent.act_batch(obs), twin.act_batch(obs))


def test_discrete_actions_follow_the_probabilities():
    """1e5 draws: 5 standard deviations, a false alarm in 1e6 at a seed that is fixed."""
    agent = agent_of("discrete")
    agent.perturb_weights(2.0)
    agent._params["actor"]["head"]["bias"] = jnp.float32([1.0, 0.0, -1.0])
    obs = np.float32([0.5, -1.0, 2.0])
    probs = agent.action_probs(obs)
    assert probs.shape == (CHOICES,)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(), 1.0, rtol=1e-6)
    actions = agent.act_batch(np.tile(obs, (100_000, 1)))
    shares = np.bincount(actions, minlength=CHOICES) / 1e5
    assert (np.abs(shares - probs) < 5 * np.sqrt(probs * (1 - probs) / 1e5)).all()
    assert probs.max() - probs.min() > 0.2
    assert agent.act_deterministic(obs) == probs.argmax()
    assert type(agent.act(obs)) is int


def test_continuous_actions_are_a_gaussian_between_the_bounds():
    """Mean and spread of 1e5 draws within 5 standard errors, at a seed that is fixed."""
    agent = agent_of("continuous")
    agent._params["log_std"] = jnp.float32([-1.0, -2.0])
    obs = np.float32([0.5, -1.0, 2.0])
    actions = np.asarray(agent.act_batch(np.tile(obs, (100_000, 1))), np.float64)
    half = (np.array(HIGH) - LOW) / 2
    mean = (np.array(HIGH) + LOW) / 2 + half * np.asarray(agent._actor(obs[None])[0])
    std = half * np.exp([-1.0, -2.0])
    assert (np.abs(actions.mean(0) - mean) < 5 * std / np.sqrt(1e5)).all()
    assert (np.abs(actions.std(0) - std) < 5 * std / np.sqrt(2e5)).all()
    np.testing.assert_allclose(agent.act_deterministic(obs), mean, rtol=1e-5)
    action = agent.act(obs)
    assert action.shape == (DIMS,)
    assert action.dtype == np.float32


def test_a_dimension_without_bounds_is_not_scaled():
    agent = agent_of("continuous")
    agent.set_action_bounds([-np.inf, 0.0], [np.inf, 4.0])
    unit = np.asarray(agent._actor(np.ones((1, OBS), np.float32)))[0]
    np.testing.assert_allclose(agent.act_deterministic(np.ones(OBS)), [unit[0], 2.0 + 2.0 * unit[1]], atol=1e-6)


def test_nan_observations_show_and_do_not_crash():
    agent = agent_of("discrete")
    assert agent.act(np.full(OBS, np.nan)) == 0
    assert agent.act_deterministic(np.full(OBS, np.nan)) == 0
    assert agent_of("continuous").act(np.full(OBS, np.nan)).shape == (DIMS,)
    data = window_of("discrete")
    data.observations[3, 1] = np.nan
    assert not np.isfinite(agent.learn(data)["policy_loss"])


# -- normalisers ---------------------------------------------------------------------------------------------------


def test_the_normaliser_of_observations_moves_after_learning():
    normalizer = ObsNormalizer((OBS,))
    agent = agent_of("discrete", obs_normalizer=normalizer, params={**HYPER, "learning_rate": 0.0})
    plain = agent_of("discrete", params={**HYPER, "learning_rate": 0.0})
    data = window_of("discrete")
    data.observations = data.observations * 7.0 + 3.0
    agent.act_batch(data.observations)
    assert normalizer.rms.count < 1.0
    result = agent.learn(data)
    assert {k: pytest.approx(v, abs=1e-4) for k, v in result.items()} == plain_on_clipped(plain, data)
    np.testing.assert_allclose(normalizer.rms.mean, data.observations.mean(0), rtol=1e-3)
    seen = (data.observations - data.observations.mean(0)) / data.observations.std(0)
    expected = jax.nn.softmax(agent._actor(seen.astype(np.float32)))[5]
    np.testing.assert_allclose(agent.action_probs(data.observations[5]), expected, rtol=1e-3)


def plain_on_clipped(agent, data):
    """A fresh normaliser only clips."""
    data = window_of("discrete", observations=np.clip(data.observations, -10, 10))
    return agent.learn(data)


def test_rewards_are_scaled_by_the_spread_of_the_return():
    agent = agent_of("discrete", reward_normalizer=RewardNormalizer(), params={**HYPER, "learning_rate": 0.0})
    large = window_of("discrete", rewards=list(1000.0 * np.random.default_rng(1).normal(size=24)))
    assert agent.learn(large)["value_loss"] < 100.0
    assert agent_of("discrete").learn(large)["value_loss"] > 1e4


# -- hyperparameters -----------------------------------------------------------------------------------------------


def test_hyperparameters():
    params = HyperparamSet({"n_epochs": 3, "mine": True, "label": "x"}, episode_id=7)
    agent = FlaxPPOAgent(OBS, CHOICES, params, hidden_sizes=(4,))
    hyper = agent.get_hyperparams()
    assert hyper.params == {**host_ppo.DEFAULTS, "n_epochs": 3, "mine": True, "label": "x"}
    assert hyper.episode_id == 7
    assert type(hyper.params["n_epochs"]) is int
    hyper.params["gamma"] = 0.0
    assert agent.get_hyperparams().params["gamma"] == 0.99
    with pytest.raises(ValueError, match=r"gamma must be from 0 to 1, got 1\.5"):
        agent.set_hyperparams(HyperparamSet({"gamma": 1.5}))
    assert agent.get_hyperparams().params["n_epochs"] == 3
    assert FlaxPPOAgent.default_param_bounds == host_ppo.PARAM_BOUNDS
    assert FlaxPPOAgent.default_log_params == {"learning_rate"}
    assert agent.is_on_policy


@pytest.mark.parametrize("name", ["learning_rate", "clip_ratio", "entropy_coef", "vf_coef", "gamma", "gae_lambda",
                                  "max_grad_norm", "n_epochs", "minibatch_size", "adam_eps"])  # fmt: skip
def test_every_hyperparameter_matters(name):
    base = {**host_ppo.DEFAULTS, "n_epochs": 4, "minibatch_size": 16, "learning_rate": 0.02, "adam_eps": 1e-5}
    changed = {"n_epochs": 2, "minibatch_size": 8, "adam_eps": 0.1, "clip_ratio": 0.01}
    agents = [
        agent_of("discrete", params=params) for params in (base, base | {name: changed.get(name, base[name] / 3)})
    ]
    for agent in agents:
        agent.learn(window_of("discrete"))
    kernels = [np.asarray(agent._params[part]["hidden"][0]["kernel"]) for agent in agents for part in agent._params]
    assert not all(np.array_equal(a, b) for a, b in zip(kernels[:2], kernels[2:], strict=True))


def test_new_hyperparameters_keep_the_moments():
    agent = agent_of("discrete")
    agent.learn(window_of("discrete"))
    before = present(agent)
    agent.set_hyperparams(HyperparamSet({**HYPER, "learning_rate": 0.5}))
    assert_same_bits(present(agent), before)
    agent.set_hyperparams(HyperparamSet({**HYPER, "learning_rate": 0.0}))
    agent.learn(window_of("discrete"))
    assert_same_bits(agent._params, before[0])
    assert agent._opt.count == 2 * before[1].count


# -- networks of the user's own ------------------------------------------------------------------------------------


class Net(nnx.Module):
    def __init__(self, width, rngs):
        self.layer, self.out = nnx.Linear(OBS, 6, rngs=rngs), nnx.Linear(6, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)  # brings variables that are no parameters

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.layer(x))))


def test_modules_of_the_users_own():
    actor, critic = Net(CHOICES, nnx.Rngs(0)), Net(1, nnx.Rngs(1))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(actor, nnx.Param)))
    agent = agent_of("discrete", actor=actor, critic=critic)
    obs = np.ones((2, OBS), np.float32)
    np.testing.assert_allclose(agent._actor(obs), actor(obs), rtol=1e-6)
    np.testing.assert_allclose(agent._critic(obs), critic(obs)[:, 0], rtol=1e-6)
    agent.learn(window_of("discrete"))
    assert_same_bits(nnx.to_pure_dict(nnx.state(actor, nnx.Param)), before)
    assert np.abs(agent._actor(obs) - actor(obs)).max() > 1e-3


def test_a_subclass_reads_the_actor():
    class Logging(FlaxPPOAgent):
        def learn(self, episode_data):
            found = super().learn(episode_data)
            probs = jax.nn.softmax(self._actor(jnp.asarray(episode_data.observations[:256], jnp.float32)))
            return {**found, "p_first": float(probs.mean(axis=0)[0])}

    result = Logging(OBS, CHOICES, HyperparamSet(dict(HYPER)), hidden_sizes=(4,)).learn(window_of("discrete"))
    assert 0.0 < result["p_first"] < 1.0


BAD: list[tuple[Callable, type, str]] = [
    (lambda: FlaxPPOAgent(0, 2, HyperparamSet({})), ValueError, "obs_dim must be at least 1, got 0"),
    (lambda: FlaxPPOAgent(4, 2.0, HyperparamSet({})), TypeError, "n_actions must be a whole number, got 2.0"),
    (lambda: FlaxPPOAgent((4, 4), 2, HyperparamSet({})), ValueError, "no torso for observations of shape"),
    (lambda: FlaxPPOAgent(4, 2, HyperparamSet({}), activation="tan"), ValueError, "activation must be one of"),
    (lambda: FlaxPPOAgent(4, 2, HyperparamSet({}), hidden_sizes=(0,)), ValueError, "positive whole numbers"),
    (lambda: FlaxPPOAgent(4, 2, HyperparamSet({"gamma": 2})), ValueError, "gamma must be from 0 to 1"),
    (lambda: FlaxPPOAgent(4, 2, HyperparamSet({}), actor=print), TypeError, "expected a flax.nnx.Module"),
    (lambda: agent_of("discrete", actor=Net(5, nnx.Rngs(0))), ValueError, "give its last layer 3 outputs"),
    (lambda: agent_of("continuous", actor=Net(4, nnx.Rngs(0))), ValueError, "give its last layer 2 outputs"),
    (lambda: agent_of("discrete", critic=Net(2, nnx.Rngs(0))), ValueError, "give its last layer 1 output"),
    (lambda: agent_of("discrete").act(np.zeros(5)), ValueError, r"must have shape \[3\] each, got \[5\]"),
    (lambda: agent_of("discrete").learn(window_of("discrete", actions=[3] * 24)), ValueError, "from 0 to 2, got 3"),
    (lambda: agent_of("discrete").learn(window_of("discrete", log_probs=[0.0])), ValueError, "log_probs must have"),
    (lambda: agent_of("continuous").set_action_bounds([0, 1], [1, 1]), ValueError, "every low must be below"),
    (lambda: agent_of("continuous").set_action_bounds([0, 1, 2], [3, 4, 5]), ValueError, "must have 2 numbers each"),
]


@pytest.mark.parametrize(("call", "error", "sentence"), BAD, ids=[sentence for *_, sentence in BAD])
def test_bad_input_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


# -- the host loop -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_documented_loop_runs(tmp_path):
    env = gymnasium.make("CartPole-v1")
    params = {
        "learning_rate": 3e-4, "clip_ratio": 0.2, "entropy_coef": 0.01, "vf_coef": 0.5, "gamma": 0.99,
        "gae_lambda": 0.95, "n_epochs": 2, "minibatch_size": 64,
    }  # fmt: skip
    agent = FlaxPPOAgent(
        obs_dim=env.observation_space.shape[0],
        n_actions=env.action_space.n,
        hyperparams=HyperparamSet(params=params, episode_id=0),
        hidden_size=64,
        seed=0,
    )
    loop = LoopController(
        agent=agent,
        pipeline=BatchPipeline(env=env, agent=agent, window_size=128),
        evaluator=FlaxEvaluator(),
        checkpoint_registry=CheckpointRegistry(tmp_path),
        max_episodes=4,
    )
    result = loop.run()
    assert result.windows == 4
    assert result.best_snapshot is not None
    assert not result.callback_failures


class PoisonedReward(gymnasium.Wrapper):
    """One reward is not a number."""

    steps = 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.steps += 1
        return obs, float("nan") if self.steps == 60 else reward, *rest


def test_a_poisoned_window_is_rolled_back(tmp_path):
    agent = agent_of("discrete", normalize_observations=True)
    seen = []

    class Watched(LoopController):
        def _roll_back(self, reset_envs):
            seen.append(bool(np.isfinite(np.asarray(agent._params["actor"]["head"]["kernel"])).all()))
            super()._roll_back(reset_envs)
            seen.append(bool(np.isfinite(np.asarray(agent._params["actor"]["head"]["kernel"])).all()))

    pipeline = BatchPipeline(PoisonedReward(Noisy("discrete", 0)), agent, 24)
    loop = Watched(agent, pipeline=pipeline, checkpoint_registry=CheckpointRegistry(tmp_path), max_episodes=6)
    assert loop.run().windows == 6
    assert seen == [False, True]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(present(agent)))


@pytest.mark.slow
def test_cartpole_is_solved(tmp_path):
    """99,840 steps of 8 Gymnasium environments: the best policy scores at least 475 over 20 episodes."""
    params = {
        "learning_rate": 1e-3, "clip_ratio": 0.2, "entropy_coef": 0.0, "gamma": 0.98, "gae_lambda": 0.8,
        "n_epochs": 20, "minibatch_size": 256,
    }  # fmt: skip
    agent = FlaxPPOAgent(4, 2, HyperparamSet(params), seed=0)
    loop = LoopController(
        agent,
        pipeline=VectorBatchPipeline([lambda: gymnasium.make("CartPole-v1")] * 8, agent, 32, seed=0),
        checkpoint_registry=CheckpointRegistry(tmp_path),
        backoff_scheduler=BackoffScheduler(min_episodes_before_dormant=390),  # windows of 256 steps say little each
        max_episodes=390,
    )
    assert loop.run().windows == 390
    assert score_of(agent, episodes=20) >= 475


def score_of(agent, episodes):
    env, total = gymnasium.make("CartPole-v1"), 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=1000 + episode)
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(agent.act_deterministic(obs))
            done, total = terminated or truncated, total + reward
    return total / episodes
