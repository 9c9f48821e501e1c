"""The figure: what is computed for it exactly, and that every shape of run can be drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.chunk_stories import make_result

pytest.importorskip("matplotlib")

from tensor_optix.core.types import LoopState, StopReason
from tensor_optix.curves import Curve
from tensor_optix.figure_style import running_mean, tick_label
from tensor_optix.figures import _score_limits, _state_spans, common_grid, tuned_hyperparams
from tensor_optix.results import TrainResult


def test_the_grid_interpolates_and_stopped_members_hold_their_best() -> None:
    result = make_result([30, 10])
    last = result.members[1].curve
    last.score[-1], last.events[-1] = -50.0, 0  # the last evaluation is not the best
    grid, rows = common_grid(result.members)
    long, short = result.members
    assert grid[0] == max(long.curve.env_steps[0], short.curve.env_steps[0])
    assert grid[-1] == long.env_steps
    assert np.allclose(rows[0], np.interp(grid, long.curve.env_steps, long.curve.score))
    after = grid > short.env_steps
    assert after.any()
    assert np.all(rows[1][after] == short.score)  # of fresh episodes
    short.score = np.nan  # none were played
    _, rows = common_grid(result.members)
    assert np.all(rows[1][after] == short.curve.score[:-1].max())


def test_a_tuned_line_is_what_lies_between_the_probes() -> None:
    tried = np.tile([2e-3, 5e-4], 20)
    assert np.allclose(running_mean(tried, log=True)[8:], 1e-3)
    assert np.allclose(running_mean(np.tile([3.0, 1.0], 20), log=False)[8::2], 2.0)
    assert np.allclose(running_mean(np.array([4.0, 2.0, 0.0]), log=False), [4.0, 3.0, 2.0])


def test_non_finite_scores_are_passed_over() -> None:
    result = make_result([30, 30])
    result.members[0].curve.score[3] = np.nan
    result.members[0].curve.score[5] = np.inf
    result.members[1].curve = Curve.empty()
    _, rows = common_grid(result.members)
    assert rows.shape[0] == 1
    assert np.isfinite(rows).all()


def test_states_hold_from_their_evaluation_to_the_next() -> None:
    member = make_result([10]).members[0]
    member.curve = Curve.from_columns(Curve.empty().columns())
    member.curve.env_steps = np.array([100, 200, 400])
    member.curve.state = np.array([LoopState.ACTIVE, LoopState.COOLING, LoopState.WATCHDOG], np.int8)
    spans, states = _state_spans(member)
    assert spans == [(0.0, 200.0), (200.0, 200.0), (400.0, 600.0)]
    assert states == [LoopState.ACTIVE, LoopState.COOLING, LoopState.WATCHDOG]


def test_only_hyperparameters_that_differ_are_drawn() -> None:
    curves = [member.curve for member in make_result([10, 10]).members]
    for curve in curves:
        curve.hyperparams["gamma"] = np.full(len(curve), 0.99, np.float32)
    assert tuned_hyperparams(curves) == ["lr"]
    curves[1].hyperparams["gamma"] = np.full(len(curves[1]), 0.9, np.float32)
    assert tuned_hyperparams(curves) == ["lr", "gamma"]


def test_one_diverged_evaluation_does_not_flatten_the_picture() -> None:
    result = make_result([200, 200])
    result.members[0].curve.score[50] = -1e9
    _, rows = common_grid(result.members)
    rows[0] = np.clip(rows[0], 0, None)
    low, high = _score_limits(result.members, rows)
    assert -1000 < low < 0
    assert 190 < high < 500


def test_tick_labels() -> None:
    assert [tick_label(v) for v in (0.0, 1e-4, 2.5e-5, 1e-3, 0.02, 0.995, -3e-7)] == [
        "0",
        "1e-4",
        "2.5e-5",
        "0.001",
        "0.02",
        "0.995",
        "-3e-7",
    ]


@pytest.mark.parametrize("lengths", [[20], [20, 8], [15] * 64])
@pytest.mark.parametrize("stop", [StopReason.CONVERGED, StopReason.RUNNING])
def test_any_number_of_members_is_drawn(lengths: list[int], stop: StopReason, tmp_path: Path) -> None:
    result = make_result(lengths, stop=stop, log_hyperparams=("lr",))
    figure = result.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    assert len(figure.axes) == 3
    assert figure.axes[1].get_yscale() == "log"


def test_runs_without_curves_are_drawn_too(tmp_path: Path) -> None:
    result = make_result([5, 5])
    for member in result.members:
        member.curve = Curve.empty()
    result.plot(tmp_path / "a.png")
    result.members[0].curve = make_result([1]).members[0].curve
    result.members[0].curve.score[:] = np.nan
    result.plot(tmp_path / "b.png")
    TrainResult("env", "ppo", [], 0, 0.0, 0.0, 0.0).plot(tmp_path / "c.png")


def test_notebooks_get_a_png_without_pyplot() -> None:
    before = "matplotlib.pyplot" in sys.modules
    assert make_result([5]).plot()._repr_png_().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_without_matplotlib_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensor_optix.figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = make_result([5])
    with pytest.raises(ImportError, match=r'pip install "tensor-optix\[plot\]"'):
        result.plot()
    assert "<table>" in result._repr_html_()
