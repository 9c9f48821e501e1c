"""One writer per run, across processes: refused while the first lives, taken over once it is dead."""

import logging
import os
import signal
import subprocess
import sys

import pytest

from tensor_optix.loop.run_dir import RunDir, RunDirError

_WRITER = """
import os, sys, time
from tensor_optix.loop.run_dir import RunDir
run = RunDir.open(sys.argv[1])
if sys.argv[2] != "fork":
    print(0, flush=True)
elif os.fork() == 0:
    print(os.getpid(), flush=True)  # said by the child: its hooks after the fork have run
time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path):
    """Starts another process that writes to tmp_path / "run"; answers it and the pid of its forked worker, or 0."""
    RunDir.create(tmp_path / "run", {}).close()
    started = []

    def start(mode: str) -> tuple[subprocess.Popen, int]:
        command = [sys.executable, "-c", _WRITER, str(tmp_path / "run"), mode]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "NPROC": "8"})
        worker = int(process.stdout.readline())
        started.append((process, worker))
        return process, worker

    yield start
    for process, worker in started:
        process.kill()
        process.wait()
        process.stdout.close()
        if worker:
            os.kill(worker, signal.SIGKILL)


def test_a_second_process_is_refused_and_a_dead_one_is_succeeded(writer, tmp_path, caplog):
    process, _ = writer("alone")
    with pytest.raises(RunDirError, match=rf"being written by process {process.pid} on .* stop that process first"):
        RunDir.open(tmp_path / "run")
    with pytest.raises(RunDirError, match="being written"):
        RunDir.create(tmp_path / "run", {}, overwrite=True)
    assert RunDir.read(tmp_path / "run").manifest["status"] == "running"
    process.kill()
    process.wait()
    with caplog.at_level(logging.WARNING), RunDir.open(tmp_path / "run"):
        assert f"left by process {process.pid} on " in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING), RunDir.open(tmp_path / "run"):
        assert caplog.text == ""


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_run(writer, tmp_path):
    process, worker = writer("fork")
    with pytest.raises(RunDirError, match="being written"):
        RunDir.open(tmp_path / "run")
    process.kill()
    process.wait()
    os.kill(worker, 0)  # still there
    RunDir.open(tmp_path / "run").close()
