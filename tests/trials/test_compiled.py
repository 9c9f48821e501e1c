"""Many trials in one compiled program."""

import copy
import dataclasses
import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import optuna
import pytest
from flax import nnx

from tensor_optix import load_run
from tensor_optix.config import ConfigError
from tensor_optix.envs.exploration import DeepSea
from tensor_optix.loop import session
from tensor_optix.trials.batches import Batches
from tensor_optix.trials.compiled import tune
from tensor_optix.trials.compiled_trials import strayed
from tests.runs import SMALL, assert_same_bits

SPACE = {"learning_rate": ("log_float", 1e-4, 1e-2), "gamma": ("categorical", 0.9, 0.99)}
SETTINGS = {
    "config": SMALL, "total_steps": 320, "eval_every": 128, "eval_episodes": 4, "final_episodes": 4, "batch": 2,
}  # fmt: skip


def small(**settings):
    return tune("CartPole-v1", space=SPACE, **(SETTINGS | settings))


def facts_of(study):
    return [(trial.number, trial.params, trial.value) for trial in study.get_trials(deepcopy=False)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Five trials in three batches, kept in a directory; the names of all programs that were compiled."""
    compiled, compile_program = [], session.compile_program

    def counted(lowered, *args, **options):
        compiled.append(lowered)
        return compile_program(lowered, *args, **options)

    directory = tmp_path_factory.mktemp("tune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "compile_program", counted)
        result = small(n_trials=5, run_dir=directory)
    return result, directory, len(compiled)


@pytest.fixture
def copied(searched, tmp_path):
    """What the search kept, in a directory that may be spoiled."""
    return shutil.copytree(searched[1], tmp_path / "copied")


def test_three_batches_are_one_program(searched):
    result, _, n_compiled = searched
    assert n_compiled == 3  # to begin, to run, to evaluate at the end: once each
    assert result.counts() == {"complete": 5}
    assert result.env_steps == 5 * 320


def test_the_best_trial_is_the_answer(searched):
    result, _, _ = searched
    best = max(result.study.trials, key=lambda trial: trial.value)
    assert result.best_score == best.value == result.best.best.score
    assert result.best_params == best.params
    assert result.hyperparams["learning_rate"] == pytest.approx(best.params["learning_rate"])
    assert result.policy(np.zeros(4, np.float32)) in (0, 1)
    assert best.user_attrs["scores"] == [best.value]


def test_learning_curves_are_reported_while_they_are_no_verdict(searched):
    result, _, _ = searched
    for trial in result.study.trials:
        assert list(trial.intermediate_values) == [128, 256, 320]  # environment steps; the last policy is judged too
    curve = result.best.best.curve
    told = result.study.trials[result.best_trial].intermediate_values
    assert list(told.values()) == pytest.approx(curve.score.tolist())


def test_what_is_kept_is_a_run(searched):
    result, directory, _ = searched
    assert {path.name for path in directory.iterdir()} >= {"study.journal", "study.png", "best.json", "best"}
    loaded = load_run(directory / "best")
    assert loaded.best.score == result.best_score
    obs = np.ones((5, 4), np.float32)
    np.testing.assert_array_equal(loaded.policy(obs), result.policy(obs))


@pytest.mark.slow
def test_a_score_depends_on_hyperparameters_and_seeds_alone(searched, copied):
    """Not on the place in a batch, its size, or the other trials: a study without its best run trains it again."""
    result, _, _ = searched
    shutil.rmtree(copied / "best")
    again = small(n_trials=5, run_dir=copied, batch=1)
    assert again.notes == []
    assert facts_of(again.study) == facts_of(result.study)
    assert again.best.best.score == result.best_score
    a, b = jax.tree.leaves(again.policy.params), jax.tree.leaves(result.policy.params)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2])
def test_the_worse_half_is_pruned_and_the_clock_has_no_say(seeds, monkeypatch):
    settings = {
        "n_trials": 12, "n_startup_trials": 4, "pruner_warmup_steps": 256, "total_steps": 64 * 40,
        "seeds_per_trial": seeds,
    }  # fmt: skip
    result = small(**settings)
    trials = result.study.get_trials(deepcopy=False)
    pruned = [t for t in trials if t.state.name == "PRUNED"]
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert result.counts() == {"complete": len(complete), "pruned": len(pruned)}
    assert pruned
    assert all(t.number >= 4 for t in pruned)  # of the batch in which the fourth is complete, none
    for trial in pruned:
        last = max(trial.intermediate_values)
        assert 256 <= last < 64 * 40
        assert trial.user_attrs["env_steps"] == last * seeds  # it went on no further
        best = max(trial.intermediate_values.values())
        others = [t for t in complete if t.number < trial.number]
        assert best < np.median([max(v for step, v in t.intermediate_values.items() if step <= last) for t in others])
    assert result.env_steps == sum(t.user_attrs["env_steps"] for t in trials)
    assert result.env_steps < 12 * seeds * 64 * 40
    assert result.best_score == max(t.value for t in complete)
    monkeypatch.setattr(session, "CHUNK_SECONDS", 1e-3)
    assert facts_of(small(**settings).study) == facts_of(result.study)
    unpruned = small(**(settings | {"prune": False, "n_trials": 6}))
    assert unpruned.counts() == {"complete": 6}


@pytest.mark.slow
def test_seeded(searched):
    result, _, _ = searched
    assert facts_of(small(n_trials=5).study) == facts_of(result.study)
    assert facts_of(small(n_trials=5, seed=1).study) != facts_of(result.study)


@pytest.mark.slow
def test_seeds_of_a_trial_are_averaged():
    result = small(n_trials=2, seeds_per_trial=3)
    for trial in result.study.trials:
        assert len(trial.user_attrs["scores"]) == 3
        assert trial.value == pytest.approx(np.mean(trial.user_attrs["scores"]))
    assert [member.seed for member in result.best.members] == [0, 1, 2]
    assert result.best.config["seeds"] == [0, 1, 2]
    assert result.best.best.score == max(member.score for member in result.best.members)


@pytest.mark.slow
def test_better_hyperparameters_are_found():
    """A learning rate that learns nothing and one that learns: the search tells them apart."""
    result = tune(
        "CartPole-v1",
        space={"learning_rate": ("categorical", 1e-8, 3e-3)},
        n_trials=8,
        total_steps=20_000,
        config={"n_envs": 8, "n_steps": 64},
        seeds_per_trial=2,
    )
    assert result.best_params == {"learning_rate": 3e-3}
    scores = {
        rate: [t.value for t in result.study.trials if t.params["learning_rate"] == rate] for rate in (1e-8, 3e-3)
    }
    assert scores[1e-8]
    assert max(scores[1e-8]) < 100 < min(scores[3e-3])


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C in the first batch, of which nothing is compiled."""

    def run(self, members, goes_on, judge):
        os.kill(os.getpid(), signal.SIGINT)
        assert not goes_on()

    monkeypatch.setattr(Batches, "run", run)
    monkeypatch.setattr(Batches, "compile", lambda self: None)


@pytest.fixture
def idle(monkeypatch):
    """Nothing may be trained."""
    monkeypatch.setattr(Batches, "__init__", lambda self, *_, **__: pytest.fail("it trains"))


def refusal(search, **settings):
    """The sentence with which a search is refused. An interrupt that comes through would end all tests."""
    with pytest.raises((ConfigError, KeyboardInterrupt)) as caught:
        search(**settings)
    return str(caught.value)


class TestContinued:
    def test_a_study_that_is_complete_gives_the_run_that_it_kept(self, searched, copied, idle):
        result, _, _ = searched
        again = small(n_trials=5, run_dir=copied)
        assert again.best_score == again.best.best.score == result.best_score
        assert again.hyperparams == result.hyperparams
        assert again.env_steps == 0
        assert_same_bits(again.policy.params, result.policy.params)
        assert again.best.run_dir == str(copied / "best")
        assert again.notes == []

    def test_the_run_that_it_kept_is_told_by_number_study_and_score(self, searched, copied, interrupted):
        result, _, _ = searched
        kept = json.loads((copied / "best" / "manifest.json").read_text())
        assert kept["trial"] == {"study": "tune", "number": result.best_trial, "score": result.best_score}
        for name, other in (("number", 99), ("score", 0.5), ("study", "another")):
            manifest = kept | {"trial": kept["trial"] | {name: other}}
            (copied / "best" / "manifest.json").write_text(json.dumps(manifest))
            assert small(n_trials=5, run_dir=copied).policy is None  # it is trained again, and interrupted

    def test_an_interrupt_keeps_what_is_finished(self, searched, copied, interrupted):
        result, _, _ = searched
        again = small(n_trials=7, run_dir=copied)
        assert again.interrupted
        assert (again.best_trial, again.best_score) == (result.best_trial, result.best_score)
        assert again.counts() == {"complete": 5, "fail": 2}
        assert_same_bits(again.policy.params, result.policy.params)
        assert load_run(copied / "best").best.score == result.best_score

    @pytest.mark.parametrize("n_trials", [5, 7])
    def test_without_the_kept_run_there_is_a_result_without_a_policy(self, searched, copied, interrupted, n_trials):
        result, _, _ = searched
        shutil.rmtree(copied / "best")
        again = small(n_trials=n_trials, run_dir=copied)
        assert again.interrupted
        assert again.policy is None
        assert (again.best_params, again.best_score) == (result.best_params, result.best_score)
        assert again.hyperparams == result.hyperparams
        assert "was not trained again for its policy: interrupted" in again.report()
        assert json.loads((copied / "best.json").read_text())["run_dir"] is None
        assert not (copied / "best").exists()

    def test_a_damaged_run_is_trained_again(self, copied, interrupted, caplog):
        (copied / "best" / "policy" / "policy.safetensors").write_bytes(b"")
        assert small(n_trials=5, run_dir=copied).policy is None
        assert "cannot be read" in caplog.text

    def test_other_networks_are_refused_and_nothing_is_written(self, copied, idle):
        before = (copied / "best" / "manifest.json").read_bytes()
        with pytest.raises(ConfigError, match=r"begun with networks \[\], got \['actor'\]"):
            small(n_trials=5, run_dir=copied, networks={"actor": lambda rngs: nnx.Linear(4, 2, rngs=rngs)})
        assert (copied / "best" / "manifest.json").read_bytes() == before

    def test_another_architecture_in_the_same_place_is_refused(self, tmp_path, interrupted):
        def sized(width):
            def build(rngs):
                return nnx.Sequential(nnx.Linear(4, width, rngs=rngs), nnx.tanh, nnx.Linear(width, 2, rngs=rngs))

            return {"actor": build}

        with pytest.raises(KeyboardInterrupt):
            small(n_trials=2, run_dir=tmp_path, networks=sized(8))
        said = refusal(small, n_trials=2, run_dir=tmp_path, networks=sized(16))
        assert re.search(r"begun with policy \d+ arrays of \d+ numbers .*, got", said)
        with pytest.raises(KeyboardInterrupt):
            small(n_trials=2, run_dir=tmp_path, networks=sized(8))

    def test_another_environment_of_the_same_class_is_refused(self, tmp_path, interrupted):
        settings = SETTINGS | {"space": SPACE, "n_trials": 2, "run_dir": tmp_path}
        with pytest.raises(KeyboardInterrupt):
            tune(DeepSea(depth=4, seed=0), **settings)
        said = refusal(tune, env=DeepSea(depth=4, seed=1), **settings)
        assert re.search(r"begun with env_params.object.right bool\[4, 4\] .*, got bool", said)
        with pytest.raises(KeyboardInterrupt):
            tune(DeepSea(depth=4, seed=0), **settings)


def test_a_repetition_that_goes_another_way_is_noted(searched):
    result, _, _ = searched
    trial, members = result.study.trials[result.best_trial], result.best.members
    assert strayed(trial, members) is None
    in_training = copy.deepcopy(members[0])
    in_training.curve.score[1] += 1.0
    assert "after 256 steps it scored" in strayed(trial, [in_training])
    in_the_end = dataclasses.replace(members[0], score=members[0].score + 1.0)
    said = strayed(trial, [in_the_end])
    assert f"the policy scores {in_the_end.score:.4g}, the study says {trial.value:.4g}" in said
    assert "steps it scored" not in said


def test_an_interrupt_gives_up_the_batch(tmp_path, interrupted):
    with pytest.raises(KeyboardInterrupt):
        small(n_trials=4, storage=tmp_path / "s.journal", study_name="s")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "s.journal")))
    study = optuna.load_study(study_name="s", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL"]
    assert all("lost" in trial.user_attrs for trial in study.trials)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"space": {"n_epochs": ("int", 1, 4)}}, "n_epochs is a setting of ppo that its program is compiled for"),
        ({"space": {"cliprange": ("float", 0.1, 0.3)}}, "did you mean 'clip_range'"),
        ({"space": {"gamma": ("float", 0.5, 1.5)}}, r"must lie in \[0, 1\], got 1.5"),
        ({"space": {"gamma": ("categorical", "high", 0.9)}}, "must offer numbers"),
        ({"space": {"gamma": (0.9, 0.99)}}, "begins with 0.9"),
        ({"algorithm": "sac"}, "sac needs continuous actions"),
        ({"algorithm": "pppo"}, "did you mean 'ppo'"),
        ({"n_trials": 0}, "n_trials must be a whole number"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, got 'a'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"total_steps": None}, "total_steps must be a whole number of at least 1, got None"),
        ({"config": 3}, "config must be a mapping of names to values, got 3"),
        ({"networks": ["actor"]}, "networks must be a mapping of names to values"),
        ({"storage": "study.db"}, "write sqlite:///study.db"),
    ],
)
def test_mistakes_are_said_in_one_sentence(settings, said):
    settings = {"algorithm": "ppo", "space": SPACE} | settings
    with pytest.raises(ConfigError, match=said) as caught:
        tune("CartPole-v1", settings.pop("algorithm"), **settings)
    assert "\n" not in str(caught.value)
