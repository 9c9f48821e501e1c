"""A search's answer is a pair and a mapping."""

import copy
import pickle

import pytest

from tensor_optix.trials.result import BestTrial

FOUND = BestTrial({"lr": 3e-4, "units": 64}, 12.5)


def test_a_pair():
    params, score = FOUND
    assert (params, score) == ({"lr": 3e-4, "units": 64}, 12.5)
    assert FOUND == ({"lr": 3e-4, "units": 64}, 12.5)
    assert isinstance(FOUND, tuple)
    assert len(FOUND) == 2
    assert (FOUND[0], FOUND[-1], FOUND.score) == (params, 12.5, 12.5)


def test_a_mapping_over_the_params():
    def make(lr, units):
        return lr, units

    assert FOUND["lr"] == 3e-4
    assert dict(FOUND) == {"lr": 3e-4, "units": 64} == {**FOUND}
    assert make(**FOUND) == (3e-4, 64)
    assert list(FOUND.items()) == [("lr", 3e-4), ("units", 64)]
    assert list(FOUND.keys()) == ["lr", "units"]
    assert list(FOUND.values()) == [3e-4, 64]
    assert FOUND.get("lr") == 3e-4
    assert FOUND.get("other", 1) == 1
    assert "lr" in FOUND
    assert "other" not in FOUND
    with pytest.raises(KeyError):
        FOUND["other"]


def test_copies_are_equal_and_the_params_given_are_not_shared():
    given = {"lr": 1.0}
    found = BestTrial(given, 0)
    given["lr"] = 2.0
    assert found["lr"] == 1.0
    assert copy.deepcopy(FOUND) == FOUND == pickle.loads(pickle.dumps(FOUND))
    assert "units" in repr(FOUND)
