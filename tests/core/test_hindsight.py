"""Hindsight goals: which steps may be chosen and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core.hindsight import STRATEGIES, goal_index

GOALS = jax.jit(goal_index, static_argnums=1)


def draw(strategy, t, start, end, n=20_000, seed=0):
    lanes = [jnp.full(n, x, jnp.int32) for x in (t, start, end)]
    return np.asarray(GOALS(jax.random.key(seed), strategy, *lanes))


@pytest.mark.parametrize(("strategy", "low", "high"), [("future", 7, 12), ("episode", 4, 12), ("final", 11, 12)])
def test_goals_are_uniform_over_their_range(strategy, low, high):
    """False alarm below 1e-6 per strategy: each count within 5.5 standard deviations, the seed is fixed."""
    goals = draw(strategy, t=7, start=4, end=12)
    assert goals.dtype == np.int32
    assert (goals.min(), goals.max()) == (low, high - 1)
    counts = np.bincount(goals, minlength=high)[low:high]
    p = 1 / (high - low)
    assert (np.abs(counts - len(goals) * p) <= 5.5 * np.sqrt(len(goals) * p * (1 - p))).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_last_step_and_an_episode_of_one(strategy):
    assert (draw(strategy, 9, 9, 10, n=50) == 9).all()
    if strategy != "episode":
        assert (draw(strategy, 9, 3, 10, n=50) == 9).all()


def test_each_transition_has_an_episode_of_its_own():
    start = jnp.arange(0, 1000, 10, dtype=jnp.int32)
    t, end = start + 5, start + 10
    future, final, episode = (np.asarray(GOALS(jax.random.key(1), s, t, start, end)) for s in STRATEGIES)
    np.testing.assert_array_equal(final, end - 1)
    assert ((future >= np.asarray(t)) & (future < np.asarray(end))).all()
    assert ((episode >= np.asarray(start)) & (episode < np.asarray(end))).all()
    assert len(np.unique(future - np.asarray(start))) == 5  # lanes do not share a draw
    assert len(np.unique(episode - np.asarray(start))) == 10


def test_keys_matter_and_one_extent_serves_all():
    t, start, end = jnp.zeros(64, jnp.int32), jnp.int32(0), jnp.int32(50)
    one, two = (np.asarray(GOALS(jax.random.key(seed), "future", t, start, end)) for seed in (0, 1))
    assert (one != two).any()
    assert one.shape == (64,)


@pytest.mark.parametrize("strategy", ["Future", "none", ""])
def test_an_unknown_strategy_is_refused(strategy):
    zeros = jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match=f"Unknown HER strategy '{strategy}'.*future, final, episode"):
        goal_index(jax.random.key(0), strategy, zeros, zeros, zeros + 5)
