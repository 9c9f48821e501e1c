"""The figure of a host run, and the columns that it is drawn from."""

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from tensor_optix import LoopController, RLOptimizer, SPSAOptimizer
from tensor_optix.core.types import EvalMetrics, LoopState, StopReason
from tensor_optix.loop.host_course import course_of, rows_of
from tensor_optix.loop.host_figures import events_figure
from tensor_optix.loop.host_result import HostResult
from tensor_optix.loop.run_dir import RunDir
from tests.host_parts import Plain, Source

ROWS = [
    {"event": "hyperparams", "hyperparams": {"rate": 0.2, "name": "x"}},
    {"window": 0, "event": "evaluation", "score": 1.0, "metrics": {"val_score": 1.0, "train_score": 3.0},
     "state": "active"},
    {"window": 0, "event": "best", "snapshot": "a"},
    {"event": "hyperparams", "hyperparams": {"rate": 0.4}},
    {"window": 4, "event": "rollback"},
    {"window": 4, "event": "evaluation", "score": "NaN", "metrics": {"val_score": "NaN"}, "state": "cooling"},
    {"window": 4, "event": "plateau", "state": "cooling"},
    {"window": 6, "event": "evaluation", "score": 0.5, "metrics": {"val_score": 0.5, "train_score": 2.0},
     "state": "cooling"},
    {"window": 7, "event": "dormant"},
]  # fmt: skip


def test_rows_become_columns() -> None:
    course = course_of(ROWS, {"rate": 0.1, "other": 3.0, "flag": True}, 9)
    assert course.at.tolist() == [1, 5, 7]
    assert np.array_equal(course.score, [1.0, np.nan, 0.5], equal_nan=True)
    assert np.array_equal(course.best_so_far, [1.0, 1.0, 1.0])
    assert np.array_equal(course.train, [3.0, np.nan, 2.0], equal_nan=True)
    assert course.states == [(0, LoopState.ACTIVE), (5, LoopState.COOLING)]
    assert course.marks == {"best": [1], "plateau": [5], "dormant": [8], "degraded": [], "rollback": [5]}
    assert course.hyperparams == {"rate": {0: 0.2, 1: 0.4}}  # what the tuner began with, and what did not stay
    assert (course.decided_by, course.end) == ("validation", 9)
    assert course_of(ROWS[:3]).states == [(0, LoopState.ACTIVE)]
    assert course_of([{k: v for k, v in row.items() if k != "state"} for row in ROWS]).states == []


def test_a_score_from_outside_has_no_unit_and_beside_it_the_training_score() -> None:
    metrics = {"primary_score": 2.0, "unit": "episode return", "checkpoint_score": 7.0}
    course = course_of(rows_of([EvalMetrics(7.0, metrics, 0), EvalMetrics(6.0, metrics, 1)]))
    assert (course.decided_by, course.unit) == ("checkpoint_score_fn", None)
    assert course.train.tolist() == [2.0, 2.0]
    assert course.marks["best"] == [1]
    assert HostResult(StopReason.BUDGET, 1, [EvalMetrics(7.0, metrics, 0)], None).unit is None


def test_the_figure_shows_what_there_is() -> None:
    figure = events_figure(ROWS, title="Some run", windows=9, steps_per_window=100)
    scores, rate, events = figure.axes
    assert scores.get_title("left") == "Some run"
    assert {line.get_label() for line in scores.lines} >= {"training", "validation", "best so far", "highest"}
    assert next(line for line in scores.lines if line.get_label() == "validation").get_xdata().tolist() == [100, 700]
    assert rate.get_ylabel() == "rate"
    assert events.get_xlabel() == "environment steps"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["active", "cooling", "new best", "plateau", "dormant", "roll-back"]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[5:6], ROWS[:2]])
def test_every_beginning_can_be_drawn(rows, tmp_path) -> None:
    events_figure(rows).savefig(tmp_path / "a.png", dpi=40)


def test_a_run_is_drawn_from_its_directory_and_without_it(tmp_path) -> None:
    scores = iter([1.0, 5.0, 4.0, 3.0, 6.0, 2.0])
    run = RLOptimizer(
        Plain(rate=0.01),
        Source(),
        optimizer=SPSAOptimizer({"rate": (1e-3, 1e-1)}),
        checkpoint_score_fn=lambda agent: next(scores),
        max_episodes=6,
        checkpoint_dir=tmp_path / "runs",
    )
    result = run.run()
    assert result.run_dir == str(run.run_dir)
    assert str(result).splitlines()[-1] == f"run: {run.run_dir}"
    assert repr(result) == f"HostResult(budget; 6 windows, {len(result.history)} evaluations, best score 6 at window 4)"
    figure = result.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000
    assert [axis.get_ylabel() for axis in figure.axes] == ["score", "rate", "state"]
    assert figure.axes[0].get_title("left") == "Plain"
    result.run_dir = str(tmp_path / "gone")
    assert [axis.get_ylabel() for axis in result.plot().axes] == ["score", "events"]


def test_without_a_keeper_there_is_no_directory() -> None:
    result = HostResult(StopReason.INTERRUPTED, 2, [], None)
    assert result.run_dir is None
    assert str(result) == "interrupted; 2 windows, 0 evaluations, nothing was saved"  # nothing can be resumed
    assert "resumed" in str(HostResult(StopReason.INTERRUPTED, 2, [], None, run_dir="x"))


def test_a_roll_back_is_in_the_events(tmp_path) -> None:
    losses = iter([0.0, 0.0, float("nan"), 0.0])

    class Diverges(Plain):
        def learn(self, episode_data):
            super().learn(episode_data)
            return {"loss": next(losses)}

    run = RLOptimizer(
        Diverges(), Source(), max_episodes=4, checkpoint_score_fn=lambda agent: 1.0, checkpoint_dir=tmp_path
    )
    result = run.run()
    rows = RunDir.read(run.run_dir).read_events()
    assert [row["window"] for row in rows if row["event"] == "rollback"] == [2]
    states = [row["state"] for row in rows if row["event"] == "evaluation"]
    assert states == ["active"] * len(result.history)
    assert len(states) > 2


def test_plot_names_the_missing_library(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "tensor_optix.loop.host_figures", raising=False)
    with pytest.raises(ImportError, match=r'plot\(\) needs matplotlib: pip install "tensor-optix\[plot\]"'):
        HostResult(StopReason.BUDGET, 0, [], None).plot()


def test_a_controller_alone_can_be_drawn(tmp_path) -> None:
    from tensor_optix import CheckpointRegistry

    registry = CheckpointRegistry(tmp_path)
    result = LoopController(Plain(), pipeline=Source(), max_episodes=3, checkpoint_registry=registry).run()
    assert result.run_dir is None
    assert len(result.plot().axes) == 2
