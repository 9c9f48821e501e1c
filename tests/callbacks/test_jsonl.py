"""A run as JSON lines."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tensor_optix.callbacks import JSONLCallback
from tensor_optix.core.types import EvalMetrics, HyperparamSet, LoopState, PolicySnapshot
from tensor_optix.loop.event_log import read_events
from tests.callbacks.host_runs import NO_NUMBERS, host_run


def test_every_call_of_a_run_has_its_row_in_order(tmp_path):
    path = tmp_path / "deep" / "events.jsonl"
    _, calls = host_run(tmp_path / "checkpoints", JSONLCallback(path))
    rows = read_events(path)
    names = {
        "on_loop_start": "start", "on_loop_stop": "stop", "on_state": "state",
        "on_episode_end": "episode", "on_improvement": "improvement",
        "on_plateau": "plateau", "on_dormant": "dormant", "on_degradation": "degradation",
        "on_hyperparam_update": "hyperparams",
    }  # fmt: skip
    told = [(hook, args) for hook, args in calls.calls if not (hook == "on_episode_end" and args[1] is None)]
    assert [row["event"] for row in rows] == [names[hook] for hook, _ in told]
    assert {row["event"] for row in rows} == set(names.values())
    times = [row["t"] for row in rows]
    assert times == sorted(times)
    assert times[0] >= 0
    window = 0
    for (hook, args), row in zip(told, rows, strict=True):
        if hook == "on_episode_end":
            window, metrics = args
            assert (row["window"], row["score"]) == (window, metrics.primary_score)
            numeric = {name: value for name, value in metrics.metrics.items() if name not in NO_NUMBERS}
            assert row["metrics"] == pytest.approx(numeric)
        elif hook in ("on_improvement", "on_degradation"):
            metrics = args[0].eval_metrics if hook == "on_improvement" else args[1]
            assert (row["window"], row["score"]) == (window, metrics.primary_score)
        elif hook == "on_plateau":
            assert (row["window"], row["state"]) == (window, "cooling")
        elif hook == "on_state":
            assert (row["window"], row["state"]) == (args[0], args[1].name.lower())
        elif hook == "on_hyperparam_update":
            assert (row["window"], row["old"], row["new"]) == (window + 1, *args)


def test_two_runs_follow_each_other_in_one_file(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "stop", "t": 9.0}\n{"event": "to')  # an earlier run, cut off in the middle of a line
    callback = JSONLCallback(path)
    for _ in range(2):
        callback.on_loop_start()
        callback.on_episode_end(0, EvalMetrics(1.0, {}, 0))
        callback.on_loop_stop()
    assert [row["event"] for row in read_events(path)] == ["stop", *["start", "episode", "stop"] * 2]


def test_what_json_does_not_know(tmp_path):
    callback = JSONLCallback(str(tmp_path / "events.jsonl"))
    callback.on_loop_start()
    metrics = {"nan": math.nan, "inf": np.float32(math.inf), "half": np.float16(0.5), "text": "x", "array": np.ones(2)}
    callback.on_episode_end(3, EvalMetrics(-math.inf, metrics, 3))
    new = {"layers": (64, 64), "act": np.tanh, "on": True, "none": None, "n": np.int64(3), "lr": math.nan}
    callback.on_hyperparam_update({}, new)
    callback.on_loop_stop()
    text = Path(callback.path).read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    _, episode, hyperparams, _ = read_events(callback.path)
    assert (episode["score"], episode["metrics"]) == (None, {"nan": None, "inf": None, "half": 0.5})
    assert hyperparams["new"] == {
        "layers": [64, 64], "act": "<ufunc 'tanh'>", "on": True, "none": None, "n": 3, "lr": None,
    }  # fmt: skip
    assert hyperparams["window"] == 4


def test_rows_are_on_disk_before_the_run_is_over(tmp_path):
    callback = JSONLCallback(tmp_path / "events.jsonl")
    callback.on_loop_start()
    callback.on_improvement(PolicySnapshot("a1", EvalMetrics(2.0, {}, 0), HyperparamSet({}), "", 0))
    callback.on_plateau(0, LoopState.COOLING)
    rows = read_events(callback.path)
    assert [row["event"] for row in rows] == ["start", "improvement", "plateau"]
    assert rows[1]["snapshot_id"] == "a1"
    callback.on_loop_stop()


def test_a_path_that_cannot_be_written_warns_once_and_costs_the_rows_only(tmp_path):
    (tmp_path / "file").write_text("")
    callback = JSONLCallback(tmp_path / "file" / "events.jsonl")
    with pytest.warns(RuntimeWarning, match="training goes on") as warned:
        host_run(tmp_path / "checkpoints", callback, told=[0.0, 1.0, 2.0])
    assert len([w for w in warned if "training goes on" in str(w.message)]) == 1


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="got the directory"):
        JSONLCallback(tmp_path)
