"""Scores are of whole episodes and of what the task gave."""

import json

import numpy as np

from tensor_optix.core.types import EpisodeData
from tensor_optix.loop.episode_returns import EpisodeEvaluator, EpisodeReturns


def window(rewards, ends=(), starts=None, **metadata):
    n = len(rewards)
    return EpisodeData(
        np.zeros((n, 1)), np.zeros(n), list(rewards), [i in ends for i in range(n)], [False] * n, [{}] * n, 0,
        metadata=metadata, episode_starts=starts,
    )  # fmt: skip


def test_a_bonus_is_no_part_of_a_return():
    data = window([11.0, 12.0, 13.0], ends=[1], extrinsic_rewards=[1.0, 2.0, 3.0])
    returns = EpisodeReturns()
    assert returns.update(data) == ([3.0], [2])
    assert returns.update(window([1.0], ends=[0])) == ([4.0], [2])


def test_a_bonus_is_no_part_of_a_reward_per_step_nor_of_a_score_of_the_callers_own():
    stream = EpisodeEvaluator()
    scores = [stream.score(window([11.0, 12.0], extrinsic_rewards=[1.0, 2.0]), {}) for _ in range(10)]
    assert scores[:-1] == [None] * 9
    assert (scores[-1].primary_score, scores[-1].metrics["unit"]) == (1.5, "reward per step")
    data, seen = window([11.0, 12.0], extrinsic_rewards=[1.0, 2.0]), []
    own = EpisodeEvaluator(lambda data: seen.append(data) or sum(data.rewards))
    assert own.score(data, {}).primary_score == 3.0
    assert seen[0].metadata is data.metadata
    plain = window([5.0])
    own.score(plain, {})
    assert seen[1] is plain


def test_an_episode_whose_beginning_was_lost_has_no_return():
    returns = EpisodeReturns()
    assert returns.update(window([1.0, 2.0, 4.0], ends=[1], starts=[0, 2], tails=[0])) == ([], [])
    assert returns.update(window([1.0, 2.0], ends=[0, 1], starts=[1])) == ([5.0, 2.0], [2, 1])
    # Across windows, and across a resume.
    returns.update(window([1.0], starts=[0], tails=[0]))
    resumed = EpisodeReturns()
    resumed.load_state_dict(json.loads(json.dumps(returns.state_dict())))
    for each in (returns, resumed):
        assert each.update(window([1.0, 3.0], ends=[0, 1], starts=[1])) == ([3.0], [1])


def test_a_dropped_episode_has_no_return():
    returns = EpisodeReturns()
    returns.update(window([1.0, 1.0], starts=[0]))
    assert returns.update(window([5.0], ends=[0], starts=[0])) == ([5.0], [1])
    assert returns.update(window([5.0, 7.0], ends=[0, 1], starts=[0, 1], cut=[0])) == ([7.0], [1])


def test_forgotten_episodes_have_no_return():
    evaluator = EpisodeEvaluator()
    evaluator.observe(window([1.0, 1.0, 1.0], ends=(0,)))
    evaluator.forget()
    metrics = evaluator.score(window([5.0, 7.0, 9.0], ends=(0, 1), starts=[1, 2]), {})
    assert (metrics.primary_score, metrics.metrics["episodes"]) == (7.0, 1)  # not 2 + 5, and nothing of before
