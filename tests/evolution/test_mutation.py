"""A variant's hyperparameters: inside their ranges, and of the kind that they were."""

import jax
import numpy as np
import pytest

from tensor_optix.algorithms import host_ppo
from tensor_optix.evolution.mutation import mutated


class Named:
    """Says something of its hyperparameters."""

    default_param_bounds = {"gamma": (0.95, 0.999), "lr": (1e-4, 1e-2), "n": (1, 10)}  # noqa: RUF012
    default_log_params = ("lr",)


class Limited(Named):
    def hyperparam_limits(self):
        return {"vf_coef": (0.0, 1.0), "n": (1, 10), "layers": (1, 9)}


class Silent:
    pass


PARAMS = {
    "gamma": 0.999, "lr": 1e-3, "n": 4, "vf_coef": 0.99, "layers": 2, "flag": True, "off": False, "name": "x",
    "nothing": None, "sizes": [1, 2], "batch": np.int64(3),
}  # fmt: skip


def many(agent, params=PARAMS, noise=0.3, n=60):
    key = jax.random.key(0)
    return [mutated(jax.random.fold_in(key, i), agent, params, noise) for i in range(n)]


@pytest.mark.parametrize("agent", [Named(), Limited(), Silent()])
def test_kinds_stay_and_nothing_is_lost(agent):
    for result in many(agent, n=10):
        assert list(result) == list(PARAMS)
        for name in ("flag", "off", "name", "nothing", "sizes"):
            assert result[name] is PARAMS[name]
        for name in ("n", "layers", "batch"):
            assert isinstance(result[name], int | np.integer)
        assert all(type(result[name]) is float for name in ("gamma", "lr", "vf_coef"))


def test_named_ranges_hold_and_the_rest_is_left_alone():
    results = many(Named())
    for name, (low, high) in Named.default_param_bounds.items():
        values = [result[name] for result in results]
        assert low <= min(values) < max(values) <= high
    assert {result["vf_coef"] for result in results} == {0.99}
    assert {result["layers"] for result in results} == {2}
    assert len({result["n"] for result in results}) > 3


def test_limits_hold_for_what_has_no_range():
    values = [result["vf_coef"] for result in many(Limited())]
    assert 0.9 < min(values) < max(values) < 1.0
    assert {result["layers"] for result in many(Limited())} == {2}  # whole numbers are not multiplied


def test_an_agent_that_says_nothing_keeps_its_discounts_below_one():
    results = many(Silent())
    for name in ("gamma", "lr", "vf_coef"):
        values = [result[name] for result in results]
        assert len(set(values)) > 50
        assert 0.0 < min(values) < max(values) < 1.0


def test_a_choice_outside_the_range_widens_it():
    values = [result["gamma"] for result in many(Named(), {"gamma": 0.9999})]
    assert 0.95 <= min(values) < max(values) <= 0.9999


def test_values_that_cannot_be_moved_stay():
    odd = {"gamma": "auto", "lr": 0.0, "n": True}
    assert many(Named(), odd, n=1) == [odd]


def test_a_key_gives_the_same_and_another_key_another():
    key = jax.random.key(1)
    assert mutated(key, Named(), PARAMS, 0.1) == mutated(key, Named(), PARAMS, 0.1)
    assert mutated(key, Named(), PARAMS, 0.1) != mutated(jax.random.key(2), Named(), PARAMS, 0.1)


def test_an_agent_of_this_package_takes_what_comes():
    class PPO:
        default_param_bounds, default_log_params = host_ppo.PARAM_BOUNDS, host_ppo.LOG_PARAMS

    params = host_ppo.complete({})
    for result in many(PPO(), params, noise=1.0, n=20):
        assert host_ppo.complete(result) == result


def test_bad_noise_is_refused():
    for bad in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="noise is a standard deviation"):
            mutated(jax.random.key(0), Named(), PARAMS, bad)
