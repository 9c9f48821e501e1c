"""The brain's laws over random score streams, and what it does in each situation that it exists for.

Streams are indexed by window; a window's score counts where the brain asked for an evaluation. All streams of a test
are padded to one shape, so that each config compiles once.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tensor_optix.core import autonomy
from tensor_optix.core.autonomy import NO_LIMIT, AutonomyConfig
from tensor_optix.core.backoff_scheduler import BackoffConfig
from tensor_optix.core.base_optimizer import Tuner
from tensor_optix.core.search_space import from_unit, search_space, to_unit
from tensor_optix.core.types import Event, LoopState, Scores, StopReason
from tensor_optix.optimizers import SPSA
from tests.runs import XLA_DEFAULTS, assert_same_bits, member

T, B = 96, 8  # windows and members of every compiled run
NAN, INF = float("nan"), float("inf")
HYPER = {"gamma": 0.95, "learning_rate": 1e-3, "momentum": 0.5}
SPACE = search_space({"learning_rate": ("log", 1e-4, 1e-2), "gamma": (0.9, 0.999)})
EVERY = BackoffConfig(max_interval=1)  # every window is evaluated

PLAIN = AutonomyConfig(EVERY)
SPARSE = AutonomyConfig(BackoffConfig(base_interval=4, max_interval=7))
TUNED = AutonomyConfig(tuner=SPSA(), space=SPACE, rollback_on_degradation=True)
WATCH = AutonomyConfig(EVERY, watchdog=True, rollback_on_degradation=True)
ENDLESS = AutonomyConfig(EVERY, stop_on_convergence=False)
MARGIN = AutonomyConfig(EVERY, improvement_margin=4.0)


def brains(config, budget=NO_LIMIT, target=INF, seed=0):
    """B brains; `budget` and `target` are scalars or one value per member."""
    budget = jnp.broadcast_to(jnp.asarray(budget, jnp.int32), (B,))
    target = jnp.broadcast_to(jnp.asarray(target, jnp.float32), (B,))
    hyper = {name: jnp.float32(value) for name, value in HYPER.items()}
    keys = jax.random.split(jax.random.key(seed), B)
    return _init(config, hyper, keys, budget, target)


@functools.partial(jax.jit, static_argnums=0, compiler_options=XLA_DEFAULTS)
def _init(config, hyper, keys, budget, target):
    return jax.vmap(lambda k, b, t: autonomy.init(config, hyper, k, b, t))(keys, budget, target)


@functools.partial(jax.jit, static_argnums=0, compiler_options=XLA_DEFAULTS)
def _scan(config, state, scores, finite):
    def window(state, told):
        score, finite = told
        due = autonomy.is_due(state)
        new, decision = autonomy.step(config, state, Scores(score, due, finite))
        return new, (state, new, decision)

    return jax.vmap(lambda s, x, f: jax.lax.scan(window, s, (x, f)))(state, scores, finite)


@functools.partial(jax.jit, static_argnums=0, compiler_options=XLA_DEFAULTS)
def step(config, state, score, evaluated, finite):
    return autonomy.step(config, state, Scores(score, evaluated, finite))


def told(config, state, score=0.0, evaluated=True, finite=True):
    return step(config, state, jnp.float32(score), jnp.bool_(evaluated), jnp.bool_(finite))


@dataclasses.dataclass
class Story:
    """What happened: states before and after each window and decisions, arrays [B, T]."""

    final: object
    before: object
    after: object
    decision: object

    def has(self, event):
        return (self.decision.events & int(event)) != 0

    def stops(self):
        """[B] windows at which members stopped; T where they did not."""
        return np.where(self.decision.stop.any(1), self.decision.stop.argmax(1), T)


def play(config, scores, finite=None, state=None, **start):
    """Up to B streams of up to T windows. Short streams repeat their last score, missing members the last stream."""
    rows = [np.asarray(row, np.float64) for row in scores]
    rows = [np.r_[row, np.full(T - len(row), row[-1])] for row in rows]
    scores = np.stack(rows + [rows[-1]] * (B - len(rows))).astype(np.float32)
    healthy = np.ones((B, T), bool)
    for lane, window in finite or []:
        healthy[lane, window] = False
    state = brains(config, **start) if state is None else state
    final, trace = _scan(config, state, jnp.asarray(scores), jnp.asarray(healthy))
    return Story(*jax.tree.map(np.asarray, (final, *trace)))


def streams(seed=0, bad=0.05):
    """B random learning curves on a grid of 1/16: rises, plateaus, falls, ties and some NaN and infinity."""
    rng = np.random.default_rng(seed)
    t = np.arange(T)
    curves = []
    for lane in range(B):
        top, speed = rng.uniform(20, 200), rng.uniform(3, 40)
        curve = top * (1 - np.exp(-t / speed)) + rng.normal(size=T) * rng.choice([0.0, 1.0, 5.0])
        if lane % 3 == 1:
            curve[rng.integers(20, 60) :] -= top
        curve = np.minimum(np.round(curve * 16) / 16, 0.9 * top // 1)
        curves.append(np.where(rng.random(T) < bad, rng.choice([NAN, INF, -INF], T), curve))
    return curves


BROKEN = [(0, 7), (2, 30), (3, 31), (5, 50)]  # (member, window) with a non-finite learner
RISE = 100 * (1 - np.exp(-np.arange(T) / 6.0)) + np.random.default_rng(5).normal(size=T)


# --- laws over random streams -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["plain", "tuned", "sparse"])
def law(request):
    config = {"plain": PLAIN, "tuned": TUNED, "sparse": SPARSE}[request.param]
    budgets = [NO_LIMIT] * 6 + [40, 41]
    return config, play(config, streams(), BROKEN, budget=budgets), budgets


def test_the_streams_hold_every_event(law):
    config, story, _ = law
    for event in (Event.BEST, Event.IMPROVING, Event.NON_FINITE, Event.ROLLBACK, Event.STOPPED):
        assert story.has(event).any(), event
    assert story.has(Event.HYPERPARAMS).any() == (config.tuner is not None)


def test_best_of_is_a_running_maximum_and_ties_go_to_the_newer(law):
    _, story, _ = law
    scores, healthy = streams(), np.ones((B, T), bool)
    for where in BROKEN:
        healthy[where] = False
    ties = 0
    for lane in range(B):
        best, best_hyper = None, member(story.before.best_hyper, (lane, 0))
        for t in range(int(min(story.stops()[lane] + 1, T))):
            before = member(story.before, (lane, t))
            due = before.window + 1 >= min(before.next_evaluation, before.max_windows)
            score = np.float32(scores[lane][t])
            valid = due and healthy[lane, t] and np.isfinite(score)
            better = valid and (best is None or score > best)
            tie = valid and best is not None and score == best
            ties += tie
            assert story.decision.save_best[lane, t] == (better or tie)
            assert story.has(Event.BEST)[lane, t] == better
            if better or tie:
                best, best_hyper = score, before.hyper
            after = member(story.after, (lane, t))
            assert after.has_best == (best is not None)
            if best is not None:
                assert after.best_score == best
            assert_same_bits(after.best_hyper, best_hyper)
    assert ties > 3


def test_a_rollback_brings_the_best_hyperparameters_back(law):
    config, story, _ = law
    assert story.decision.rollback.any()
    for lane, t in np.argwhere(story.decision.rollback):
        hyper, best = member(story.decision.hyperparams, (lane, t)), member(story.after.best_hyper, (lane, t))
        assert hyper["momentum"] == best["momentum"]
        if config.tuner is None:
            assert_same_bits(hyper, best)
        else:
            centre = story.after.tuner.centre[lane, t]
            np.testing.assert_allclose(centre, to_unit(SPACE, best), atol=1e-6)


@pytest.mark.parametrize(("a", "b"), [(8.0, -3000.0), (1 / 64, 5.0)])
def test_decisions_do_not_depend_on_the_unit_of_the_score(law, a, b):
    config, _, budgets = law
    target = 60.0
    one = play(config, streams(), BROKEN, budget=budgets, target=target)
    two = play(config, [a * x + b for x in streams()], BROKEN, budget=budgets, target=a * target + b)
    assert_same_bits(one.decision, two.decision)
    assert_same_bits(one.after.hyper, two.after.hyper)
    assert_same_bits(one.after.next_evaluation, two.after.next_evaluation)


@pytest.mark.slow
def test_a_margin_moves_with_the_unit():
    wide = dataclasses.replace(MARGIN, improvement_margin=32.0)
    one, two = play(MARGIN, streams()), play(wide, [8 * x - 100 for x in streams()])
    assert_same_bits(one.decision, two.decision)
    assert one.decision.save_best.sum() < play(PLAIN, streams()).decision.save_best.sum()


def test_a_finished_member_is_frozen(law):
    _, story, _ = law
    frozen = 0
    for lane, stop in enumerate(story.stops()):
        for t in range(stop + 1, T):
            frozen += 1
            assert_same_bits(member(story.after, (lane, t)), member(story.after, (lane, stop)))
            decision = member(story.decision, (lane, t))
            flags = (decision.evaluate_next, decision.save_best, decision.rollback, decision.reset_envs, decision.stop)
            assert not any(flags)
            assert decision.events == 0
            assert decision.stop_reason == story.decision.stop_reason[lane, stop]
    assert frozen > 50


def test_each_member_counts_its_own_windows(law):
    _, story, budgets = law
    np.testing.assert_array_equal(story.final.window, np.minimum(story.stops() + 1, T))
    assert (story.final.window <= np.minimum(budgets, T)).all()
    assert len(set(story.final.window.tolist())) > 2


def test_the_next_evaluation_is_announced(law):
    _, story, _ = law
    due = np.asarray(jax.vmap(jax.vmap(autonomy.is_due))(story.before))
    np.testing.assert_array_equal(story.decision.evaluate_next[:, :-1], due[:, 1:])


def test_tick_is_a_step_without_news(law):
    config, story, _ = law
    flat = jax.tree.map(lambda x: jnp.asarray(x).reshape(B * T, *x.shape[2:]), story.before)
    quiet = ~np.asarray(jax.vmap(autonomy.is_due)(flat))
    assert quiet.sum() > 50

    def both(state):
        nothing = Scores(jnp.float32(NAN), jnp.bool_(False), jnp.bool_(True))
        return autonomy.tick(state), *autonomy.step(config, state, nothing)

    ticked, stepped, decision = jax.tree.map(lambda x: np.asarray(x)[quiet], jax.jit(jax.vmap(both))(flat))
    assert_same_bits(ticked, stepped)
    assert (decision.events == 0).all()
    assert not (decision.save_best | decision.rollback | decision.reset_envs | decision.stop).any()
    assert_same_bits(decision.hyperparams, member(flat.hyper, quiet))


def test_lanes_are_independent(law):
    config, story, budgets = law
    changed = streams()
    changed[2] = np.full(T, NAN)
    other = play(config, changed, BROKEN, budget=budgets)
    for lane in range(B):
        same = np.array_equal(other.after.best_score[lane], story.after.best_score[lane])
        assert same == (lane != 2)
        if same:
            assert_same_bits(member(other.after, lane), member(story.after, lane))
            assert_same_bits(member(other.decision, lane), member(story.decision, lane))


def test_scan_is_a_python_loop(law):
    config, story, _ = law
    for lane in (0, 6):
        state, scores = jax.tree.map(jnp.asarray, member(story.before, (lane, 0))), streams()[lane]
        for t in range(45):
            healthy = (lane, t) not in BROKEN
            state, decision = told(config, state, scores[t], bool(autonomy.is_due(state)), healthy)
            assert_same_bits(decision, member(story.decision, (lane, t)))
        assert_same_bits(state, member(story.after, (lane, 44)))


def test_shapes_and_dtypes(law):
    config, _, _ = law
    state = member(brains(config), 0)
    told = (jnp.float32(0.0), jnp.bool_(True), jnp.bool_(True))
    new, decision = jax.eval_shape(functools.partial(step.__wrapped__, config), state, *told)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (a.shape, a.dtype, False) == (b.shape, b.dtype, b.weak_type)
    kinds = {name: leaf.dtype.name for name, leaf in vars(decision).items() if name != "hyperparams"}
    flags = ("evaluate_next", "save_best", "rollback", "reset_envs", "stop")
    assert kinds == {**dict.fromkeys(flags, "bool"), "events": "int32", "stop_reason": "int32"}
    assert all(x.shape == () for x in jax.tree.leaves(decision))
    assert {x.dtype.name for x in decision.hyperparams.values()} == {"float32"}


@pytest.mark.slow
def test_jit_is_no_jit():
    scores = [1.0, 3.0, NAN, 2.0, 3.0, 5.0, 1.0, 7.0]
    jitted = plain = member(brains(TUNED), 0)
    for score in scores:
        jitted, decision = told(TUNED, jitted, score)
        with jax.disable_jit():
            news = Scores(jnp.float32(score), jnp.bool_(True), jnp.bool_(True))
            plain, same = autonomy.step(TUNED, jax.tree.map(jnp.asarray, plain), news)
        for a, b in zip(jax.tree.leaves((jitted, decision)), jax.tree.leaves((plain, same)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_budget_and_target_do_not_recompile():
    traces = []

    @jax.jit
    def start(budget, target):
        traces.append(1)
        return autonomy.init(PLAIN, HYPER, jax.random.key(0), budget, target)

    start(3, 1.0)
    start(300, -5.0)
    assert len(traces) == 1


# --- what is not finite -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("score", [NAN, INF, -INF])
@pytest.mark.parametrize("first", [True, False])
def test_a_score_that_is_not_finite_rolls_back_and_is_never_best(score, first):
    state = member(brains(PLAIN, budget=99), 0)
    if not first:
        state, _ = told(PLAIN, state, 3.0)
    new, decision = told(PLAIN, state, score)
    assert Event(int(decision.events)) == Event.NON_FINITE | Event.ROLLBACK
    assert decision.rollback
    assert decision.reset_envs
    assert not decision.save_best
    assert new.best_score == state.best_score
    assert (new.evaluations, new.faults) == (state.evaluations, 1)
    assert_same_bits(new.scheduler, state.scheduler)


def test_a_learner_that_is_not_finite_rolls_back_even_with_a_fine_score_or_none():
    state, _ = told(PLAIN, member(brains(PLAIN), 0), 3.0)
    for evaluated in (True, False):
        new, decision = told(PLAIN, state, 1e6, evaluated, finite=False)
        assert Event(int(decision.events)) == Event.NON_FINITE | Event.ROLLBACK
        assert decision.reset_envs
        assert not decision.save_best
        assert (new.best_score, new.faults) == (3.0, 1)


def test_a_fault_is_followed_by_an_evaluation_in_due_time():
    story = play(SPARSE, [np.arange(T)], [(0, 1)])
    assert story.final.next_evaluation[0] > T
    due = np.asarray(jax.vmap(jax.vmap(autonomy.is_due))(story.before))[0]
    assert np.flatnonzero(due)[0] == 5  # window 2 + interval 4; without the fault window 4


def test_faults_stop_only_without_a_valid_evaluation_in_between():
    good = np.arange(T, dtype=float)
    three, two, split = good.copy(), good.copy(), good.copy()
    three[10:13], two[10:12], split[10:15] = NAN, NAN, [NAN, INF, 14, NAN, -INF]
    story = play(PLAIN, [three, two, split, good], [(3, 20), (3, 21), (3, 22)])
    np.testing.assert_array_equal(story.stops()[:4], [12, T, T, 22])
    np.testing.assert_array_equal(story.final.stop_reason[[0, 3]], StopReason.NON_FINITE)
    patient = dataclasses.replace(PLAIN, max_faults=1)
    assert told(patient, member(brains(patient), 0), NAN)[1].stop


def test_faults_without_an_evaluation_in_between_add_up_over_windows():
    story = play(SPARSE, [np.arange(T)], [(0, 4), (0, 5), (0, 6)])
    assert story.stops()[0] == 6


# --- best, margin, target, budget -------------------------------------------------------------------------------------
def test_a_new_best_must_exceed_the_margin():
    story = play(MARGIN, [[10.0, 14.0, 14.5, 14.5, 18.5, 19.0, 23.5]])
    np.testing.assert_array_equal(story.decision.save_best[0, :7], [1, 0, 1, 0, 0, 1, 1])


def test_target_must_be_held():
    patience = PLAIN.target_patience
    held = [50.0] * 3 + [90.0] * patience
    broken = [50.0] + [90.0] * (patience - 1) + [89.0] + [90.0] * patience
    gap = [90.0] * (patience - 1) + [NAN, 95.0]
    story = play(PLAIN, [held, broken, gap], target=90.0)
    np.testing.assert_array_equal(story.stops()[:3], [2 + patience, 2 * patience, patience])
    assert (story.final.stop_reason[:3] == StopReason.TARGET).all()
    np.testing.assert_array_equal(story.has(Event.TARGET)[0, : 3 + patience], [0] * 3 + [1] * patience)


def test_a_budget_is_kept_to_the_window_and_its_last_window_is_judged():
    budgets = np.arange(1, B + 1)
    story = play(SPARSE, [np.arange(T)], budget=budgets)
    np.testing.assert_array_equal(story.final.window, budgets)
    np.testing.assert_array_equal(story.final.best_score, budgets - 1)
    assert (story.final.stop_reason == StopReason.BUDGET).all()
    np.testing.assert_array_equal(story.final.evaluations, [1, 1, 1, 1, 2, 2, 2, 2])


@pytest.mark.parametrize(
    ("scores", "finite", "reason"),
    [
        ([90.0] * 5, True, StopReason.TARGET),
        ([90.0] * 2 + [NAN] * 3, True, StopReason.NON_FINITE),
        ([90.0] * 4 + [80.0], True, StopReason.BUDGET),
    ],
)
def test_the_budget_is_the_weakest_reason(scores, finite, reason):
    story = play(PLAIN, [scores], budget=5, target=90.0)
    assert story.stops()[0] == 4
    assert story.final.stop_reason[0] == reason
    assert story.has(Event.STOPPED)[0].sum() == 1


def test_extend_reopens_only_what_the_budget_stopped():
    curves = [RISE, np.full(T, 1.0), [NAN] * 3, [200.0] * 9]
    short = play(PLAIN, curves, budget=30, target=150.0)
    reasons = [StopReason.BUDGET, StopReason.CONVERGED, StopReason.NON_FINITE, StopReason.TARGET]
    np.testing.assert_array_equal(short.final.stop_reason[:4], reasons)
    longer = jax.vmap(lambda s: autonomy.extend(s, 60))(jax.tree.map(jnp.asarray, short.final))
    np.testing.assert_array_equal(longer.done[:4], [False, True, True, True])
    rest = [np.r_[RISE[30:], np.full(30, RISE[-1])], *curves[1:]]
    extended, whole = play(PLAIN, rest, state=longer), play(PLAIN, curves, budget=60, target=150.0)
    for lane in range(4):
        assert_same_bits(member(extended.final, lane), member(whole.final, lane))


# --- convergence ------------------------------------------------------------------------------------------------------
def test_converged_stops():
    story = play(PLAIN, [np.full(T, -200.0), RISE])
    assert story.stops()[0] == EVERY.dormant_threshold - 1
    assert EVERY.dormant_threshold <= story.stops()[1] < 60
    for lane in (0, 1):
        assert story.final.stop_reason[lane] == StopReason.CONVERGED
        last = Event(int(story.decision.events[lane, story.stops()[lane]]))
        assert Event.DORMANT | Event.STOPPED in last
        assert story.has(Event.PLATEAU)[lane].any()


def test_without_stop_on_convergence_patience_starts_afresh():
    story = play(ENDLESS, [np.full(T, -200.0)], budget=90)
    patience = EVERY.dormant_threshold
    np.testing.assert_array_equal(np.flatnonzero(story.has(Event.DORMANT)[0]) + 1, [patience, 2 * patience, 84])
    assert story.final.stop_reason[0] == StopReason.BUDGET
    assert (story.after.scheduler.code[0] != LoopState.DORMANT).all()


def test_resume_after_dormant_equals_one_that_never_stopped():
    stopped = play(PLAIN, [np.full(T, -200.0)]).final
    resumed = jax.vmap(functools.partial(autonomy.resume, PLAIN))(jax.tree.map(jnp.asarray, stopped))
    endless = play(ENDLESS, [np.full(T, -200.0)]).after
    assert_same_bits(member(resumed, 0), member(endless, (0, EVERY.dormant_threshold - 1)))
    again = play(PLAIN, [np.full(T, -200.0)], state=resumed)
    assert again.stops()[0] == EVERY.dormant_threshold - 1
    assert again.final.window[0] == 2 * EVERY.dormant_threshold
    assert again.final.best_score[0] == -200.0


def test_watchdog_goes_on_and_rolls_a_fall_back_once():
    curve = RISE.copy()
    curve[70:80] = 5.0
    story = play(WATCH, [curve], budget=90)
    dormant = np.flatnonzero(story.has(Event.DORMANT)[0])
    assert len(dormant) == 1
    assert (story.after.scheduler.code[0, dormant[0] :] == LoopState.WATCHDOG).all()
    for event in (Event.DEGRADED, Event.ROLLBACK):
        (when,) = np.flatnonzero(story.has(event)[0])
        assert 70 <= when < 75
    assert not story.decision.reset_envs[0].any()
    assert story.stops()[0] == 89
    assert story.final.stop_reason[0] == StopReason.BUDGET


def test_degradation_is_reported_and_rolled_back_only_on_request():
    curve = np.r_[RISE[:25], np.full(T - 25, 5.0)]
    obeys = dataclasses.replace(PLAIN, rollback_on_degradation=True)
    quiet, loud = play(PLAIN, [curve]), play(obeys, [curve])
    assert quiet.has(Event.DEGRADED)[0].sum() == 1
    np.testing.assert_array_equal(quiet.has(Event.DEGRADED), loud.has(Event.DEGRADED))
    assert not quiet.decision.rollback.any()
    np.testing.assert_array_equal(loud.decision.rollback, loud.has(Event.DEGRADED))
    assert not loud.decision.reset_envs.any()


# --- the tuner --------------------------------------------------------------------------------------------------------
class Notes(struct.PyTreeNode):
    """What a tuner was told last."""

    calls: jax.Array  # [] int32, observations
    score: jax.Array  # [] float32
    noise: jax.Array  # [] float32
    valid: jax.Array  # [] bool
    recentres: jax.Array  # [] int32
    centre: jax.Array  # [D] float32


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Suggests a new point after every call and notes what it hears."""

    def init(self, space, x0, key):
        return Notes(jnp.int32(0), jnp.float32(0), jnp.float32(0), jnp.bool_(True), jnp.int32(0), x0)

    def observe(self, state, score, noise, valid):
        return state.replace(calls=state.calls + 1, score=score, noise=noise, valid=valid)

    def suggest(self, state):
        place = 0.1 + 0.01 * (state.calls + 7 * state.recentres).astype(jnp.float32)
        return state, jnp.full_like(state.centre, 1.0) * place

    def is_probing(self, state):
        return jnp.bool_(True)

    def centre(self, state):
        return state.centre

    def recentre(self, state, x):
        return state.replace(recentres=state.recentres + 1, centre=x)


RECORD = AutonomyConfig(EVERY, tuner=Recorder(), space=SPACE)


def test_a_score_is_credited_to_the_window_it_ended_and_not_after_a_rollback():
    assert isinstance(Recorder(), Tuner)
    state = member(brains(RECORD), 0)
    scores = [1.0, 9.0, 2.0, NAN, NAN, 4.0, 5.0]
    calls = [1, 2, 3, 3, 3, 4, 5]
    recentres = [0, 0, 0, 1, 2, 2, 2]
    valid = [True] * 3 + [True, True, False, True]  # the fourth and fifth are not told: recentred instead
    hypers = []
    for t, score in enumerate(scores):
        hypers.append(state.hyper)
        state, decision = told(RECORD, state, score)
        notes = state.tuner
        assert (int(notes.calls), int(notes.recentres), bool(notes.valid)) == (calls[t], recentres[t], valid[t])
        if np.isfinite(score):
            assert notes.score == score
            assert notes.noise == state.scheduler.noise
        assert bool(decision.events & int(Event.HYPERPARAMS))
        assert_same_bits(decision.hyperparams, state.hyper)
    assert_same_bits(state.best_hyper, hypers[1])  # in force while the best score was earned
    np.testing.assert_allclose(state.tuner.centre, to_unit(SPACE, hypers[1]), atol=1e-6)


def test_the_tuner_waits_for_an_evaluation():
    state = member(brains(RECORD), 0)
    new, decision = told(RECORD, state, 5.0, evaluated=False)
    assert_same_bits(new.tuner, state.tuner)
    assert_same_bits(new.hyper, state.hyper)
    assert decision.events == 0


def test_the_first_suggestion_acts_in_the_first_window():
    state = member(brains(RECORD), 0)
    np.testing.assert_allclose(to_unit(SPACE, state.hyper), [0.1, 0.1], atol=1e-5)
    assert state.hyper["momentum"] == np.float32(0.5)  # not in the space: as given
    # What a fault before the first evaluation goes back to is what was given, not the probe.
    assert not np.allclose(to_unit(SPACE, state.best_hyper), [0.1, 0.1], atol=1e-3)


def test_probes_differ_between_members():
    centre = brains(TUNED, seed=3).hyper["learning_rate"]
    assert len(set(np.asarray(centre).tolist())) > 1


# --- configuration ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"improvement_margin": -1.0}, "improvement_margin must be >= 0"),
        ({"target_patience": 0}, "target_patience must be at least 1, got 0"),
        ({"max_faults": 0}, "max_faults must be at least 1, got 0"),
        ({"watchdog": True, "stop_on_convergence": False}, "stop_on_convergence=True"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AutonomyConfig(**settings)


def test_config_is_hashable():
    assert hash(TUNED) == hash(dataclasses.replace(TUNED))
    assert TUNED != PLAIN


class TestOverride:
    def test_an_untuned_hyperparameter_changes_nothing_else(self):
        state = member(brains(RECORD), 0)
        name = next(n for n in state.hyper if n not in SPACE.names)
        after = autonomy.override(RECORD, state, {name: jnp.float32(0.123)})
        assert float(after.hyper[name]) == np.float32(0.123)
        assert int(after.tuner.recentres) == int(state.tuner.recentres)
        assert bool(after.credit) == bool(state.credit)

    def test_a_tuned_one_moves_its_own_coordinate_of_the_centre(self):
        state = member(brains(RECORD), 0)
        name = SPACE.names[0]
        value = from_unit(SPACE, jnp.full((SPACE.dim,), 0.75, jnp.float32), state.hyper)[name]
        after = autonomy.override(RECORD, state, {name: value, "unknown": jnp.float32(1.0)})
        moved = np.asarray(after.tuner.centre)
        np.testing.assert_allclose(moved[0], 0.75, atol=1e-6)
        np.testing.assert_array_equal(moved[1:], np.asarray(state.tuner.centre)[1:])
        assert not bool(after.credit)
        assert set(after.hyper) == set(state.hyper)


@pytest.mark.parametrize(
    ("reason", "window", "goes_on", "fresh"),
    [
        (StopReason.RUNNING, 5, True, True),
        (StopReason.CONVERGED, 5, True, True),
        (StopReason.CONVERGED, 9, False, True),  # out of budget by now
        (StopReason.BUDGET, 9, False, True),  # a larger budget may follow
        (StopReason.TARGET, 5, False, False),
        (StopReason.NON_FINITE, 5, False, False),
    ],
)
def test_what_has_grown_gets_a_fresh_patience_unless_it_has_ended_for_good(reason, window, goes_on, fresh):
    state = member(brains(PLAIN, budget=9), 0)
    scheduler = state.scheduler.replace(misses=jnp.int32(7), count=jnp.int32(9), interval=jnp.int32(8))
    state = jax.tree.map(jnp.asarray, state).replace(
        scheduler=scheduler,
        window=jnp.int32(window),
        done=jnp.bool_(reason != StopReason.RUNNING),
        stop_reason=jnp.int32(reason),
    )
    after = autonomy.renew(PLAIN, state)
    assert bool(after.done) is not goes_on
    ends = reason if not fresh else StopReason.RUNNING if goes_on else StopReason.BUDGET
    assert StopReason(int(after.stop_reason)) == ends
    assert (int(after.scheduler.misses), int(after.scheduler.interval)) == ((0, 4) if fresh else (7, 8))
