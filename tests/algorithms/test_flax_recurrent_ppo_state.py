"""Recurrent PPO in JAX as a host agent: faults, files, resume, configurations, and whole runs."""

import itertools
import json

import gymnasium
import jax
import numpy as np
import pytest

from tensor_optix.algorithms.flax_recurrent_ppo import DEFAULTS, FlaxRecurrentPPOAgent
from tensor_optix.algorithms.recurrent_sequences import episode_starts
from tensor_optix.config import ConfigError
from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.normalizers import RewardNormalizer
from tensor_optix.core.types import HyperparamSet
from tensor_optix.core.window_returns import Segments
from tensor_optix.host_config import TrainConfig, agent_for
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import plain
from tensor_optix.loop.host import LoopController
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.pipeline import BatchPipeline, LivePipeline, VectorBatchPipeline
from tests.algorithms.recurrent_parts import (
    HYPER,
    Remembering,
    agent_of,
    pipeline_of,
    present,
    segments_of,
    window_of,
)
from tests.algorithms.test_flax_ppo import CHOICES, DIMS, HIGH, KINDS, LOW, OBS, Noisy
from tests.pipeline.troubled import assert_same_window
from tests.runs import assert_same_bits


class Feed:
    """A source that runs by itself: episodes of 5 observations, of which the second has a gap after it."""

    observation_space = gymnasium.spaces.Box(-9, 9, (OBS,), np.float32)

    def stream(self):
        rng = np.random.default_rng(0)
        for t in range(40):
            if t == 8:
                raise ConnectionError("lost")
            yield rng.normal(size=OBS), 1.0, t % 5 == 4, False, {}


def test_a_live_source():
    agent = agent_of("continuous")
    pipeline = LivePipeline(Feed(), agent, LivePipeline.every_n_steps(7), deterministic=True, reconnect_wait_s=0.001)
    windows = list(itertools.islice(pipeline.episodes(), 4))
    pipeline.teardown()
    assert any(data.hidden_states is not None and 0 not in data.episode_starts for data in windows)
    for data in windows:
        seen, hidden = [], data.hidden_states
        starts = episode_starts(data, Segments.of(data))
        np.testing.assert_array_equal(np.flatnonzero(starts), data.episode_starts)
        for obs, start in zip(data.observations, starts, strict=True):
            actions, hidden = agent.act_recurrent(np.float32(obs)[None], hidden, [start], deterministic=True)
            seen.append(actions[0])
        np.testing.assert_allclose(seen, data.actions, rtol=1e-5)


class Faulty(Noisy):
    """Some steps fail."""

    def step(self, action):
        if self.rng.random() < 0.1:
            raise OSError("a fault")
        return super().step(action)


def test_a_fault_of_one_environment_is_an_end_to_it_alone():
    agent = agent_of("continuous")
    envs = [lambda i=i: Faulty("continuous", i) for i in range(3)]
    pipeline = VectorBatchPipeline(envs, agent, 12, deterministic=True)
    cell = Remembering("lstm", 3, 3)
    for data in itertools.islice(pipeline.episodes(), 3):
        hidden = np.zeros_like(cell.hidden) if data.hidden_states is None else data.hidden_states
        goes_on = [start not in data.episode_starts for start, _ in segments_of(data)]
        np.testing.assert_allclose(hidden[goes_on], cell.hidden[goes_on], rtol=1e-4, atol=1e-5)
        cell.through(agent, data)
    assert pipeline.n_faults > 5


# -- windows of every kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_window_of_lists(kind):
    agent = agent_of(kind)
    data = window_of(kind, terminated=[False] * 24)
    data.observations, data.actions = data.observations.tolist(), data.actions.tolist()
    before = present(agent)
    result = agent.learn(data)  # nobody knows what its last row led to
    assert set(result) == {"policy_loss", "value_loss", "entropy", "approx_kl", "explained_var", "n_updates"}
    assert all(type(value) is float and np.isfinite(value) for value in result.values())
    assert not np.array_equal(before[0]["actor"]["memory"]["inputs"]["kernel"],
                              agent._params["actor"]["memory"]["inputs"]["kernel"])  # fmt: skip


def test_a_window_without_a_usable_row_changes_nothing():
    agent = agent_of(reward_normalizer=RewardNormalizer(), normalize_observations=True)
    before, normalizers = present(agent), [n.state_dict() for n in (agent.reward_normalizer, agent.obs_normalizer)]
    empty = window_of(rows=1)
    for name in ("observations", "actions", "rewards", "terminated", "truncated"):
        setattr(empty, name, [])
    for data in (window_of(rows=1, terminated=[False]), empty):
        assert agent.learn(data) == {}
        assert_same_bits(present(agent), before)
        assert_same_bits([n.state_dict() for n in (agent.reward_normalizer, agent.obs_normalizer)], normalizers)


def test_a_window_of_one_row_keeps_its_advantage():
    agent = agent_of(params={**HYPER, "learning_rate": 0.0, "n_epochs": 24})
    data = window_of(rows=1, rewards=[5.0])
    value = float(agent._unrolled(data, np.float32(data.observations), data.actions.astype(np.int32)).value[0])
    np.testing.assert_allclose(agent.learn(data)["policy_loss"], -(5.0 - value), rtol=1e-5)


def test_observations_are_normalised_as_while_acting():
    """The normaliser moves after a window was learned from, which then had a ratio of one."""
    agent = agent_of(params={**HYPER, "learning_rate": 0.0}, normalize_observations=True)
    stream = pipeline_of("several", "discrete", agent).episodes()
    for _ in range(3):
        assert abs(agent.learn(next(stream))["approx_kl"]) < 1e-9
    assert agent.obs_normalizer.rms.count > 70


@pytest.mark.slow
def test_images_take_a_cnn():
    agent = FlaxRecurrentPPOAgent((6, 6, 2), 2, HyperparamSet(dict(HYPER)), hidden_sizes=(8,), hidden_size=3)
    images = np.random.default_rng(0).integers(0, 255, (4, 6, 6, 2)).astype(np.uint8)
    assert agent.act_batch(images).shape == (4,)
    shapes = [jax.ShapeDtypeStruct((8, 2, *tail), kind) for tail, kind in (((6, 6, 2), np.float32), ((), np.int32))]
    starts, hidden = jax.ShapeDtypeStruct((8, 2), bool), np.zeros((2, 12), np.float32)
    assert jax.eval_shape(agent._programs.unroll, agent._params, *shapes, hidden, starts)[0].shape == (8, 2)


def test_nothing_is_compiled_anew():
    """Windows of one bucket, other hyperparameters, loaded weights: the programs stay those of the first windows."""
    agent = agent_of()
    stream = pipeline_of("several", "discrete", agent).episodes()

    def counts():
        return {name: program._cache_size() for name, program in agent._programs._asdict().items()}

    for _ in range(2):
        agent.learn(next(stream))
    agent.learn(window_of(rows=24))
    before = counts()
    for rows, changes in ((24, {"gamma": 0.9}), (17, {"clip_ratio": 0.3}), (32, {"learning_rate": 0.1})):
        agent.set_hyperparams(HyperparamSet({**HYPER, **changes}))
        agent.learn(window_of(rows=rows))
        agent.learn(next(stream))
    agent.perturb_weights(0.1)
    agent.learn(window_of(rows=29, log_probs=[-1.0] * 29, hidden_states=np.ones((1, 12))))
    ends = [t % 2 == 1 for t in range(24)]  # many rows are bootstrapped
    finals = {t: np.ones(OBS) for t in range(24) if ends[t]}
    agent.learn(window_of(terminated=[False] * 24, truncated=ends, metadata={"final_observations": finals}))
    assert counts() == before
    data = window_of(rows=70)  # another bucket
    agent._unrolled(data, data.observations, data.actions.astype(np.int32))
    assert counts()["unroll"] == before["unroll"] + 1
    assert agent_of(seed=1)._programs is agent._programs
    assert agent_of(cell="gru")._programs is not agent._programs


# -- saving and going on ---------------------------------------------------------------------------------------------


class Seeded(Noisy):
    """Draws from the generator that a reset seeds."""

    def reset(self, *, seed=None, options=None):
        gymnasium.Env.reset(self, seed=seed)
        self.rng = self.np_random
        return super().reset()


@pytest.mark.parametrize(("kind", "cell", "n_envs"), [("discrete", "gru", 1), ("continuous", "lstm", 3)])
def test_a_state_put_back_goes_on_to_the_bit(kind, cell, n_envs, tmp_path):
    options = {"cell": cell, "normalize_observations": True}
    agent, fresh = agent_of(kind, **options), agent_of(kind, seed=9, **options)

    def pipeline_with(agent):
        make = lambda: Seeded(kind, 0)  # noqa: E731
        if n_envs == 1:
            return BatchPipeline(env_fn=make, agent=agent, window_size=24, seed=3)
        return VectorBatchPipeline([make] * n_envs, agent, 8, seed=3)

    pipeline, other = pipeline_with(agent), pipeline_with(fresh)
    stream = pipeline.episodes()
    for _ in range(2):
        agent.learn(next(stream))
    agent.act(np.ones(OBS))
    agent.save_state(str(tmp_path / "agent"))
    fresh.load_state(str(tmp_path / "agent"))
    assert other.load_state_dict(json.loads(json.dumps(plain(pipeline.state_dict())))) == []
    np.testing.assert_array_equal(fresh.act(np.ones(OBS)), agent.act(np.ones(OBS)))
    for n, (ours, expected) in enumerate(zip(other.episodes(), stream, strict=False)):
        assert_same_window(ours, expected)
        assert 0 not in expected.episode_starts or n
        np.testing.assert_array_equal(ours.hidden_states, expected.hidden_states)
        assert fresh.learn(ours) == agent.learn(expected)
        if n == 2:
            break
    assert_same_bits(present(fresh), present(agent))


def test_weights_are_saved_averaged_and_perturbed(tmp_path):
    one, two = agent_of(seed=1), agent_of(seed=2)
    paths = [str(tmp_path / name) for name in ("one", "two")]
    for agent, path in zip((one, two), paths, strict=True):
        agent.learn(window_of())
        agent.save_weights(path)
    back, mean = agent_of(seed=3), agent_of(seed=4)
    back.load_weights(paths[0])
    assert_same_bits(present(back), present(one))
    mean.average_weights(paths)
    for a, b, c in zip(*(jax.tree.leaves(agent._params) for agent in (one, two, mean)), strict=True):
        np.testing.assert_allclose((np.asarray(a) + b) / 2, c, rtol=1e-5, atol=1e-7)
    back.perturb_weights(0.1)
    assert not np.array_equal(back._params["actor"]["head"]["kernel"], one._params["actor"]["head"]["kernel"])
    with pytest.raises(ValueError, match=r"has actor/memory|memory"):
        agent_of(cell="gru").load_weights(paths[0])
    one.teardown()
    with pytest.raises(RuntimeError, match="torn down"):
        one.act(np.ones(OBS))


# -- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind):
    obs = np.random.default_rng(0).normal(size=(30, 3, OBS))

    def actions_of(agent):
        agent.reset_hidden()
        return np.stack([agent.act_batch(each) for each in obs])

    one, same, other = agent_of(kind, 1), agent_of(kind, 1), agent_of(kind, 2)
    first = actions_of(one)
    np.testing.assert_array_equal(first, actions_of(same))
    assert not np.array_equal(first, actions_of(other))
    assert not np.array_equal(first, actions_of(one))
    assert not np.array_equal(one._params["actor"]["head"]["kernel"], other._params["actor"]["head"]["kernel"])
    before = one._rng.bit_generator.state
    one.act_batch_deterministic(obs[0])
    assert one._rng.bit_generator.state == before


def test_discrete_actions_follow_the_probabilities():
    """1e5 draws: 5 standard deviations, a false alarm in 1e6 at a seed that is fixed."""
    agent, obs = agent_of(), np.float32([0.5, -1.0, 2.0])
    agent.act(obs)
    hidden = agent._hidden[False]
    probs = agent.action_probs(obs)
    np.testing.assert_allclose(probs.sum(), 1.0, rtol=1e-6)
    assert probs.max() - probs.min() > 0.1
    actions, after = agent.act_recurrent(np.tile(obs, (100_000, 1)), np.tile(hidden, (100_000, 1)), [False] * 100_000)
    shares = np.bincount(actions, minlength=CHOICES) / 1e5
    assert (np.abs(shares - probs) < 5 * np.sqrt(probs * (1 - probs) / 1e5)).all()
    np.testing.assert_allclose(agent._hidden[False], after[:1], rtol=1e-5)  # the observation was remembered
    assert type(agent.act(obs)) is int
    assert type(agent.act_deterministic(obs)) is int


def test_continuous_actions_have_the_range_of_the_environment():
    agent = agent_of("continuous", bold=False)
    actions = np.concatenate([agent.act_batch(np.zeros((3, OBS))) for _ in range(5000)])
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions.mean(0), (np.array(HIGH) + LOW) / 2, atol=0.2)
    np.testing.assert_allclose(actions.std(0), (np.array(HIGH) - LOW) / 2, rtol=0.05)
    agent.reset_hidden()
    assert agent.act(np.zeros(OBS)).shape == (DIMS,)


def test_hyperparameters():
    agent = agent_of(params={"n_epochs": 3, "mine": True})
    assert agent.get_hyperparams().params == {**DEFAULTS, "n_epochs": 3, "mine": True}
    assert (DEFAULTS["bptt_len"], DEFAULTS["n_epochs"], DEFAULTS["minibatch_size"]) == (16, 4, 64)
    assert type(agent.get_hyperparams().params["bptt_len"]) is int
    assert agent.default_min_episodes_before_dormant == 20
    assert set(agent.default_param_bounds) == {"learning_rate", "gamma", "clip_ratio", "entropy_coef"}
    assert agent.is_on_policy


@pytest.mark.parametrize("name", ["learning_rate", "clip_ratio", "entropy_coef", "vf_coef", "gamma", "gae_lambda",
                                  "max_grad_norm", "n_epochs", "minibatch_size", "bptt_len", "adam_eps"])  # fmt: skip
def test_every_hyperparameter_matters(name):
    base = {**DEFAULTS, "minibatch_size": 16, "bptt_len": 4, "learning_rate": 0.02, "adam_eps": 1e-5}
    changed = {"n_epochs": 2, "minibatch_size": 4, "bptt_len": 2, "adam_eps": 0.1, "clip_ratio": 0.01}
    other = base | {name: changed.get(name, base[name] / 3)}
    if name == "bptt_len":  # as many sequences in a minibatch
        other["minibatch_size"] = 8
    found = []
    for params in (base, other):
        agent = agent_of(params=params)
        agent.learn(window_of())
        found.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(agent._params)]))
    assert not np.allclose(*found, atol=1e-6)


def test_a_configuration_knows_it():
    config = TrainConfig("own", "recurrent_ppo", agent={"bptt_len": 8}, n_envs=4)
    assert config.agent == {**DEFAULTS, "bptt_len": 8}
    assert (config.hidden_sizes, config.window_size, config.framework) == ([64], 512, "jax")
    assert agent_for(config, "discrete") == "FlaxRecurrentPPOAgent"
    assert agent_for(config, "continuous") == "FlaxRecurrentGaussianPPOAgent"
    for wrong, said in (({"bptt_len": 0}, "bptt_len must be from"), ({"bptt_len": 2.5}, "'bptt_len' must be a whole")):
        with pytest.raises(ConfigError, match=said):
            TrainConfig("own", "recurrent_ppo", agent=wrong)


BAD = [
    (lambda: FlaxRecurrentPPOAgent(0, 2, HyperparamSet({})), ValueError, "obs_dim must be at least 1, got 0"),
    (lambda: FlaxRecurrentPPOAgent(4, 2.0, HyperparamSet({})), TypeError, "n_actions must be a whole number, got 2.0"),
    (lambda: agent_of(cell="rnn"), ValueError, "cell must be one of lstm, gru, got 'rnn'"),
    (lambda: agent_of(hidden_sizes=()), ValueError, "hidden_sizes must name a layer or more"),
    (lambda: agent_of(hidden_size=0), ValueError, "hidden_sizes and hidden_size must be positive whole numbers"),
    (lambda: agent_of(params={"bptt_len": 0}), ValueError, "bptt_len must be from 1 to 1000000, got 0"),
    (lambda: agent_of(params={"bptt_len": "x"}), TypeError, "bptt_len must be a number, got 'x'"),
    (lambda: agent_of(params={"gamma": 2}), ValueError, "gamma must be from 0 to 1"),
    (lambda: agent_of().act(np.zeros(5)), ValueError, r"must have shape \[3\] each, got \[5\]"),
    (lambda: agent_of().learn(window_of(actions=[3] * 24)), ValueError, "from 0 to 2, got 3"),
    (lambda: agent_of().learn(window_of(log_probs=[0.0])), ValueError, "log_probs must have"),
    (lambda: agent_of().learn(window_of(hidden_states=np.zeros((1, 5)))), ValueError,
     r"must have shape \[1, 12\], got \[1, 5\].*give None"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), BAD, ids=[sentence for *_, sentence in BAD])
def test_bad_input_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


# -- the host loop ---------------------------------------------------------------------------------------------------


class Poisoned(gymnasium.Wrapper):
    """One observation is not a number, which a memory would keep until the episode ends."""

    steps = 0

    def step(self, action):
        obs, reward, *_ = self.env.step(action)
        self.steps += 1
        return np.full_like(obs, np.nan) if self.steps == 60 else obs, reward, False, False, {}


def test_a_poisoned_memory_is_emptied(tmp_path):
    agent = agent_of()
    pipeline = BatchPipeline(Poisoned(Noisy("discrete", 0)), agent, 24)
    loop = LoopController(agent, pipeline=pipeline, checkpoint_registry=CheckpointRegistry(tmp_path), max_episodes=6)
    assert loop.run().windows == 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(present(agent)))
    assert np.isfinite(pipeline.state_dict()["memory"]).all()


def test_a_run_and_the_same_run_in_two_parts(tmp_path):
    """12 windows, and 6 that are resumed for 6 more, with validation in between: the same to the bit."""
    ends = []
    for name, budgets in (("whole", [12]), ("parts", [6, 12])):
        directory = None
        for budget in budgets:
            agent = agent_of()
            make = [lambda: Seeded("discrete", 0)] * 3
            run = RLOptimizer(
                agent,
                VectorBatchPipeline(make, agent, 8, seed=3),
                val_pipeline=BatchPipeline(env_fn=make[0], window_size=24, seed=7, deterministic=True),
                checkpoint_dir=tmp_path / name,
                max_episodes=budget,
                resume_from=directory,
                min_episodes_before_dormant=1000,
            )
            result = run.run()
            directory = run.run_dir
        assert (result.windows, result.notes, result.callback_failures) == (12, [], [])
        ends.append((present(agent), [metrics.primary_score for metrics in result.history]))
    assert_same_bits(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


class RecallEnv(gymnasium.Env):
    """The first observation is a cue, +1 or -1, all later ones are 0; the last of 5 actions must name its sign."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.cue = 0, 2 * int(self.np_random.integers(2)) - 1
        return np.float32([self.cue]), {}

    def step(self, action):
        self.t += 1
        over = self.t == 5
        return np.zeros(1, np.float32), float(self.cue * (2 * action - 1)) if over else 0.0, over, False, {}


RECALL = {
    "learning_rate": 5e-3, "n_epochs": 4, "minibatch_size": 64, "bptt_len": 8, "max_grad_norm": 10.0,
    "entropy_coef": 0.0,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "n_envs"), [("gru", 1), ("lstm", 8)])
def test_a_cue_is_recalled(cell, n_envs, tmp_path):
    """By the host driver; without a memory the best score is 0 on average."""
    agent = FlaxRecurrentPPOAgent(
        1, 2, HyperparamSet(RECALL), hidden_size=16, hidden_sizes=(16,), cell=cell, normalize_observations=False
    )
    rows = 128
    if n_envs == 1:
        pipeline, validation = (BatchPipeline(RecallEnv(), None, rows, seed=i, deterministic=i == 9) for i in (0, 9))
    else:
        pipeline = VectorBatchPipeline([RecallEnv] * n_envs, None, rows // n_envs, seed=0)
        validation = VectorBatchPipeline([RecallEnv] * 2, None, 50, seed=9, deterministic=True)
    loop = LoopController(
        agent,
        pipeline=pipeline,
        val_pipeline=validation,
        checkpoint_registry=CheckpointRegistry(tmp_path),
        backoff_scheduler=BackoffScheduler(min_episodes_before_dormant=120, base_interval=10),
        max_episodes=120,
    )
    loop.run()
    assert loop.best_snapshot.eval_metrics.primary_score == 1.0
    env, returns = RecallEnv(), []
    for episode in range(20):
        obs, over = env.reset(seed=100 + episode)[0], False
        agent.reset_hidden()
        while not over:
            obs, reward, over, *_ = env.step(agent.act_deterministic(obs))
        returns.append(reward)
    assert np.mean(returns) == 1.0


class MaskedCartPole(gymnasium.ObservationWrapper):
    """Cart position and pole angle: their velocities are hidden."""

    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
        high = self.env.observation_space.high[[0, 2]]
        self.observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)

    def observation(self, observation):
        return observation[[0, 2]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_masked_cartpole_is_balanced(tmp_path):
    """204,800 steps of 8 Gymnasium environments, one seed; PPO without a memory stays below 200 with 600,000."""
    params = {"learning_rate": 5e-4, "n_epochs": 4, "minibatch_size": 256, "bptt_len": 32, "entropy_coef": 0.0}
    agent = FlaxRecurrentPPOAgent(2, 2, HyperparamSet(params), cell="gru", normalize_observations=True)
    loop = LoopController(
        agent,
        pipeline=VectorBatchPipeline([MaskedCartPole] * 8, agent, 128, seed=0),
        checkpoint_registry=CheckpointRegistry(tmp_path),
        backoff_scheduler=BackoffScheduler(min_episodes_before_dormant=200),
        max_episodes=200,
    )
    loop.run()
    env, returns = MaskedCartPole(), []
    for episode in range(20):
        obs, over = env.reset(seed=1000 + episode)[0], False
        agent.reset_hidden()
        returns.append(0.0)
        while not over:
            obs, reward, terminated, truncated, _ = env.step(agent.act_deterministic(obs))
            over, returns[-1] = terminated or truncated, returns[-1] + reward
    assert np.mean(returns) >= 300, returns
