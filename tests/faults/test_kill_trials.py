"""SIGKILL of a worker and of the parent: the study goes on, and the lost trial is run once more."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from tensor_optix.trials.retry import RETRY_OF
from tensor_optix.trials.storage import open_storage

RUNNER = Path(__file__).with_name("trial_runner.py")
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def start(storage, n_trials, n_jobs=1, pipeline="SlowHill", seed=0, **environment):
    command = [sys.executable, str(RUNNER), str(storage), str(n_trials), str(n_jobs), pipeline, str(seed)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def said(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out.splitlines()


def trials_of(storage):
    return optuna.load_study(study_name="s", storage=open_storage(storage)).trials


def until(condition, what, seconds=120.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen within {seconds:g} s")


def running(storage, count):
    """The trials in progress, once `count` of them have gone through a window."""
    try:
        trials = [t for t in trials_of(storage) if t.state == TrialState.RUNNING]
    except (KeyError, ValueError):  # no study yet, or its tables are just being made
        return None
    return trials if sum(bool(t.params) for t in trials) >= count else None


def kind_of(tmp_path, kind):
    return tmp_path / "s.journal" if kind == "journal" else f"sqlite:///{tmp_path}/s.db"


def check_retried(trials, lost, n_trials):
    """Each of the `lost` numbers failed and was repeated once, with its parameters; `n_trials` count."""
    retries = {t.user_attrs[RETRY_OF]: t for t in trials if RETRY_OF in t.user_attrs}
    assert set(retries) == set(lost)
    for number in lost:
        assert trials[number].state == TrialState.FAIL
        assert retries[number].state == TrialState.COMPLETE
        assert retries[number].params == trials[number].params
    assert len(trials) == n_trials + len(lost)
    assert sum(t.state == TrialState.COMPLETE for t in trials) == n_trials


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_killed_worker_is_replaced_and_its_trial_run_once_more(kind, tmp_path):
    storage = kind_of(tmp_path, kind)
    (tmp_path / "fuses").mkdir()
    (tmp_path / "fuses" / "0").touch()
    lines = said(start(storage, 4, n_jobs=2, pipeline="FusedHill", FUSES=str(tmp_path / "fuses")))
    trials = trials_of(storage)
    (lost,) = [t.number for t in trials if t.state == TrialState.FAIL]
    assert "exit code -9" in trials[lost].user_attrs["lost"]
    check_retried(trials, [lost], 4)
    assert f"{lost} FAIL" in lines
    assert lines[-1].startswith("best")


def test_a_trial_that_kills_its_process_every_time_is_given_up(tmp_path):
    storage = kind_of(tmp_path, "journal")
    (tmp_path / "fuses").mkdir()
    for number in range(2):
        (tmp_path / "fuses" / str(number)).touch()
    said(start(storage, 2, n_jobs=2, pipeline="FusedHill", FUSES=str(tmp_path / "fuses")))
    trials = trials_of(storage)
    assert sum(t.state == TrialState.FAIL for t in trials) == 2
    assert sum(RETRY_OF in t.user_attrs for t in trials) <= 2
    assert sum(t.state == TrialState.COMPLETE for t in trials) >= 1


@pytest.mark.parametrize(("kind", "n_jobs"), [("journal", 1), ("sqlite", 1), ("sqlite", 2)])
def test_a_killed_search_goes_on(kind, n_jobs, tmp_path):
    storage = kind_of(tmp_path, kind)
    process = start(storage, 3, n_jobs)
    lost = [t.number for t in until(lambda: running(storage, n_jobs), "a trial")]
    time.sleep(0.5)  # into its windows
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    lost = [t.number for t in trials_of(storage) if t.state == TrialState.RUNNING] or lost
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive  # no trial outlives the search
    said(start(storage, 3, n_jobs))
    trials = trials_of(storage)
    check_retried(trials, lost, 3)
    assert all(t.state in (TrialState.COMPLETE, TrialState.FAIL) for t in trials)


def test_two_processes_share_a_database(tmp_path):
    storage = kind_of(tmp_path, "sqlite")
    both = [start(storage, 8, seed=seed) for seed in (0, 1)]
    lines = [said(process) for process in both]
    trials = trials_of(storage)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 8
    counts = [len(each) - 1 for each in lines]  # the last line is the best
    assert sum(counts) == 8
    assert min(counts) >= 1
    assert len({t.params["x"] for t in trials}) == 8
    assert len({t.user_attrs["process"] for t in trials}) == 2


def test_processes_run_torch_with_one_thread_each():
    from tensor_optix.orchestrator import TrialOrchestrator
    from tests.trials import torch_parts

    search = TrialOrchestrator(
        torch_parts.agent, torch_parts.pipeline, torch_parts.SPACE, n_trials=3, trial_steps=256, n_jobs=2,
        checkpoint_score_fn=torch_parts.threads,
    )  # fmt: skip
    search.run()
    assert [t.value for t in search.study.trials] == [1.0] * 3
    assert [t.user_attrs["env_steps"] for t in search.study.trials] == [256] * 3
    assert len({t.params["learning_rate"] for t in search.study.trials}) == 3
    torch_parts.agent(search.best_params).load_weights(search.best_weights_path)


LEDGER = """
import sys, optuna
from optuna.trial import TrialState
from tensor_optix.trials.ledger import Ledger, Outcome
from tensor_optix.trials.space import trial_space
from tensor_optix.trials.storage import open_storage
from tensor_optix.trials.study import open_study
storage = open_storage(sys.argv[1])
study = open_study(storage, "s", direction="maximize", seed=0, n_startup_trials=1000,
                   pruner=optuna.pruners.NopPruner(), facts={})
space = trial_space({"x": ("float", 0.0, 1.0), "y": ("int", 1, 9)})
print("open", flush=True)
with Ledger(study, storage, space, int(sys.argv[2])) as ledger:
    while (taken := ledger.take()) is not None:
        number, params = taken
        ledger.report(number, 0, params["x"])
        ledger.finish(number, Outcome(TrialState.COMPLETE, score=params["x"]))
print("done", flush=True)
"""


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_kills_at_random_instants_lose_no_trial(kind, tmp_path):
    """Ten kills between and within writes: at the end as many trials count as were asked for, each with its values."""
    rng, storage, count, kills = random.Random(7), kind_of(tmp_path, kind), 2000, 0
    command = [sys.executable, "-c", LEDGER, str(storage)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for _ in range(10):
        process = subprocess.Popen([*command, str(count)], env=environment, text=True, stdout=subprocess.PIPE)
        assert process.stdout.readline() == "open\n"
        time.sleep(rng.uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL)
        kills += "done" not in process.communicate(timeout=60)[0]
    assert kills == 10
    begun = len(trials_of(storage))
    subprocess.run([*command, str(begun + 20)], env=environment, check=True, timeout=240)
    trials = trials_of(storage)
    repeated = {t.user_attrs[RETRY_OF] for t in trials if RETRY_OF in t.user_attrs}
    counted = [t for t in trials if t.number not in repeated]
    assert len(counted) == begun + 20
    # A repetition may itself have been killed; nothing else is lost, and nothing waits or runs for ever.
    wrong = [t for t in counted if t.state != TrialState.COMPLETE]
    assert not [t for t in wrong if t.state != TrialState.FAIL or RETRY_OF not in t.user_attrs]
    assert all(trials[number].state == TrialState.FAIL for number in repeated)
    assert 1 <= len(repeated) <= kills
    assert all(t.value == t.params["x"] for t in trials if t.state == TrialState.COMPLETE)


def test_factories_that_a_process_cannot_import_are_named(tmp_path):
    code = "\n".join(
        [
            "from tensor_optix.orchestrator import TrialOrchestrator",
            "from tests.trials.parts import *",
            "def mine(params):",
            "    return agent(params)",
            "TrialOrchestrator(mine, Hill, SPACE, n_trials=3, trial_episodes=1, n_jobs=2).run()",
        ]
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 1
    assert "must be importable from a module" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("tensor-optix-trials-*"))  # temporary files go also after an error
