"""What a search draws from: every form, every mistake, and what is stored."""

import optuna
import pytest

from tensor_optix.core.search_space import search_space
from tensor_optix.trials.space import trial_space, trial_space_of


def drawn(specs, count=40):
    """Decoded parameters of `count` random trials, and those that the study stored."""
    space = trial_space(specs)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    stored = []
    for _ in range(count):
        trial = study.ask()
        for name, entry in space.entries:
            entry.suggest(trial, name)
        stored.append(trial.params)
    return [space.decoded(params) for params in stored], stored


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_every_form():
    params, _ = drawn({
        "a": ("float", -1.0, 1.0), "b": ("log_float", 1e-5, 1e-1), "c": ("int", 32, 512), "d": ("log_int", 1, 1024),
        "e": ("categorical", "relu", None, 3), "f": ["float", 0, 2],
    })  # fmt: skip
    columns = {name: [p[name] for p in params] for name in params[0]}
    assert {name: {type(v) for v in columns[name]} for name in "abcdf"} == {
        "a": {float}, "b": {float}, "c": {int}, "d": {int}, "f": {float},
    }  # fmt: skip
    assert all(-1 <= v <= 1 for v in columns["a"])
    assert min(columns["a"]) < -0.5 < 0.5 < max(columns["a"])
    assert sum(v < 1e-3 for v in columns["b"]) > 10  # half of them, on a log scale; one in a hundred otherwise
    assert min(columns["c"]) >= 32 > 0
    assert max(columns["c"]) <= 512
    assert sum(v < 32 for v in columns["d"]) > 10
    assert set(columns["e"]) == {"relu", None, 3}


def test_choices_that_a_study_cannot_store_are_stored_by_their_text():
    params, stored = drawn({"widths": ("categorical", (64, 64), (256,), None)})
    assert {p["widths"] for p in params} == {(64, 64), (256,), None}
    assert {p["widths"] for p in stored} == {"(64, 64)", "(256,)", "None"}


def test_what_a_tuner_would_move_is_a_space():
    space = trial_space_of(search_space({"lr": ("log", 1e-4, 1e-2), "n": ("int", 1, 4)}))
    assert space.facts() == {"lr": ["log_float", 1e-4, 1e-2], "n": ["int", 1, 4]}
    assert trial_space(space.facts()) == space


@pytest.mark.parametrize(
    ("specs", "error", "said"),
    [
        ([("float", 0, 1)], TypeError, "must map names"),
        ({}, ValueError, "is empty"),
        ({"x": "float"}, TypeError, "param_space['x'] must be one of"),
        ({"x": (0.1, 0.2)}, ValueError, "begins with 0.1, expected one of float"),
        ({"x": ("loguniform", 1, 2)}, ValueError, "begins with 'loguniform'"),
        ({"x": ("float", 1)}, ValueError, "('float', low, high), got 1 numbers"),
        ({"x": ("float", 1, 1)}, ValueError, "low < high"),
        ({"x": ("float", 2, 1)}, ValueError, "low < high"),
        ({"x": ("float", 0, float("inf"))}, TypeError, "finite numbers"),
        ({"x": ("float", "0", 1)}, TypeError, "finite numbers"),
        ({"x": ("float", False, True)}, TypeError, "finite numbers"),
        ({"x": ("int", 1, 2.5)}, ValueError, "whole numbers, got 2.5"),
        ({"x": ("log_float", 0, 1)}, ValueError, "low must be above 0"),
        ({"x": ("log_int", 0, 8)}, ValueError, "low must be at least 1"),
        ({"x": ("categorical",)}, ValueError, "offers no value"),
        ({"x": ("categorical", [32, 64])}, ValueError, "write its items one by one"),
        ({"x": ("categorical", 1, 1)}, ValueError, "offers a value twice"),
    ],
)
def test_mistakes_are_said_in_one_sentence(specs, error, said):
    with pytest.raises(error) as caught:
        trial_space(specs)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
