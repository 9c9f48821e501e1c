"""The map between hyperparameters and the unit cube."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core.search_space import Parameter, SearchSpace, from_unit, search_space, to_unit, with_integers

SPACE = search_space(
    {
        "learning_rate": ("log", 1e-4, 3e-3),
        "gamma": (0.95, 0.999),
        "offset": (-3.0, 2.0),
        "epochs": ("int", 1, 10),
        "batch": ("log_int", 16, 1024),
    }
)
CONTINUOUS = search_space({"learning_rate": ("log", 1e-4, 3e-3), "gamma": (0.95, 0.999), "offset": (-3.0, 2.0)})


def test_midpoints_by_hand():
    values = from_unit(SPACE, jnp.full((5,), 0.5, jnp.float32), {})
    assert float(values["learning_rate"]) == pytest.approx(math.sqrt(1e-4 * 3e-3), rel=1e-6)  # the geometric mean
    assert float(values["gamma"]) == pytest.approx(0.9745, rel=1e-6)
    assert float(values["offset"]) == -0.5
    assert float(values["epochs"]) == 6.0  # 5.5, to even
    assert float(values["batch"]) == 128.0
    assert all(v.dtype == jnp.float32 and v.shape == () for v in values.values())


def test_round_trip_of_continuous_parameters():
    points = np.random.default_rng(0).uniform(size=(2000, 3)).astype(np.float32)
    points[:2] = [[0, 0, 0], [1, 1, 1]]
    back = jax.vmap(lambda x: to_unit(CONTINUOUS, from_unit(CONTINUOUS, x, {})))(points)
    np.testing.assert_allclose(back, points, atol=1e-6, rtol=0)


@pytest.mark.parametrize("jit", [False, True])
def test_values_never_leave_the_bounds_as_the_user_wrote_them(jit):
    # float32(0.1), float32(0.3) and float32(0.999) lie outside these ranges; so do exp and log by an ulp
    rng = np.random.default_rng(1)
    bounds = {f"p{i}": ("log", *sorted(rng.uniform(1e-6, 5, 2))) for i in range(20)}
    space = search_space({**bounds, "clip": (0.1, 0.3), "gamma": (0.95, 0.999), "tau": ("log", 1e-3, 1e-1)})
    place = (lambda x: from_unit(space, x, {})) if not jit else jax.jit(lambda x: from_unit(space, x, {}))
    for x in (-1.0, 0.0, 1e-8, 0.5, 1.0 - 1e-7, 1.0, 7.0):
        values = place(jnp.full((space.dim,), x, jnp.float32))
        for name, parameter in space.entries:
            assert parameter.low <= float(values[name]) <= parameter.high, (name, x)


def test_values_outside_the_bounds_map_to_the_nearest_bound():
    x = to_unit(CONTINUOUS, {"learning_rate": 1.0, "gamma": 0.5, "offset": -100.0})
    assert dict(zip(CONTINUOUS.names, x.tolist(), strict=True)) == {"gamma": 0.0, "learning_rate": 1.0, "offset": 0.0}
    assert to_unit(CONTINUOUS, {"learning_rate": -1.0, "gamma": 0.999, "offset": 0.0}).tolist()[1] == 0.0


def test_integers_are_whole_and_reach_both_ends():
    space = search_space({"epochs": ("int", 1, 10), "batch": ("log_int", 1, 7)})
    grid = jnp.linspace(0, 1, 301, dtype=jnp.float32)
    values = jax.vmap(lambda x: from_unit(space, jnp.stack([x, x]), {}))(grid)
    assert set(np.asarray(values["epochs"]).tolist()) == set(range(1, 11))
    assert set(np.asarray(values["batch"]).tolist()) == set(range(1, 8))


def test_resolution_is_the_widest_gap_of_integers():
    space = search_space({"batch": ("log_int", 1, 7), "epochs": ("int", 3, 13), "gamma": (0.9, 0.99)})
    gap = {n: p.resolution for n, p in space.entries}
    one, two = (float(to_unit(search_space({"batch": ("log_int", 1, 7)}), {"batch": v})[0]) for v in (1, 2))
    assert gap["batch"] == pytest.approx(two - one, rel=1e-5)
    assert gap["epochs"] == pytest.approx(0.1)
    assert gap["gamma"] == 0.0


def test_what_is_not_tuned_passes_through():
    base = {"learning_rate": jnp.float32(1e-3), "other": jnp.float32(7.0)}
    space = search_space({"learning_rate": ("log", 1e-4, 3e-3)})
    out = from_unit(space, to_unit(space, base), base)
    assert out["other"] is base["other"]
    assert set(out) == set(base)
    assert base["learning_rate"] == jnp.float32(1e-3)  # the argument is not written to


def test_empty_space():
    space = search_space({})
    assert space.dim == 0
    assert to_unit(space, {"a": 1.0}).shape == (0,)
    assert from_unit(space, jnp.zeros((0,), jnp.float32), {"a": 1.0}) == {"a": 1.0}


def test_static_and_hashable_whatever_the_order():
    a = search_space({"x": (0, 1), "y": (1, 2)})
    b = search_space({"y": (1, 2), "x": (0, 1)})
    assert a == b
    assert hash(a) == hash(b)
    assert a.names == ("x", "y")
    traces = []
    place = jax.jit(lambda s, x: traces.append(s) or from_unit(s, x, {}), static_argnums=0)
    place(a, jnp.zeros((2,), jnp.float32))
    place(b, jnp.ones((2,), jnp.float32))
    assert len(traces) == 1


def test_vmap_lanes_are_independent():
    points = jnp.asarray(np.random.default_rng(2).uniform(size=(7, 5)), jnp.float32)
    together = jax.vmap(lambda x: from_unit(SPACE, x, {}))(points)
    for i in range(7):
        alone = from_unit(SPACE, points[i], {})
        for name in SPACE.names:
            np.testing.assert_allclose(together[name][i], alone[name], rtol=3e-7)


def test_log_names_apply_to_plain_bounds():
    space = search_space({"lr": (1e-4, 1e-2), "gamma": (0.9, 0.99)}, log={"lr"})
    assert space == search_space({"lr": ("log", 1e-4, 1e-2), "gamma": ("linear", 0.9, 0.99)})
    assert search_space({"lr": Parameter(1.0, 2.0)}) == SearchSpace((("lr", Parameter(1.0, 2.0)),))


def test_with_integers_keeps_whole_numbers_whole():
    space = search_space({"epochs": (1, 10), "scale": (0.5, 2.0), "flag": (0, 1), "x": (0, 5)})
    mended = dict(with_integers(space, {"epochs": 4, "scale": 1, "flag": True, "x": 2.0}).entries)
    assert mended["epochs"].integer
    assert not any(mended[name].integer for name in ("scale", "flag", "x"))


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"lr": (1.0, 1.0)}, "'lr'.*below high.*1.0"),
        ({"lr": (2.0, 1.0)}, "below high"),
        ({"lr": ("log", 0.0, 1.0)}, "positive.*linear"),
        ({"lr": ("log", -1.0, 1.0)}, "positive"),
        ({"lr": (0.0, math.inf)}, "finite"),
        ({"lr": (math.nan, 1.0)}, "finite"),
        ({"lr": ("logg", 1.0, 2.0)}, "unknown scale 'logg'.*did you mean 'log'"),
        ({"n": ("int", 1, 2.5)}, "whole"),
        ({"lr": (1.0, 1.0 + 1e-9)}, "float32"),
        ({"lr": (-3e38, 3e38)}, "float32"),
        ({"lr": (0.0, 1e300)}, "float32"),
        ({"lr": ("log", 1e-60, 1.0)}, "float32"),
        ({"lr": (0.0, 1e-42)}, "float32"),
    ],
)
def test_bad_bounds_are_refused(bounds, words):
    with pytest.raises(ValueError, match=words):
        search_space(bounds)


@pytest.mark.parametrize("spec", [(1.0,), 3.0, "log", (1, 2, 3, 4), ("log", "1", "2"), (True, 2.0), None])
def test_bad_forms_are_refused(spec):
    with pytest.raises(TypeError, match="'lr'"):
        search_space({"lr": spec})


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        search_space({"learning_rate": (0, 1)}, log={"learning_rat"})
    with pytest.raises(TypeError, match="string"):
        search_space({"lr": (0, 1)}, log="lr")
    with pytest.raises(ValueError, match="did you mean 'lr_'"):
        to_unit(search_space({"lr": (0, 1)}), {"lr_": 0.5})
    with pytest.raises(ValueError, match="shape"):
        from_unit(search_space({"lr": (0, 1)}), jnp.zeros((2,), jnp.float32), {})
