"""The stateful buffers: n-step paths against brute force, priorities, hindsight rows, resuming, and old traps by name.

Chi-square tests: fixed seeds, a false alarm has probability 1e-6 each.
"""

import copy

import numpy as np
import pytest

from tensor_optix.core.her_buffer import HERBuffer, HERReplayBuffer
from tensor_optix.core.host_sum_tree import HostSumTree
from tensor_optix.core.prioritized_buffer import PrioritizedReplayBuffer

NAMES = ("obs", "act", "rew", "next_obs", "done", "n_steps")


def rows(buffer):
    """All rows in the order of the ring: with alpha 0 one draw of all takes each once."""
    obs, act, rew, next_obs, done, weights, indices, n_steps = buffer.sample(len(buffer))
    np.testing.assert_array_equal(indices, np.arange(len(buffer)))
    np.testing.assert_array_equal(weights, 1)
    return dict(zip(NAMES, (obs, act, rew, next_obs, done, n_steps), strict=True))


def filled(n=50, seed=0, **settings):
    buffer = PrioritizedReplayBuffer(settings.pop("capacity", 64), seed=seed, **settings)
    rng = np.random.default_rng(seed)
    for i in range(n):
        buffer.push(np.float32([i, 0]), i % 3, rng.normal(), np.float32([i + 1, 0]), i % 10 == 9)
    return buffer


def surprise(counts, p):
    """Standard normal score of a chi-square statistic (Wilson and Hilferty); above 4.75 with probability 1e-6."""
    assert (counts[p == 0] == 0).all()
    counts, p = counts[p > 0], p[p > 0]
    expected = counts.sum() * p / p.sum()
    freedom = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))


def counts(buffer, draws=8000):
    """One draw at a time, so that they are independent."""
    total = np.zeros(len(buffer))
    for _ in range(draws):
        total[buffer.sample(1)[6][0]] += 1
    return total


@pytest.mark.parametrize("capacity", [1, 31, 32, 33, 1000, 40_000])
def test_the_tree_follows_cumulative_sums(capacity):
    rng = np.random.default_rng(capacity)
    tree, reference = HostSumTree(capacity), np.zeros(capacity)
    for _ in range(50):
        index = np.unique(rng.integers(0, capacity, 20))
        reference[index] = rng.random(len(index)) * 10.0 ** rng.integers(-6, 6) * (rng.random(len(index)) > 0.3)
        if rng.random() < 0.5:
            tree.set(index, reference[index])
        else:
            for i in index:
                tree.set_one(int(i), float(reference[i]))
        assert tree.is_valid()
        np.testing.assert_array_equal(tree.leaves, reference)
        total = tree.total()
        np.testing.assert_allclose(total, reference.sum(), rtol=1e-12)
        mass = np.append(rng.random(30), [0.0, 1.0]) * total
        found = tree.find(mass)
        if total == 0:
            np.testing.assert_array_equal(found, 0)
            continue
        assert (reference[found] > 0).all()
        above = np.cumsum(reference)
        assert (mass <= above[found] + 1e-12 * total).all()
        assert (mass >= above[found] - reference[found] - 1e-12 * total).all()


def test_intervals_of_the_tree_are_half_open():
    value = np.random.default_rng(0).integers(0, 3, 1500)
    tree = HostSumTree(1500)
    tree.set(np.arange(1500), value)
    owner = np.repeat(np.arange(1500), value)
    np.testing.assert_array_equal(tree.find(np.arange(len(owner))), owner)
    np.testing.assert_array_equal(tree.find(np.nextafter(np.arange(1, len(owner) + 1), 0)), owner)


def brute_force(steps, n, gamma):
    """Rows (obs, rew, next_obs, done, m) of steps (obs, rew, next_obs, ends) by the definition."""
    out = []
    for t in range(len(steps)):
        last = t
        while last - t + 1 < n and steps[last][3] is None:
            last += 1
        reward = sum(gamma**i * steps[t + i][1] for i in range(last - t + 1))
        out.append((steps[t][0], reward, steps[last][2], float(steps[last][3] == "terminated"), last - t + 1))
    return out


@pytest.mark.parametrize("n_step", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_n_step_paths_follow_the_definition(n_step, seed):
    """Episodes end by termination, truncation, both or a flush, at random; the ring is lapped about twice."""
    rng = np.random.default_rng(seed)
    buffer, steps = PrioritizedReplayBuffer(97, n_step=n_step, gamma=0.9, seed=0), []
    for t in range(250):
        kind = rng.choice([None, "terminated", "truncated", "both", "flush"], p=[0.8, 0.06, 0.06, 0.02, 0.06])
        reward, end = rng.normal(), "terminated" if kind == "both" else kind
        buffer.push(
            [float(t)],
            t % 4,
            reward,
            [t + 0.5],
            kind in ("terminated", "both"),
            truncated=kind in ("truncated", "both"),
        )
        if kind == "flush":
            buffer.flush_episode()
        steps.append((t, reward, t + 0.5, end))
    buffer.flush_episode()
    steps[-1] = (*steps[-1][:3], steps[-1][3] or "flush")
    expected = brute_force(steps, n_step, 0.9)
    assert len(buffer) == 97
    got = rows(buffer)
    order = np.argsort(got["obs"][:, 0])
    newest = list(zip(*expected[-97:], strict=True))
    np.testing.assert_array_equal(got["obs"][order, 0], newest[0])
    np.testing.assert_array_equal(got["act"][order], np.array(newest[0]) % 4)
    np.testing.assert_allclose(got["rew"][order], newest[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["next_obs"][order, 0], newest[2])
    np.testing.assert_array_equal(got["done"][order], newest[3])
    np.testing.assert_array_equal(got["n_steps"][order], newest[4])


def test_trap_no_step_is_lost_at_an_end():
    """Earlier: a flush threw the last n - 1 steps of an episode away."""
    for end in ("terminated", "truncated", "flush"):
        buffer = PrioritizedReplayBuffer(10, n_step=3, gamma=0.5)
        for t in range(4):
            last = t == 3
            buffer.push([t], 0, 1.0, [t + 1], last and end == "terminated", truncated=last and end == "truncated")
        assert len(buffer) == (2 if end == "flush" else 4)
        buffer.flush_episode()
        got = rows(buffer)
        np.testing.assert_array_equal(got["n_steps"], [3, 3, 2, 1])
        np.testing.assert_array_equal(got["rew"], [1.75, 1.75, 1.5, 1.0])
        np.testing.assert_array_equal(got["done"], np.array([0, 1, 1, 1]) * (end == "terminated"))
        np.testing.assert_array_equal(got["next_obs"][:, 0], [3, 4, 4, 4])


def test_flushing_nothing_changes_nothing():
    buffer = PrioritizedReplayBuffer(4, n_step=2)
    buffer.flush_episode()
    buffer.push([0], 0, 1.0, [1], True)
    buffer.flush_episode()
    assert len(buffer) == 1


def test_trap_turning_alpha_on_keeps_the_rows():
    """Earlier: alpha from 0 to above emptied the buffer. Raw priorities are kept, so the new alpha counts for all."""
    buffer = filled(50, alpha=0.0)
    errors = np.linspace(0.1, 9.0, 50)
    buffer.update_priorities(np.arange(50), errors)
    np.testing.assert_array_equal(rows(buffer)["obs"][:, 0], np.arange(50))
    buffer.set_params(alpha=0.7)
    assert len(buffer) == 50
    p = (errors + 1e-6) ** 0.7
    assert surprise(counts(buffer), p) < 4.75
    buffer.set_params(alpha=0.0)
    rows(buffer)  # uniform again: each row once


def test_trap_a_priority_is_raised_to_alpha_once():
    """Earlier: a new row's priority was raised to alpha twice, 1000**0.25 = 5.6 in the place of 31.6."""
    buffer = PrioritizedReplayBuffer(4, alpha=0.5, beta=1.0, eps=0.0, seed=0)
    buffer.push([0], 0, 0.0, [1], False)
    buffer.push([0], 0, 0.0, [1], False)
    buffer.update_priorities([0, 1], [1000.0, 1.0])
    buffer.push([0], 0, 0.0, [1], False)
    batch = buffer.sample(1000)
    weight = dict(zip(batch[6].tolist(), batch[5].tolist(), strict=True))
    np.testing.assert_allclose([weight[0], weight[1], weight[2]], np.array([1, 1000**0.5, 1]) / 1000**0.5, rtol=1e-6)


def test_trap_a_push_does_not_grow_with_the_buffer():
    """Earlier: each push copied the whole buffer. Arrays are made once and stay where they are."""
    buffer = filled(3, capacity=1000)
    before = [column.ctypes.data for column in buffer._columns.values()]
    for i in range(2500):
        buffer.push(np.float32([i, 0]), 1, 0.0, np.float32([i, 0]), False)
    assert [column.ctypes.data for column in buffer._columns.values()] == before


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_frequencies_are_the_probabilities(alpha):
    rng = np.random.default_rng(1)
    buffer, raw = filled(40, alpha=alpha, seed=3), np.ones(40)
    for _ in range(20):
        index, error = rng.integers(0, 40, 8), rng.normal(size=8)
        buffer.update_priorities(index, error)
        for i in set(index.tolist()):
            raw[i] = np.abs(error[index == i]).max() + 1e-6
    assert buffer._tree.is_valid()
    assert surprise(counts(buffer), raw**alpha) < 4.75


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_follow_the_formula(beta):
    buffer = filled(50, alpha=0.6, beta=beta)
    errors = np.random.default_rng(2).exponential(size=50)
    buffer.update_priorities(np.arange(50), errors)
    *_, weights, indices, _ = buffer.sample(16)
    p = (errors + 1e-6) ** 0.6
    expected = (50 * p / p.sum())[indices] ** -beta
    np.testing.assert_allclose(weights, expected / expected.max(), rtol=1e-6)


def test_errors_that_are_no_numbers_count_as_the_greatest():
    buffer = filled(5, alpha=1.0, eps=0.0)
    buffer.update_priorities(np.arange(5), [np.nan, np.inf, 7.0, 1.0, 1.0])
    np.testing.assert_array_equal(buffer._raw[:5], [7, 7, 7, 1, 1])
    buffer.set_params(alpha=50.0)
    buffer.update_priorities(np.arange(5), [1e300, 1e-300, 0.0, 1.0, 1.0])
    assert np.isfinite(buffer._tree.total())
    assert (buffer._tree.leaves[:5] > 0).all()


def test_what_sample_returns():
    buffer = PrioritizedReplayBuffer(8, n_step=2)
    for i in range(3):
        buffer.push(
            np.full((2, 3), i, np.uint8), np.float32([0.5]), 1, np.full((2, 3), i + 1, np.uint8), np.bool_(i == 2)
        )
    batch = buffer.sample(6)
    shapes = [(6, 2, 3), (6, 1), (6,), (6, 2, 3), (6,), (6,), (6,), (6,)]
    dtypes = ["uint8", "float32", "float32", "uint8", "float32", "float32", "int64", "int64"]
    assert [b.shape for b in batch] == shapes
    assert [b.dtype for b in batch] == dtypes


def test_pushed_arrays_may_be_reused():
    for n_step in (1, 3):
        buffer, obs = PrioritizedReplayBuffer(8, n_step=n_step), np.zeros(1)
        for i in range(3):
            obs[:] = i
            buffer.push(obs, 0, 0.0, obs, i == 2)
        np.testing.assert_array_equal(rows(buffer)["obs"][:, 0], [0, 1, 2])
        batch = buffer.sample(3)
        batch[0][:] = 99
        np.testing.assert_array_equal(rows(buffer)["obs"][:, 0], [0, 1, 2])


def test_seeds_count():
    draws = [filled(50, alpha=0.5, seed=s).sample(32)[6].tolist() for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("pushed", [0, 1, 30, 200])
def test_a_resumed_buffer_goes_on_to_the_bit(pushed):
    """Saved amid a path, after updates; also the state is a copy, not a view."""

    def use(buffer, rng):
        out = []
        for i in range(40):
            buffer.push(rng.random(3), i, rng.random(), rng.random(3), rng.random() < 0.1)
            if len(buffer) > 4:
                batch = buffer.sample(8)
                buffer.update_priorities(batch[6], rng.normal(size=8))
                out += [part.copy() for part in batch]
        return out

    settings = {"alpha": 0.6, "beta": 0.5, "n_step": 3, "gamma": 0.95, "eps": 1e-3}
    buffer, rng = PrioritizedReplayBuffer(64, seed=1, **settings), np.random.default_rng(0)
    for i in range(pushed):
        buffer.push(rng.random(3), i, rng.random(), rng.random(3), i % 9 == 8)
    if len(buffer):
        buffer.update_priorities(np.arange(len(buffer)), rng.normal(size=len(buffer)))
    state = buffer.state_dict()
    kept = copy.deepcopy(state)
    first = use(buffer, np.random.default_rng(5))
    again = PrioritizedReplayBuffer(64, seed=99)
    again.load_state_dict(state)
    second = use(again, np.random.default_rng(5))
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert str(kept) == str(state)
    with pytest.raises(ValueError, match="capacity of 64, this one 65"):
        PrioritizedReplayBuffer(65).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "capacity must be a whole number of at least 1, got 0"),
        ({"alpha": -0.1}, "alpha must be a number from 0 to inf, got -0.1"),
        ({"beta": 1.5}, "beta must be a number from 0 to 1, got 1.5"),
        ({"gamma": np.nan}, "gamma .* got nan"),
        ({"n_step": 0}, "n_step must be a whole number of at least 1, got 0"),
        ({"eps": -1.0}, "eps .* got -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PrioritizedReplayBuffer(**{"capacity": 10, **settings})


def test_bad_rows_are_refused():
    buffer = PrioritizedReplayBuffer(10)
    with pytest.raises(ValueError, match="no rows to sample"):
        buffer.sample(2)
    buffer.push(np.zeros(3, np.uint8), 0, 0.0, np.zeros(3, np.uint8), False)
    with pytest.raises(ValueError, match=r"next_obs must have shape \[3\].*got \[2\]"):
        buffer.push(np.zeros(3, np.uint8), 0, 0.0, np.zeros(2, np.uint8), False)
    with pytest.raises(ValueError, match="obs is float64, which uint8"):
        buffer.push(np.zeros(3), 0, 0.0, np.zeros(3, np.uint8), False)
    with pytest.raises(ValueError, match="act is float64, which int64"):
        buffer.push(np.zeros(3, np.uint8), 0.5, 0.0, np.zeros(3, np.uint8), False)
    with pytest.raises(ValueError, match="got 2 indices and 1 errors"):
        buffer.update_priorities([0, 0], [1.0])
    with pytest.raises(ValueError, match=r"from 0 to 0.*got -1 to 5"):
        buffer.update_priorities([-1, 5], [1.0, 1.0])
    with pytest.raises(ValueError, match="obs must be a number or an array of numbers"):
        PrioritizedReplayBuffer(10).push({"a": 1}, 0, 0.0, {"a": 1}, False)
    assert len(buffer) == 1


# --- hindsight ---------------------------------------------------------------------------------------------------


def episode(steps=10, last_done=True, base=0):
    """Observation t is [base + t, -1 | desired 100]; achieved after step t is 1000 + base + t."""
    t = np.arange(steps, dtype=np.float32) + base
    obs = np.stack([t, np.full(steps, -1), np.full(steps, 100)], axis=1).astype(np.float32)
    next_obs = obs + np.float32([1, 0, 0])
    done = np.arange(steps) == (steps - 1 if last_done else -1)
    return obs, np.arange(steps) % 2, np.full(steps, -1.0), next_obs, done, (1000 + t)[:, None]


def distance(achieved, goal, info):
    assert info == {}
    return -abs(float(achieved[0] - goal[0]))


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_relabelled_rows(strategy):
    """T originals on n-step paths, then k rows of one step for each step, in order."""
    her = HERReplayBuffer(PrioritizedReplayBuffer(1000, n_step=3, gamma=0.5), k=4, strategy=strategy, seed=0)
    obs, act, rew, next_obs, done, achieved = episode()
    her.store_episode(obs, act, rew, next_obs, done, achieved, distance)
    assert len(her) == 50
    got = rows(her)
    np.testing.assert_array_equal(got["obs"][:10], obs)
    np.testing.assert_array_equal(got["n_steps"][:10], [3] * 8 + [2, 1])
    np.testing.assert_array_equal(got["done"][:10], [0] * 7 + [1] * 3)
    t = np.repeat(np.arange(10), 4)
    goal = got["obs"][10:, 2]
    np.testing.assert_array_equal(got["obs"][10:, :2], obs[t, :2])
    np.testing.assert_array_equal(got["next_obs"][10:, :2], next_obs[t, :2])
    np.testing.assert_array_equal(got["next_obs"][10:, 2], goal)
    np.testing.assert_array_equal(got["act"][10:], act[t])
    np.testing.assert_array_equal(got["rew"][10:], -np.abs(achieved[t, 0] - goal))
    np.testing.assert_array_equal(got["n_steps"][10:], 1)
    np.testing.assert_array_equal(got["done"][10:], done[t])
    chosen = goal - 1000
    assert (chosen >= (t if strategy == "future" else 0)).all()
    assert (chosen <= 9).all()
    if strategy == "final":
        assert (chosen == 9).all()
    assert (chosen < t).any() == (strategy == "episode")
    np.testing.assert_array_equal(obs, episode()[0])  # what was given is not changed


@pytest.mark.parametrize(("strategy", "low"), [("future", 3), ("episode", 0)])
def test_goals_are_uniform_over_their_range(strategy, low):
    her = HERReplayBuffer(PrioritizedReplayBuffer(4), k=20_000, strategy=strategy, seed=2)
    drawn = np.bincount(her._goals(3, 8), minlength=8)
    assert surprise(drawn, np.where(np.arange(8) >= low, 1.0, 0.0)) < 4.75


def test_a_cut_episode_bootstraps_and_does_not_run_into_the_next():
    her = HERReplayBuffer(PrioritizedReplayBuffer(1000, n_step=4), k=0)
    for base in (0, 50):
        her.store_episode(*episode(5, last_done=False, base=base), compute_reward_fn=distance)
    got = rows(her)
    assert len(her) == 10
    np.testing.assert_array_equal(got["done"], 0)
    np.testing.assert_array_equal(got["n_steps"], [4, 4, 3, 2, 1] * 2)
    np.testing.assert_array_equal(got["next_obs"][:5, 0], [4, 5, 5, 5, 5])


def test_the_call_of_the_documents():
    """Lists, the second form, the positional reward function, eight results."""
    obs_dim, act_dim, goal_dim = 2, 1, 1
    her = HERBuffer(obs_dim=obs_dim, act_dim=act_dim, goal_dim=goal_dim, strategy="future", k=4)
    obs, act, rew, next_obs, done, achieved = episode()
    lists = [list(part) for part in (obs, act[:, None].astype(np.float32), rew, next_obs, done, achieved)]
    her.store_episode(*lists, distance)
    obs_b, act_b, rew_b, next_b, done_b, weights, idx, n = her.sample(32)
    assert [len(part) for part in (obs_b, act_b, rew_b, next_b, done_b, weights, idx, n)] == [32] * 8
    assert obs_b.shape == next_b.shape == (32, 3)
    her.update_priorities(idx, np.ones(32))
    her.set_params(alpha=0.5, beta=0.6)
    assert (her.inner.alpha, her.inner.beta) == (0.5, 0.6)
    assert len(her) == 50


def test_both_names_are_one_class_and_take_both_forms():
    assert HERBuffer is HERReplayBuffer
    inner = PrioritizedReplayBuffer(10)
    assert HERBuffer(inner, 2, "final").inner is inner
    assert HERBuffer(inner=inner, k=2).k == 2
    built = HERReplayBuffer(4, 2, 1, "episode", 3, capacity=77, n_step=2, seed=0)
    assert (built.strategy, built.k, built.inner.capacity, built.inner.n_step) == ("episode", 3, 77, 2)


def test_a_resumed_hindsight_buffer_goes_on_to_the_bit():
    her = HERBuffer(3, 1, 1, capacity=200, seed=4)
    her.store_episode(*episode(), distance)
    state = her.state_dict()
    again = HERBuffer(3, 1, 1, capacity=200, seed=5)
    again.load_state_dict(state)
    for buffer in (her, again):
        buffer.store_episode(*episode(base=20), distance)
    for a, b in zip(her.sample(64), again.sample(64), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_hindsight_is_refused():
    with pytest.raises(ValueError, match="Unknown HER strategy 'past'"):
        HERReplayBuffer(PrioritizedReplayBuffer(10), strategy="past")
    with pytest.raises(ValueError, match="Unknown HER strategy 'past'"):
        HERBuffer(2, 1, 1, "past", 4, capacity=10)
    with pytest.raises(ValueError, match="k must be a whole number of at least 0, got -1"):
        HERReplayBuffer(PrioritizedReplayBuffer(10), k=-1)
    her = HERBuffer(obs_dim=5, act_dim=1, goal_dim=1, capacity=100)
    good = episode()
    with pytest.raises(ValueError, match="5 or 6 wide, got 3"):
        her.store_episode(*good, distance)
    her = HERReplayBuffer(PrioritizedReplayBuffer(100))
    with pytest.raises(ValueError, match="give one of compute_reward"):
        her.store_episode(*good)
    with pytest.raises(ValueError, match=r"same number of rows.*'rew': 9"):
        her.store_episode(good[0], good[1], good[2][:9], *good[3:], distance)
    with pytest.raises(ValueError, match="done is true in row 2 of 10"):
        her.store_episode(*good[:4], np.arange(10) == 2, good[5], distance)
    with pytest.raises(ValueError, match="goals are float32, which observations of int64"):
        her.store_episode(good[0].astype(int), *good[1:3], good[3].astype(int), *good[4:], distance)
    assert len(her) == 0
