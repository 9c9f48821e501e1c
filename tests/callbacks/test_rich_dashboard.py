"""The live panel of a host run: what it shows, where it draws, and that its trouble is its own."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
import threading
import time

import pytest
from rich.console import Console

from tensor_optix.callbacks import RichDashboardCallback, rich_dashboard
from tensor_optix.core.types import EvalMetrics, HyperparamSet, LoopState, PolicySnapshot
from tensor_optix.loop.durable import json_bytes
from tests.callbacks.host_runs import host_run


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=40)


def log(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width)


def text(shown: RichDashboardCallback, width: int = 80, styles: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(shown.render())
    return console.export_text(styles=styles)


def window(shown, i, score=None, best=False, **params):
    metrics = None if score is None else EvalMetrics(score, {}, i)
    shown.on_episode_end(i, metrics)
    if best:
        shown.on_improvement(PolicySnapshot("a", metrics, HyperparamSet(params), "", i))


@pytest.fixture
def panel():
    """A dashboard on a terminal, between start and stop."""
    shown = RichDashboardCallback(console=terminal())
    shown.on_loop_start()
    yield shown
    shown.on_loop_stop()


def test_panel_shows_what_happened(panel):
    assert "state  active   window -" in text(panel)
    for i in range(10):
        window(panel, i, float(i), best=True, learning_rate=0.01, gamma=0.99, kind="x")
    window(panel, 10)
    window(panel, 11, 7.25)
    panel.on_hyperparam_update({"learning_rate": 0.01, "gamma": 0.99}, {"learning_rate": 0.02, "gamma": 0.99})
    panel.on_state(11, LoopState.COOLING)
    panel.on_plateau(11, LoopState.COOLING)
    panel.on_degradation(11, EvalMetrics(7.25, {}, 11))
    panel.on_plateau(11, LoopState.COOLING)
    seen = text(panel)
    for part in (
        "tensor-optix", "cooling   window 11", "7.250   best 9.000 at window 9", "▁▁▂▃▄▅▆▇██▇",
        "10 improvements, 2 plateaus, 1 degradation", "learning_rate 0.02 ↑", "gamma 0.99 ", "windows/s", "elapsed 0 s",
    ):  # fmt: skip
        assert part in seen, part
    assert "gamma 0.99 ↑" not in seen
    assert "kind" not in seen


def test_lines_fit_at_any_width():
    for width in (30, 80, 120):
        shown = RichDashboardCallback("a [red]title", history=100, console=terminal(width))
        for i in range(200):
            window(shown, i, math.sin(i), best=i == 0, learning_rate=1e-3, entropy_coefficient=0.01, n=3)
        seen = text(shown, width)
        assert "[red]title" in seen
        assert all(len(line) == width for line in seen.splitlines())
        drawn = sum(character in "▁▂▃▄▅▆▇█" for character in seen)
        assert drawn == min(100, width - 12)
        assert "…" not in seen


def test_history_and_hyperparameters_are_as_asked():
    shown = RichDashboardCallback(history=5, show_hyperparams=False, console=terminal())
    for i in range(50):
        window(shown, i, float(i), best=True, learning_rate=1e-3)
    assert sum(character in "▁▂▃▄▅▆▇█" for character in text(shown)) == 5
    assert "learning_rate" not in text(shown)


def test_a_score_that_is_not_finite_is_shown(panel):
    window(panel, 0, 1.0, best=True)
    window(panel, 1, math.nan)
    window(panel, 2, -math.inf)
    assert "-inf   best 1.000 at window 0" in text(panel)


def test_a_terminal_without_unicode():
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    shown = RichDashboardCallback(console=Console(file=raw, force_terminal=True, width=80))
    shown.on_loop_start()
    window(shown, 0, 1.0, best=True, lr=1.0)
    window(shown, 1, 2.0)
    shown.on_hyperparam_update({"lr": 1.0}, {"lr": 0.5})
    shown.on_loop_stop()
    raw.flush()
    assert b"lr 0.5 -" in re.sub(rb"\x1b\[[0-9;]*m", b"", raw.buffer.getvalue())


def test_a_host_run_draws_and_leaves_the_last_panel(tmp_path):
    console = terminal()
    host_run(tmp_path, RichDashboardCallback("host run", console=console))
    drawn = console.file.getvalue()
    last = drawn[drawn.rindex("╭") :]
    for part in ("host run", "dormant", "finished", "convergence", "learning_rate"):
        assert part in last, part


def test_without_a_terminal_lines_come_at_changes_of_state_and_every_ten_seconds(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(rich_dashboard.time, "monotonic", lambda: now[0])
    console = log(40)
    shown = RichDashboardCallback(console=console)

    def lines():
        return console.file.getvalue().splitlines()

    shown.on_loop_start()
    for i in range(100):
        now[0] += 0.05
        window(shown, i, float(i), best=True)
    assert len(lines()) == 1  # the first window's; improvements alone bring none
    now[0] += 6.0
    window(shown, 100, 3.0)
    assert len(lines()) == 2
    shown.on_state(100, LoopState.COOLING)
    shown.on_plateau(100, LoopState.COOLING)
    assert len(lines()) == 3
    assert "cooling, window 100; score 3.00, best 99.00; 100 improvements, 1 plateau; " in lines()[-1]
    now[0] += 9.9
    window(shown, 101, 3.0)
    shown.on_loop_stop()
    assert len(lines()) == 4
    assert "finished" in lines()[-1]
    shown.on_loop_stop()
    assert len(lines()) == 4
    assert "\x1b" not in console.file.getvalue()


def test_it_draws_on_standard_error(tmp_path, capsys):
    host_run(tmp_path, RichDashboardCallback(), told=[0.0, 1.0])
    out, err = capsys.readouterr()
    assert out == ""
    assert "tensor-optix: finished" in err


def test_a_second_run_begins_anew():
    shown = RichDashboardCallback(console=log())
    for _ in range(2):
        shown.on_loop_start()
        assert "best" not in text(shown)
        window(shown, 5, 1.0, best=True, lr=1.0)
        assert "1 improvement" in text(shown)
        shown.on_loop_stop()


def test_a_resumed_run_shows_what_went_before():
    first, second = RichDashboardCallback(console=log()), RichDashboardCallback(console=log())
    first.on_loop_start()
    for i in range(3):
        window(first, i, float(i), best=True, lr=0.5)
    window(first, 3, math.nan)
    first.on_state(3, LoopState.COOLING)
    first.on_plateau(3, LoopState.COOLING)
    second.on_loop_start()
    second.load_state_dict(json.loads(json_bytes(first.state_dict())))
    cut = text(first).splitlines()[:-2]
    assert text(second).splitlines()[:-2] == cut
    assert "cooling" in cut[1]


def test_trouble_in_drawing_ends_the_display_only(tmp_path, monkeypatch, caplog):
    def fail(self):
        raise RuntimeError("no colours")

    monkeypatch.setattr(RichDashboardCallback, "render", fail)
    monkeypatch.setattr(RichDashboardCallback, "line", fail)
    for console in (terminal(), log()):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            result, _ = host_run(tmp_path / str(console.is_terminal), RichDashboardCallback(console=console))
        assert result.windows > 50
        assert [r.message for r in caplog.records if "no colours" in r.message] == [
            "the display 'tensor-optix' failed: RuntimeError: no colours; the run goes on"
        ]


def test_trouble_that_begins_later_stays_in_the_panel(monkeypatch, caplog):
    escaped = []
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    shown = RichDashboardCallback(refresh_per_second=200, console=terminal())
    shown.on_loop_start()
    monkeypatch.setattr(shown, "render", lambda: 1 / 0)
    with caplog.at_level(logging.WARNING):
        deadline = time.monotonic() + 5
        while "ZeroDivisionError" not in shown._console.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        shown.on_loop_stop()
    assert "the display failed (ZeroDivisionError); the run goes on" in shown._console.file.getvalue()
    assert len(caplog.records) == 1
    assert not escaped


@pytest.mark.parametrize("own", [True, False])
def test_nobody_reads_any_more(tmp_path, monkeypatch, own):
    """Rich would end the program (SystemExit) and turn standard output off."""
    read, write = os.pipe()
    os.close(read)
    gone = os.fdopen(write, "w")
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stderr", gone)
        monkeypatch.setattr("sys.stdout", out)
        shown = RichDashboardCallback(console=None if own else Console(file=gone))
        result, _ = host_run(tmp_path / "checkpoints", shown, told=[0.0, 1.0])
        print("the result")
    with contextlib.suppress(BrokenPipeError):
        gone.close()
    assert result.windows == 4
    if own:  # a console that was given is Rich's own
        assert (tmp_path / "out").read_text() == "the result\n"


def test_drawing_does_not_hold_the_run_up(panel):
    began = time.perf_counter()
    for i in range(2000):
        window(panel, i, float(i))
    assert (time.perf_counter() - began) / 2000 < 1e-3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"refresh_rate": 2, "refresh_per_second": 4}, "refresh_rate=2"),
        ({"refresh_rate": 0}, "more than 0"),
        ({"history": 0}, "history=0"),
    ],
)
def test_bad_settings(given, said):
    with pytest.raises(ValueError, match=said):
        RichDashboardCallback(**given)


def test_both_names_of_the_rate():
    rates = [RichDashboardCallback(**{name: 2})._rate for name in ("refresh_rate", "refresh_per_second")]
    assert [*rates, RichDashboardCallback(refresh_rate=2, refresh_per_second=2)._rate] == [2, 2, 2]
    assert RichDashboardCallback()._rate == 4
