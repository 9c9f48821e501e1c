"""Scores that are to be minimised, for a loop that knows better as higher."""

import pytest

from tensor_optix.core.base_evaluator import BaseEvaluator
from tensor_optix.core.types import EvalMetrics
from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.trials.lower_is_better import LowerIsBetter, lower_is_better
from tests.host_parts import window_of


class Cost(BaseEvaluator):
    """Costs: what an action took, negative rewards turned round. Both sides count, and small differences do not."""

    def score(self, episode_data, train_diagnostics):
        return EvalMetrics(-sum(episode_data.rewards), {"windows": 1}, episode_data.episode_id)

    def combine(self, train, val):
        assert train.primary_score > 0  # it never sees a turned one
        assert val.primary_score > 0
        return EvalMetrics(0.5 * (train.primary_score + val.primary_score), {"both": True}, train.episode_id)

    def compare(self, candidate, baseline):
        return candidate.primary_score < baseline.primary_score - 1.0


def turned(score):
    return EvalMetrics(-score, {}, 0)


def test_scores_are_turned():
    evaluator = lower_is_better(Cost())
    window = window_of([-2.0, -3.0])
    assert evaluator.score(window, {}).primary_score == -5.0
    assert evaluator.score_validation(window).primary_score == -5.0


def test_an_own_way_to_combine_and_compare_is_asked_with_scores_as_they_are():
    evaluator = lower_is_better(Cost())
    both = evaluator.combine(turned(4.0), turned(6.0))
    assert (both.primary_score, both.metrics) == (-5.0, {"both": True})
    assert evaluator.compare(turned(2.0), turned(4.0))
    assert not evaluator.compare(turned(3.5), turned(4.0))
    assert not evaluator.compare(turned(4.0), turned(2.0))


def test_without_one_validation_decides_and_the_lower_score_is_better():
    class Plain(BaseEvaluator):
        def score(self, episode_data, train_diagnostics):
            return None

    evaluator = lower_is_better(Plain())
    assert type(evaluator) is LowerIsBetter
    assert evaluator.score(window_of([0.0]), {}) is None
    both = evaluator.combine(turned(4.0), turned(6.0))
    assert both.primary_score == -6.0
    assert (both.metrics["train_score"], both.metrics["val_score"]) == (-4.0, -6.0)
    assert both.generalization_gap == both.metrics["generalization_gap"] == 2.0  # better in training than in validation
    assert evaluator.compare(turned(4.0), turned(6.0))
    assert not evaluator.compare(turned(6.0), turned(4.0))


def test_episodes_are_waited_for_as_patiently():
    inner = EpisodeEvaluator()
    evaluator = lower_is_better(inner)
    evaluator.patient = True
    assert isinstance(evaluator, EpisodeEvaluator)
    assert inner.patient is evaluator.patient is True
    window = window_of([1.0, 2.0], ends=(1,))
    evaluator.observe(window)
    assert evaluator.score(window, {}) is None  # one episode is few
    evaluator.patient = False
    assert evaluator.score(window, {}).primary_score == pytest.approx(-3.0)
    other = lower_is_better(EpisodeEvaluator())
    other.load_state_dict(evaluator.state_dict())
    assert other.evaluator.unit == inner.unit == "episode return"
    other.forget()
    assert other.state_dict()["waited"] == 0
