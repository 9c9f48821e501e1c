"""Many trials in one compiled program."""

import os
import signal

import jax
import numpy as np
import optuna
import pytest

from tensor_optix import load_run
from tensor_optix.config import ConfigError
from tensor_optix.loop import session
from tensor_optix.trials.compiled import tune
from tests.runs import SMALL

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
def test_a_score_depends_on_hyperparameters_and_seeds_alone(searched):
    """Not on the place in a batch, its size, or the other trials: a resumed study runs its best again, alone."""
    result, directory, _ = searched
    again = small(n_trials=5, run_dir=directory, batch=1)
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


def test_an_interrupt_gives_up_the_batch(tmp_path, monkeypatch):
    from tensor_optix.trials.batches import Batches

    def interrupted(self, members, goes_on, judge):
        os.kill(os.getpid(), signal.SIGINT)
        assert not goes_on()

    monkeypatch.setattr(Batches, "run", interrupted)
    monkeypatch.setattr(Batches, "compile", lambda self: None)
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
        ({"space": {"clip": ("float", 0.1, 0.3)}}, "did you mean 'clip_range'"),
        ({"space": {"gamma": ("float", 0.5, 1.5)}}, r"must lie in \[0, 1\], got 1.5"),
        ({"space": {"gamma": ("categorical", "high", 0.9)}}, "must offer numbers"),
        ({"space": {"gamma": (0.9, 0.99)}}, "begins with 0.9"),
        ({"algorithm": "sac"}, "sac needs continuous actions"),
        ({"algorithm": "pppo"}, "did you mean 'ppo'"),
        ({"n_trials": 0}, "n_trials must be a whole number"),
        ({"storage": "study.db"}, "write sqlite:///study.db"),
    ],
)
def test_mistakes_are_said_in_one_sentence(settings, said):
    settings = {"algorithm": "ppo", "space": SPACE} | settings
    with pytest.raises(ConfigError, match=said) as caught:
        tune("CartPole-v1", settings.pop("algorithm"), **settings)
    assert "\n" not in str(caught.value)
