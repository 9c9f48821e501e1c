"""PBT of one learner: what is remembered, when it exploits, and that rising scores fool nobody."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.optimizers import PBT
from tensor_optix.optimizers.pbt import reflect
from tests.optimizers.tuner_parts import NO_NOISE, YES, call, centre, fed, history_of, observe, start, suggest

TUNER = PBT()
RNG = np.random.default_rng(0)
NOISE = (np.round(RNG.normal(size=160) * 64) / 64).astype(np.float32)


def test_the_ring_holds_what_acted_and_its_merit():
    state, xs = fed(TUNER, start(TUNER, [0.5, 0.5]), NOISE[:20])
    mean, merits = NOISE[0], []
    for score in NOISE[1:20]:
        merits.append(score - mean)
        mean = 0.8 * mean + 0.2 * score
    assert int(state.count) == 19  # the first score has nothing to be compared with
    np.testing.assert_allclose(state.merits[:19], merits, atol=1e-5)
    np.testing.assert_array_equal(state.settings[:19], xs[1:20])


def test_the_ring_keeps_the_newest_fifty():
    state, xs = fed(TUNER, start(TUNER, [0.5]), NOISE[:121])
    assert state.settings.shape == (50, 1)
    np.testing.assert_array_equal(np.sort(np.asarray(state.settings)[:, 0]), np.sort(xs[71:121, 0]))


def test_it_exploits_exactly_when_the_newest_is_among_the_worst():
    states, _ = history_of(TUNER, start(TUNER, [0.5, 0.5]), NOISE)
    anchors, merits, count = np.asarray(states.anchor), np.asarray(states.merits), np.asarray(states.count)
    exploits = 0
    for t in range(1, 160):
        n = min(count[t], 50)
        age = (count[t] - 1 - np.arange(50)) % 50
        centred = age[:n] - age[:n].mean()
        levelled = merits[t, :n] - centred * (centred @ merits[t, :n]) / (centred @ centred + 1000.0)
        share = max(1, int(0.2 * n))
        rank = (levelled > levelled[(count[t] - 1) % 50] + 1e-6).sum()
        bad = n >= 3 and rank >= n - share
        changed = (anchors[t] != anchors[t - 1]).any()
        assert bad or not changed, t
        exploits += bad
        if bad:  # one of the best, as it acted
            best = np.argsort(-levelled)[:share]
            assert (np.asarray(states.settings)[t, best] == anchors[t]).all(axis=1).any()
    assert 15 < exploits < 60


def test_changes_are_as_large_as_told():
    states, xs = history_of(TUNER, start(TUNER, [0.5, 0.5]), NOISE)
    anchors = np.asarray(states.anchor)
    adopted = (np.diff(anchors, axis=0) != 0).any(axis=1)
    moves = np.abs(xs[2:] - anchors[1:-1])  # the suggestion after each period, from the setting adopted in it
    assert 0.04 < moves[adopted[:-1]].max() <= 0.05 + 1e-6
    assert 0.09 < moves[~adopted[:-1]].max() <= 0.1 + 1e-6


def test_fewer_than_three_explore():
    state = start(TUNER, [0.5])
    for score in (0.0, 5.0, -50.0):
        state = observe(TUNER, state, score)
        assert centre(TUNER, state)[0] == 0.5
    assert centre(TUNER, observe(TUNER, state, -500.0))[0] != 0.5


def test_a_linear_rise_makes_no_setting_look_better():
    state, _ = fed(TUNER, start(TUNER, [0.5, 0.5]), 4.0 * np.arange(160))
    assert np.ptp(state.merits) < 0.01


@pytest.mark.parametrize(
    ("x", "folded"), [(0.3, 0.3), (-0.04, 0.04), (1.07, 0.93), (0.0, 0.0), (1.0, 1.0), (-1.2, 0.8)]
)
def test_bounds_reflect(x, folded):
    assert float(reflect(jnp.float32(x))) == pytest.approx(folded, abs=1e-6)


def test_settings_do_not_pile_up_at_a_bound():
    _, xs = fed(TUNER, start(TUNER, [0.0, 1.0]), NOISE)
    assert ((xs[1:] == 0) | (xs[1:] == 1)).mean() == 0


def test_others_settings_are_remembered_and_its_own_suggestion_stays():
    state = observe(TUNER, start(TUNER, [0.5]), 0.0)
    x = jnp.asarray([0.9], jnp.float32)
    heard = call(TUNER, "hear", state, x, jnp.float32(3.0), NO_NOISE, YES, jnp.bool_(False))
    assert float(heard.settings[0, 0]) == pytest.approx(0.9)
    assert float(heard.merits[0]) == pytest.approx(3.0)
    np.testing.assert_array_equal(suggest(TUNER, heard), suggest(TUNER, state))


@pytest.mark.parametrize(
    "knobs", [{"history": 2}, {"quantile": 0.6}, {"explore": 0.0}, {"exploit": 2.0}, {"memory": 1.0}]
)
def test_bad_knobs_are_refused(knobs):
    with pytest.raises(ValueError, match=next(iter(knobs))):
        replace(TUNER, **knobs)
