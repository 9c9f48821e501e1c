"""SIGKILL at random instants: the run always opens, and no finished save is ever lost."""

import contextlib
import os
import queue
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import pytest
from saver import state_at
from scipy import stats

from tensor_optix.loop.checkpoint_files import damage
from tensor_optix.loop.durable import TEMPORARY
from tensor_optix.loop.run_dir import NoCheckpointError, RunDir


class Server:
    """The process of saver.py, and what its children say."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("saver.py"))]
        # One thread for OpenBLAS: a process should fork while it has no other threads.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "8", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        self.said: queue.Queue[list[str]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said.put(line.split())

    def kill_after(self, path: Path, word: str, seconds: float) -> list[tuple[str, int]]:
        """Starts a child on `path` and kills it `seconds` after it has first said `word`; answers all it said."""
        return self._run(path, 0, word, seconds)

    def die_before_call(self, path: Path, number: int) -> list[tuple[str, int]]:
        """Starts a child on `path` that dies before its `number`-th system call of interest after its first save."""
        return self._run(path, number, "never", 0.0)

    def _run(self, path: Path, fatal_call: int, word: str, seconds: float) -> list[tuple[str, int]]:
        self.process.stdin.write(f"{path} {fatal_call}\n")
        words, child, killer = [], None, None
        while True:
            try:
                said, number = self.said.get(timeout=60)
            except queue.Empty:
                with contextlib.suppress(ProcessLookupError, TypeError):
                    os.kill(child, signal.SIGKILL)
                pytest.fail(f"the writer hung after saying {words[-3:]}; its standard error says where")
            if said == "child":
                child = int(number)
            elif said == "gone":
                return words
            else:
                words.append((said, int(number)))
            if killer is None and child is not None and word in [spoken for spoken, _ in words]:
                killer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
                killer.start()

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.stop()


def check_after_kill(path: Path, words: list[tuple[str, int]]) -> str | None:
    """What is wrong with the run at `path` after its writer died having said `words`; None if nothing is."""
    finished = max([number for word, number in words if word in ("opened", "saved")])
    started = max(number for _, number in words)
    with RunDir.open(path) as run:
        if list(path.rglob(f"{TEMPORARY}*")):
            return "temporaries were left"
        for step in run.checkpoint_steps():
            if problem := damage(path / "checkpoints" / str(step)):
                return f"checkpoint {step} is visible and damaged: {problem}"
        try:
            loaded = run.load_checkpoint(state_at(0))
        except NoCheckpointError as error:
            return None if finished == 0 else str(error)
        if not finished <= loaded.step <= started:
            return f"step {loaded.step} was loaded, {finished} was saved, {started} was begun"
        if not same(loaded.state, state_at(loaded.step)) or loaded.meta != {"step": loaded.step}:
            return "the state is not what was saved"
        run.truncate_events(loaded.events_offset)
        if [row["step"] for row in run.read_events()] != list(range(1, loaded.step + 1)):
            return "the events do not belong to the checkpoint"
    return None


def same(left, right) -> bool:
    left, right = ({**state, "key": jax.random.key_data(state["key"])} for state in (left, right))
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


def run_kills(server: Server, path: Path, trials: int) -> None:
    rng = random.Random(20)
    RunDir.create(path, {}).close()
    failures, mid_save, saves = [], 0, 0
    for trial in range(trials):
        words = server.kill_after(path, rng.choice(["opened", "saved", "saved"]), rng.uniform(0.0, 0.2))
        mid_save += words[-1][0] == "saving"
        saves += sum(word == "saved" for word, _ in words)
        problem = check_after_kill(path, words)
        if problem:
            failures.append(f"trial {trial}: {problem}")
    report("SIGKILL at random instants", trials, failures, f"{mid_save} in the midst of a save, {saves} saves finished")
    assert mid_save > 0, "no kill met a save: the trials show nothing"


def report(what: str, trials: int, failures: list[str], details: str) -> None:
    bound = stats.beta.ppf(0.95, len(failures) + 1, trials - len(failures)) if len(failures) < trials else 1.0
    print(
        f"\n{what}: n = {trials} trials ({details}), {len(failures)} failures; "
        f"95 % upper bound of the failure rate {100 * bound:.2f} %"
    )
    assert not failures, failures


def run_crash_points(server: Server, path: Path, points: Iterable[int]) -> None:
    RunDir.create(path, {}).close()
    failures, trials = [], 0
    for point in points:
        problem = check_after_kill(path, server.die_before_call(path, point))
        trials += 1
        if problem:
            failures.append(f"call {point}: {problem}")
    report("Death before each call that changes the disk", trials, failures, "two saves and more")


@pytest.mark.slow
def test_twenty_kills(server, tmp_path):
    run_kills(server, tmp_path / "run", 20)


def test_death_at_some_calls_of_a_save(server, tmp_path):
    run_crash_points(server, tmp_path / "run", range(1, 60, 9))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_kills(server, tmp_path, capsys):
    with capsys.disabled():
        run_kills(server, tmp_path / "run", 200)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_death_at_every_call_of_two_saves(server, tmp_path, capsys):
    with capsys.disabled():
        run_crash_points(server, tmp_path / "run", range(1, 121))
