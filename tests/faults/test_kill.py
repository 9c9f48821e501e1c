"""SIGKILL at random instants: the run always opens, and no finished save is ever lost."""

import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from saver import state_at
from scipy import stats

from tensor_optix.loop.durable import TEMPORARY
from tensor_optix.loop.run_dir import NoCheckpointError, RunDir


class Server:
    """The process of saver.py, and what its children say."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("saver.py"))]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "8"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        self.said: queue.Queue[list[str]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.said.put(line.split())

    def kill_after(self, path: Path, seconds: float) -> list[tuple[str, int]]:
        """Starts a child on `path`, kills it `seconds` after it has opened the run; answers what it said."""
        self.process.stdin.write(f"{path}\n")
        words, child, killer = [], None, None
        while True:
            word, number = self.said.get(timeout=60)
            if word == "child":
                child = int(number)
            elif word == "gone":
                killer.join()
                return words
            else:
                words.append((word, int(number)))
            if killer is None and child is not None and words:  # both: their order is not given
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
        try:
            loaded = run.load_checkpoint(state_at(0))
        except NoCheckpointError as error:
            return None if finished == 0 else str(error)
        if loaded.skipped:
            return f"a visible checkpoint is damaged: {loaded.skipped}"
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
        words = server.kill_after(path, rng.uniform(0.0, 0.3))
        mid_save += words[-1][0] == "saving"
        saves += sum(word == "saved" for word, _ in words)
        problem = check_after_kill(path, words)
        if problem:
            failures.append(f"trial {trial}: {problem}")
    bound = stats.beta.ppf(0.95, len(failures) + 1, trials - len(failures)) if len(failures) < trials else 1.0
    print(
        f"\nSIGKILL at random instants: n = {trials} trials ({mid_save} in the midst of a save, {saves} saves finished), "
        f"{len(failures)} failures; 95 % upper bound of the failure rate {100 * bound:.2f} %"
    )
    assert not failures, failures
    assert mid_save > 0, "no kill met a save: the trials show nothing"


def test_twenty_kills(server, tmp_path):
    run_kills(server, tmp_path / "run", 20)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_kills(server, tmp_path, capsys):
    start = time.monotonic()
    with capsys.disabled():
        run_kills(server, tmp_path / "run", 200)
        print(f"({time.monotonic() - start:.0f} s)")
