"""The scheduler's states, intervals, laws and the stateful shell; error rates on a small set of curves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core import backoff_scheduler as scheduler
from tensor_optix.core.backoff_scheduler import BackoffConfig
from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.types import LoopState

CONFIG = BackoffConfig()
TRUE = jnp.bool_(True)


def _scan(config, scores, valid):
    def step(state, inputs):
        state, verdict = scheduler.observe(config, state, *inputs)
        return state, (verdict, state)

    return jax.lax.scan(step, scheduler.init(config), (scores, valid))


run_batch = jax.jit(jax.vmap(_scan, (None, 0, 0)), static_argnums=0)


def run(config, scores, valid=None):
    """Final state, verdicts [T] and states [T] of one stream."""
    scores = jnp.asarray(scores, jnp.float32)[None]
    valid = jnp.ones(scores.shape, bool) if valid is None else jnp.asarray(valid, bool)[None]
    final, (verdicts, states) = run_batch(config, scores, valid)
    return jax.tree.map(lambda x: x[0], (final, verdicts, states))


def stop_of(config, scores):
    codes = np.asarray(run(config, scores)[1].code)
    hits = np.flatnonzero(codes == LoopState.DORMANT)
    return int(hits[0]) if len(hits) else None


RISE = 100 * (1 - np.exp(-np.arange(120) / 8.0))
NOISE = np.random.default_rng(0).normal(size=120)


# --- states -----------------------------------------------------------------------------------------------------------
def test_rise_then_plateau_goes_through_the_states_in_order():
    _, verdicts, _ = run(CONFIG, RISE + 2 * NOISE)
    codes = np.asarray(verdicts.code).tolist()
    assert codes[10] == LoopState.ACTIVE
    stop = codes.index(LoopState.DORMANT)
    assert 28 <= stop <= 50
    assert LoopState.COOLING in codes[:stop]
    assert np.asarray(verdicts.dormant_entered).sum() == 1
    assert bool(verdicts.dormant_entered[stop])


def test_flat_from_the_start_is_dormant_when_patience_ends():
    assert stop_of(CONFIG, np.full(80, -200.0)) == CONFIG.dormant_threshold - 1
    patient = dataclasses.replace(CONFIG, patience_before_first_improvement=2.0)
    assert stop_of(patient, np.full(80, -200.0)) == 2 * CONFIG.dormant_threshold - 1


def test_patience_ends_with_the_first_improvement():
    patient = dataclasses.replace(CONFIG, patience_before_first_improvement=3.0)
    assert stop_of(patient, RISE + 2 * NOISE) == stop_of(CONFIG, RISE + 2 * NOISE)


def test_minimum_number_of_evaluations():
    config = dataclasses.replace(CONFIG, min_evaluations_before_dormant=60)
    assert stop_of(config, np.zeros(80)) == 59


def test_saturation_at_the_cap_is_found_sooner():
    scores = np.minimum(20.0 * np.arange(80), 500.0)
    cap = int(np.argmax(scores == 500.0))
    assert stop_of(CONFIG, scores) == cap + CONFIG.saturation_threshold - 1
    assert stop_of(dataclasses.replace(CONFIG, saturation_threshold=0), scores) > cap + 15


def test_identical_scores_below_the_best_are_not_saturation():
    scores = np.r_[np.minimum(20.0 * np.arange(30), 500.0), np.full(14, 300.0)]
    assert stop_of(CONFIG, scores) is None


def test_never_stops_while_it_rises():
    assert stop_of(CONFIG, np.arange(300.0)) is None
    assert stop_of(CONFIG, np.arange(300.0) + 3 * np.random.default_rng(1).normal(size=300)) is None


def test_late_jump_is_waited_for():
    stop = stop_of(CONFIG, np.r_[0.05 * NOISE[:20], 1 + 0.05 * NOISE[20:]])
    assert 35 < stop < 50


def test_improvement_after_dormant_wakes_it():
    codes = np.asarray(run(CONFIG, np.r_[np.zeros(30), np.arange(1.0, 20.0)])[1].code)
    assert codes[29] == LoopState.DORMANT
    assert codes[-1] == LoopState.ACTIVE


def test_restart_and_watchdog():
    final, _, _ = run(CONFIG, RISE + 2 * NOISE)
    assert int(final.code) == LoopState.DORMANT
    again = scheduler.restart(CONFIG, final)
    assert (int(again.code), int(again.interval), int(again.misses), int(again.count)) == (0, 1, 0, 0)
    assert float(again.best) == float(final.best)
    watching = scheduler.enter_watchdog(CONFIG, final)
    for score in (100.0, 99.0, 101.0, 100.0):
        watching, verdict = scheduler.observe(CONFIG, watching, jnp.float32(score), TRUE)
        assert (int(verdict.code), int(verdict.interval)) == (LoopState.WATCHDOG, CONFIG.max_interval)
        assert not bool(verdict.degraded)
    seen = []
    for _ in range(6):
        watching, verdict = scheduler.observe(CONFIG, watching, jnp.float32(10.0), TRUE)
        seen.append(bool(verdict.degraded))
    assert sum(seen) == 1
    assert int(watching.code) == LoopState.WATCHDOG
    assert jax.tree.structure(again) == jax.tree.structure(watching) == jax.tree.structure(final)


# --- intervals --------------------------------------------------------------------------------------------------------
def test_intervals_grow_to_the_cap_and_fall_back():
    config = dataclasses.replace(CONFIG, max_interval=12, base_interval=2)
    intervals = np.asarray(run(config, np.r_[np.zeros(10), np.arange(1.0, 20.0)])[1].interval)
    assert intervals[:5].tolist() == [4, 8, 12, 12, 12]
    assert intervals[-1] == 2


# --- degradation ------------------------------------------------------------------------------------------------------
def test_collapse_is_reported_once():
    scores = np.r_[RISE[:40], np.full(30, 20.0)] + NOISE[:70]
    degraded = np.flatnonzero(np.asarray(run(CONFIG, scores)[1].degraded))
    assert len(degraded) == 1
    assert 41 <= degraded[0] <= 46


def test_collapse_then_recovery_is_not_stopped_at_the_bottom():
    scores = np.r_[RISE[:20], np.full(10, 10.0), 10 + 0.9 * RISE[:60]] + NOISE[:90]
    assert stop_of(CONFIG, scores) > 50


def test_detection_can_be_turned_off():
    config = dataclasses.replace(CONFIG, detect_degradation=False)
    assert not np.asarray(run(config, np.r_[RISE[:40], np.full(30, 20.0)])[1].degraded).any()


@pytest.mark.parametrize("offset", [-1000.0, 0.0, 5.0])
def test_small_loss_around_zero_or_below_is_no_degradation(offset):
    scores = offset + np.r_[np.zeros(1), -1e-9 * np.ones(40)]
    config = dataclasses.replace(CONFIG, min_degradation_drop=1e-4)
    assert not np.asarray(run(config, scores)[1].degraded).any()
    assert np.asarray(run(config, offset + 1e6 * (scores - offset))[1].degraded).any()
    noisy = offset + NOISE[:60]
    assert not np.asarray(run(CONFIG, noisy)[1].degraded).any()


# --- laws -------------------------------------------------------------------------------------------------------------
def streams(n=64, t=70):
    """Rounded so that a*x + b below is exact in float32."""
    rng = np.random.default_rng(2)
    rise = rng.uniform(0, 300, (n, 1)) * (1 - np.exp(-np.arange(t) / rng.uniform(2, 40, (n, 1))))
    drop = np.where(np.arange(t) > rng.integers(20, 200, (n, 1)), 0.3, 1.0)
    return np.round(rise * drop + rng.uniform(0, 60, (n, 1)) * rng.normal(size=(n, t))).astype(np.float32)


@pytest.mark.parametrize(
    ("a", "b"), [(2.0**-20, 0.0), (2.0**20, 0.0), (1.0, 2.0**13), (1.0, -(2.0**13)), (2.0**-7, 2.0**6), (2.0**40, 0.0)]
)
def test_decisions_are_invariant(a, b):
    x = streams()
    ones = jnp.ones(x.shape, bool)
    _, (expected, _) = run_batch(CONFIG, jnp.asarray(x), ones)
    _, (got, _) = run_batch(CONFIG, jnp.asarray((a * x.astype(np.float64) + b).astype(np.float32)), ones)
    for name in ("improving", "degraded", "plateau_entered", "dormant_entered", "interval", "code"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    np.testing.assert_array_equal(got.noise, np.float32(a) * np.asarray(expected.noise))


@pytest.mark.parametrize(("a", "b"), [(1e-6, 0.0), (1e6, 1e4), (1.0, 1e4), (1.0, -1e4)])
def test_decisions_hold_under_maps_that_round(a, b):
    """Rounding may tip a comparison that is all but equal: at most 1 stream in 50."""
    x = streams()
    ones = jnp.ones(x.shape, bool)
    _, (expected, _) = run_batch(CONFIG, jnp.asarray(x), ones)
    _, (got, _) = run_batch(CONFIG, jnp.asarray(np.float32(a) * x + np.float32(b)), ones)
    changed = (np.asarray(got.code) != np.asarray(expected.code)).any(1)
    assert changed.mean() <= 0.02


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_or_not_valid_change_nothing(bad):
    scores = (RISE + NOISE)[:40]
    clean, _, _ = run(CONFIG, scores)
    holes = np.insert(scores, [0, 5, 5, 30], bad)
    dirty, verdicts, _ = run(CONFIG, holes)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert not bool(verdicts.improving[0] | verdicts.degraded[0] | verdicts.dormant_entered[0])
    masked, _, _ = run(CONFIG, np.nan_to_num(holes, nan=1e9, posinf=1e9, neginf=-1e9), np.isfinite(holes))
    jax.tree.map(np.testing.assert_array_equal, clean, masked)


def test_jit_is_no_jit_and_dtypes_hold():
    state = eager = scheduler.init(CONFIG)
    step = jax.jit(scheduler.observe, static_argnums=0)
    for score in (1.0, 3.0, 2.0, 5.0, 5.0, 9.0):
        state, verdict = step(CONFIG, state, jnp.float32(score), TRUE)
        eager, other = scheduler.observe(CONFIG, eager, jnp.float32(score), TRUE)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (state, verdict), (eager, other))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), scheduler.init(CONFIG))
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state) == shapes


def test_lanes_are_independent():
    x = streams(8)
    y = x.copy()
    y[3] = np.nan
    ones = jnp.ones(x.shape, bool)
    a, _ = run_batch(CONFIG, jnp.asarray(x), ones)
    b, _ = run_batch(CONFIG, jnp.asarray(y), ones)
    keep = np.arange(8) != 3
    jax.tree.map(lambda p, q: np.testing.assert_array_equal(np.asarray(p)[keep], np.asarray(q)[keep]), a, b)


@pytest.mark.parametrize(
    "bad",
    [{"confidence": 1.0}, {"dormant_threshold": 2}, {"backoff_factor": 0.5}, {"max_interval": 0}, {"noise_k": -1}],
)
def test_bad_knobs_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        BackoffConfig(**bad)


def test_config_is_hashable():
    assert hash(CONFIG) == hash(BackoffConfig())


def test_error_rates_on_curves_never_used_for_choosing():
    """20 curves of each of four families. Bounds: 4 standard errors from the measured 5 % and 90 %."""
    curves = pytest.importorskip("benchmarks.curves")
    decisions = pytest.importorskip("benchmarks.decisions")
    parts = [curves.generate(name, 50, True) for name in ("exp_fast", "step", "two_rises", "skewed_noise")]
    scores = np.concatenate([p.scores for p in parts])
    stops = np.split(decisions.simulate(CONFIG, scores).stop, len(parts))
    outcome = [decisions.judge(p, s) for p, s in zip(parts, stops, strict=True)]
    assert np.mean([o.false.mean() for o in outcome]) < 0.08
    assert np.mean([o.found.mean() for o in outcome]) > 0.85


# --- the stateful shell -----------------------------------------------------------------------------------------------
def test_shell_is_the_pure_function():
    shell = BackoffScheduler(dormant_threshold=28, max_interval_episodes=2)
    scores = (RISE + NOISE)[:60]
    config = shell.config
    _, verdicts, _ = run(config, scores)
    for t, score in enumerate(scores):
        assert int(shell.observe(float(score)).code) == int(verdicts.code[t])
    assert shell.current_state == LoopState.DORMANT
    assert shell.is_converged()
    assert shell.total_episodes == 60


def test_shell_driven_by_hand():
    shell = BackoffScheduler(plateau_threshold=3, dormant_threshold=6, max_interval_episodes=10)
    assert (shell.current_state, shell.current_interval, shell.best_score) == (LoopState.ACTIVE, 1, -np.inf)
    states, intervals = [], []
    for _ in range(6):
        shell.record_non_improvement()
        states.append(shell.current_state)
        intervals.append(shell.current_interval)
    assert intervals == [2, 4, 8, 10, 10, 10]
    assert states == [LoopState.ACTIVE] * 2 + [LoopState.COOLING] * 3 + [LoopState.DORMANT]
    assert shell.consecutive_non_improvements == 6
    shell.record_restart()
    assert (shell.current_state, shell.consecutive_non_improvements, shell.current_interval) == (LoopState.ACTIVE, 0, 1)
    shell.record_non_improvement()
    shell.record_improvement(5.0)
    assert (shell.current_interval, shell.best_score, shell.consecutive_non_improvements) == (1, 5.0, 0)
    shell.record_non_improvement()
    shell.record_degradation()
    assert (shell.current_state, shell.current_interval) == (LoopState.ACTIVE, 1)
    assert [n for n in range(5) if shell.should_adapt(n)] == [0, 1, 2, 3, 4]


def test_shell_minimum_before_dormant():
    shell = BackoffScheduler(dormant_threshold=4, min_episodes_before_dormant=8)
    for _ in range(7):
        shell.record_non_improvement()
    assert shell.current_state != LoopState.DORMANT
    shell.record_non_improvement()
    assert shell.current_state == LoopState.DORMANT


def test_shell_trend_and_degradation():
    shell = BackoffScheduler()
    for score in range(12):
        shell.record_score(float(score))
    shell.record_score(float("nan"))
    assert shell.is_improving()
    assert not shell.is_degrading()
    assert shell.total_episodes == 12
    assert shell.check_degradation(0.0)
    assert not shell.check_degradation(float("nan"))
    assert not shell.check_degradation(11.0)
    for _ in range(6):
        shell.record_score(-20.0)
    assert shell.is_degrading()
    assert not shell.is_improving()


def test_shell_rejects_a_degradation_threshold_outside_its_range():
    with pytest.raises(ValueError, match="degradation_threshold"):
        BackoffScheduler(degradation_threshold=1.5)


def stopped_at(scores, config=None):
    """Index of the evaluation that is DORMANT first, or None."""
    config = config or BackoffConfig(max_interval=1)
    step = jax.jit(lambda state, score: scheduler.observe(config, state, score, jnp.bool_(True)))
    state = scheduler.init(config)
    for i, score in enumerate(scores):
        state, verdict = step(state, jnp.float32(score))
        if bool(verdict.dormant_entered):
            return i
    return None


@pytest.mark.parametrize("depth", [1.5, 4.0, 40.0])
def test_one_freak_score_does_not_stop_a_rising_run(depth):
    scores = np.arange(60, dtype=np.float32)
    scores[40] -= depth * scores[39]
    assert stopped_at(scores) is None


def test_a_fall_is_not_taken_for_convergence_before_it_is_judged():
    scores = np.concatenate([np.arange(40), np.full(5, -100)]).astype(np.float32)
    assert stopped_at(scores) is None
