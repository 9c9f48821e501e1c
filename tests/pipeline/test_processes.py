"""Environments in processes: what dies or hangs is replaced, and nothing is left behind."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline
from tests.pipeline.counting import TERMINATED, BatchReader, Counting, Reader
from tests.pipeline.troubled import Troubled, assert_same_window

LONG = ((1000, TERMINATED),)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids_of(data):
    return [info["pid"] for info in data.infos]


def started(fns, size=8, **options):
    pipeline = VectorBatchPipeline(fns, BatchReader(), size, True, **{"seed": 5, "step_timeout_s": 1.0, **options})
    pipeline.setup()
    return pipeline


def processes(pipeline):
    return [process.pid for process in pipeline.env.processes]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("tensor_optix")]


@pytest.mark.parametrize("n_workers", [None, 2, pytest.param(9, marks=pytest.mark.slow)])
def test_as_in_one_process_faults_included(n_workers):
    fns = [lambda i=i: Counting(i, bad_steps=[3 + i, 9], bad_resets=[i], reuse=True) for i in range(3)]
    ours = started(fns, 7, n_workers=n_workers, step_timeout_s=60)
    other = VectorBatchPipeline(fns, BatchReader(), 7, seed=5)
    pids = processes(ours)
    assert len(set(pids)) == min(n_workers or 3, 3)
    assert os.getpid() not in pids
    for _, a, b in zip(range(4), ours.episodes(), other.episodes(), strict=False):
        assert_same_window(a, b)
        assert set(pids_of(a)) == set(pids)
    assert ours.faults == other.faults
    assert ours.n_faults == 9
    ours.teardown()
    ours.teardown()
    assert not any(map(is_running, pids))
    assert ours.setup() is None  # from the beginning, in fresh processes
    assert not set(processes(ours)) & set(pids)
    ours.teardown()


@pytest.mark.parametrize("in_reset", [False, True])
def test_a_hang_is_replaced(tmp_path, in_reset):
    script = LONG if not in_reset else ((3, TERMINATED), *LONG)
    at = 3 if not in_reset else 1
    options = {"script": script, "at": at, "once": str(tmp_path / "once"), "in_reset": in_reset}
    fns = [lambda: Counting(0, LONG), lambda: Troubled(1, **options), lambda: Counting(2, LONG)]
    pipeline = started(fns)
    before = processes(pipeline)
    began = time.monotonic()
    data = next(pipeline.episodes())
    assert time.monotonic() - began < 1.0 + 2.0
    after = processes(pipeline)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert not is_running(before[1])
    # The others have all their steps, and one episode; the steps before the hang stand.
    for i in (0, 2):
        assert data.observations[8 * i : 8 * i + 8, :3].tolist() == [[i, 0, t] for t in range(8)]
    assert data.observations[8:16, :3].tolist() == [[1, 0, t] for t in (*range(3), *range(3), 3, 4)][
        : 8 - in_reset * 2
    ] + ([[1, 1, 0], [1, 1, 1]] if in_reset else [])
    where = "reset" if in_reset else "step"
    assert pipeline.faults == [f"environment 1: {where}: TimeoutError: no answer within 1 s"]
    assert pipeline.n_faults == 1
    if not in_reset:
        assert (data.metadata["dropped"], data.metadata["cut"]) == (1, [10])
        assert [row for row, flag in enumerate(data.truncated) if flag] == [10]
    assert data.terminated[:8] == data.terminated[16:] == [False] * 8
    # A fresh seed, that follows from the first one and the number of replacements.
    fresh = int(np.random.SeedSequence([5 + 1, 1]).generate_state(1)[0])
    assert data.observations[11, 3] == np.random.default_rng(fresh).integers(10_000)
    assert data.observations[8, 3] == np.random.default_rng(5 + 1).integers(10_000)
    pipeline.teardown()
    assert not any(map(is_running, after))


@pytest.mark.parametrize(("trouble", "code"), [("die", 3), pytest.param("exit", 1, marks=pytest.mark.slow)])
def test_a_death_is_replaced(tmp_path, trouble, code):
    fns = [lambda: Troubled(0, trouble, once=str(tmp_path / "once"), script=LONG), lambda: Counting(1, LONG)]
    pipeline = started(fns, step_timeout_s=60)
    data = next(pipeline.episodes())
    assert pipeline.faults == [f"environment 0: step: its process ended unexpectedly (exit code {code})"]
    assert data.observations[:, :3].tolist() == [
        *([0, 0, t] for t in (0, 1, 2, 0, 1, 2, 3, 4)),
        *([1, 0, t] for t in range(8)),
    ]
    assert data.metadata["cut"] == [2]
    pipeline.teardown()


def test_a_process_killed_between_windows_is_replaced():
    pipeline = started([lambda i=i: Counting(i, LONG) for i in range(2)])
    stream = pipeline.episodes()
    next(stream)
    os.kill(processes(pipeline)[0], signal.SIGKILL)
    data = next(stream)
    assert data.observations[:, 2].tolist() == [*range(8), *range(8, 16)]
    assert (data.metadata["dropped"], data.metadata["cut"], data.episode_starts) == (1, [], [0])
    assert "exit code -9" in pipeline.faults[0]
    pipeline.teardown()


def test_those_that_share_a_process_lose_their_episode_only(tmp_path):
    fns = [
        lambda: Counting(0, LONG),
        lambda: Troubled(1, once=str(tmp_path / "once"), script=LONG),
        lambda: Counting(2, LONG),
        lambda: Counting(3, LONG),
    ]
    pipeline = started(fns, 6, n_workers=2)
    data = next(pipeline.episodes())
    # Environments 0 and 1 share a process. 0 answered before 1 hung, so its fourth step stands.
    assert data.observations[:6, 2].tolist() == [0, 1, 2, 3, 0, 1]
    assert data.observations[6:12, 2].tolist() == [0, 1, 2, 0, 1, 2]
    assert data.observations[12:, 2].tolist() == [*range(6), *range(6)]
    assert (data.metadata["dropped"], data.metadata["cut"]) == (1, [3, 8])
    assert [f.split(":")[0] for f in pipeline.faults] == ["environment 1"]
    pipeline.teardown()


def test_the_next_in_a_shared_process_is_not_at_fault(tmp_path):
    fns = [lambda: Troubled(0, once=str(tmp_path / "once"), script=LONG), lambda: Counting(1, LONG)]
    pipeline = started(fns, 6, n_workers=1)
    data = next(pipeline.episodes())
    assert data.observations[:, 2].tolist() == [0, 1, 2, 0, 1, 2] * 2
    assert (data.metadata["dropped"], data.metadata["cut"]) == (2, [2, 8])
    assert (pipeline.n_faults, len(pipeline.faults)) == (1, 1)
    pipeline.teardown()


def test_too_many_hangs_are_an_error():
    pipeline = started([lambda: Counting(0), lambda: Troubled(1, at=0)], step_timeout_s=0.1, max_faults_in_a_row=2)
    with pytest.raises(RuntimeError, match=r"environment 1 failed 2 times.*no answer within 0\.1 s"):
        next(pipeline.episodes())
    pids = processes(pipeline)
    pipeline.teardown()
    assert not any(map(is_running, pids))


def test_an_interrupt_during_a_hang(tmp_path):
    fns = [lambda: Counting(0, LONG), lambda: Troubled(1, once=str(tmp_path / "once"), script=LONG)]
    pipeline = started(fns, step_timeout_s=60)
    pids = processes(pipeline)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            next(pipeline.episodes())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert not any(map(is_running, pids))
    # Whoever goes on gets fresh environments, never an answer to an older question.
    data = next(pipeline.episodes())
    assert data.observations[:, 2].tolist() == [*range(8)] * 2
    began = time.monotonic()
    pipeline.teardown()
    assert time.monotonic() - began < 3


def test_teardown_ends_what_does_not_end(monkeypatch):
    monkeypatch.setattr("tensor_optix.pipeline.processes._PATIENCE_S", 0.3)

    class Clinging(Counting):
        def close(self):
            time.sleep(3600)

    pipeline = started([Clinging, Counting])
    pids = processes(pipeline)
    pipeline.teardown()
    assert not any(map(is_running, pids))


def test_what_cannot_be_sent(tmp_path):
    class Secretive(Counting):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {**info, "secret": (lambda: 0) if self.steps == 2 else None}

    pipeline = started([Secretive], step_timeout_s=60)
    assert next(pipeline.episodes()).metadata["dropped"] == 1
    assert "step: the result cannot be sent to another process" in pipeline.faults[0]
    pipeline.teardown()
    lock = threading.Lock()
    pipeline = VectorBatchPipeline([Counting, lambda: (lock, Counting())[1]], BatchReader(), 5, True)
    with pytest.raises(TypeError, match="function cannot be sent to another process"):
        pipeline.setup()


def test_one_environment_with_a_time_limit(tmp_path):
    once = str(tmp_path / "once")
    make = lambda: Troubled(0, once=once, script=LONG)  # noqa: E731
    pipeline = BatchPipeline(env_fn=make, agent=Reader(), n_steps=6, step_timeout_s=0.5, seed=5)
    pipeline.setup()
    data = next(pipeline.episodes())
    assert data.observations[:, 2].tolist() == [0, 1, 2, 0, 1, 2]
    assert (data.metadata["dropped"], data.metadata["cut"]) == (1, [2])
    assert pipeline.faults == ["step: TimeoutError: no answer within 0.5 s"]
    assert (pipeline.env.observation_space.shape, pipeline.env.action_space.n) == ((4,), 5)
    pipeline.teardown()


def test_an_id_in_a_process():
    def run(**options):
        pipeline = BatchPipeline(env_id="CartPole-v1", agent=Reader(lambda _: 1), n_steps=30, seed=3, **options)
        try:
            return list(itertools.islice(pipeline.episodes(), 2))
        finally:
            pipeline.teardown()

    for ours, other in zip(run(step_timeout_s=60), run(), strict=True):
        assert_same_window(ours, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": Counting(), "step_timeout_s": 1}, "env_fn or env_id"),
        ({"env_id": "CartPole-v1", "step_timeout_s": 0}, "step_timeout_s must be a number of seconds"),
        ({"env_fn": Counting, "max_replay": 0}, "max_replay must be at least 1"),
    ],
)
def test_wrong_arguments_of_a_batch(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchPipeline(**arguments)


def test_wrong_arguments_of_a_vector():
    with pytest.raises(ValueError, match="async_envs=True"):
        VectorBatchPipeline([Counting], n_workers=2)
    with pytest.raises(ValueError, match="n_workers must be at least 1"):
        VectorBatchPipeline([Counting], None, 5, True, n_workers=0)
    with pytest.raises(ValueError, match="step_timeout_s"):
        VectorBatchPipeline([Counting], None, 5, True, step_timeout_s=float("inf"))
    with pytest.raises(TypeError, match="env_fn"):
        BatchPipeline(Counting)


SCRIPT = """
import sys
from tensor_optix.pipeline import VectorBatchPipeline
from tests.pipeline.counting import BatchReader
from tests.pipeline.troubled import Troubled
if {guard}:
    pipeline = VectorBatchPipeline([Troubled, Troubled], BatchReader(), 8, True)
    pipeline.setup()
    print(*[process.pid for process in pipeline.env.processes], flush=True)
    next(pipeline.episodes())
"""


@pytest.mark.slow
def test_processes_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(guard='__name__ == "__main__"'))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.5)  # into the step that hangs
        assert len(pids) == 2
        assert all(map(is_running, pids))
        parent.kill()
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, pids))


@pytest.mark.slow
def test_a_script_without_its_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(guard="True"))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert 'under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
