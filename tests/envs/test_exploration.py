"""The deep sea: what is seen, what is paid, and that chance does not find the treasure."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.envs.checker import check_environment
from tensor_optix.envs.exploration import IDS, DeepSea
from tensor_optix.envs.spaces import Discrete
from tests.runs import XLA_DEFAULTS


def oracle(right, actions):
    """Cells (row, column), rewards of one episode in plain Python; the costs of steps to the right add up to 0.01."""
    depth, column, cells, rewards = len(right), 0, [], []
    for row, action in enumerate(actions):
        cells.append((row, column))
        goes_right = bool(action) == bool(right[row][column])
        rewards.append((1.0 if goes_right and column == depth - 1 else 0.0) - (0.01 / depth if goes_right else 0.0))
        column = min(max(column + (1 if goes_right else -1), 0), depth - 1)
    return cells, rewards


@pytest.mark.parametrize("options", [{}, {"continuous": True}, {"depth": 2, "seed": None}])
def test_the_contract_is_followed(options):
    # Every episode starts in the same cell: that is the task.
    assert [problem.where for problem in check_environment(DeepSea(**options), steps=100)] == ["reset"]


@pytest.mark.parametrize("continuous", [False, True])
def test_every_path_is_that_of_the_oracle(continuous):
    """All 32 sequences of actions side by side, two episodes long."""
    depth = 5
    env = envs.make(DeepSea, depth=depth, seed=3, continuous=continuous)
    right = env.env.right
    assert 5 < right.sum() < 20
    sequences = np.asarray(list(np.ndindex(*[2] * depth)), np.int32)
    expected = [oracle(right, sequence) for sequence in sequences]
    assert sum(np.sum(rewards) > 0.9 for _, rewards in expected) == 1
    state, obs = env.reset(jax.random.key(0), len(sequences))
    step = jax.jit(env.step, compiler_options=XLA_DEFAULTS)
    for t in range(2 * depth):
        row = t % depth
        for i, (cells, _) in enumerate(expected):
            assert np.flatnonzero(obs[i]).tolist() == [depth * cells[row][0] + cells[row][1]]
        action = sequences[:, row]
        action = jnp.float32(0.3) * (2 * action[:, None] - 1).astype(np.float32) if continuous else jnp.asarray(action)
        state, out = step(jax.random.key(t), state, action)
        np.testing.assert_allclose(out.reward, [rewards[row] for _, rewards in expected], rtol=1e-6)
        assert out.terminated.all() == out.terminated.any() == (row == depth - 1)
        assert not out.truncated.any()
        if row == depth - 1:
            np.testing.assert_array_equal(out.final_obs, 0.0)
        obs = out.obs


@pytest.mark.parametrize("depth", [2, 10])
def test_who_knows_the_way_gets_the_optimal_return(depth):
    for seed in (0, None):
        env = envs.make(DeepSea, depth=depth, seed=seed)
        meaning = jnp.asarray(env.env.right).reshape(-1).astype(jnp.int32)
        know = lambda obs, key, meaning=meaning: meaning[obs.argmax(-1)]  # noqa: E731
        stats = envs.evaluate(env, know, jax.random.key(0), 4, depth)
        np.testing.assert_allclose(stats.returns, DeepSea.optimal_return, rtol=1e-5)
        assert (stats.lengths == depth).all()
        lost = envs.evaluate(env, lambda obs, key, know=know: 1 - know(obs, key), jax.random.key(0), 4, depth)
        np.testing.assert_array_equal(lost.returns, 0.0)


def test_chance_finds_the_treasure_once_in_two_to_the_depth():
    def found(depth, episodes):
        env = envs.make(DeepSea, depth=depth)
        dither = lambda obs, key: jax.random.bernoulli(key, 0.5, (len(obs),)).astype(jnp.int32)  # noqa: E731
        returns = np.asarray(envs.evaluate(env, dither, jax.random.key(0), episodes, depth).returns)
        return int((returns > 0.5).sum())

    # 4096 / 16 = 256 expected, standard deviation 15.5: five of them, false alarm 6e-7.
    assert abs(found(4, 4096) - 256) < 78
    # 1024 / 2^20: seen at all with probability 1e-3.
    assert found(20, 1024) == 0


def test_meanings_are_the_seeds():
    same, again, other, plain = (DeepSea(seed=seed).right for seed in (0, 0, 1, None))
    np.testing.assert_array_equal(same, again)
    assert 0.3 < (same != other).mean() < 0.7
    assert plain.all()
    # No single action goes far.
    assert not same.diagonal().all()
    assert same.diagonal().any()


def test_it_is_known_by_its_id():
    assert "DeepSea" in envs.list_environments()
    assert "DeepSea" not in gymnax.registered_envs
    env = envs.make("DeepSea", depth=6)
    assert env.obs_shape == (36,)
    assert env.n_actions == 2
    assert env == envs.make("DeepSea", depth=6)
    assert env != envs.make("DeepSea")
    assert envs.make("DeepSea", continuous=True).action_kind == "continuous"
    assert all(kind().name == env_id for env_id, kind in IDS.items())
    assert DeepSea().action_space(None) == Discrete(2)


def test_a_sea_without_depth_is_refused():
    with pytest.raises(ValueError, match="depth must be at least 2 rows, got 1"):
        DeepSea(1)
