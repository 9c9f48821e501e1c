"""Momentum: round robin, order, slopes over the width truly taken, moments."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.optimizers import Momentum
from tests.optimizers.tuner_parts import centre, fed, observe, one_cycle, start

TUNER = Momentum()


def test_one_coordinate_at_a_time_in_the_order_plus_minus_minus_plus():
    state = start(TUNER, [0.5, 0.4, 0.6])
    for visit, sign in enumerate((1, -1, 1)):  # the first side alternates between visits
        for on in range(3):
            before = centre(TUNER, state)
            state, probes = one_cycle(TUNER, state, lambda t, p: 0.0)
            expected = np.tile(before, (4, 1))
            expected[:, on] += 0.2 * sign * np.array([1, -1, -1, 1])
            np.testing.assert_allclose(probes, expected, atol=1e-6, err_msg=f"visit {visit}, coordinate {on}")


@pytest.mark.parametrize("rate", [False, True])
@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_steep_linear_drift_does_not_hide_the_slope(rate, slope):
    def score(t, probes):
        effects = [slope * float(p[0]) for p in probes]
        return (sum(effects) if rate else effects[-1]) + 10.0 * t

    state = start(TUNER, [0.5])
    for _ in range(2):  # both orders
        before = centre(TUNER, state)[0]
        state, _ = one_cycle(TUNER, state, score)
        assert np.sign(centre(TUNER, state)[0] - before) == slope


def test_only_the_probed_coordinate_moves():
    state, _ = one_cycle(TUNER, start(TUNER, [0.5, 0.5]), lambda t, p: float(p[-1].sum()))
    assert centre(TUNER, state)[0] > 0.5
    assert centre(TUNER, state)[1] == 0.5
    state, _ = one_cycle(TUNER, state, lambda t, p: float(p[-1].sum()))
    assert centre(TUNER, state)[1] > 0.5


def test_a_period_is_credited_to_its_own_probe():
    for lucky, sign in enumerate((1, -1, -1, 1)):
        state, _ = one_cycle(TUNER, start(TUNER, [0.5]), lambda t, p, lucky=lucky: float(t == lucky))
        assert np.sign(centre(TUNER, state)[0] - 0.5) == sign


def test_moments_by_hand():
    # a contrast of 4 with noise sd 1: |C| = 4 against a prior of two contrasts of 2 / 1.2533, so scale and slope follow
    tuner = Momentum(alpha=0.1, beta=0.5, beta_square=0.9, caution=0.0)
    state = start(tuner, [0.5])
    for score in (1.0, -1.0, -1.0, 1.0):
        state = observe(tuner, state, score, 1.0)
    gaussian = np.sqrt(np.pi / 2)
    prior = 2 * 2 / gaussian
    scale = gaussian * (min(4.0, 3 * prior / 2) + prior) / (1 + 2)
    slope = np.clip(4 / scale, -2, 2)
    mean, square = 0.5 * slope, 0.9 + 0.1 * slope**2
    assert float(state.slope[0]) == pytest.approx(mean, rel=1e-5)
    assert float(state.square[0]) == pytest.approx(square, rel=1e-5)
    assert centre(tuner, state)[0] == pytest.approx(0.5 + 0.1 * mean / np.sqrt(square), rel=1e-5)


@pytest.mark.parametrize("x0", [0.0, 1.0])
def test_at_a_bound_a_difference_counts_over_the_step_truly_taken(x0):
    # the pair has half its width there, so the same difference is twice the slope
    def after(x0):
        state = start(TUNER, [x0])
        probes = []
        for score in (0.2, 0.1, 0.1, 0.2):
            probes.append(fed(TUNER, state, [0.0])[1][0, 0])
            state = observe(TUNER, state, score, 1.0)
        return state, np.ptp(probes)

    (inside, wide), (bound, narrow) = after(0.5), after(x0)
    assert narrow == pytest.approx(wide / 2, rel=1e-5)
    assert narrow > 0
    assert float(bound.slope[0]) == pytest.approx(2 * float(inside.slope[0]), rel=1e-5)


def test_a_roll_back_forgets_the_slopes():
    state, _ = one_cycle(TUNER, start(TUNER, [0.5]), lambda t, p: float(p[-1][0]))
    assert float(state.slope[0]) > 0
    assert float(TUNER.recentre(state, jnp.asarray([0.2], jnp.float32)).slope[0]) == 0


@pytest.mark.parametrize(
    "knobs", [{"c": 0.0}, {"c": 0.6}, {"alpha": 0.0}, {"beta": 1.0}, {"beta_square": -0.1}, {"caution": -1.0}]
)
def test_bad_knobs_are_refused(knobs):
    with pytest.raises(ValueError, match=next(iter(knobs))):
        replace(TUNER, **knobs)
    with pytest.raises(ValueError, match="finite"):
        Momentum(alpha=float("inf"))
