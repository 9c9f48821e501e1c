"""Advantages of windows of every shape, against the plain formula written out row by row."""

import itertools

import numpy as np
import pytest

from tensor_optix import EpisodeData, RewardNormalizer, compute_gae
from tensor_optix.core.window_returns import Bootstraps, Segments, advantages, discounted_returns, normalized_rewards

GAMMA, LAMBDA = 0.9, 0.8


def value(obs):
    """A critic: any function of the observation."""
    return np.sin(np.asarray(obs, np.float64)[..., 0] * 3.0)


def random_window(rng, lengths, p_end=0.3, known=True):
    """Rows of several segments whose observations are all different; ends drawn at random."""
    total = sum(lengths)
    obs = rng.normal(size=(total, 2)).astype(np.float32)
    terminated = rng.random(total) < p_end / 2
    truncated = (rng.random(total) < p_end / 2) & ~terminated
    starts = np.cumsum([0, *lengths[:-1]])
    finals = {int(t): rng.normal(size=2).astype(np.float32) for t in np.flatnonzero(terminated | truncated)}
    last = rng.normal(size=(len(lengths), 2)).astype(np.float32)
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if start + length - 1 in finals:
            last[i] = finals[int(start + length - 1)]
    return EpisodeData(
        obs, np.zeros(total), rng.normal(size=total).tolist(), terminated.tolist(), truncated.tolist(), [{}] * total, 0,
        final_obs=last if known else None,
        metadata={"segment_starts": starts.tolist(), **({"final_observations": finals} if known else {})},
    )  # fmt: skip


def by_hand(data, rewards=None):
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}, within the episode and the segment."""
    rewards = data.rewards if rewards is None else rewards
    starts = [*data.metadata["segment_starts"], len(rewards)]
    out = np.zeros(len(rewards))
    for i, (start, end) in enumerate(itertools.pairwise(starts)):
        for t in range(start, end):
            total, weight = 0.0, 1.0
            for k in range(t, end):
                ended = data.terminated[k] or data.truncated[k]
                if data.terminated[k]:
                    following = 0.0
                elif ended:
                    following = value(data.metadata["final_observations"][k])
                elif k == end - 1:
                    following = value(data.final_obs[i])
                else:
                    following = value(data.observations[k + 1])
                total += weight * (rewards[k] + GAMMA * following - value(data.observations[k]))
                weight *= GAMMA * LAMBDA
                if ended:
                    break
            out[t] = total
    return out


def computed(data, **kwargs):
    boot = Bootstraps.of(data)
    return boot, *advantages(data, value(data.observations), boot, value(boot.observations), GAMMA, LAMBDA, **kwargs)


@pytest.mark.parametrize("lengths", [(1,), (7,), (20, 20), (5, 1, 9), (3, 12, 12)])
@pytest.mark.parametrize("seed", range(5))
def test_against_the_formula(lengths, seed):
    data = random_window(np.random.default_rng(seed), lengths)
    boot, result, targets = computed(data)
    assert boot.usable.all()
    np.testing.assert_allclose(result, by_hand(data), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(targets, result + value(data.observations), rtol=1e-5, atol=1e-6)


def test_agrees_with_compute_gae():
    rng = np.random.default_rng(3)
    data = random_window(rng, (30,))
    values = value(data.observations)
    finals = np.zeros(30)
    for row, obs in data.metadata["final_observations"].items():
        finals[row] = value(obs)
    expected, _ = compute_gae(
        data.rewards, values, data.dones, GAMMA, LAMBDA, value(data.final_obs[0]),
        truncated=np.asarray(data.truncated), final_values=finals,
    )  # fmt: skip
    np.testing.assert_allclose(computed(data)[1], expected, rtol=1e-5, atol=1e-6)


def test_without_final_observations_the_last_row_of_a_trace_only_lends_its_value():
    rng = np.random.default_rng(4)
    data = random_window(rng, (6, 6), p_end=0.0, known=False)
    boot, result, _ = computed(data)
    assert np.flatnonzero(~boot.usable).tolist() == [5, 11]
    shorter = [0, 1, 2, 3, 4]
    part = EpisodeData(
        data.observations[:5], np.zeros(5), data.rewards[:5], [False] * 5, [False] * 5, [{}] * 5, 0,
        final_obs=data.observations[5],
    )  # fmt: skip
    np.testing.assert_allclose(result[shorter], computed(part)[1], rtol=1e-6)


def test_a_window_of_one_environment_takes_one_final_observation():
    data = random_window(np.random.default_rng(5), (8,), p_end=0.0)
    del data.metadata["segment_starts"]
    data.final_obs = data.final_obs[0]
    data.metadata["final_observations"] = {}
    boot, *_ = computed(data)
    assert boot.rows.tolist() == [7]
    assert boot.usable.all()


def test_returns_stay_in_their_episode():
    data = EpisodeData(
        np.zeros((5, 1)), np.zeros(5), [1.0, 1.0, 1.0, 1.0, 1.0], [False, True, False, False, False],
        [False] * 5, [{}] * 5, 0, metadata={"segment_starts": [0, 3]},
    )  # fmt: skip
    np.testing.assert_allclose(discounted_returns(data, 0.5), [1.5, 1.0, 1.0, 1.5, 1.0])


def test_rewards_are_normalised_as_step_by_step():
    data = random_window(np.random.default_rng(6), (5, 9, 9))
    one, other = RewardNormalizer(gamma=0.9), RewardNormalizer(gamma=0.9)
    scaled = normalized_rewards(one, data)
    grid = Segments.of(data)
    seen = []
    for start, length in zip(grid.starts, grid.lengths, strict=True):
        running = 0.0
        for t in range(start, start + length):
            running = 0.9 * running + data.rewards[t]
            seen.append(running)
            running = 0.0 if data.dones[t] else running
    other.rms.update(seen)
    np.testing.assert_allclose(scaled, other.normalize(data.rewards), rtol=1e-6)
    again = normalized_rewards(one, data)  # the running returns go on across windows
    assert not np.allclose(again, scaled)


def test_segments_that_are_not_the_window_are_refused():
    data = random_window(np.random.default_rng(7), (4, 4))
    data.metadata["segment_starts"] = [1, 4]
    with pytest.raises(ValueError, match="segment_starts must begin with 0"):
        Segments.of(data)
