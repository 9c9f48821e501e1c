"""The off-policy algorithms in JAX as host agents: what they act on, learn from, report and keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.algorithms import host_off_policy
from tensor_optix.algorithms.flax_dqn import FlaxDQNAgent
from tensor_optix.algorithms.flax_off_policy import _key
from tensor_optix.core.replay import Transitions
from tensor_optix.core.types import HyperparamSet
from tests.algorithms.off_policy_parts import (
    AGENTS,
    CHOICES,
    COUNTS,
    DIMS,
    DISCRETE,
    EACH,
    HIGH,
    HYPER,
    LOSSES,
    LOW,
    OBS,
    TRACES,
    agent_of,
    own_networks,
    present,
    started,
    window_of,
)
from tests.runs import assert_same_bits

# -- one window against the pure algorithm ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "alpha"),
    [
        ("dqn", 0.6),
        pytest.param("rainbow", 0.0, marks=pytest.mark.slow),
        pytest.param("sac", 0.0, marks=pytest.mark.slow),
        pytest.param("td3", 0.0, marks=pytest.mark.slow),
    ],
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


@pytest.mark.parametrize("kind", EACH)
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


@pytest.mark.parametrize("kind", EACH)
def test_agents_of_equal_networks_share_their_programs(kind):
    assert agent_of(kind)._programs is agent_of(kind, seed=1)._programs
    assert agent_of(kind)._programs is not agent_of(kind, hidden_sizes=(5, 4))._programs


# -- acting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EACH)
def test_seeds(kind):
    obs = np.random.default_rng(0).normal(size=(64, OBS)).astype(np.float32)
    one, same, other = (started(kind, seed, {**HYPER, "learning_rate": 0.0}) for seed in (1, 1, 2))
    for act in ("act_batch", "act_batch_deterministic"):
        np.testing.assert_array_equal(getattr(one, act)(obs), getattr(same, act)(obs))
        assert not np.array_equal(getattr(one, act)(obs), getattr(other, act)(obs))


@pytest.mark.parametrize("kind", EACH)
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


@pytest.mark.parametrize("kind", EACH)
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


@pytest.mark.slow
def test_rainbow_chooses_by_its_mean_weights():
    agent = started("rainbow")
    obs = np.float32([0.5, -1.0, 2.0])
    probs = agent.action_probs(obs)
    assert probs.sum() == 1.0
    assert probs.argmax() == agent.act_deterministic(obs)
    assert len(np.unique(agent.act_batch(np.tile(obs, (20_000, 1))))) > 1


# -- hyperparameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EACH)
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
