"""Curves against the story that the reports were cut from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tensor_optix.core.types import Event, StopReason
from tensor_optix.curves import Curve, CurveRecorder, best_hyperparams, pack_curves, unpack_curves
from tensor_optix.loop.events import event_rows
from tests.chunk_stories import ENV_STEPS_PER_WINDOW, Story, recorded

LENGTHS = [40, 1, 23, 40, 9]


def assert_equal(first: Curve, second: Curve) -> None:
    left, right = first.columns(), second.columns()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert np.array_equal(left[name], right[name], equal_nan=True), name


@pytest.mark.parametrize("size", [1, 7, 64])
def test_curves_hold_each_members_evaluations_however_the_run_was_cut(size: int) -> None:
    story = Story(LENGTHS)
    recorder = recorded(story, size)
    for i, (curve, told) in enumerate(zip(recorder.curves(), story.members, strict=True)):
        chosen = told["evaluated"]
        assert np.array_equal(curve.window, np.flatnonzero(chosen))
        assert np.array_equal(curve.env_steps, (np.flatnonzero(chosen) + 1) * ENV_STEPS_PER_WINDOW)
        for name in ("score", "train_return", "train_episodes", "state", "interval"):
            assert np.array_equal(getattr(curve, name), told[name][chosen]), name
        assert np.array_equal(curve.hyperparams["lr"], told["lr"][chosen])
        assert np.array_equal(curve.losses["policy_loss"], told["policy_loss"][chosen])
        assert recorder.windows[i] == LENGTHS[i]
        assert recorder.stop_reason(i) is StopReason.CONVERGED


def test_columns_have_the_documented_types() -> None:
    curve = recorded(Story([5])).curves()[0]
    kinds = {name: str(column.dtype) for name, column in curve.columns().items()}
    assert kinds == {
        "env_steps": "int64",
        "window": "int64",
        "score": "float32",
        "train_return": "float32",
        "train_episodes": "int32",
        "state": "int8",
        "interval": "int32",
        "events": "int32",
        "hyperparams/lr": "float32",
        "losses/policy_loss": "float32",
    }
    assert {n: str(c.dtype) for n, c in Curve.empty(["lr"], ["policy_loss"]).columns().items()} == kinds


def test_events_between_evaluations_count_for_the_next_and_none_is_lost() -> None:
    story = Story([60, 30], seed=3)
    for curve, told in zip(recorded(story).curves(), story.members, strict=True):
        windows = np.flatnonzero(told["evaluated"])
        slots = np.minimum(np.searchsorted(windows, np.arange(len(told["events"]))), len(windows) - 1)
        wanted = np.zeros(len(windows), np.int32)
        for slot, bits in zip(slots, told["events"], strict=True):
            wanted[slot] |= bits
        assert np.array_equal(curve.events, wanted)
        assert curve.events[-1] & Event.STOPPED


def test_best_policy_and_its_hyperparameters_come_from_the_last_save() -> None:
    story = Story([50], seed=4)
    (curve,) = recorded(story).curves()
    told = story.members[0]
    saved = np.flatnonzero(told["events"] & Event.BEST)[-1]
    assert np.float32(best_hyperparams(curve)["lr"]) == told["lr"][saved]
    assert curve.best_so_far()[-1] == told["score"][saved]
    assert np.all(np.diff(curve.best_so_far()) >= 0)


def test_a_member_that_saved_nothing_has_no_best() -> None:
    curve = Curve.empty(["lr"])
    assert best_hyperparams(curve) == {}
    assert len(curve.best_so_far()) == 0
    (flat,) = recorded(Story([3])).curves()
    flat.events[:] = 0
    assert np.isnan(flat.best_so_far()).all()


def test_a_recorder_goes_on_after_an_interruption() -> None:
    whole = recorded(Story(LENGTHS, seed=5), 8).curves()
    recorder = CurveRecorder(len(LENGTHS), ENV_STEPS_PER_WINDOW)
    for report in Story(LENGTHS, seed=5).chunks(8):
        recorder = CurveRecorder.from_columns(recorder.columns(), ENV_STEPS_PER_WINDOW)
        recorder.add(report)
    for first, second in zip(whole, recorder.curves(), strict=True):
        assert_equal(first, second)


def test_a_recorder_goes_on_from_logged_rows() -> None:
    story = Story(LENGTHS, seed=6)
    reports = list(story.chunks(8))
    rows = [row for report in reports[:2] for row in event_rows(report, ENV_STEPS_PER_WINDOW)]
    resumed = CurveRecorder.from_rows(json.loads(json.dumps(rows)), len(LENGTHS), ENV_STEPS_PER_WINDOW)
    resumed.windows[:] = np.minimum(LENGTHS, 16)
    whole = CurveRecorder(len(LENGTHS), ENV_STEPS_PER_WINDOW)
    for i, report in enumerate(reports):
        whole.add(report)
        if i >= 2:
            resumed.add(report)
    for first, second in zip(whole.curves(), resumed.curves(), strict=True):
        first.train_return[first.train_episodes == 0] = 0  # holds nothing, so it is not logged
        second.train_return[second.train_episodes == 0] = 0
        assert_equal(first, second)


def test_packing_curves_is_undone_by_unpacking() -> None:
    curves = recorded(Story(LENGTHS)).curves()
    curves[1] = Curve.empty(["lr"], ["policy_loss"])
    for first, second in zip(curves, unpack_curves(pack_curves(curves), len(curves)), strict=True):
        assert_equal(first, second)
    bare = [Curve.empty(), curves[0]]
    assert [len(curve) for curve in unpack_curves(pack_curves(bare), 2)] == [0, len(curves[0])]
    assert unpack_curves(pack_curves([]), 0) == []


def test_no_report_yet() -> None:
    recorder = CurveRecorder(2, 10)
    assert [len(curve) for curve in recorder.curves()] == [0, 0]
    assert recorder.stop_reason(1) is StopReason.RUNNING


def test_a_chunk_passed_twice_or_skipped_is_refused() -> None:
    first, second, *_ = Story([20]).chunks(5)
    recorder = CurveRecorder(1, 10)
    with pytest.raises(ValueError, match=r"expected \[0\]"):
        recorder.add(second)
    recorder.add(first)
    with pytest.raises(ValueError, match="every chunk once, in order"):
        recorder.add(first)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        CurveRecorder(0, 10)
    recorder, report = CurveRecorder(1, 10), next(iter(Story([3, 3]).chunks(2)))
    with pytest.raises(ValueError, match="expected 0 to 0"):
        recorder.add(report)
