"""The compiled driver's laws: what must not depend on chunks, lanes, blocks, devices or interruptions."""

import jax
import numpy as np
import pytest

from tensor_optix.core.types import Event, StopReason
from tensor_optix.loop.session import EMPTY, Layout
from tests.runs import assert_same_bits, member, plan_of, run_windows, session_of


@pytest.fixture(scope="module")
def reference():
    """Two members after 12 windows in one chunk."""
    session = session_of(plan_of())
    run_windows(session, 12)
    return session.state()


def test_chunk_size_does_not_change_a_bit(reference):
    session = session_of(plan_of())
    run_windows(session, 12, chunk=5)
    assert_same_bits(session.state(), reference)


def test_resume_is_exact(reference):
    first = session_of(plan_of())
    run_windows(first, 5)
    second = session_of(plan_of(), start=False)
    second.load(first.state())
    run_windows(second, 7)
    assert_same_bits(second.state(), reference)


def test_budget_extension_is_exact(reference):
    first = session_of(plan_of(total_steps=64 * 6))
    run_windows(first, 6)
    assert first.done
    assert set(first.stop_reasons) == {StopReason.BUDGET}
    # The budget's last window is always evaluated, so extend at a window that was due anyway.
    second = session_of(plan_of(), start=False)
    second.load(first.state())
    assert not second.done
    run_windows(second, 6)
    state = second.state()
    assert_same_bits(state["members"].learner, reference["members"].learner)


def test_a_member_does_not_depend_on_its_neighbours(reference):
    session = session_of(plan_of(seeds=[1]))
    run_windows(session, 12)
    assert_same_bits(member(session.state()["members"], 0), member(reference["members"], 1))


def test_devices_do_not_change_a_bit(reference):
    session = session_of(plan_of(), devices=jax.local_devices()[:1])
    run_windows(session, 12)
    assert_same_bits(session.state(), reference)


@pytest.mark.slow
def test_blocks_agree_closely(reference):
    """A vmapped block may round differently from a single member, but starts as the same one."""
    session = session_of(plan_of(), block=2, devices=jax.local_devices()[:1])
    run_windows(session, 1)
    alone = session_of(plan_of())
    run_windows(alone, 1)
    a, b = session.state()["members"], alone.state()["members"]
    assert_same_bits(a.key, b.key)
    for x, y in zip(jax.tree.leaves(a.learner.params), jax.tree.leaves(b.learner.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lanes_of_a_block_are_independent():
    together = session_of(plan_of(seeds=[3, 4]), block=2, devices=jax.local_devices()[:1])
    run_windows(together, 6)
    other = session_of(plan_of(seeds=[3, 9]), block=2, devices=jax.local_devices()[:1])
    run_windows(other, 6)
    assert_same_bits(member(together.state()["members"], 0), member(other.state()["members"], 0))


def test_seeds_differ_in_everything_random(reference):
    members = reference["members"]
    for leaf in (members.key, *jax.tree.leaves(members.learner.params), members.learner.obs):
        if np.asarray(leaf).size > 2:
            assert not np.array_equal(leaf[0], leaf[1])


@pytest.mark.slow
def test_a_members_key_is_told_by_its_seed_and_variant():
    session = session_of(plan_of(seeds=[0, 7, 2**32 - 1], variants=[{"gamma": 0.9}, {"gamma": 0.8}]))
    expected = [jax.random.split(jax.random.fold_in(jax.random.key(m.seed), m.variant), 3)[2] for m in session.specs]
    keys = session.state()["members"].key
    np.testing.assert_array_equal(keys, [jax.random.key_data(key) for key in expected])
    assert len(np.unique(keys, axis=0)) == 6


def test_no_recompilation_and_no_window_past_the_end():
    session = session_of(plan_of(total_steps=64 * 9))
    reports = run_windows(session, 50, chunk=4)
    assert session.done
    assert sum(r.active.sum(axis=0) for r in reports).tolist() == [9, 9]
    assert session._compiled.keys() == {"chunk", "init", "final"}


def test_finished_members_are_frozen_bit_exactly():
    session = session_of(plan_of(total_steps=64 * 40))
    run_windows(session, 4)
    state = session.state()
    state["members"].brain.done[0] = True
    state["stop_reasons"][0] = StopReason.TARGET
    session.load(state)
    before = member(session.state()["members"], 0)
    run_windows(session, 4)
    assert_same_bits(member(session.state()["members"], 0), before)
    assert session.windows.tolist() == [4, 8]


def test_final_evaluation_is_of_the_best_policy_and_repeatable(reference):
    session = session_of(plan_of(), start=False)
    session.load(reference)
    policies, episodes = session.final()
    again, same = session.final()
    assert_same_bits((policies, episodes), (again, same))
    assert episodes.returns.shape == (2, 4)
    np.testing.assert_array_equal(policies.actor["head"]["bias"], reference["members"].best[0]["actor"]["head"]["bias"])


@pytest.mark.parametrize("block", [1, 2])
def test_the_best_is_the_learner_of_the_window_that_said_so(block):
    session = session_of(plan_of(), block=block)
    members = session.state()["members"]
    kept, said = members.best, []
    for _ in range(12):
        brain = members.brain
        (report,) = run_windows(session, 1)
        members = session.state()["members"]
        tied = report.evaluated[0] & brain.has_best & (report.score[0] == brain.best_score)  # of equals the newer
        said.append(((report.events[0] & Event.BEST) != 0) | tied)
        now = members.learner.params, members.learner.opt
        assert_same_bits(members.best[:2], jax.tree.map(lambda a, b: _pick(said[-1], a, b), now, kept[:2]))
        kept = members.best
    assert np.any(said)
    assert not np.all(said)


def _pick(mask, a, b):
    return np.where(np.reshape(mask, (-1,) + (1,) * (np.ndim(a) - 1)), a, b)


@pytest.fixture(scope="module")
def poisoned(reference):
    """The reference's first member with a NaN among its weights, three windows on."""
    session = session_of(plan_of(), start=False)
    state = jax.tree.map(np.array, reference)
    state["members"].learner.params["actor"]["head"]["kernel"][0] = np.nan
    session.load(state)
    return session, run_windows(session, 3)


@pytest.fixture(scope="module")
def thirty_two():
    """32 members after 4 windows."""
    session = session_of(plan_of(seeds=32))
    run_windows(session, 4)
    return session.state()


class TestNonFinite:
    """NaN is caught within one window, rolled back, and stops the member after three; nobody else notices."""

    def test_caught_and_rolled_back_within_one_window(self, poisoned):
        session, reports = poisoned
        events = np.concatenate([r.events for r in reports])
        first = events[0, list(reports[0].member_ids).index(0)]
        assert first & Event.NON_FINITE
        assert first & Event.ROLLBACK
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(session.state()["members"].learner.params))

    def test_the_others_are_bit_identical(self, poisoned, reference):
        clean = session_of(plan_of(), start=False)
        clean.load(reference)
        run_windows(clean, 3)
        assert_same_bits(member(poisoned[0].state()["members"], 1), member(clean.state()["members"], 1))

    @pytest.mark.slow
    @pytest.mark.parametrize("sick", [0, 17, 31])
    def test_one_of_thirty_two_leaves_the_rest_bit_identical(self, thirty_two, sick):
        states = {}
        for poison in (False, True):
            session = session_of(plan_of(seeds=32), start=False)
            state = jax.tree.map(np.array, thirty_two)
            if poison:
                state["members"].learner.params["actor"]["head"]["kernel"][sick] = np.nan
            session.load(state)
            run_windows(session, 4)
            states[poison] = session.state()["members"]
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(states[True].learner.params))
        for i in range(32):
            if i != sick:
                assert_same_bits(member(states[True], i), member(states[False], i))
        assert states[True].brain.has_best[sick]
        with pytest.raises(AssertionError):
            assert_same_bits(member(states[True], sick), member(states[False], sick))

    def test_three_in_a_row_stop_the_member(self, reference):
        session = session_of(plan_of(), start=False)
        state = jax.tree.map(np.array, reference)
        for params in (state["members"].learner.params, state["members"].best[0]):
            params["actor"]["head"]["kernel"][0] = np.nan  # nothing healthy is left to go back to
        session.load(state)
        run_windows(session, 3)
        assert session.stop_reasons.tolist() == [StopReason.NON_FINITE, StopReason.RUNNING]
        assert session.windows.tolist() == [15, 15]


class TestLayout:
    def test_lanes_are_dealt_over_devices(self):
        layout = Layout.of(5, 2, 1)
        assert (layout.n_devices, layout.block, layout.lanes) == (2, 1, 6)
        assert Layout.of(1, 2, 4).lanes == 1

    @pytest.mark.parametrize("block", [1, 2])
    def test_packing_spreads_survivors_evenly(self, block):
        layout = Layout.of(8, 2, block)
        active = np.array([True] * 4 + [False] * 4)  # all on the first device
        order = layout.packed(active)
        assert sorted(order.tolist()) == list(range(8))
        assert layout.load(active[order]) == -(-4 // (2 * block))
        assert layout.packed(active[order]) is None

    def test_packing_keeps_every_member_its_own(self):
        session = session_of(plan_of(seeds=5, total_steps=64 * 40))
        run_windows(session, 2)
        state = session.state()
        for i in (0, 2):
            state["members"].brain.done[i] = True
            state["stop_reasons"][i] = StopReason.TARGET
        session.load(state)
        assert session.layout.load(np.isin(session.member_ids, [1, 3, 4])) == 2
        assert_same_bits(session.state(), state)
        assert sorted(session.member_ids.tolist()) == [EMPTY, 0, 1, 2, 3, 4]
