"""A run as W&B curves: real offline runs, read back from their files. Nothing touches the network."""

from __future__ import annotations

import json
import socket
import struct
import time
from pathlib import Path

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from tensor_optix.callbacks import WandbCallback
from tensor_optix.core.types import EvalMetrics
from tests.callbacks.host_runs import assert_same_curves, expected_curves, host_run


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No run is left open, no answer comes from outside, nothing is written at home."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    if wandb.run is not None:
        wandb.run.finish()


def finished(path: Path) -> list:
    """The records of a run that was finished; its last bytes are written by another process a moment later."""
    for _ in range(200):
        found = records(path)
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{path} was not finished")


def records(path: Path) -> list:
    """The records of a run's file: a header of 7 bytes, then blocks of 32 KiB that hold framed pieces."""
    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:  # padding
            at += room
            continue
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def run_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> [(step, value)]; one value a step."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in finished(path):
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for tag, value in row.items():
            if not tag.startswith("_"):
                curves.setdefault(tag, []).append((row["_step"], value))
    return curves


def test_an_offline_run_holds_the_curves(tmp_path):
    callback = WandbCallback("probe", "first", {"seed": 3}, ["a"], "group", mode="offline", dir=str(tmp_path))
    _, calls = host_run(tmp_path / "checkpoints", callback)
    assert wandb.run is None
    (path,) = run_files(tmp_path)
    expected = {tag: list(dict(points).items()) for tag, points in expected_curves(calls).items()}  # the last of a step
    assert_same_curves(read_curves(path), expected)
    (run,) = {r.run.run_id: r.run for r in finished(path) if r.HasField("run")}.values()
    assert (run.project, run.display_name, run.run_group, list(run.tags)) == ("probe", "first", "group", ["a"])
    assert {u.key: u.value_json for u in run.config.update}["seed"] == "3"


def test_two_runs_are_two_and_a_run_that_is_open_stays_so(tmp_path):
    callback = WandbCallback(mode="offline", dir=str(tmp_path))
    for score in (1.0, 2.0):
        callback.on_loop_start()
        callback.on_episode_end(0, EvalMetrics(score, {}, 0))
        callback.on_loop_stop()
    scores = sorted(read_curves(path)["score/primary"][0][1] for path in run_files(tmp_path))
    assert scores == [1.0, 2.0]
    mine = wandb.init(mode="offline", dir=str(tmp_path))
    callback.on_loop_start()
    callback.on_loop_stop()
    assert wandb.run is mine


def test_nothing_connects(tmp_path, monkeypatch):
    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"connects to {address}")
        return connect(self, address)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    callback = WandbCallback(mode="offline", dir=str(tmp_path))
    callback.on_loop_start()
    callback.on_episode_end(0, EvalMetrics(1.0, {}, 0))
    callback.on_loop_stop()
    assert len(run_files(tmp_path)) == 1


def test_after_a_start_that_failed_nothing_is_logged(monkeypatch):
    callback = WandbCallback(mode="no such mode")
    with pytest.raises(Exception, match="mode"):
        callback.on_loop_start()
    callback.on_episode_end(0, EvalMetrics(1.0, {}, 0))
    callback.on_loop_stop()
