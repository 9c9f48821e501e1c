"""Backoff: only the sign of a difference counts; the step grows and shrinks; bounds are not favoured."""

from dataclasses import replace

import numpy as np
import pytest

from tensor_optix.optimizers import Backoff
from tests.optimizers.tuner_parts import centre, observe, one_cycle, start

TUNER = Backoff(step=0.02, grow=1.5, shrink=0.5, step_min=0.005, step_max=0.04)


def moves(tuner, sides, x0=0.5):
    """Moves of the centre when the better side is as given, visit by visit."""
    state, path = start(tuner, [x0]), [x0]
    for side in sides:
        state, _ = one_cycle(tuner, state, lambda t, p, side=side: side * float(p[-1][0]))
        path.append(centre(tuner, state)[0])
    return np.diff(path)


def test_steps_grow_on_success_and_shrink_on_failure_within_limits():
    expected = [0.02, 0.03, 0.04, 0.04, -0.02, 0.01, -0.005, 0.005, 0.0075]
    np.testing.assert_allclose(moves(TUNER, [1, 1, 1, 1, -1, 1, -1, 1, 1]), expected, atol=1e-6)


def test_the_older_form_shrinks_on_improvement():
    old = replace(TUNER, shrink_on_improvement=True)
    np.testing.assert_allclose(moves(old, [1, 1, 1, 1, -1, 1]), [0.02, 0.01, 0.005, 0.005, -0.0075, 0.01125], atol=1e-6)


def test_no_difference_moves_nothing():
    np.testing.assert_allclose(moves(TUNER, [1, 0, 1]), [0.02, 0.0, 0.03], atol=1e-6)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e9])
def test_only_the_sign_counts(size):
    np.testing.assert_allclose(moves(TUNER, [size, -size]), [0.02, -0.01], atol=1e-6)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_at_a_bound_the_better_side_is_found_by_scores(bound):
    inwards = 1.0 if bound == 0 else -1.0
    assert moves(TUNER, [-inwards] * 6, bound).tolist() == [0.0] * 6
    assert moves(TUNER, [inwards] * 6, bound).sum() * inwards > 0.15


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_rising_score_is_no_success_of_the_first_probe(slope):
    state = start(TUNER, [0.5])
    for _ in range(3):
        before = centre(TUNER, state)[0]
        state, _ = one_cycle(TUNER, state, lambda t, p: slope * float(p[-1][0]) + 10.0 * t)
        assert np.sign(centre(TUNER, state)[0] - before) == slope


def test_coordinates_have_steps_of_their_own():
    state = start(TUNER, [0.5, 0.5])
    for side in (1, 1, 1, -1, 1, 1):  # first coordinate: 1 1 1, second: 1 -1 1
        state, _ = one_cycle(TUNER, state, lambda t, p, side=side: side * float(p[-1].sum()))
    np.testing.assert_allclose(state.step, [0.04, 0.005], atol=1e-6)


def test_an_invalid_period_shrinks_the_probes_and_not_the_step():
    state = observe(TUNER, start(TUNER, [0.5]), 1.0)
    state = observe(TUNER, state, 0.0, valid=False)
    assert float(state.step[0]) == pytest.approx(0.02)
    _, probes = one_cycle(TUNER, state, lambda t, p: 0.0)
    assert np.abs(probes - 0.5).max() == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("knobs", [{"c": 0.0}, {"step": 0.001}, {"step_max": 0.001}, {"grow": 0.9}, {"shrink": 0.0}])
def test_bad_knobs_are_refused(knobs):
    with pytest.raises(ValueError, match=next(iter(knobs)).split("_")[0]):
        replace(TUNER, **knobs)
    with pytest.raises(ValueError, match="finite"):
        Backoff(step=float("nan"))
