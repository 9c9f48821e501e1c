"""The adaptive tuner: who acts when, that all hear, and that a change of tuner leaves no probe behind."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tensor_optix.optimizers import PBT, Adaptive
from tensor_optix.optimizers.adaptive import NAMES
from tests.optimizers.tuner_parts import call, centre, history_of, observe, start, suggest

TUNER = Adaptive()
RNG = np.random.default_rng(3)
WHITE = RNG.normal(size=160).astype(np.float32)
SLOW = (np.convolve(RNG.normal(size=175), 0.8 ** np.arange(16), "valid") + 0.5 * np.arange(160)).astype(np.float32)
SWING = (np.where(np.arange(160) % 2 == 0, 1.0, -1.0) + 0.1 * WHITE).astype(np.float32)
FALL = np.where(np.arange(160) < 60, np.arange(160), 30.0 - 0.2 * np.arange(160)).astype(np.float32) + 0.1 * WHITE


def acting(scores, tuner=TUNER):
    """Index of the active tuner after each score."""
    states, _ = history_of(tuner, start(tuner, [0.5, 0.5]), scores)
    return np.asarray(states.active), states


@pytest.mark.parametrize(("scores", "name"), [(WHITE, "spsa"), (SLOW, "momentum"), (SWING, "backoff")])
def test_autocorrelation_says_who_acts(scores, name):
    active, _ = acting(scores)
    assert (active[20:] == NAMES.index(name)).mean() > 0.6


def test_a_fall_far_below_the_best_calls_pbt():
    active, _ = acting(FALL)
    assert (active[:60] != NAMES.index("pbt")).all()
    assert (active[66:] == NAMES.index("pbt")).all()


def test_nobody_else_acts_before_enough_scores_and_confirmations():
    active, states = acting(SWING)
    first = int(np.argmax(active != 0))
    assert first == 11  # ten scores are needed, then the second and third call in a row follow
    assert np.asarray(states.stay)[first] == 0
    patient, _ = acting(SWING, replace(TUNER, confirmations=6))
    assert int(np.argmax(patient != 0)) == 14
    staying, _ = acting(SWING, replace(TUNER, min_stay=40))
    assert int(np.argmax(staying != 0)) == 39


def test_it_stays_three_evaluations_at_least():
    changes = np.flatnonzero(np.diff(acting(np.concatenate([SWING[:40], SLOW[:40], FALL[:80]]))[0]))
    assert len(changes) >= 3
    assert np.diff(changes).min() >= 3


def test_all_hear_every_score():
    state = start(TUNER, [0.5, 0.5])
    xs = []
    for score in WHITE[:9]:
        xs.append(suggest(TUNER, state))
        state = observe(TUNER, state, score)
    spsa, momentum, backoff, pbt = state.inner
    assert int(state.active) == 0
    assert int(pbt.count) == 8  # the first has nothing to be compared with
    np.testing.assert_array_equal(pbt.settings[:8], xs[1:])
    assert float(momentum.weight) > 1.9  # two whole cycles tell how noisy contrasts are
    assert float(momentum.size) == pytest.approx(float(spsa.size), rel=1e-6)
    # and nobody is credited with what it did not suggest
    np.testing.assert_array_equal(momentum.slope, np.zeros(2))
    np.testing.assert_array_equal(backoff.side, np.zeros(2))
    for idle in (momentum, backoff):
        np.testing.assert_array_equal(idle.centre, [0.5, 0.5])
    np.testing.assert_array_equal(pbt.anchor, [0.5, 0.5])


def test_an_invalid_period_costs_only_the_one_that_acted_its_width():
    state = observe(TUNER, start(TUNER, [0.5, 0.5]), float("nan"), valid=False)
    assert [float(inner.shrink) for inner in state.inner] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("scores", [SWING, SLOW, FALL, np.concatenate([SWING[:50], SLOW[:60], FALL[:50]])])
def test_a_change_leaves_no_probe_applied(scores):
    states, xs = history_of(TUNER, start(TUNER, [0.5, 0.4]), scores)
    active = np.asarray(states.active)
    changes = np.flatnonzero(np.diff(active)) + 1
    assert len(changes) >= 1
    centres = [np.asarray(inner.anchor if i == 3 else inner.centre) for i, inner in enumerate(states.inner)]
    for t in changes:
        old, new = active[t - 1], active[t]
        np.testing.assert_array_equal(centres[new][t], centres[old][t])  # the outgoing one's, after its last score
        if t + 1 < len(xs):
            if new == NAMES.index("pbt"):
                np.testing.assert_array_equal(xs[t + 1], centres[old][t])
            else:  # a pair of its own about that centre
                assert int(np.asarray(states.inner[new].phase)[t]) == 0
                offsets = np.abs(xs[t + 1] - centres[old][t])
                expected = [0.2, 0.2] if new == 0 else [0.0, 0.2]
                np.testing.assert_allclose(np.sort(offsets), expected, atol=1e-5)


def test_a_roll_back_recentres_all_and_empties_the_window():
    state = start(TUNER, [0.9, 0.9])
    for score in SWING[:15]:
        state = observe(TUNER, state, score)
    state = call(TUNER, "recentre", state, np.asarray([0.3, 0.4], np.float32))
    np.testing.assert_allclose(centre(TUNER, state), [0.3, 0.4])
    for i, inner in enumerate(state.inner):
        np.testing.assert_allclose(inner.anchor if i == 3 else inner.centre, [0.3, 0.4])
    assert int(state.count) == 0


def test_the_autocorrelation_of_white_noise_has_no_bias():
    # 160 windows of 20, few of them independent: the mean is within 0.1 of 0 though a fitted line would give it -0.1
    states = [acting(np.random.default_rng(seed).normal(size=160).astype(np.float32))[1] for seed in range(4)]
    rs = [float(call(TUNER, "signals", _at(s, t))[0]) for s in states for t in range(20, 160, 10)]
    assert abs(np.mean(rs)) < 0.06
    assert 0.1 < np.std(rs) < 0.3


def _at(states, t):
    return jax.tree.map(lambda leaf: leaf[t], states)


@pytest.mark.parametrize(
    "knobs",
    [{"need": 7}, {"need": 21}, {"gap": 0.0}, {"correlation": 1.0}, {"min_stay": 0}, {"confirmations": 0}],
)
def test_bad_knobs_are_refused(knobs):
    with pytest.raises(ValueError, match=next(iter(knobs))):
        replace(TUNER, **knobs)
    assert Adaptive(pbt=PBT(history=20)).pbt.history == 20
