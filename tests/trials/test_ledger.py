"""Trials as one process takes and finishes them, and as others leave them behind."""

import sqlite3
import subprocess
import sys
import time
import warnings

import optuna
import pytest
from optuna.trial import TrialState

from tensor_optix.trials import owner, retry
from tensor_optix.trials import storage as storages
from tensor_optix.trials.ledger import Ledger, Outcome, best_of
from tensor_optix.trials.space import trial_space
from tensor_optix.trials.storage import open_storage
from tensor_optix.trials.study import open_study

SPACE = trial_space({"x": ("float", 0.0, 1.0), "kind": ("categorical", "a", "b")})


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def opened(storage, direction="maximize", name="s", seed=0, **facts):
    storage = open_storage(storage)
    study = open_study(
        storage,
        name,
        direction=direction,
        seed=seed,
        n_startup_trials=2,
        pruner=optuna.pruners.NopPruner(),
        facts=facts,
    )
    return study, storage


def ledger(storage=None, n_trials=3, **options):
    study, storage = opened(storage, **options)
    return Ledger(study, storage, SPACE, n_trials)


def states(study):
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def all_taken(book):
    with book:
        while (taken := book.take()) is not None:
            book.finish(taken[0], Outcome(TrialState.COMPLETE, score=taken[1]["x"]))
    return [trial.params for trial in book.study.trials]


STORAGES = {"memory": lambda path: None, "journal": lambda path: path / "s.journal"}
STORAGES["sqlite"] = lambda path: f"sqlite:///{path}/s.db"
KEPT = ["journal", pytest.param("sqlite", marks=pytest.mark.slow)]  # making its tables takes half a second


class TestOneProcess:
    @pytest.mark.parametrize("kind", STORAGES)
    def test_takes_as_many_as_asked_and_records_how_they_ended(self, kind, tmp_path):
        book = ledger(STORAGES[kind](tmp_path), n_trials=4)
        with book:
            number, params = book.take()
            assert set(params) == {"x", "kind"}
            book.finish(number, Outcome(TrialState.COMPLETE, score=1.0, facts={"env_steps": 8}))
            book.finish(book.take()[0], Outcome(TrialState.PRUNED))
            book.finish(book.take()[0], Outcome(TrialState.FAIL, error="ValueError: no"))
            book.finish(book.take()[0], Outcome(TrialState.COMPLETE, score=float("nan")))
            assert book.take() is None
        assert states(book.study) == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
        trials = book.study.trials
        assert trials[0].user_attrs["env_steps"] == 8
        assert trials[2].user_attrs["error"] == "ValueError: no"
        assert "nan" in trials[3].user_attrs["error"]
        assert book.first_error == "ValueError: no"
        assert best_of(book.study).number == 0

    def test_the_same_seed_proposes_the_same_and_another_seed_does_not(self):
        first, again, other = (all_taken(ledger(n_trials=6, seed=seed)) for seed in (0, 0, 1))
        assert first == again
        assert first != other
        assert len({params["x"] for params in first}) == 6

    @pytest.mark.parametrize("kind", KEPT)
    def test_a_study_in_two_parts_is_the_study_in_one(self, kind, tmp_path):
        whole = all_taken(ledger(n_trials=7))
        all_taken(ledger(STORAGES[kind](tmp_path), n_trials=3))
        assert all_taken(ledger(STORAGES[kind](tmp_path), n_trials=7)) == whole

    def test_what_is_unfinished_at_the_end_is_queued_once_more(self, tmp_path):
        book = ledger(n_trials=2)
        with book:
            number, params = book.take()
        assert states(book.study) == ["FAIL"]
        assert book.study.trials[0].user_attrs["lost"] == "interrupted"
        with Ledger(book.study, open_storage(None), SPACE, 2) as again:
            assert again.take() == (1, params)
            assert again.study.trials[1].user_attrs[retry.RETRY_OF] == number

    def test_callbacks_hear_of_every_end(self):
        heard = []
        study, storage = opened(None)
        book = Ledger(study, storage, SPACE, 2, [lambda study, trial: heard.append((trial.number, trial.state.name))])
        all_taken(book)
        assert heard == [(0, "COMPLETE"), (1, "COMPLETE")]

    def test_equal_scores_the_first_is_best_also_when_minimising(self):
        book = ledger(n_trials=3, direction="minimize")
        with book:
            for score in (2.0, 1.0, 1.0):
                book.finish(book.take()[0], Outcome(TrialState.COMPLETE, score=score))
        assert best_of(book.study).number == 1


def a_process_that_is_gone():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mark = owner.mark().split("/")
        started = owner._started(process.pid)
    return f"{mark[0]}/{process.pid}/{started}"


class TestOtherProcesses:
    def test_marks(self):
        assert not owner.is_gone(owner.mark())
        assert owner.is_gone(a_process_that_is_gone())
        host, number, started = owner.mark().split("/")
        assert owner.is_gone(f"{host}/{number}/{int(started) - 1}")  # the id was used again
        assert not owner.is_gone(f"elsewhere/{number}/{started}")  # nobody can tell
        assert not owner.is_gone("nonsense")

    @pytest.mark.parametrize("kind", KEPT)
    def test_a_lost_trial_fails_and_is_run_once_more_and_not_twice(self, kind, tmp_path):
        gone = a_process_that_is_gone()
        for _ in range(2):  # it is lost, and its repetition as well
            lost = ledger(STORAGES[kind](tmp_path), n_trials=2)
            lost._mark = gone
            number, params = lost.take()
        assert number == 1
        book = ledger(STORAGES[kind](tmp_path), n_trials=2)
        with book:
            number, _ = book.take()
            assert number == 2
            book.finish(number, Outcome(TrialState.COMPLETE, score=1.0))
            assert book.take() is None
        trials = book.study.trials
        assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "COMPLETE"]
        assert trials[1].params == trials[0].params == {**params}
        assert trials[2].params != params

    def test_a_trial_that_a_living_process_runs_is_left_alone(self, tmp_path):
        url = STORAGES["sqlite"](tmp_path)
        with ledger(url, n_trials=2) as one, ledger(url, n_trials=2) as other:
            first, second = one.take(), other.take()
            assert {first[0], second[0]} == {0, 1}
            assert one.take() is None
            assert other.take() is None
            one.finish(first[0], Outcome(TrialState.COMPLETE, score=1.0))
            other.finish(second[0], Outcome(TrialState.COMPLETE, score=2.0))
        assert states(one.study) == ["COMPLETE"] * 2

    def test_heartbeats_tell_of_trials_on_other_machines(self, tmp_path, monkeypatch):
        monkeypatch.setattr(storages, "HEARTBEAT_S", 1)
        monkeypatch.setattr(storages, "GRACE_S", 1)
        url = STORAGES["sqlite"](tmp_path)
        lost = ledger(url, n_trials=1)
        lost._mark = "elsewhere/1/1"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lost.take()
        storage = open_storage(url)
        study_id = storage.get_study_id_from_name("s")
        storage.record_heartbeat(storage.get_trial_id_from_study_id_trial_number(study_id, 0))
        with sqlite3.connect(tmp_path / "s.db") as database:  # as if its last sign were of long ago
            database.execute("update trial_heartbeats set heartbeat = '2020-01-01 00:00:00'")
        database.close()
        with ledger(url, n_trials=1) as book:
            number, _ = book.take()
            assert number == 1
            book.finish(number, Outcome(TrialState.COMPLETE, score=1.0))
        assert states(book.study) == ["FAIL", "COMPLETE"]

    def test_signs_of_life_are_given(self, tmp_path):
        url = STORAGES["sqlite"](tmp_path)
        with ledger(url, n_trials=1) as book:
            book.take()
            storage, found = open_storage(url), []
            for _ in range(40):
                with sqlite3.connect(tmp_path / "s.db") as database:
                    found = database.execute("select trial_id from trial_heartbeats").fetchall()
                database.close()
                if found:
                    break
                time.sleep(0.1)
            assert found == [(storage.get_trial_id_from_study_id_trial_number(1, 0),)]

    def test_news_for_a_trial_that_others_took_for_dead_are_dropped(self, tmp_path):
        path = STORAGES["journal"](tmp_path)
        with ledger(path, n_trials=1) as book:
            number, _ = book.take()
            opened(path)[0].tell(number, state=TrialState.FAIL)
            assert book.report(number, 0, 1.0)
            book.finish(number, Outcome(TrialState.COMPLETE, score=1.0))
        assert states(book.study) == ["FAIL"]


class TestStudies:
    def test_another_search_is_refused(self, tmp_path):
        opened(tmp_path / "s.journal", steps=100)
        opened(tmp_path / "s.journal", steps=100)
        with pytest.raises(ValueError, match=r"begun with steps 100, got 200.*another study_name"):
            opened(tmp_path / "s.journal", steps=200)
        with pytest.raises(ValueError, match=r"begun with direction maximize, got minimize"):
            opened(tmp_path / "s.journal", steps=100, direction="minimize")
        opened(tmp_path / "s.journal", steps=200, name="another")

    @pytest.mark.parametrize(
        ("storage", "error", "said"),
        [
            (3, TypeError, "got 3"),
            ("study.db", ValueError, "write sqlite:///study.db"),
            ("sqlite:////nowhere/at/all/s.db", ValueError, "cannot be opened"),
            ("/proc/nowhere/s.journal", ValueError, "cannot be opened"),
        ],
    )
    def test_places_that_cannot_be_opened(self, storage, error, said):
        with pytest.raises(error, match=said) as caught:
            open_storage(storage)
        assert "\n" not in str(caught.value)

    def test_forms(self, tmp_path):
        assert isinstance(open_storage(None), optuna.storages.InMemoryStorage)
        for journal in (tmp_path / "a.journal", str(tmp_path / "a.log"), f"journal://{tmp_path}/b/c"):
            assert isinstance(open_storage(journal), optuna.storages.JournalStorage)
        given = optuna.storages.InMemoryStorage()
        assert open_storage(given) is given
