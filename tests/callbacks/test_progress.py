"""The live display: what it shows, where it writes, what it costs."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tensor_optix.callbacks import progress
from tensor_optix.callbacks.progress import MemberStatus, ProgressDisplay, sparkline
from tensor_optix.core.types import Event, LoopState, StopReason
from tensor_optix.loop.events import ChunkReport


def make_report(scores: np.ndarray, *, first: int = 0, members: np.ndarray | None = None, **given: Any) -> ChunkReport:
    """Every window evaluated; a new best where the score exceeds all before it in the chunk."""
    shape = scores.shape
    best = np.where(scores >= np.maximum.accumulate(scores, axis=0), int(Event.BEST), 0)
    values: dict[str, Any] = {
        "first_window": np.full(shape[1], first),
        "active": np.ones(shape, bool),
        "evaluated": np.ones(shape, bool),
        "score": scores.astype(np.float32),
        "train_return": np.zeros(shape, np.float32),
        "train_episodes": np.zeros(shape, np.int32),
        "state": np.zeros(shape, np.int32),
        "interval": np.ones(shape, np.int32),
        "events": best.astype(np.int32),
        "stop_reason": np.zeros(shape, np.int32),
        "hyperparams": {"lr": np.full(shape, 1e-3, np.float32), "gamma": np.full(shape, 0.99, np.float32)},
        "losses": {},
        "member_ids": np.arange(shape[1]) if members is None else members,
    }
    return ChunkReport(**(values | given))


def display(n: int, console: Console | None = None, total: int | None = None, quiet: bool = False) -> ProgressDisplay:
    return ProgressDisplay(n, list(range(n)), "CartPole-v1", "ppo", total, console, quiet, env_steps_per_window=1000)


def terminal(height: int = 40) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=height, record=True)


def rendered(shown: ProgressDisplay) -> str:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(shown.render())
    return console.export_text()


def test_status_follows_members_through_reordered_and_packed_chunks() -> None:
    rng = np.random.default_rng(0)
    status, naive = MemberStatus(6), {m: [] for m in range(6)}
    for chunk in range(8):
        members = rng.permutation(6)[: 6 - chunk // 2]
        scores = rng.normal(size=(3, len(members)))
        evaluated = rng.random(scores.shape) < 0.6
        first = np.array([int(status.windows[m]) for m in members])
        status.update(make_report(scores, members=members, evaluated=evaluated, first_window=first))
        for lane, member in enumerate(members.tolist()):
            naive[member] += scores[evaluated[:, lane], lane].astype(np.float32).tolist()
    for member, scores in naive.items():
        wanted = np.concatenate([np.full(progress._HISTORY, np.nan), scores])[-progress._HISTORY :]
        assert np.array_equal(status.history[member], wanted, equal_nan=True)
        assert status.score[member] == scores[-1]


def test_a_resumed_run_shows_at_once_who_had_finished() -> None:
    shown = display(3, terminal(), total=10_000)
    shown.resumed(np.array([4, 10, 2]), np.array([StopReason.RUNNING, StopReason.CONVERGED, StopReason.RUNNING]))
    assert shown.status.running.tolist() == [True, False, True]
    assert "converged" in rendered(shown)


def test_frozen_rows_change_nothing() -> None:
    status = MemberStatus(2)
    active = np.array([[True, True], [False, True]])
    stop = np.array([[StopReason.CONVERGED, 0], [0, 0]], np.int32)
    status.update(make_report(np.array([[1.0, 2.0], [99.0, 3.0]]), active=active, stop_reason=stop))
    assert status.score.tolist() == [1.0, 3.0]
    assert status.best.tolist() == [1.0, 3.0]
    assert status.windows.tolist() == [1, 2]
    assert status.running.tolist() == [False, True]
    status.update(make_report(np.zeros((2, 2)), active=np.zeros((2, 2), bool)))
    assert status.windows.tolist() == [1, 2]


def test_rows_for_few_members_and_a_summary_for_many() -> None:
    few, many = display(8), display(64)
    for shown, n in ((few, 8), (many, 64)):
        shown.status.update(make_report(np.arange(2.0 * n).reshape(2, n)))
    assert "median" not in rendered(few)
    assert len(rendered(few).splitlines()) == 8 + 3
    text = rendered(many)
    assert len(text.splitlines()) == 5 + 3
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert " 63 " in rows["best"]
    assert " 127.0 " in rows["best"]
    assert " 64.0 " in rows["worst"]


def test_a_low_terminal_gets_the_summary() -> None:
    shown = display(12, terminal(height=14))
    shown.status.update(make_report(np.ones((2, 12))))
    assert "median" in rendered(shown)


def test_state_stop_and_tuned_hyperparameters_are_shown() -> None:
    shown = display(2)
    state = np.full((1, 2), LoopState.COOLING, np.int32)
    stop = np.array([[0, StopReason.TARGET]], np.int32)
    shown.status.update(make_report(np.ones((1, 2)), state=state, stop_reason=stop))
    text = rendered(shown)
    assert "1 cooling, 1 target" in text
    assert "lr" not in text  # equal everywhere so far: not tuned
    lr = np.array([[2e-3, 1e-3]], np.float32)
    gamma = np.full((1, 2), 0.99, np.float32)
    shown.status.update(make_report(np.ones((1, 2)), first=1, hyperparams={"lr": lr, "gamma": gamma}))
    text = rendered(shown)
    assert "lr 0.0015 [0.001 to 0.002]" in text
    assert "gamma" not in text


def test_time_left_counts_only_running_members() -> None:
    shown = display(2, total=10_000)
    assert shown.time_left() is None
    shown._is_open = True
    shown._live = object()  # type: ignore[assignment]
    shown.update(make_report(np.ones((4, 2))), steps_per_s=1000.0, elapsed_s=8.0)
    assert shown.time_left() == pytest.approx(12.0)
    stop = np.array([[StopReason.CONVERGED, 0]], np.int32)
    shown.update(make_report(np.ones((1, 2)), first=4, stop_reason=stop), steps_per_s=1000.0, elapsed_s=10.0)
    assert shown.time_left() == pytest.approx(5.0)
    assert "at most 5 s left" in rendered(shown)


def test_without_a_budget_it_runs_until_it_converges() -> None:
    shown = display(1)
    shown.status.update(make_report(np.ones((1, 1))))
    assert "until it converges" in rendered(shown)


def test_plain_lines_come_about_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=40)
    with display(2, console) as shown:
        shown.phase("compiling")
        shown.phase("training")
        for i in range(61):
            now[0] += 0.5
            shown.update(make_report(np.full((1, 2), float(i)), first=i), 500.0, now[0] - 100.0)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2 + 3 + 1
    assert lines[-1] == (
        "CartPole-v1 ppo: training; best evaluation 60.00 [60.00 to 60.00]; 2 active; "
        "122k steps, 500 steps/s, elapsed 30 s, until it converges"
    )
    assert not any("\x1b" in line for line in lines)


def test_the_default_console_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with display(1) as shown:
        shown.phase("training")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "CartPole-v1 ppo: training" in captured.err


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with display(1, quiet=True) as shown:
        shown.phase("training")
        shown.update(make_report(np.ones((1, 1))), 1.0, 1.0)
    assert capsys.readouterr() == ("", "")


def test_live_session_draws_and_gives_the_terminal_back() -> None:
    console = terminal()
    shown = display(3, console, total=100_000)

    def interrupted() -> None:
        with shown:
            shown.phase("training")
            for i in range(5):
                shown.update(make_report(np.full((2, 3), float(i)), first=2 * i), 1e5, float(i))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        interrupted()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[?25l" in text  # cursor hidden while live
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "30k steps" in text
    shown.close()


def test_updating_costs_less_than_five_milliseconds() -> None:
    shown = display(64)
    shown._is_open = True
    shown._live = object()  # type: ignore[assignment]
    reports = [make_report(np.random.default_rng(i).normal(size=(32, 64)), first=32 * i) for i in range(20)]
    start = time.thread_time()
    for report in reports:
        shown.update(report, 1e6, 1.0)
    assert (time.thread_time() - start) / len(reports) < 5e-3


def test_sparkline() -> None:
    assert sparkline(np.array([np.nan, 0.0, 7.0, 3.5])) == " ▁█▅"
    assert sparkline(np.array([5.0, 5.0])) == "▅▅"
    assert sparkline(np.array([np.nan, np.nan])) == "  "
    assert sparkline(np.array([0.0, np.inf, 1.0])) == "▁×█"
    assert sparkline(np.array([0.0, 1.0]), progress._ASCII_BARS).isascii()


def test_seeds_and_members_must_agree() -> None:
    with pytest.raises(ValueError, match="2 members and 3 seeds"):
        ProgressDisplay(2, [0, 1, 2], "env", "ppo", None, env_steps_per_window=1)
