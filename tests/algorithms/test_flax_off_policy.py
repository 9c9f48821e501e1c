"""The off-policy algorithms in JAX as host agents: what they act on, learn from, report and keep."""

import itertools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tensor_optix.algorithms import host_off_policy
from tensor_optix.algorithms.flax_dqn import FlaxDQNAgent
from tensor_optix.algorithms.flax_off_policy import _key
from tensor_optix.algorithms.flax_rainbow import FlaxRainbowAgent
from tensor_optix.algorithms.flax_sac import FlaxSACAgent
from tensor_optix.algorithms.flax_td3 import FlaxTD3Agent
from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.replay import Transitions
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import RunDirError
from tensor_optix.loop.host import LoopController
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline
from tests.runs import assert_same_bits

AGENTS = {"dqn": FlaxDQNAgent, "rainbow": FlaxRainbowAgent, "sac": FlaxSACAgent, "td3": FlaxTD3Agent}
DISCRETE, CONTINUOUS = ("dqn", "rainbow"), ("sac", "td3")
OBS, CHOICES, DIMS = 3, 4, 2
LOW, HIGH = [-2.0, 0.0], [2.0, 10.0]
HYPER = {"batch_size": 8, "learning_starts": 20, "replay_capacity": 300, "updates_per_step": 0.5, "learning_rate": 0.01}
LOSSES = {
    "dqn": {"loss", "q_mean", "td_error_mean"},
    "rainbow": {"loss", "q_mean", "td_error_mean"},
    "sac": {"actor_loss", "critic_loss", "alpha", "entropy", "q_mean"},
    "td3": {"actor_loss", "critic_loss", "q_mean"},
}
COUNTS = {
    "dqn": {"epsilon", "target_updated", "episode_reward"},
    "rainbow": {"target_updated", "episode_reward"},
    "sac": set(),
    "td3": {"policy_update"},
}


def agent_of(kind, seed=0, params=HYPER, **options):
    width = CHOICES if kind in DISCRETE else DIMS
    options.setdefault("hidden_sizes", (4, 4))
    agent = AGENTS[kind](OBS, width, HyperparamSet(dict(params)), seed=seed, **options)
    if kind in CONTINUOUS:
        agent.set_action_bounds(LOW, HIGH)
    return agent


class Noisy(gymnasium.Env):
    """Observations of noise, rewards that depend on the action; ends in either way."""

    def __init__(self, kind):
        self.observation_space = gymnasium.spaces.Box(-9, 9, (OBS,), np.float32)
        bounds = np.float32(LOW), np.float32(HIGH)
        discrete = kind in DISCRETE
        self.action_space = gymnasium.spaces.Discrete(CHOICES) if discrete else gymnasium.spaces.Box(*bounds)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=OBS).astype(np.float32), {}

    def step(self, action):
        obs, reward = self.np_random.normal(size=OBS), float(np.sum(action) + self.np_random.normal())
        terminated, truncated = self.np_random.random(2) < 0.1
        return obs.astype(np.float32), reward, bool(terminated), bool(truncated), {}


def pipeline_of(which, kind, agent, steps=8, seed=0):
    makers = [lambda: Noisy(kind)] * 3
    if which == "one":
        return BatchPipeline(makers[0](), agent, 3 * steps, seed=seed)
    return VectorBatchPipeline(makers, agent, steps, seed=seed)


def window_of(kind, rows=24, seed=0, episode_id=0, **fields):
    """A window of noise; the task ends at its last row."""
    rng = np.random.default_rng(seed)
    discrete = kind in DISCRETE
    actions = rng.integers(0, CHOICES, rows) if discrete else rng.uniform(LOW, HIGH, (rows, DIMS))
    fields = {
        "observations": rng.normal(size=(rows, OBS)).astype(np.float32),
        "actions": actions,
        "rewards": list(rng.normal(size=rows)),
        "terminated": [False] * (rows - 1) + [True],
        "truncated": [False] * rows,
        "infos": [{}] * rows,
        "episode_id": episode_id,
    } | fields
    return EpisodeData(**fields)


def learned(agent, which, kind, count):
    """The agent's own windows, learned from as they come; what the last one reported."""
    return [agent.learn(data) for data in itertools.islice(pipeline_of(which, kind, agent).episodes(), count)][-1]


def present(agent):
    return jax.tree.map(np.array, (agent._params, agent._opt))


# -- one window against the pure algorithm ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "alpha"), [("dqn", 0.6), pytest.param("rainbow", 0.0, marks=pytest.mark.slow), ("sac", 0.0), ("td3", 0.0)]
)
def test_a_window_is_learned_from_by_the_pure_updates(kind, alpha):
    """Update by update in Python, from the rows that the same random numbers draw."""
    count, size = (36, 32) if alpha else (12, 16)
    params = {**HYPER, "per_alpha": alpha, "n_step": 2, "updates_per_step": count / 24}
    agent, twin = (agent_of(kind, params=params) for _ in range(2))
    data = window_of(kind)
    result = agent.learn(data)
    twin._replay.store(data, np.asarray(stored_actions(kind, data.actions)))
    algorithm, hyper = twin._algorithm_now, twin._current()
    update = jax.jit(algorithm.update)
    agent_kind, layout = twin._layout(algorithm)
    state, sums = layout.joined(agent_kind, twin._params, twin._opt), dict.fromkeys(algorithm.losses, 0.0)
    twin._progress.steps += 24
    if kind == "dqn":
        hyper = {**hyper, **dict.fromkeys(("epsilon_start", "epsilon_end"), np.float32(agent.epsilon))}
    for done in range(0, count, size):
        n = min(size, count - done)
        weights = np.ones((n, 8), np.float32)
        if alpha:
            beta = host_off_policy.beta(24, twin._hyperparams.params)
            places, weights = twin._replay.draw_by_priority(twin._rng, (n, 8), alpha, beta)
        else:
            places = twin._replay.draw(twin._rng, (n, 8))
        noise = algorithm.draw_updates(_key(twin._words()), size)
        errors = np.zeros((n, 8), np.float32)
        for i in range(n):
            drawn = twin._replay.read(places[i], 2, 0.99)
            batch = jax.tree.map(jnp.asarray, Transitions(*drawn, weight=weights[i]))
            own = jax.tree.map(lambda x, i=i: x[i], noise)
            state, errors[i], losses = update(state, batch, own, hyper, jnp.int32(done + i))
            sums = {name: total + float(losses[name]) for name, total in sums.items()}
        if alpha:
            twin._replay.set_priorities(places, errors, 1e-6)
    expected, rest = layout.split(state, jnp.int32(count))
    for ours, theirs in zip(
        jax.tree.leaves((agent._params, agent._opt)), jax.tree.leaves((expected, rest)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)
    for name, total in sums.items():
        np.testing.assert_allclose(result[name], total / count, rtol=1e-2, atol=1e-3, err_msg=name)
    assert result["n_updates"] == count


def stored_actions(kind, actions):
    """The policy's actions in its own range, by the formula."""
    if kind in DISCRETE:
        return np.int32(actions)
    low, high = np.array(LOW), np.array(HIGH)
    return (2.0 * (np.asarray(actions) - low) / (high - low) - 1.0).astype(np.float32)


@pytest.mark.parametrize("kind", AGENTS)
def test_reports(kind):
    agent = agent_of(kind)
    waiting = agent.learn(window_of(kind, rows=10))
    assert waiting.keys() == {"buffer_size", "n_updates"} | COUNTS[kind]
    assert (waiting["buffer_size"], waiting["n_updates"]) == (10, 0)
    result = agent.learn(window_of(kind, episode_id=1))
    assert result.keys() == {"buffer_size", "n_updates"} | COUNTS[kind] | LOSSES[kind]
    assert all(type(value) is float and np.isfinite(value) for value in result.values())
    assert (result["buffer_size"], result["n_updates"]) == (34, 12)
    before = present(agent)
    fault = agent.learn(window_of(kind, episode_id=2, rewards=[float("nan")] * 24))
    assert fault.keys() >= LOSSES[kind]
    assert all(np.isnan(fault[name]) for name in LOSSES[kind])
    assert_same_bits(present(agent), before)
    empty = window_of(kind, rows=1, episode_id=2)
    for name in ("observations", "actions", "rewards", "terminated", "truncated"):
        setattr(empty, name, [])
    assert agent.learn(empty) == {}
    assert_same_bits(present(agent), before)


def test_updates_that_are_owed_are_made_up_for():
    agent = agent_of("dqn", params={**HYPER, "updates_per_step": 0.3, "learning_starts": 1})
    counts = [agent.learn(window_of("dqn", rows=5, seed=i, episode_id=i))["n_updates"] for i in range(10)]
    assert counts == [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]


def test_targets_are_copied_every_so_many_updates_not_windows():
    agent = agent_of("dqn", params={**HYPER, "target_update_freq": 10, "updates_per_step": 1.0})
    copied = []
    for i in range(6):
        before = present(agent)[1]["targets"]["target"]
        report = agent.learn(window_of("dqn", rows=24 if i == 0 else 4, seed=i, episode_id=i))
        after = present(agent)[1]["targets"]["target"]
        moved = not np.array_equal(before["head"]["kernel"], after["head"]["kernel"])
        assert moved == bool(report["target_updated"])
        copied.append(moved)
    assert copied == [True, False, True, False, True, False]  # updates 10 and 20; 24 to 28; 30; ...; 40


def test_the_reward_of_episodes_counts_whole_episodes():
    agent = agent_of("dqn")
    ends = [False, False, True, False]
    first = window_of("dqn", rows=4, rewards=[1.0, 2.0, 3.0, 4.0], terminated=ends, episode_starts=[0, 3])
    assert agent.learn(first)["episode_reward"] == 6.0
    second = window_of("dqn", rows=4, rewards=[10.0, 0.0, 0.0, 0.0], terminated=[True] + [False] * 3, episode_id=1)
    second.episode_starts = [1]
    assert agent.learn(second)["episode_reward"] == 14.0


# -- compilation -----------------------------------------------------------------------------------------------------


TRACES: list = []


class Net(nnx.Module):
    """Counts its traces, and brings variables that are no parameters."""

    def __init__(self, width, rngs, n_in=OBS):
        self.layer, self.out = nnx.Linear(n_in, 6, rngs=rngs), nnx.Linear(6, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, *x):
        TRACES.append(x[0].shape)
        return self.out(self.dropout(nnx.relu(self.layer(jnp.concatenate(x, axis=-1)))))


def own_networks(kind):
    if kind == "dqn":
        return {"q_network": Net(CHOICES, nnx.Rngs(0))}
    critics = tuple(Net(1, nnx.Rngs(i), OBS + DIMS) for i in (1, 2))
    return {"actor": Net(2 * DIMS if kind == "sac" else DIMS, nnx.Rngs(0)), "critics": critics}


@pytest.mark.parametrize(("kind", "alpha"), [("dqn", 0.6), pytest.param("sac", 0.0, marks=pytest.mark.slow)])
def test_nothing_is_compiled_anew(kind, alpha):
    """Windows of one length, other hyperparameters, other weights: the programs stay those of the first window."""
    TRACES.clear()
    params = {**HYPER, "updates_per_step": 1.3, "per_alpha": alpha}
    agent = agent_of(kind, params=params, **own_networks(kind))
    agent.learn(window_of(kind, rows=32))
    agent.act_batch(np.zeros((2, OBS), np.float32))
    count = len(TRACES)
    assert count
    changes = ({}, {"gamma": 0.9}, {"learning_rate": 0.1, "n_step": 3}, {"updates_per_step": 1.1, "tau": 0.1}, {})
    for i, change in enumerate(changes):
        agent.set_hyperparams(HyperparamSet({**params, **change}))
        agent.learn(window_of(kind, rows=32, seed=i, episode_id=i + 1))
        agent.act_batch(np.ones((2, OBS)))
    agent.perturb_weights(0.1)
    agent.learn(window_of(kind, rows=31))
    assert len(TRACES) == count, TRACES[count:]
    agent.set_hyperparams(HyperparamSet({"batch_size": 16}))  # another shape
    agent.learn(window_of(kind, rows=32))
    assert len(TRACES) > count


@pytest.mark.parametrize("kind", AGENTS)
def test_agents_of_equal_networks_share_their_programs(kind):
    assert agent_of(kind)._programs is agent_of(kind, seed=1)._programs
    assert agent_of(kind)._programs is not agent_of(kind, hidden_sizes=(5, 4))._programs


# -- acting ----------------------------------------------------------------------------------------------------------


def started(kind, seed=0, params=HYPER, **options):
    """An agent that does not act at random any more."""
    agent = agent_of(kind, seed, {**params, "epsilon": 0.0} if kind == "dqn" else params, **options)
    agent.learn(window_of(kind))
    return agent


@pytest.mark.parametrize("kind", AGENTS)
def test_seeds(kind):
    obs = np.random.default_rng(0).normal(size=(64, OBS)).astype(np.float32)
    one, same, other = (started(kind, seed, {**HYPER, "learning_rate": 0.0}) for seed in (1, 1, 2))
    for act in ("act_batch", "act_batch_deterministic"):
        np.testing.assert_array_equal(getattr(one, act)(obs), getattr(same, act)(obs))
        assert not np.array_equal(getattr(one, act)(obs), getattr(other, act)(obs))


@pytest.mark.parametrize("kind", AGENTS)
def test_deterministic_actions_use_no_random_number(kind):
    agent, twin = (started(kind) for _ in range(2))
    obs = np.random.default_rng(0).normal(size=(64, OBS)).astype(np.float32)
    batch = agent.act_batch_deterministic(obs)
    for row, action in zip(obs[:5], batch, strict=False):
        np.testing.assert_allclose(agent.act_deterministic(row), action, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(agent.act_batch(obs), twin.act_batch(obs))
    single = agent.act(obs[0])
    assert type(single) is int if kind in DISCRETE else (single.shape, single.dtype) == ((DIMS,), np.float32)
    assert not agent.is_on_policy


@pytest.mark.parametrize("kind", AGENTS)
def test_actions_are_uniform_until_learning_starts(kind):
    """20,000 draws within 5 standard errors at a fixed seed; the greedy policy is far from uniform."""
    agent, obs = agent_of(kind), np.zeros((20_000, OBS), np.float32)
    actions = agent.act_batch(obs)
    if kind in DISCRETE:
        shares = np.bincount(actions, minlength=CHOICES) / 20_000
        assert (np.abs(shares - 0.25) < 5 * np.sqrt(0.1875 / 20_000)).all()
    else:
        unit = stored_actions(kind, actions)
        assert (np.abs(unit) <= 1 + 1e-6).all()
        for moment, expected in ((1, 0.0), (2, 1 / 3), (4, 1 / 5)):
            spread = np.sqrt((1 / (2 * moment + 1) - expected**2) / 20_000)
            assert (np.abs((unit.astype(np.float64) ** moment).mean(0) - expected) < 5 * spread).all()
    agent.learn(window_of(kind, rows=19))
    assert len(np.unique(agent.act_batch(obs), axis=0)) > 3
    agent.set_hyperparams(HyperparamSet({"epsilon": 0.0, "exploration_noise": 0.0}))
    agent.learn(window_of(kind, rows=1, episode_id=1))
    assert kind in ("rainbow", "sac") or len(np.unique(agent.act_batch(obs), axis=0)) == 1


def test_epsilon_falls_with_environment_steps():
    params = {**HYPER, "epsilon": 0.9, "epsilon_min": 0.1, "epsilon_steps": 100, "updates_per_step": 0.0}
    agent, obs = agent_of("dqn", params=params), np.zeros(OBS, np.float32)
    assert agent.learn(window_of("dqn", rows=25))["epsilon"] == pytest.approx(0.7)
    greedy = agent.act_deterministic(obs)
    probs = agent.action_probs(obs)
    np.testing.assert_allclose(probs, np.where(np.arange(CHOICES) == greedy, 0.475, 0.175), rtol=1e-6)
    shares = np.bincount(agent.act_batch(np.tile(obs, (20_000, 1))), minlength=CHOICES) / 20_000
    assert (np.abs(shares - probs) < 5 * np.sqrt(probs * (1 - probs) / 20_000)).all()
    agent.set_hyperparams(HyperparamSet({"learning_rate": 0.02}))  # nothing of the schedule: it goes on
    agent.learn(window_of("dqn", rows=80))
    assert agent.epsilon == pytest.approx(0.1)
    agent.set_hyperparams(HyperparamSet({"epsilon": 0.3}))  # set anew: it falls from there
    assert agent.epsilon == pytest.approx(0.3)
    assert agent.learn(window_of("dqn", rows=50))["epsilon"] == pytest.approx(0.2)
    by_window = agent_of("dqn", params={**params, "epsilon_decay": 0.5})
    assert [by_window.learn(window_of("dqn", rows=2))["epsilon"] for _ in range(5)] == pytest.approx(
        [0.45, 0.225, 0.1125, 0.1, 0.1]
    )


def test_noise_of_exploration():
    """The noise around the actor's action, in units of half the range: spread within 5 standard errors."""
    agent = started("td3", params={**HYPER, "expl_noise": 0.05})
    obs = np.tile(np.float32([0.1, 0.2, 0.3]), (20_000, 1))
    noise = stored_actions("td3", agent.act_batch(obs)) - stored_actions("td3", agent.act_batch_deterministic(obs))
    assert (np.abs(noise.std(0) / 0.05 - 1) < 5 / np.sqrt(40_000)).all()
    sac = started("sac")
    assert (stored_actions("sac", sac.act_batch(obs)).std(0) > 0.3).all()


def test_rainbow_chooses_by_its_mean_weights():
    agent = started("rainbow")
    obs = np.float32([0.5, -1.0, 2.0])
    probs = agent.action_probs(obs)
    assert probs.sum() == 1.0
    assert probs.argmax() == agent.act_deterministic(obs)
    assert len(np.unique(agent.act_batch(np.tile(obs, (20_000, 1))))) > 1


# -- hyperparameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AGENTS)
def test_hyperparameters(kind):
    params = HyperparamSet({"batch_size": 16.0, "mine": True, "label": "x", "warmup_steps": 30}, episode_id=7)
    width = CHOICES if kind in DISCRETE else DIMS
    agent = AGENTS[kind](OBS, width, params, hidden_sizes=(4, 4))
    found = agent.get_hyperparams()
    own = {"batch_size": 16, "mine": True, "label": "x", "learning_starts": 30}
    assert found.params == {**AGENTS[kind].table.defaults, **own}
    assert type(found.params["batch_size"]) is int
    assert found.episode_id == 7
    found.params["gamma"] = 0.0
    assert agent.get_hyperparams().params["gamma"] == 0.99
    with pytest.raises(ValueError, match=r"gamma must be from 0 to 1, got 1\.5"):
        agent.set_hyperparams(HyperparamSet({"gamma": 1.5}))
    with pytest.raises(TypeError, match="tau must be a number, got 'x'"):
        agent.set_hyperparams(HyperparamSet({"tau": "x"}))
    assert agent.get_hyperparams().params["gamma"] == 0.99
    assert agent.default_tuned == ("learning_rate",)
    assert set(agent.default_param_bounds) <= set(found.params)
    assert agent.default_min_episodes_before_dormant == (60 if kind in DISCRETE else 30)


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("dqn", {"epsilon_start": 0.5, "epsilon_end": 0.1}, {"epsilon": 0.5, "epsilon_min": 0.1}),
        ("dqn", {"buffer_size": 2000, "target_period": 5}, {"replay_capacity": 2000, "target_update_freq": 5}),
        ("td3", {"noise_clip": 0.3, "expl_noise": 0.2}, {"target_noise_clip": 0.3, "exploration_noise": 0.2}),
        ("sac", {"noise_clip": 0.3}, {"noise_clip": 0.3}),  # SAC has no such thing: a name like any other
    ],
)
def test_aliases(kind, given, expected):
    agent = agent_of(kind, params=given)
    assert {name: agent.get_hyperparams().params[name] for name in expected} == expected
    assert not (given.keys() - expected.keys()) & agent.get_hyperparams().params.keys()
    agent.set_hyperparams(HyperparamSet(given))
    assert {name: agent.get_hyperparams().params[name] for name in expected} == expected


CHANGED = {
    "batch_size": 4, "n_step": 2, "per_alpha": 0.5, "target_update_freq": 3, "policy_delay": 1, "tau": 0.3,
    "updates_per_step": 1.0, "log_alpha_init": 1.0, "target_entropy": 0.5, "v_min": -3.0, "adam_eps": 0.1,
}  # fmt: skip
BASE = {**HYPER, "target_noise": 0.4}
# Acting, storing and time; each has a test of its own. Gradients here are below their limit.
ELSEWHERE = {"learning_starts", "replay_capacity", "epsilon", "epsilon_min", "epsilon_steps", "exploration_noise"}


def every_hyperparameter():
    """Those of a DQN and what the others do not share with it; the rest takes as long to compile and is marked slow."""
    for kind in AGENTS:
        for name in AGENTS[kind].table.defaults.keys() - ELSEWHERE:
            shared = kind != "dqn" and (name in FlaxDQNAgent.table.defaults or kind == "rainbow")
            yield pytest.param(kind, name, marks=pytest.mark.slow if shared else (), id=f"{kind}-{name}")


@pytest.mark.parametrize(("kind", "name"), sorted(every_hyperparameter(), key=lambda each: str(each.id)))
def test_every_hyperparameter_matters(kind, name):
    base = dict(BASE)
    if name.startswith("per_"):
        base |= {"per_alpha": 0.7, "per_beta": 0.4, "per_beta_steps": 100.0}
        if name == "per_eps":
            base["per_eps"] = 0.5
    if name == "max_grad_norm":
        base["max_grad_norm"] = 1e-3
        base["adam_eps"] = 1e-3  # Adam alone does not see the scale
    if kind == "rainbow" and name == "tau":
        base["target_update_freq"] = 0
    results = []
    full = {**AGENTS[kind].table.defaults, **base}
    for params in (base, base | {name: CHANGED.get(name, full[name] / 2)}):
        agent = agent_of(kind, params=params)
        for i in range(2):
            agent.learn(window_of(kind, seed=i, episode_id=i))
        results.append(jax.tree.leaves(present(agent)))
    assert any(not np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_another_capacity_keeps_the_newest_rows():
    agent = agent_of("dqn")
    for i in range(3):
        agent.learn(window_of("dqn", seed=i, episode_id=i))
    agent.set_hyperparams(HyperparamSet({"replay_capacity": 30}))
    assert agent.learn(window_of("dqn", rows=4, seed=3, episode_id=3))["buffer_size"] == 30


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "which"), [("dqn", "one"), *((kind, "several") for kind in AGENTS)])
def test_a_state_put_back_goes_on_to_the_bit(kind, which, tmp_path):
    params = {**HYPER, "per_alpha": 0.5, "n_step": 2, "updates_per_step": 0.45}
    agent = agent_of(kind, params=params)
    windows = pipeline_of(which, kind, agent).episodes()
    for _ in range(2):
        agent.learn(next(windows))
    agent.save_state(str(tmp_path / "state"))
    agent.save_state(str(tmp_path / "state"))  # again, over what is there
    data = [next(windows)]
    reports = [agent.learn(data[0])]
    data.append(next(windows))
    reports.append(agent.learn(data[1]))
    again = agent_of(kind, seed=5)
    again.load_state(str(tmp_path / "state"))
    assert again.get_hyperparams().params == {**agent.get_hyperparams().params}
    np.testing.assert_array_equal(acted_like(again, data[0]), np.asarray(data[0].actions))
    assert again.learn(data[0]) == reports[0]
    np.testing.assert_array_equal(acted_like(again, data[1]), np.asarray(data[1].actions))
    assert again.learn(data[1]) == reports[1]
    assert_same_bits(present(again), present(agent))


def acted_like(agent, data):
    """What the agent does on a window's observations, asked as the pipeline asked, in the window's order."""
    starts = data.metadata.get("segment_starts", [0])
    obs = np.asarray(data.observations).reshape(len(starts), -1, OBS)
    if len(starts) == 1:
        return np.stack([agent.act(row) for row in obs[0]])
    actions = np.stack([agent.act_batch(obs[:, t]) for t in range(obs.shape[1])], axis=1)
    return actions.reshape(-1, *actions.shape[2:])


@pytest.mark.parametrize("kind", AGENTS)
def test_weights_are_the_policy_without_the_replay(kind, tmp_path):
    agent = agent_of(kind)
    learned(agent, "several", kind, 2)
    agent.save_weights(str(tmp_path / "weights"))
    assert {p.name for p in (tmp_path / "weights").iterdir()} == {
        "model.safetensors", "optimizer.safetensors", "agent.json",
    }  # fmt: skip
    other, obs = agent_of(kind, seed=9), np.random.default_rng(0).normal(size=(64, OBS))
    other.load_weights(str(tmp_path / "weights"))
    assert_same_bits(present(other), present(agent))
    np.testing.assert_array_equal(other.act_batch_deterministic(obs), agent.act_batch_deterministic(obs))
    assert other.learn(window_of(kind, rows=1))["buffer_size"] == 1
    assert len(np.unique(other.act_batch(np.zeros((64, OBS))), axis=0)) < 64 or kind in CONTINUOUS
    wider = agent_of(kind, hidden_sizes=(4, 6))
    before = present(wider)
    with pytest.raises(ValueError, match="expected float32"):
        wider.load_weights(str(tmp_path / "weights"))
    assert_same_bits(present(wider), before)
    with pytest.raises(RunDirError, match="There is no state in"):
        wider.load_state(str(tmp_path / "weights"))


@pytest.mark.parametrize("kind", AGENTS)
def test_averaging_and_perturbing_take_the_targets_along(kind, tmp_path):
    agents = [started(kind, seed) for seed in (1, 2)]
    for i, agent in enumerate(agents):
        agent.save_weights(str(tmp_path / str(i)))
    middle = agent_of(kind)
    middle.average_weights([str(tmp_path / "0"), str(tmp_path / "1")])
    for mean, *own in zip(*(jax.tree.leaves(agent._params) for agent in (middle, *agents)), strict=True):
        np.testing.assert_allclose(mean, np.mean(own, axis=0), rtol=1e-6)
    layout = middle._layout(middle._algorithm_now)[1]
    for agent in (middle, agents[0]):
        if agent is not middle:
            agent.perturb_weights(0.1)
        for target, followed in layout.targets.items():
            assert_same_bits(agent._opt["targets"][target], agent._params[followed])
        assert np.isfinite(next(iter(agent.learn(window_of(kind, episode_id=1)).values())))


def test_after_teardown():
    agent = started("dqn")
    agent.teardown()
    agent.teardown()
    with pytest.raises(RuntimeError, match="torn down"):
        agent.act(np.zeros(OBS))


# -- networks of the user's own, and bad input -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dqn", "sac", "td3"])
def test_modules_of_the_users_own(kind):
    networks = own_networks(kind)
    agent = agent_of(kind, **networks)
    first = networks["q_network"] if kind == "dqn" else networks["actor"]
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(first, nnx.Param)))
    name = "online" if kind == "dqn" else "actor"
    assert_same_bits(jax.tree.map(np.array, agent._params[name]), before)
    if kind != "dqn":  # two critics, each with its own weights, in the targets too
        for i, critic in enumerate(networks["critics"]):
            own = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(critic, nnx.Param)))
            assert_same_bits(jax.tree.map(np.array, agent._params["critics"][i]), own)
            assert_same_bits(jax.tree.map(np.array, agent._opt["targets"][agent.critic_targets][i]), own)
    agent.learn(window_of(kind))
    agent.learn(window_of(kind, episode_id=1))
    assert_same_bits(nnx.to_pure_dict(nnx.state(first, nnx.Param)), before)
    assert not np.array_equal(agent._params[name]["out"]["bias"], before["out"]["bias"])


def test_images_take_a_cnn():
    agent = FlaxDQNAgent((6, 6, 2), CHOICES, HyperparamSet({**HYPER, "learning_starts": 1}), hidden_sizes=(8, 8))
    images = np.random.default_rng(0).integers(0, 255, (4, 6, 6, 2)).astype(np.uint8)
    report = agent.learn(window_of("dqn", rows=4, observations=images, actions=[0, 1, 0, 1]))
    assert report["n_updates"] == 2
    assert agent._replay.state_dict()["columns"]["obs"].dtype == np.uint8
    assert len(agent.act_batch(images)) == 4


BAD = [
    (lambda: FlaxDQNAgent(0, 2, HyperparamSet({})), ValueError, "obs_dim must be at least 1, got 0"),
    (lambda: FlaxSACAgent(4, 2.0, HyperparamSet({})), TypeError, "action_dim must be a whole number, got 2.0"),
    (lambda: FlaxDQNAgent((4, 4), 2, HyperparamSet({})), ValueError, "no torso for observations of shape"),
    (lambda: FlaxTD3Agent(4, 2, HyperparamSet({}), activation="tan"), ValueError, "activation must be one of"),
    (lambda: FlaxDQNAgent(4, 2, HyperparamSet({}), hidden_sizes=(0,)), ValueError, "positive whole numbers"),
    (lambda: FlaxDQNAgent(4, 2, HyperparamSet({"batch_size": 0})), ValueError, "batch_size must be from 1 to"),
    (
        lambda: FlaxDQNAgent(4, 2, HyperparamSet({"learning_starts": 9, "replay_capacity": 8})),
        ValueError,
        "never starts",
    ),
    (lambda: FlaxRainbowAgent(4, 2, HyperparamSet({}), n_atoms=1), ValueError, "n_atoms must be at least 2"),
    (lambda: FlaxRainbowAgent(4, 2, HyperparamSet({}), v_min=2.0, v_max=1.0), ValueError, "v_min must be below v_max"),
    (lambda: agent_of("dqn", q_network=Net(5, nnx.Rngs(0))), ValueError, "give its last layer 4 outputs"),
    (lambda: agent_of("sac", actor=Net(2, nnx.Rngs(0))), ValueError, "give its last layer 4 outputs"),
    (lambda: agent_of("td3", actor=print), TypeError, "expected a flax.nnx.Module"),
    (lambda: agent_of("sac", critics=[Net(1, nnx.Rngs(0), 5)]), ValueError, "critics must be two nnx modules"),
    (lambda: agent_of("sac", critics=[Net(1, nnx.Rngs(0), 5), Net(2, nnx.Rngs(0), 5)]), ValueError, "same names and"),
    (lambda: agent_of("sac", critics=[Net(2, nnx.Rngs(0), 5)] * 2), ValueError, "give its last layer 1 output"),
    (lambda: agent_of("dqn").act(np.zeros(5)), ValueError, r"must have shape \[3\] each, got \[5\]"),
    (lambda: agent_of("dqn").learn(window_of("dqn", actions=[4] * 24)), ValueError, "from 0 to 3, got 4"),
    (lambda: agent_of("dqn").learn(window_of("dqn", observations=np.zeros((24, 2)))), ValueError, "must have shape"),
    (lambda: agent_of("sac").set_action_bounds([0, 1], [1, 1]), ValueError, "every low must be below"),
]


@pytest.mark.parametrize(("call", "error", "sentence"), BAD, ids=[sentence for *_, sentence in BAD])
def test_bad_input_is_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


# -- the host loop -------------------------------------------------------------------------------------------------


class PoisonedReward(gymnasium.Wrapper):
    """One reward is not a number."""

    steps = 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.steps += 1
        return obs, float("nan") if self.steps == 60 else reward, *rest


def test_a_poisoned_window_is_seen_and_not_learned_from(tmp_path):
    agent, rolled_back = agent_of("dqn"), []

    class Watched(LoopController):
        def _roll_back(self, reset_envs):
            rolled_back.append(self.brain.window)
            super()._roll_back(reset_envs)

    pipeline = BatchPipeline(PoisonedReward(Noisy("dqn")), agent, 24)
    loop = Watched(agent, pipeline=pipeline, checkpoint_registry=CheckpointRegistry(tmp_path), max_episodes=6)
    assert loop.run().windows == 6
    assert rolled_back == [3]
    assert len(agent._replay) == 5 * 24
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(present(agent)))


@pytest.mark.parametrize(("kind", "which"), [("dqn", "several"), ("td3", "one")])
def test_a_run_and_the_same_run_in_two_parts(kind, which, tmp_path):
    """20 windows, and 10 that are resumed for 10 more, are the same to the bit; nothing is rolled back."""
    ends = []
    for name, budgets in (("whole", [20]), ("parts", [10, 20])):
        directory = None
        for budget in budgets:
            agent = agent_of(kind, params={**HYPER, "per_alpha": 0.5})
            run = RLOptimizer(
                agent,
                pipeline_of(which, kind, agent),
                checkpoint_dir=tmp_path / name,
                max_episodes=budget,
                rollback_on_degradation=True,
                resume_from=directory,
                min_episodes_before_dormant=1000,
            )
            result = run.run()
            directory = run.run_dir
        assert result.windows == 20
        assert not result.callback_failures
        rest = agent_of(kind)
        rest.load_state(str(newest_checkpoint(directory)))
        ends.append((present(rest), [m.primary_score for m in result.history], len(rest._replay)))
    assert_same_bits(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]


def newest_checkpoint(directory):
    return max(directory.rglob("agent/replay"), key=lambda path: path.stat().st_mtime_ns).parent


def score_of(agent, env_id, episodes):
    env, total = gymnasium.make(env_id), 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=1000 + episode)
        done = False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(agent.act_deterministic(obs))
            done, total = terminated or truncated, total + reward
    return total / episodes


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("agent", "env_id", "window", "steps", "wanted"),
    [
        (lambda: FlaxDQNAgent(4, 2, HyperparamSet({}), seed=0), "CartPole-v1", 256, 60_000, 475.0),
        (lambda: FlaxSACAgent(3, 1, HyperparamSet({}), seed=0), "Pendulum-v1", 200, 20_000, -200.0),
    ],
    ids=["cartpole", "pendulum"],
)
def test_tasks_are_solved_with_the_defaults(agent, env_id, window, steps, wanted, tmp_path):
    """One seed: the best policy by its training score, over 20 fresh episodes."""
    agent = agent()
    loop = LoopController(
        agent,
        pipeline=BatchPipeline(env_id=env_id, agent=agent, window_size=window, seed=0),
        checkpoint_registry=CheckpointRegistry(tmp_path),
        backoff_scheduler=BackoffScheduler(min_episodes_before_dormant=1000),
        max_episodes=steps // window,
    )
    assert loop.run().windows == steps // window
    assert score_of(agent, env_id, episodes=20) >= wanted
