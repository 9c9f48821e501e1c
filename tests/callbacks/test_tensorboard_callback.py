"""A run as TensorBoard curves, read back with TensorBoard's own reader."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tensor_optix.callbacks import TensorBoardCallback
from tensor_optix.core.types import EvalMetrics
from tests.callbacks.host_runs import assert_same_curves, expected_curves, host_run


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch):
    """TensorBoard's own switch: its reader would load tensorflow, which takes seconds."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))


def read_curves(directory) -> dict[str, list[tuple[int, float]]]:
    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def windows(callback, scores, first=0):
    """A run of evaluated windows."""
    callback.on_loop_start()
    for i, score in enumerate(scores, start=first):
        callback.on_episode_end(i, EvalMetrics(score, {}, i))
    callback.on_loop_stop()


def test_curves_read_back_as_they_were_told(tmp_path):
    callback = TensorBoardCallback(tmp_path / "board")
    _, calls = host_run(tmp_path / "checkpoints", callback)
    found = read_curves(tmp_path / "board")
    assert_same_curves(found, expected_curves(calls))
    assert {value for _, value in found["loop/state"]} == {0.0, 1.0, 2.0}
    assert callback.path is not None
    assert callback.path.parent == tmp_path / "board"


def test_scores_that_are_not_finite(tmp_path):
    windows(TensorBoardCallback(tmp_path), [math.nan, math.inf, -1.5])
    np.testing.assert_array_equal([v for _, v in read_curves(tmp_path)["score/primary"]], [math.nan, math.inf, -1.5])


def test_another_run_has_a_directory_of_its_own(tmp_path):
    callback = TensorBoardCallback(tmp_path)
    windows(callback, [1.0, 2.0])
    windows(callback, [3.0])
    windows(TensorBoardCallback(tmp_path), [4.0])
    found = {name: read_curves(tmp_path / name)["score/primary"] for name in ("", "run-2", "run-3")}
    assert found == {"": [(0, 1.0), (1, 2.0)], "run-2": [(0, 3.0)], "run-3": [(0, 4.0)]}


def test_a_resumed_run_goes_on_where_the_newest_was_and_repeats_no_step(tmp_path):
    windows(TensorBoardCallback(tmp_path), [0.0])
    windows(TensorBoardCallback(tmp_path), [1.0, 2.0, 3.0, 4.0])
    windows(TensorBoardCallback(tmp_path), [30.0, 40.0, 50.0], first=2)
    assert read_curves(tmp_path / "run-2")["score/primary"] == [(0, 1.0), (1, 2.0), (2, 30.0), (3, 40.0), (4, 50.0)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["run-2"]


def test_records_reach_the_disk_in_time(tmp_path, monkeypatch):
    now = [100.0]
    callback = TensorBoardCallback(tmp_path, flush_secs=10, max_queue=3)
    monkeypatch.setattr("tensor_optix.callbacks.tensorboard_callback.time.monotonic", lambda: now[0])

    def shown(after):
        now[0] += after
        step = callback._window + 1
        callback.on_episode_end(step, EvalMetrics(1.0, {}, step))
        return len(read_curves(tmp_path).get("score/primary", []))

    callback.on_loop_start()
    assert [shown(0) for _ in range(4)] == [0, 0, 0, 4]  # the queue
    assert [shown(5), shown(4), shown(1), shown(0)] == [4, 4, 7, 7]  # the clock
    callback.on_loop_stop()
    assert len(read_curves(tmp_path)["score/primary"]) == 8


def test_names_of_directory_and_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callback = TensorBoardCallback(comment="-slow", filename_suffix=".mine")
    windows(callback, [1.0])
    assert callback.path is not None
    assert str(callback.path).startswith("runs/tensor_optix-slow/events.out.tfevents.")
    assert str(callback.path).endswith(".mine")
    assert read_curves("runs/tensor_optix-slow")["score/primary"] == [(0, 1.0)]


@pytest.mark.parametrize("given", [{"flush_secs": -1}, {"max_queue": -1}])
def test_bad_settings(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))}=-1"):
        TensorBoardCallback(**given)
