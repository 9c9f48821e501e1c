"""The records that the loop exchanges."""

import numpy as np
import pytest

from tensor_optix.core.types import (
    EpisodeData,
    EvalMetrics,
    Event,
    HyperparamSet,
    LoopState,
    PolicySnapshot,
    StopReason,
)


def episode(rewards=(1.0, 2.0, 3.0), terminated=(False, True, False), truncated=(False, False, True)):
    n = len(rewards)
    return EpisodeData(np.zeros((n, 2)), np.zeros(n), rewards, terminated, truncated, [{}] * n, episode_id=4)


def metrics(score, **extra):
    return EvalMetrics(score, extra, episode_id=0)


def test_done_is_terminated_or_truncated():
    assert episode().dones == [False, True, True]
    made = episode(terminated=np.asarray([True, True, False]), truncated=np.asarray([True, False, False]))
    assert made.dones == [True, True, False]
    assert all(type(done) is bool for done in made.dones)


def test_flags_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="argument"):
        _ = episode(truncated=(False, True)).dones


def test_total_reward_and_length():
    assert episode().total_reward == 6.0
    assert type(episode().total_reward) is float
    assert episode().length == 3
    empty = episode((), (), ())
    assert (empty.total_reward, empty.length, empty.dones) == (0.0, 0, [])


def test_total_reward_is_summed_in_double_precision():
    rewards = np.full(100_000, 0.1, np.float32)
    assert episode(rewards).total_reward == pytest.approx(float(np.float32(0.1)) * 100_000, rel=1e-12)
    assert episode(np.asarray([1e8, 1.0, -1e8], np.float32)).total_reward == 1.0


def test_optional_fields_are_not_shared_between_episodes():
    one, two = episode(), episode()
    one.metadata["seen"] = True
    assert two.metadata == {}
    assert one.values is one.log_probs is one.episode_starts is one.final_obs is one.hidden_states is None
    assert one.timestamp > 0


@pytest.mark.parametrize(
    ("ours", "theirs", "margin", "beats"),
    [
        (1.0, 0.0, 0.0, True),
        (1.0, 1.0, 0.0, False),  # strictly
        (-200.0, -201.0, 0.0, True),
        (-201.0, -200.0, 0.0, False),
        (1.5, 1.0, 0.5, False),  # by more than the margin
        (1.75, 1.0, 0.5, True),
        (float("nan"), 0.0, 0.0, False),
        (0.0, float("-inf"), 0.0, True),
    ],
)
def test_beats(ours, theirs, margin, beats):
    answer = metrics(ours).beats(metrics(theirs), margin)
    assert answer is beats
    if margin == 0.0:
        assert metrics(ours).beats(metrics(theirs)) is beats


def test_beats_answers_a_python_bool():
    assert metrics(np.float32(2.0)).beats(metrics(np.float32(1.0))) is True


def test_generalization_gap():
    assert metrics(0.0, train_score=5.0, val_score=3.5).generalization_gap == 1.5
    assert metrics(0.0, train_score=-5, val_score=0).generalization_gap == -5.0
    assert metrics(0.0, train_score=0.0, val_score=0.0).generalization_gap == 0.0
    assert metrics(0.0, train_score=5.0).generalization_gap is None
    assert metrics(0.0, val_score=5.0).generalization_gap is None


def test_hyperparams_default_to_window_0_and_copies_are_independent():
    made = HyperparamSet({"learning_rate": 1e-3})
    assert made.episode_id == 0
    copy = made.copy()
    assert copy == made
    copy.params["learning_rate"] = 1.0
    copy.params["new"] = 2
    assert made.params == {"learning_rate": 1e-3}
    later = HyperparamSet({"a": 1}, 7, timestamp=12.0)
    assert (later.copy().episode_id, later.copy().timestamp) == (7, 12.0)


def test_snapshot_holds_what_it_was_given():
    made = PolicySnapshot("best", metrics(1.0), HyperparamSet({}), "weights/best", 9)
    assert (made.snapshot_id, made.weights_path, made.episode_id) == ("best", "weights/best", 9)
    assert made.timestamp > 0


def test_every_stop_reason_has_a_label_and_its_own_sentence():
    assert [reason.label for reason in StopReason] == [
        "running",
        "converged",
        "target",
        "budget",
        "non-finite",
        "interrupted",
        "exhausted",
        "spawn-budget",
        "unspawned",
        "pruned",
    ]
    sentences = [reason.describe() for reason in StopReason]
    assert len(set(sentences)) == len(sentences)
    assert all(len(sentence) > 10 for sentence in sentences)
    assert StopReason(2).describe() == "the target score was held"


def test_the_numbers_that_runs_store_do_not_move():
    assert [int(code) for code in LoopState] == [0, 1, 2, 3]
    assert [int(code) for code in StopReason] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert {event.name: int(event) for event in Event} == {
        "BEST": 1,
        "IMPROVING": 2,
        "PLATEAU": 4,
        "DORMANT": 8,
        "DEGRADED": 16,
        "ROLLBACK": 32,
        "NON_FINITE": 64,
        "HYPERPARAMS": 128,
        "TARGET": 256,
        "STOPPED": 512,
    }
