"""When a compiled run spawns: the pure rule, against its own words."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core.types import StopReason
from tensor_optix.evolution.decisions import Evaluations, MetaAction
from tensor_optix.evolution.spawning import Plateau, SpawnConfig, plan

CONFIG = SpawnConfig(max_spawns=3)
WAITS, CONVERGED, BROKEN = StopReason.RUNNING, StopReason.CONVERGED, StopReason.NON_FINITE


def told(reasons, windows, scores=(10.0,) * 12, best=None, done=None, budget=1000):
    size = len(reasons)
    row = np.zeros(28, np.float32)
    row[28 - len(scores) :] = scores
    nothing = jnp.zeros(28, jnp.float32)
    best = np.where(np.asarray(windows) > 0, 1.0, 0.0) if best is None else best
    return Plateau(
        done=jnp.asarray([True] * size if done is None else done),
        reason=jnp.asarray(reasons, jnp.int32),
        windows=jnp.asarray(windows, jnp.int32),
        best=jnp.asarray(best, jnp.float32),
        has_best=jnp.asarray(windows) > 0,
        evaluations=Evaluations(jnp.asarray(row), jnp.int32(len(scores)), nothing, nothing, jnp.int32(0)),
        budget=jnp.int32(budget),
    )


def test_a_plateau_wakes_the_next_place_from_the_best():
    made = plan(CONFIG, told([CONVERGED, CONVERGED, WAITS, WAITS], [50, 40, 0, 0], best=[3.0, 2.0, 9.0, 9.0]))
    assert (int(made.action), bool(made.asked)) == (MetaAction.SPAWN, True)
    assert (int(made.newest), int(made.parent), int(made.remaining)) == (1, 0, 910)
    assert made.noise == CONFIG.max_noise  # nothing rises: as far as it may go


def test_a_rising_score_goes_on():
    made = plan(CONFIG, told([CONVERGED, WAITS, WAITS, WAITS], [50, 0, 0, 0], scores=np.arange(12.0)))
    assert (int(made.action), bool(made.asked)) == (MetaAction.NO_OP, True)
    assert CONFIG.min_noise <= made.noise < CONFIG.max_noise


def test_the_budget_of_spawns_ends_it():
    made = plan(CONFIG, told([CONVERGED] * 4, [50, 40, 30, 20]))
    assert (int(made.action), bool(made.asked)) == (MetaAction.STOP, True)


@pytest.mark.parametrize(
    ("reasons", "windows", "done"),
    [
        ([CONVERGED, WAITS, WAITS, WAITS], [50, 0, 0, 0], [True, False, True, True]),  # woken, and not yet begun
        ([StopReason.TARGET, WAITS, WAITS, WAITS], [50, 0, 0, 0], None),
        ([StopReason.BUDGET, WAITS, WAITS, WAITS], [50, 0, 0, 0], None),
        ([CONVERGED, WAITS, WAITS, WAITS], [1000, 0, 0, 0], None),  # no window left
        ([CONVERGED, CONVERGED, CONVERGED, BROKEN], [50, 40, 30, 20], None),
    ],
)
def test_otherwise_nothing_is_decided(reasons, windows, done):
    made = plan(CONFIG, told(reasons, windows, done=done))
    assert not made.asked
    assert made.action == MetaAction.NO_OP


def test_a_variant_lost_to_nan_is_replaced():
    made = plan(CONFIG, told([CONVERGED, BROKEN, WAITS, WAITS], [50, 4, 0, 0], scores=np.arange(12.0)))
    assert (int(made.action), int(made.newest)) == (MetaAction.SPAWN, 1)


@pytest.mark.parametrize("scale", [1e-3, 2.0**-20, 1e4, 2.0**40])
@pytest.mark.parametrize("level", [5.0, -40.0, 0.0])
def test_the_plan_does_not_depend_on_the_unit_of_scores(scale, level):
    """What a score of zero means is another matter: rises are shares of the level, so an offset is none of a unit."""
    rng, reasons, windows = np.random.default_rng(0), [CONVERGED, CONVERGED, WAITS, WAITS], [50, 40, 0, 0]
    best, actions, noises = np.array([1.0, 3.0, 9.0, 9.0]), set(), set()
    for trend in (0.0, 0.3, 10.0):
        scores = level + rng.normal(size=12) + trend * np.arange(12)
        one = plan(CONFIG, told(reasons, windows, scores, best))
        other = plan(CONFIG, told(reasons, windows, scale * scores, scale * best))
        for name in ("action", "asked", "newest", "parent", "remaining"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("noise", "weight_noise"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-3)
        actions.add(int(one.action))
        noises.add(float(one.noise))
    assert actions == {MetaAction.SPAWN, MetaAction.NO_OP}  # so that there is something to differ in
    assert len(noises) > 1


@pytest.mark.parametrize(("scale", "offset"), [(1.0, -100.0), (1e-3, 7.0), (1e4, -3e4)])
def test_the_parent_is_the_best_at_any_unit_and_offset(scale, offset):
    reasons, windows = [CONVERGED, CONVERGED, CONVERGED, WAITS], [50, 40, 30, 0]
    for best in ([1.0, 3.0, 2.0, 9.0], [-1.0, -3.0, -2.0, 0.0], [0.0, 0.0, 0.5, 0.0]):
        made = plan(CONFIG, told(reasons, windows, best=scale * np.array(best) + offset))
        assert int(made.parent) == int(np.argmax(best[:3]))


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("max_spawns", 0, "at least 1"),
        ("max_ensemble_size", -1, "0 .all. or more"),
        ("min_noise", 0.2, "min_noise <= max_noise"),
        ("max_noise", 1.5, "min_noise <= max_noise"),
        ("weight_noise", -0.1, "weight_noise must be in"),
        ("window", 2, "window is 2"),
        ("improvement_threshold", -1.0, "improvement_threshold"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIG, **{setting: value})


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("max_spawns", "3", "a whole number"), ("window", 3.5, "a whole number"), ("copy_replay", 1, "True or False")],
)
def test_settings_of_another_kind_are_refused(setting, value, said):
    with pytest.raises(TypeError, match=f"{setting} must be {said}, got {value!r}"):
        dataclasses.replace(CONFIG, **{setting: value})
