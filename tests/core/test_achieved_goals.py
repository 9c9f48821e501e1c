"""Relabelling in the compiled replay against a plain Python record of episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core import achieved_goals, replay

N, CAPACITY = 2, 14  # environments; transitions, so 8 rows of which 7 are filled
ROWS = replay.rows_for(CAPACITY, N)


def play(steps, seed, end_chance=0.3):
    """A replay after `steps` random steps, and the record: for each environment a list of (time, episode)."""
    rng = np.random.default_rng(seed)
    obs = jnp.zeros((N, 2))
    stored, goals = replay.init(CAPACITY, obs, jnp.zeros(N, jnp.int32)), achieved_goals.init(ROWS, jnp.zeros((N, 1)))
    record, episode = [[] for _ in range(N)], [0] * N
    add = jax.jit(lambda goals, row, achieved, done: achieved_goals.add(goals, row, achieved, done))
    store = jax.jit(replay.add)
    for t in range(steps):
        if end_chance == "first":  # one short episode, then one that is longer than the ring
            ended, cut = np.full(N, t == 0), np.zeros(N, bool)
        else:
            ended, cut = rng.random(N) < end_chance / 2, rng.random(N) < end_chance / 2
            cut &= ~ended
        achieved = np.array([[100.0 * t + e] for e in range(N)], np.float32)  # tells time and environment
        goals = add(goals, stored.cursor, achieved, ended | cut)
        stored = store(stored, jnp.zeros(N, jnp.int32), jnp.zeros(N), ended, cut, obs, obs)
        for e in range(N):
            record[e].append((t, episode[e]))
            episode[e] += int(ended[e] or cut[e])
    return stored, goals, record


@functools.partial(jax.jit, static_argnums=3)
def drawn_goals(goals, stored, key, strategy, place):
    return achieved_goals.at(goals, achieved_goals.draw(goals, stored, key, strategy, place))[:, 0]


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
@pytest.mark.parametrize(("steps", "end_chance"), [(3, 0.3), (7, 0.3), (25, 0.3), (40, 0.05), (33, 0.9), (24, "first")])
def test_goals_come_from_the_same_episode_and_all_of_its_steps(strategy, steps, end_chance):
    stored, goals, record = play(steps, seed=steps, end_chance=end_chance)
    kept = min(steps, ROWS - 1)
    for e in range(N):
        for age in range(1, kept + 1):
            t, number = record[e][steps - age]
            row = (int(stored.cursor) - age) % ROWS
            place = jnp.full(200, row * N + e, jnp.int32)
            key = jax.random.fold_in(jax.random.key(1), row * N + e)
            found = np.asarray(drawn_goals(goals, stored, key, strategy, place), np.float64)
            times = {int((value - e) / 100) for value in found}
            episode = [u for u, other in record[e][steps - kept :] if other == number]
            expected = {
                "future": {u for u in episode if u >= t},
                "final": {episode[-1]},
                "episode": set(episode),
            }[strategy]
            # 200 draws miss one of at most 7 steps with a chance of 7 * (6/7)^200 < 3e-13.
            assert times == expected, (e, t, strategy)


def test_an_empty_memory_starts_its_numbers_anew():
    stored, goals, _ = play(25, seed=0)
    goals, stored = achieved_goals.restart(goals), replay.restart(stored, jnp.zeros((N, 2)))
    np.testing.assert_array_equal(goals.n_episodes, 0)
    none = jnp.zeros(N, bool)
    for t in (1, 2):  # what stale rows say does not matter
        goals = achieved_goals.add(goals, stored.cursor, jnp.full((N, 1), -float(t)), none)
        stored = replay.add(
            stored, jnp.zeros(N, jnp.int32), jnp.zeros(N), none, none, jnp.zeros((N, 2)), jnp.zeros((N, 2))
        )
    for strategy, expected in (("episode", {-1.0, -2.0}), ("final", {-2.0}), ("future", {-2.0})):
        found = drawn_goals(goals, stored, jax.random.key(0), strategy, jnp.full(100, N, jnp.int32))  # row 1
        assert set(np.asarray(found).tolist()) == expected


def relabelled(share, ended=False):
    stored, goals, _ = play(20, seed=3)
    place = replay.draw(stored, jax.random.bits(jax.random.key(0), (512,), jnp.uint32), 1)
    batch = replay.read(stored, place, 1, jnp.float32(0.9))
    batch = batch.replace(obs=jnp.zeros((512, 2)), next_obs=jnp.zeros((512, 2)), reward=jnp.full(512, 7.0))

    def worth(achieved, goal):
        return jnp.where(achieved == goal, 0.0, -1.0)[:, 0], (achieved == goal)[:, 0] & ended

    def wanting(obs, goal):
        return jnp.concatenate([obs[:, :1], goal], axis=-1)

    after = achieved_goals.relabel(
        goals, stored, batch, place, jax.random.key(1), "future", jnp.float32(share), wanting, worth
    )
    return batch, after, achieved_goals.at(goals, place)[:, 0]


def test_the_share_of_relabelled_steps():
    batch, after, _ = relabelled(0.0)
    assert all(map(np.array_equal, jax.tree.leaves(batch), jax.tree.leaves(after)))
    _, after, _ = relabelled(1.0)
    assert (after.reward <= 0).all()
    _, after, _ = relabelled(0.75)
    share = float((after.reward <= 0).mean())
    assert abs(share - 0.75) < 4.5 * np.sqrt(0.75 * 0.25 / 512)  # once in 10^5 seeds; this one is fixed


def test_rewards_and_goals_belong_together_and_reaching_one_may_end():
    batch, after, achieved = relabelled(1.0, ended=True)
    np.testing.assert_array_equal(after.obs[:, 1], after.next_obs[:, 1])
    reached = np.asarray(after.obs[:, 1] == achieved)
    np.testing.assert_array_equal(after.reward, np.where(reached, 0.0, -1.0))
    np.testing.assert_array_equal(after.discount, np.where(reached, 0.0, batch.discount))
    assert reached.any()
    assert not reached.all()
    np.testing.assert_array_equal(after.obs[:, 0], 0.0)
    np.testing.assert_array_equal(after.weight, batch.weight)
