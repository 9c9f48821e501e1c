"""Replaying a chunk: order, memory between chunks, failing callbacks, log rows."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest

from tensor_optix.core.types import Event, LoopState, StopReason
from tensor_optix.loop.events import CallbackList, ChunkReport, LoopCallback, event_names, event_rows, replay


def make_report(windows: int, members: int, **given: Any) -> ChunkReport:
    shape = (windows, members)
    values: dict[str, Any] = {
        "first_window": np.zeros(members, np.int64),
        "active": np.ones(shape, bool),
        "evaluated": np.zeros(shape, bool),
        "score": np.zeros(shape, np.float32),
        "train_return": np.zeros(shape, np.float32),
        "train_episodes": np.zeros(shape, np.int32),
        "state": np.zeros(shape, np.int32),
        "interval": np.ones(shape, np.int32),
        "events": np.zeros(shape, np.int32),
        "stop_reason": np.zeros(shape, np.int32),
        "hyperparams": {"lr": np.full(shape, 1e-3, np.float32)},
        "losses": {"policy_loss": np.zeros(shape, np.float32)},
        "member_ids": np.arange(members),
    }
    return ChunkReport(**(values | given))


def random_report(rng: np.random.Generator, windows: int = 6, members: int = 5) -> ChunkReport:
    shape = (windows, members)
    lengths = rng.integers(0, windows + 1, members)
    return make_report(
        windows,
        members,
        first_window=rng.integers(0, 4, members),
        active=np.arange(windows)[:, None] < lengths,
        evaluated=rng.random(shape) < 0.5,
        score=rng.normal(size=shape).astype(np.float32),
        events=rng.choice([0, 1, 4, 8, 16, 32, 33], shape).astype(np.int32),
        hyperparams={"lr": rng.choice([1e-3, 2e-3], shape).astype(np.float32)},
        member_ids=rng.permutation(members),
    )


def permuted(report: ChunkReport, order: np.ndarray) -> ChunkReport:
    def lanes(value: Any) -> Any:
        return {name: v[:, order] for name, v in value.items()} if isinstance(value, dict) else value[..., order]

    return ChunkReport(**{name: lanes(value) for name, value in vars(report).items()})


class Recorder(LoopCallback):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_loop_start(self) -> None:
        self.calls.append(("start",))

    def on_loop_stop(self) -> None:
        self.calls.append(("stop",))

    def on_episode_end(self, episode_id: int, eval_metrics: Any) -> None:
        seen = None if eval_metrics is None else (eval_metrics.metrics["member"], eval_metrics.primary_score)
        self.calls.append(("episode", episode_id, seen))

    def on_state(self, episode_id: int, state: LoopState) -> None:
        self.calls.append(("state", episode_id, state))

    def on_improvement(self, snapshot: Any) -> None:
        self.calls.append(("best", snapshot.snapshot_id, snapshot.hyperparams.params))

    def on_plateau(self, episode_id: int, state: LoopState) -> None:
        self.calls.append(("plateau", episode_id, state))

    def on_dormant(self, episode_id: int) -> None:
        self.calls.append(("dormant", episode_id))

    def on_degradation(self, episode_id: int, eval_metrics: Any) -> None:
        self.calls.append(("degraded", episode_id, eval_metrics.primary_score))

    def on_hyperparam_update(self, old_params: dict[str, Any], new_params: dict[str, Any]) -> None:
        self.calls.append(("hyper", old_params["lr"], new_params["lr"]))

    def on_chunk(self, report: ChunkReport) -> None:
        self.calls.append(("chunk", report.active.shape))


def test_windows_come_in_order_then_members_and_frozen_rows_are_silent() -> None:
    active = np.array([[True, True, True], [True, False, True]])
    score = np.array([[0, 1, 2], [10, 11, 12]], np.float32)
    report = make_report(
        2,
        3,
        first_window=np.array([7, 7, 7]),
        active=active,
        evaluated=active,
        score=score,
        member_ids=np.array([2, 0, 1]),
    )
    recorder = Recorder()
    replay(report, [recorder])
    active_state = LoopState.ACTIVE
    assert recorder.calls == [
        ("state", 7, active_state),
        ("episode", 7, (0, 1.0)),
        ("state", 7, active_state),
        ("episode", 7, (1, 2.0)),
        ("state", 7, active_state),
        ("episode", 7, (2, 0.0)),
        ("episode", 8, (1, 12.0)),
        ("episode", 8, (2, 10.0)),
        ("chunk", (2, 3)),
    ]


def test_lane_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        report = random_report(rng)
        first, second = Recorder(), Recorder()
        replay(report, [first])
        replay(permuted(report, rng.permutation(5)), [second])
        assert first.calls == second.calls


def test_state_is_told_at_the_first_window_and_at_each_change_also_across_chunks() -> None:
    codes = np.array([[0, 1], [0, 1], [1, 0], [1, 2]], np.int32)  # windows, members
    told: list[tuple[int, int]] = []

    class States(LoopCallback):
        def on_state(self, episode_id: int, state: LoopState) -> None:
            told.append((episode_id, int(state)))

    callbacks = CallbackList([States()])
    for first in (0, 2):
        callbacks.replay(make_report(2, 2, first_window=np.full(2, first), state=codes[first : first + 2]))
    assert told == [(0, 0), (0, 1), (2, 1), (2, 0), (3, 2)]


def test_each_event_bit_calls_its_hook() -> None:
    bits = Event.BEST | Event.PLATEAU | Event.DORMANT | Event.DEGRADED
    report = make_report(
        1,
        1,
        first_window=np.array([4]),
        evaluated=np.ones((1, 1), bool),
        score=np.array([[3.5]], np.float32),
        state=np.array([[LoopState.COOLING]], np.int32),
        events=np.array([[bits]], np.int32),
    )
    recorder = Recorder()
    replay(report, [recorder])
    assert recorder.calls == [
        ("state", 4, LoopState.COOLING),
        ("episode", 4, (0, 3.5)),
        ("best", "member0-window4", {"lr": 0.001}),
        ("plateau", 4, LoopState.COOLING),
        ("dormant", 4),
        ("degraded", 4, 3.5),
        ("chunk", (1, 1)),
    ]


def test_hyperparameter_changes_are_told_once_across_chunks_that_reorder_members() -> None:
    lr = np.array([[1, 2], [1, 3], [1, 3]], np.float32)
    recorder = Recorder()
    callbacks = replay(make_report(3, 2, hyperparams={"lr": lr}), [recorder])
    assert [c for c in recorder.calls if c[0] == "hyper"] == [("hyper", 2.0, 3.0)]
    recorder.calls.clear()
    second = np.array([[3, 9], [3, 9]], np.float32)  # lanes: member 1 (unchanged), member 0 (1 -> 9)
    swapped = make_report(2, 2, first_window=np.array([3, 3]), hyperparams={"lr": second}, member_ids=np.array([1, 0]))
    replay(swapped, callbacks)
    assert [c for c in recorder.calls if c[0] == "hyper"] == [("hyper", 1.0, 9.0)]


def test_a_listener_of_few_hooks_hears_the_same_as_one_of_all() -> None:
    class OnlyUpdates:
        def __init__(self) -> None:
            self.calls: list[tuple[Any, ...]] = []

        def on_hyperparam_update(self, old: dict[str, Any], new: dict[str, Any]) -> None:
            self.calls.append(("hyper", old["lr"], new["lr"]))

        def on_dormant(self, episode_id: int) -> None:
            self.calls.append(("dormant", episode_id))

    rng = np.random.default_rng(1)
    every, few = CallbackList([Recorder()]), CallbackList([OnlyUpdates()])
    for _ in range(20):
        report = random_report(rng)
        every.replay(report)
        few.replay(report)
    wanted = [call for call in every.callbacks[0].calls if call[0] in ("hyper", "dormant")]
    assert few.callbacks[0].calls == wanted
    assert len(wanted) > 50


class Broken(LoopCallback):
    def __init__(self) -> None:
        self.called = 0

    def on_episode_end(self, episode_id: int, eval_metrics: Any) -> None:
        self.called += 1
        raise KeyError("wandb")

    def on_chunk(self, report: ChunkReport) -> None:
        raise ValueError("again")


def test_a_failing_callback_is_reported_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    broken, recorder = Broken(), Recorder()
    callbacks = CallbackList([broken, recorder])
    with caplog.at_level(logging.WARNING):
        for first in (0, 3):
            replay(make_report(3, 2, first_window=np.full(2, first)), callbacks)
    assert broken.called == 12
    assert sum(call[0] == "episode" for call in recorder.calls) == 12
    assert len(caplog.records) == 1
    assert "Broken.on_episode_end raised KeyError: 'wandb'" in caplog.text
    assert "test_events.py" in caplog.text
    (failure,) = callbacks.failures
    assert (failure.callback, failure.hook, failure.count) == ("Broken", "on_episode_end", 14)


def test_two_callbacks_of_one_class_fail_separately(caplog: pytest.LogCaptureFixture) -> None:
    callbacks = CallbackList([Broken(), Broken()])
    replay(make_report(2, 1), callbacks)
    assert [failure.count for failure in callbacks.failures] == [3, 3]
    assert len(caplog.records) == 2


def test_interrupting_from_a_callback_interrupts() -> None:
    class Impatient(LoopCallback):
        def on_chunk(self, report: ChunkReport) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(make_report(1, 1), [Impatient()])


def test_a_hook_with_a_wrong_signature_is_a_failure_too(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong:
        def on_chunk(self) -> None: ...

    callbacks = replay(make_report(1, 1), [Wrong()])
    assert callbacks.failures[0].error.startswith("TypeError")
    assert callbacks.failures[0].where == "its signature"


def test_start_and_stop_go_through_the_same_guard() -> None:
    recorder = Recorder()
    callbacks = CallbackList([recorder])
    callbacks.call("on_loop_start")
    callbacks.call("on_loop_stop")
    assert recorder.calls == [("start",), ("stop",)]


def test_event_rows_hold_what_happened_in_strict_json() -> None:
    report = make_report(
        3,
        2,
        first_window=np.array([5, 5]),
        active=np.array([[True, True], [True, True], [True, False]]),
        evaluated=np.array([[True, False], [False, False], [True, True]]),
        score=np.array([[0.1, 0], [0, 0], [np.nan, 7]], np.float32),
        train_episodes=np.array([[3, 0], [0, 0], [0, 0]], np.int32),
        train_return=np.array([[12.5, 0], [0, 0], [0, 0]], np.float32),
        events=np.array([[1, 0], [0, 64 | 512], [0, 1]], np.int32),
        stop_reason=np.array([[0, 0], [0, StopReason.NON_FINITE], [0, 0]], np.int32),
        member_ids=np.array([8, 3]),
    )
    rows = event_rows(report, env_steps_per_window=100)
    assert [(row["window"], row["env_steps"], row["member"]) for row in rows] == [(5, 600, 8), (6, 700, 3), (7, 800, 8)]
    assert rows[0]["score"] == 0.1
    assert rows[0]["train_return"] == 12.5
    assert rows[0]["events"] == ["best"]
    assert rows[0]["hyperparams"] == {"lr": 0.001}
    assert rows[1]["events"] == ["non-finite", "stopped"]
    assert rows[1]["stop_reason"] == "non-finite"
    assert "score" not in rows[1]
    assert rows[2]["score"] is None
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_logged_scores_read_back_as_the_same_float32() -> None:
    score = np.random.default_rng(2).normal(0, 1e3, (200, 1)).astype(np.float32)
    rows = event_rows(make_report(200, 1, evaluated=np.ones((200, 1), bool), score=score), 1)
    assert np.array_equal(np.array([row["score"] for row in rows], np.float32), score[:, 0])


def test_event_names_cover_every_bit() -> None:
    assert event_names(0) == ()
    assert event_names(65) == ("best", "non-finite")
    assert len(event_names(-1)) == len([event for event in Event if event])


def test_a_report_with_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ChunkReport.score has shape \(2, 3\), expected \(2, 2\)"):
        make_report(2, 2, score=np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="hyperparams"):
        make_report(2, 2, hyperparams={"lr": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match=r"expected \[windows, members\]"):
        make_report(2, 2, active=np.ones(2, bool))
