"""SIGKILL of a training run at random instants, again and again: each time it resumes, at most a save interval back."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import pytest
from scipy import stats

from tensor_optix.loop.checkpoint_files import damage
from tensor_optix.loop.run_dir import RunDir
from tests.runs import SMALL

SAVE_EVERY = 0.05  # seconds

# Trains or resumes in argv[1] for ever, saving all the time, and says the number of windows after each save.
TRAIN = f"""
import sys
from tensor_optix.loop import runtime
runtime.start(sys.argv[2])
import tensor_optix.loop.session as session
session.CHUNK_SECONDS = 0.02
from tensor_optix.loop.run_dir import RunDir
save = RunDir.save_checkpoint
def save_and_say(self, step, *rest):
    print("saving", step, flush=True)
    save(self, step, *rest)
    print("saved", step, flush=True)
RunDir.save_checkpoint = save_and_say
from tensor_optix.training import resume, train
if sys.argv[3] == "new":
    train("CartPole-v1", seeds=2, total_steps=10**9, stop=False, config={SMALL!r}, eval_every=128, eval_episodes=4,
          final_episodes=4, run_dir=sys.argv[1], save_every={SAVE_EVERY}, progress=False)
else:
    resume(sys.argv[1], save_every={SAVE_EVERY}, progress=False)
"""


def killed_run(path, how, word, times, seconds):
    """One process, killed `seconds` after it said `word` so many times; all it said."""
    cache = jax.config.jax_compilation_cache_dir
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(path), cache, how], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        heard: list[str] = []
        while sum(line.startswith(word) for line in heard) < times:
            heard.append(process.stdout.readline())
            assert heard[-1], "it ended before it saved"
        time.sleep(seconds)
    finally:
        process.send_signal(signal.SIGKILL)
    rest = process.communicate(timeout=60)[0]
    lines = [line.split() for line in ("".join(heard) + rest).splitlines()]
    return [(line[0], int(line[1])) for line in lines if len(line) == 2]


def newest(path):
    """Step of the newest checkpoint, each of which must be whole."""
    run = RunDir.read(path)
    steps = run.checkpoint_steps()
    for step in steps:
        assert damage(path / "checkpoints" / str(step)) is None, f"checkpoint {step} is visible and damaged"
    return max(steps, default=0)


def run_kills(path, trials):
    rng = random.Random(3)
    mid_save, before = 0, 0
    for trial in range(trials):
        word = rng.choice(["saving", "saved", "saved"])
        times = 3 if trial == 0 else rng.choice([1, 1, 3])  # first far enough that beginning anew would show
        said = killed_run(path, "new" if trial == 0 else "again", word, times, rng.uniform(0.0, 0.4))
        finished = max([step for word, step in said if word == "saved"], default=before)
        mid_save += said[-1][0] == "saving"
        found = newest(path)
        assert finished <= found <= max(step for _, step in said), f"trial {trial}: {finished} saved, {found} found"
        # What follows the newest save is lost: the first save of the next process shows that it began there.
        assert min(step for _, step in said) >= before, f"trial {trial} began before what was saved"
        before = found
    return mid_save, before


@pytest.mark.slow
def test_three_kills_of_a_training_run(tmp_path):
    _, windows = run_kills(tmp_path / "run", 3)
    assert windows > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_kills_of_a_training_run(tmp_path, capsys):
    trials = 60
    mid_save, windows = run_kills(tmp_path / "run", trials)
    bound = stats.beta.ppf(0.95, 1, trials)
    with capsys.disabled():
        facts = {"kills": trials, "mid_save": mid_save, "windows": windows, "upper_95": round(100 * bound, 1)}
        print("\nSIGKILL of a training run: " + json.dumps(facts))
    assert 0 < mid_save < trials, "all kills or none met a save: the trials show little"
    assert windows > 0
