"""Recurrent PPO in JAX as a host agent: what it remembers, for whom and until when, and what it learns from."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tensor_optix.algorithms.flax_ppo import minibatch_order
from tensor_optix.algorithms.ppo_base import PPOConfig
from tensor_optix.algorithms.recurrent_sequences import cut, episode_starts
from tensor_optix.core.window_returns import Segments
from tests.algorithms import test_recurrent_ppo as reference
from tests.algorithms.recurrent_parts import (
    HYPER,
    WHICH,
    Remembering,
    agent_of,
    of_rows,
    pipeline_of,
    present,
    segments_of,
    window_of,
)
from tests.algorithms.test_flax_ppo import KINDS, OBS, unit_actions
from tests.pipeline.troubled import assert_same_window
from tests.runs import assert_same_bits

# -- acting is learning ---------------------------------------------------------------------------------------------


SEEN = [
    *(pytest.param("discrete", "lstm", which, marks=() if which == "several" else pytest.mark.slow) for which in WHICH),
    pytest.param("discrete", "gru", "several", marks=pytest.mark.slow),
    pytest.param("continuous", "lstm", "several", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "cell", "which"), SEEN)
def test_learning_sees_what_acting_saw(kind, cell, which):
    """Through three windows, with updates between them: all is what the reference has."""
    agent = agent_of(kind, cell=cell)
    memory = Remembering(cell, 3, 1 if which == "one" else 3)
    for n, data in enumerate(itertools.islice(pipeline_of(which, kind, agent).episodes(), 3)):
        hidden = np.zeros_like(memory.hidden) if data.hidden_states is None else data.hidden_states
        assert (data.hidden_states is None) == (n == 0)
        np.testing.assert_allclose(hidden, memory.hidden, rtol=1e-4, atol=1e-5)
        blocks = memory.through(agent, data)
        actions = unit_actions(kind, data.actions).astype(np.int32 if kind == "discrete" else np.float32)
        seen = agent._unrolled(data, np.float32(data.observations), actions)
        np.testing.assert_array_equal(seen.starts, of_rows(blocks, "start"))
        np.testing.assert_allclose(seen.log_prob, of_rows(blocks, "log_prob"), rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(seen.value, of_rows(blocks, "value"), rtol=1e-3, atol=1e-4)
        if which in ("one", "several"):
            assert any(data.terminated)
        agent.learn(data)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_is_one_before_any_update(kind):
    """No step is taken at learning rate 0, so every minibatch is a first one. Sequences begin in mid-episode."""
    agent = agent_of(kind, params={**HYPER, "learning_rate": 0.0})
    stream = pipeline_of("several", kind, agent).episodes()
    next(stream)
    data = next(stream)
    result = agent.learn(data)
    # k3 is half the squared log-ratio; of each row float32 rounds 1 - 1 - 0 to a few 1e-8, either way.
    assert abs(result["approx_kl"]) < 1e-8
    assert abs(result["policy_loss"]) < 1e-4
    data.hidden_states = None  # which matters
    log_probs = agent._unrolled(data, np.float32(data.observations), agent_actions(kind, data)).log_prob
    data.hidden_states, data.log_probs = np.ones((3, 12), np.float32), log_probs
    assert agent.learn(data)["approx_kl"] > 1e-6


def agent_actions(kind, data):
    return unit_actions(kind, data.actions).astype(np.int32 if kind == "discrete" else np.float32)


@pytest.mark.parametrize(
    ("kind", "cell"), [pytest.param("discrete", "gru", marks=pytest.mark.slow), ("continuous", "lstm")]
)
def test_a_window_is_learned_from_as_by_the_equations(kind, cell):
    """Two minibatches of 4 of 6 sequences: of 7 rows, cut into 4 and 3. Gradients by central differences."""
    params = {
        "n_epochs": 1, "minibatch_size": 16, "bptt_len": 4, "learning_rate": 0.02, "clip_ratio": 0.1,
        "entropy_coef": 0.03, "vf_coef": 0.4, "gamma": 0.9, "gae_lambda": 0.8, "max_grad_norm": 0.3, "adam_eps": 1e-3,
    }  # fmt: skip
    agent = agent_of(kind, params=params, bold=False, cell=cell)
    memory = Remembering(cell, 3, 3)
    stream = pipeline_of("several", kind, agent, rows=7).episodes()
    memory.through(agent, next(stream))
    data = next(stream)
    blocks = memory.through(agent, data)
    assert any(data.truncated)
    assert any(data.terminated)
    start, rng = reference.float64(agent._params), np.random.default_rng()
    rng.bit_generator.state = agent._rng.bit_generator.state
    result = agent.learn(data)
    cuts = [rows[at : at + 4] for rows in blocks for at in (0, 4)]
    order = minibatch_order(rng, 6, 4, 1)
    assert order.shape == (2, 4)
    minibatches = [[(cuts[i], cuts[i][0]["carry"]) for i in index] for index in order]
    hyper = {**params, "clip_range": 0.1, "value_coef": 0.4}
    learner = SimpleNamespace(params=start)
    flat = reference.reference_update(learner, cell, minibatches, hyper, PPOConfig())
    found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(agent._params)])
    before = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(start)])
    assert np.abs(flat - before).max() > 0.01
    np.testing.assert_allclose(found, flat, atol=2e-4)
    targets, values = of_rows(blocks, "target"), of_rows(blocks, "value")
    np.testing.assert_allclose(result["explained_var"], 1 - np.var(targets - values) / np.var(targets), atol=1e-4)
    assert result["n_updates"] == 2


# -- no leak ---------------------------------------------------------------------------------------------------------


def test_what_is_seen_elsewhere_changes_nothing():
    """Other observations in environment 0's first episode: what comes later or is elsewhere stays, to the bit."""
    agent = agent_of()
    data = next(pipeline_of("several", "discrete", agent).episodes())
    end = next(t for t in range(8) if data.terminated[t] or data.truncated[t]) + 1
    assert 0 < end < 7
    obs, actions = np.float32(data.observations), agent_actions("discrete", data)
    other = obs.copy()
    other[:end] += 1.0
    first, second = (agent._unrolled(data, each, actions) for each in (obs, other))
    for name in ("log_prob", "value", "before", "after"):
        a, b = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(a[end:], b[end:], err_msg=name)
        assert not np.array_equal(a[:end], b[:end])


def test_rows_that_do_not_count_do_not_change_an_update():
    """An unusable last row, and what fills up a sequence: neither its action nor its reward matters."""
    found = []
    for action, reward in ((0, 0.0), (1, 9.0)):
        data = window_of(rows=21, terminated=[False] * 21)
        data.actions[-1], data.rewards[-1] = action, reward
        agent = agent_of()
        agent.learn(data)
        found.append(present(agent))
    assert_same_bits(*found)
    agent = agent_of()
    agent.learn(window_of(rows=21))
    assert not np.array_equal(agent._params["actor"]["head"]["kernel"], found[0][0]["actor"]["head"]["kernel"])


def test_sequences_stay_within_their_segment():
    segments = Segments(np.array([0, 5, 5]), np.array([5, 0, 3]))
    usable = np.ones(8, bool)
    usable[4] = False
    rows, counts = cut(segments, usable, 4)
    assert rows.tolist() == [[0, 1, 2, 3], [5, 6, 7, 7]]
    assert counts.tolist() == [[True] * 4, [True, True, True, False]]
    usable[4] = True
    assert cut(segments, usable, 4)[0].tolist() == [[0, 1, 2, 3], [4, 4, 4, 4], [5, 6, 7, 7]]


@pytest.mark.parametrize("given", [[4], [False, False, False, False, True, False], None])
def test_where_episodes_start(given):
    ends = [False, True, True, False, False, True]
    data = window_of(rows=6, terminated=ends, episode_starts=given, metadata={"segment_starts": [0, 2]})
    starts = [False, False, False, True, given is not None, False]
    assert episode_starts(data, Segments.of(data)).tolist() == starts


# -- who remembers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["one", "several", "NEXT_STEP"])
def test_episodes_are_acted_on_alone(which):
    """The actions of a pipeline are those of each episode acted on by itself, from nothing."""
    agent = agent_of("continuous")
    data = next(pipeline_of(which, "continuous", agent, deterministic=True).episodes())
    starts = sorted({*data.episode_starts, *(start for start, _ in segments_of(data))})
    assert len(starts) > 4
    for start, end in itertools.pairwise([*starts, data.length]):
        agent.reset_hidden()
        actions = [agent.act_deterministic(obs) for obs in data.observations[start:end]]
        np.testing.assert_allclose(actions, data.actions[start:end], rtol=1e-4, atol=1e-5)
    memoryless = [(agent.reset_hidden(), agent.act_deterministic(obs))[1] for obs in data.observations]
    assert not np.allclose(memoryless, data.actions, rtol=1e-2)


def test_acting_elsewhere_does_not_disturb_training():
    """A validation pipeline, acting by hand and forgetting between windows: the windows stay the same, to the bit."""
    plain_run, watched = (
        (agent, pipeline_of("several", "discrete", agent).episodes()) for agent in (agent_of(), agent_of())
    )
    validation = pipeline_of("one", "discrete", watched[0], deterministic=True).episodes()
    for _ in range(3):
        next(validation)
        watched[0].act_deterministic(np.ones(OBS))
        watched[0].reset_hidden()
        first, second = next(plain_run[1]), next(watched[1])
        assert_same_window(first, second)
        if first.hidden_states is not None:
            np.testing.assert_array_equal(first.hidden_states, second.hidden_states)
        for agent, data in ((plain_run[0], first), (watched[0], second)):
            agent.learn(data)
    assert_same_bits(present(plain_run[0]), present(watched[0]))


def test_acting_by_hand():
    agent, obs = agent_of("continuous"), np.random.default_rng(0).normal(size=(3, OBS)).astype(np.float32)
    alone = [agent.act_deterministic(each) for each in obs]
    agent.act(obs[0])  # another episode than the deterministic one
    agent.reset_hidden()
    agent.act_deterministic(obs[0])
    agent.act(obs[2])
    np.testing.assert_allclose(agent.act_deterministic(obs[1]), alone[1], rtol=1e-5)
    assert not np.allclose(agent.act_deterministic(obs[1]), alone[1], rtol=1e-3)
    with pytest.raises(ValueError, match=r"remembers 1 environments and got 3: call reset_hidden\(\)"):
        agent.act_batch_deterministic(obs)
    agent.reset_hidden()
    np.testing.assert_allclose(agent.act_batch_deterministic(obs)[0], alone[0], rtol=1e-5)


def test_rows_of_a_batch_are_forgotten_alone():
    agent, obs = agent_of("continuous"), np.random.default_rng(0).normal(size=(3, OBS))
    fresh, hidden = agent.act_recurrent(obs, None, [True] * 3, deterministic=True)
    again, _ = agent.act_recurrent(obs, hidden, [True, False, True], deterministic=True)
    np.testing.assert_array_equal(again[[0, 2]], fresh[[0, 2]])
    assert not np.allclose(again[1], fresh[1], rtol=1e-3)
    broken = np.where(np.arange(3)[:, None] == 0, np.nan, hidden)  # what is forgotten is gone
    assert np.isfinite(agent.act_recurrent(obs, broken, [True, False, False], deterministic=True)[0]).all()


def test_another_agent_in_the_same_pipeline_remembers_nothing():
    one, other = agent_of(), agent_of(seed=1)
    pipeline = pipeline_of("several", "discrete", one)
    stream = pipeline.episodes()
    next(stream)
    pipeline.set_agent(other)
    assert next(stream).hidden_states is None
    assert next(stream).hidden_states is not None
