"""The ring of transitions against lists of episodes; what is drawn is uniform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core import replay

GAMMA = 0.9


class Story:
    """Random episodes of N environments, and what each transition must read as. Observations are serial numbers."""

    def __init__(self, seed, n_envs, steps, p_end=0.15):
        self.rng, self.n_envs = np.random.default_rng(seed), n_envs
        self.serial = 0
        self.first = self._fresh()
        self.rows = []
        obs = self.first
        for _ in range(steps):
            end = self.rng.choice(3, n_envs, p=[1 - p_end, p_end / 2, p_end / 2])
            final, fresh = self._fresh(), self._fresh()
            after = np.where(end == 0, final, fresh)
            reward = self.rng.normal(size=n_envs).astype(np.float32)
            self.rows.append((obs, self.rng.integers(0, 9, n_envs), reward, end, final, after))
            obs = after

    def _fresh(self):
        self.serial += self.n_envs
        return np.arange(self.serial - self.n_envs, self.serial)

    def read(self, row, env, n):
        """(obs, action, reward, discount, next_obs) summed over up to n steps."""
        total, discount = 0.0, 1.0
        for k in range(n):
            _, _, reward, end, final, _ = self.rows[row + k]
            total, discount = total + discount * reward[env], discount * GAMMA
            if end[env]:
                break
        start = self.rows[row]
        return start[0][env], start[1][env], total, 0.0 if end[env] == 1 else discount, final[env]


@functools.cache
def programs(n_step):
    add = jax.jit(replay.add, donate_argnums=0)
    return add, jax.jit(functools.partial(replay.read, n_step=n_step, gamma=jnp.float32(GAMMA)))


def column(x, dtype=np.float32):
    return jnp.asarray(np.asarray(x)[:, None], dtype)


def filled(story, capacity, limit=None, dtype=np.float32):
    add, _ = programs(1)
    stored = replay.init(capacity, column(story.first, dtype), jnp.zeros(story.n_envs, jnp.int32), limit)
    for _, action, reward, end, final, after in story.rows:
        flags = jnp.asarray(end == 1), jnp.asarray(end == 2)
        action = jnp.asarray(action, jnp.int32)
        stored = add(stored, action, jnp.asarray(reward), *flags, column(after, dtype), column(final, dtype))
    return stored


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize(("n_envs", "capacity", "steps"), [(1, 16, 10), (1, 16, 57), (3, 30, 41), (4, 30, 8)])
def test_every_transition_reads_as_it_happened(n_envs, capacity, steps, n_step):
    story = Story(steps, n_envs, steps)
    stored = filled(story, capacity)
    rows = replay.rows_for(capacity, n_envs)
    kept = min(steps, rows - 1)
    assert int(stored.size) == kept
    assert kept * n_envs >= min(steps * n_envs, capacity)
    wanted = [(row, env) for row in range(steps - kept, steps - n_step + 1) for env in range(n_envs)]
    places = jnp.asarray([row % rows * n_envs + env for row, env in wanted], jnp.int32)
    got = programs(n_step)[1](stored, places)
    for i, (row, env) in enumerate(wanted):
        obs, action, reward, discount, following = story.read(row, env, n_step)
        assert int(got.obs[i, 0]) == obs
        assert int(got.action[i]) == action
        np.testing.assert_allclose(got.reward[i], reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got.discount[i], discount, rtol=1e-6)
        assert float(got.weight[i]) == 1.0
        if discount:
            assert int(got.next_obs[i, 0]) == following


@pytest.mark.parametrize("n_step", [1, 3])
def test_draws_are_uniform_over_what_is_complete(n_step):
    n_envs, draws = 2, 200_000
    stored = filled(Story(0, n_envs, 23), 20)
    bits = jax.random.bits(jax.random.key(n_step), (draws,), jnp.uint32)
    places = np.asarray(replay.draw(stored, bits, n_step))
    rows = replay.rows_for(20, n_envs)
    complete = {row % rows * n_envs + env for row in range(23 - (rows - 1), 23 - n_step + 1) for env in range(n_envs)}
    counts = np.bincount(places, minlength=rows * n_envs)
    assert set(np.flatnonzero(counts)) == complete
    expected = draws / len(complete)
    chi2 = ((counts[sorted(complete)] - expected) ** 2 / expected).sum()
    freedom = len(complete) - 1
    # Wilson & Hilferty's approximation: chance of a false alarm 3e-7 (5 standard deviations).
    assert chi2 < freedom * (1 - 2 / (9 * freedom) + 5 * np.sqrt(2 / (9 * freedom))) ** 3


def test_only_as_many_final_observations_as_the_time_limit_can_make():
    story = Story(0, 1, 60, p_end=0.0)
    for t in range(60):  # cut at every tenth step
        story.rows[t][3][0] = 2 if t % 10 == 9 else 0
    stored = filled(story, 40, limit=10)
    assert stored.final_obs.shape[0] == 6
    rows = replay.rows_for(40, 1)
    wanted = [row for row in range(20, 60) if row % 10 == 9]
    got = programs(1)[1](stored, jnp.asarray([row % rows for row in wanted], jnp.int32))
    assert [int(x) for x in got.next_obs[:, 0]] == [int(story.rows[row][4][0]) for row in wanted]
    assert got.weight.tolist() == [1.0] * len(wanted)


def test_a_final_observation_that_is_gone_makes_no_target():
    story = Story(0, 1, 30, p_end=0.0)
    for t in range(30):  # cut ten times as often as the limit says
        story.rows[t][3][0] = 2
    stored = filled(story, 29, limit=10)
    finals = stored.final_obs.shape[0]
    got = programs(1)[1](stored, jnp.arange(30, dtype=jnp.int32))
    assert got.weight.sum() == finals
    assert got.weight[-finals:].tolist() == [1.0] * finals


def test_images_stay_bytes_and_are_stored_once():
    obs = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda: replay.init(1000, obs, jnp.zeros(2, jnp.int32), 100))
    assert shapes.obs.dtype == shapes.final_obs.dtype == jnp.uint8
    rows = shapes.obs.shape[0] * 2
    assert replay.n_bytes(shapes) < rows * (8 * 8 * 3 + 4 + 4 + 1 + 4) * 1.02
    assert replay.n_bytes(shapes) == replay.n_bytes(replay.init(1000, obs, jnp.zeros(2, jnp.int32), 100))


def test_nothing_is_copied():
    stored = replay.init(100_000, jnp.zeros((1, 4), jnp.float32), jnp.zeros(1, jnp.int32), 500)

    def steps(stored, key):
        def step(stored, t):
            bits = jax.random.bits(jax.random.fold_in(key, t), (32,), jnp.uint32)
            one, no = jnp.ones(1, jnp.float32), jnp.zeros(1, bool)
            obs = jnp.ones((1, 4), jnp.float32)
            stored = replay.add(stored, jnp.zeros(1, jnp.int32), one, no, no, obs, obs)
            return stored, replay.read(stored, replay.draw(stored, bits, 3), 3, jnp.float32(0.9)).reward.sum()

        return jax.lax.scan(step, stored, jnp.arange(10, dtype=jnp.int32))

    text = jax.jit(steps, donate_argnums=0).lower(stored, jax.random.key(0)).compile().as_text()
    copies = [line for line in text.splitlines() if " copy(" in line and "[100001" in line]
    assert not copies, copies


def test_restart_forgets():
    story = Story(0, 2, 12)
    stored = replay.restart(filled(story, 30), column(story.first))
    assert int(stored.size) == 0
    assert replay.newest_ready(stored, 1).tolist() == [-1, -1]
    add, read = programs(1)
    _, action, reward, _, final, after = story.rows[0]
    none = jnp.zeros(2, bool)
    stored = add(stored, jnp.asarray(action, jnp.int32), jnp.asarray(reward), none, none, column(after), column(final))
    assert replay.newest_ready(stored, 1).tolist() == [0, 1]
    assert replay.current(stored).tolist() == [2, 3]
    got = read(stored, jnp.asarray([0, 1], jnp.int32))
    assert got.obs[:, 0].tolist() == story.first.tolist()
    assert got.next_obs[:, 0].tolist() == after.tolist()
