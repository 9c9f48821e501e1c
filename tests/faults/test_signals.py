"""SIGINT and SIGTERM: the first one saves and stops, the second one ends the process."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from tensor_optix.finished import load_run
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.run_dir import RunDir
from tensor_optix.training import resume
from tests.runs import SMALL

ENDLESS = ["total_steps=1e9", "stop=false", "seeds=2", "eval_every=128", "eval_episodes=4", "final_episodes=4"]

# A run that hangs in a callback, so that its first signal is never answered.
STUCK = f"""
import sys, time
from tensor_optix.loop import runtime
runtime.start(sys.argv[2])
from tensor_optix.training import train
class Stuck:
    def on_chunk(self, report):
        print("stuck", flush=True)
        while True:
            time.sleep(0.05)
train("CartPole-v1", seeds=2, total_steps=10**9, stop=False, config={SMALL!r}, eval_every=128, eval_episodes=4,
      final_episodes=4, run_dir=sys.argv[1], callbacks=[Stuck()], progress=False)
"""


def start(*command, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"} | variables
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_until(condition, process, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_the_first_signal_saves_and_stops(number, tmp_path):
    path = tmp_path / "run"
    settings = [f"config.{name}={json.dumps(value)}" for name, value in SMALL.items()]
    options = ["--json", "--quiet", "--run-dir", str(path), "--cache-dir", jax.config.jax_compilation_cache_dir]
    process = start("-m", "tensor_optix", "train", "CartPole-v1", *ENDLESS, *settings, *options)
    try:
        events = path / "events.jsonl"
        wait_until(lambda: events.exists() and events.stat().st_size > 0, process, 120)
        process.send_signal(number)
        signalled = time.monotonic()
        out, err = process.communicate(timeout=60)
        took = time.monotonic() - signalled
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert took < 10
    assert "Traceback" not in err
    facts = json.loads(out)
    assert {seed["stop_reason"] for seed in facts["seeds"]} == {"interrupted"}
    run = RunDir.read(path)
    assert run.manifest["status"] == "interrupted"
    assert run.checkpoint_steps() == [sum(seed["windows"] for seed in facts["seeds"])]
    assert load_run(path).env_steps == facts["env_steps"]

    class Stop(LoopCallback):
        def on_chunk(self, report):
            signal.raise_signal(number)

    resumed = resume(path, callbacks=[Stop()], progress=False)  # raises if the checkpoint is damaged
    for before, after in zip(facts["seeds"], resumed.members, strict=True):
        assert after.windows > before["windows"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_second_signal_ends_the_process(number, tmp_path):
    path = tmp_path / "run"
    quickly = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    process = start("-c", STUCK, str(path), jax.config.jax_compilation_cache_dir, XLA_FLAGS=quickly)
    try:
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):  # the first one alone waits for the chunk to end
            process.wait(timeout=1.0)
        process.send_signal(number)
        process.wait(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -number
    RunDir.open(path).close()  # the lock is free
