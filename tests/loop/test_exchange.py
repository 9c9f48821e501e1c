"""Populations inside the compiled driver: what a copy takes over, exactness, resume, the end of a population."""

import jax
import numpy as np
import pytest

from tensor_optix import resume, train
from tensor_optix.config import ConfigError
from tensor_optix.core.types import StopReason
from tensor_optix.loop.events import LoopCallback
from tests.runs import SMALL, assert_same_bits, plan_of, run_windows, session_of

EXCHANGE = {"rule": "pbt", "every": 1, "quantile": 0.5}
SETTINGS = {"seeds": 2, "population": 4, "exchange": EXCHANGE, "stop": False}


def populations(**changes):
    return session_of(plan_of(**(SETTINGS | changes)), block=changes.get("block", 1))


@pytest.fixture(scope="module")
def reference():
    """Eight windows with four exchanges, the state and the copies before each."""
    session = populations()
    before = []
    meet = session._hold_meeting

    def noted(report):
        before.append(session.state())
        meet(report)

    session._hold_meeting = noted
    run_windows(session, 8)
    return session.state(), session.copies, before


def test_a_copy_is_its_parent_with_an_environment_of_its_own(reference):
    after, copies, before = reference
    assert [c.window for c in copies] == [2, 4, 6, 8]  # an evaluation every second window
    last, parents = before[-1]["members"].learner, copies[-1].parents
    now = after["members"].learner
    copied = np.flatnonzero(parents != np.arange(8))
    assert copied.size
    assert (parents // 4 == np.arange(8) // 4).all()  # populations are their own
    assert_same_bits(now.params, jax.tree.map(lambda x: x[parents], last.params))
    assert_same_bits(now.opt, jax.tree.map(lambda x: x[parents], last.opt))
    assert_same_bits(now.env_state, last.env_state)
    score = before[-1]["members"].brain.scheduler.scores[:, -1]
    assert (score[parents][copied] > score[copied]).all()


def test_copies_get_other_hyperparameters_and_the_rest_keep_theirs(reference):
    after, copies, before = reference
    old, new = before[-1]["members"].brain.hyper, after["members"].brain.hyper
    parents = copies[-1].parents
    copied = parents != np.arange(8)
    tuned = ("learning_rate", "gamma", "clip_range", "entropy_coef")
    for name in new:
        np.testing.assert_allclose(new[name][~copied], old[name][~copied], rtol=1e-6)
        if name in tuned:
            assert (new[name][copied] != old[name][parents][copied]).all()
            assert np.unique(old[name]).size > 4  # they began apart
        else:
            np.testing.assert_array_equal(new[name], old[name])


@pytest.mark.slow
def test_chunks_devices_and_blocks_are_of_no_consequence(reference):
    one = session_of(plan_of(**SETTINGS), devices=jax.local_devices()[:1])
    run_windows(one, 8, chunk=1)
    assert_same_bits(one.state(), reference[0])


@pytest.mark.slow
def test_a_population_does_not_depend_on_its_neighbours(reference):
    alone = populations(seeds=[1])
    run_windows(alone, 8)
    assert_same_bits(alone.state()["members"], jax.tree.map(lambda x: x[4:], reference[0]["members"]))


def test_resume_is_exact(reference):
    first = populations()
    run_windows(first, 3)
    second = populations()
    second.load(first.state())
    run_windows(second, 5)
    assert_same_bits(second.state(), reference[0])


def test_it_is_compiled_once():
    session = populations()
    run_windows(session, 2)
    with jax.no_tracing():
        run_windows(session, 4)


@pytest.mark.slow
def test_a_population_stops_as_one_and_the_reports_say_so():
    class Told(LoopCallback):
        dormant = 0

        def on_dormant(self, episode_id):
            self.dormant += 1

    told = Told()
    quick = {"dormant_threshold": 8, "saturation_threshold": 4, "patience_after_fall": 8}
    result = train(
        "CartPole-v1", config=SMALL, eval_every=128, eval_episodes=2, final_episodes=2, total_steps=64 * 1000, seeds=2,
        population=2, autonomy=quick, progress=False, callbacks=[told],
    )  # fmt: skip
    windows = np.array([m.windows for m in result.members]).reshape(2, 2)
    assert (windows[:, 0] == windows[:, 1]).all()
    assert {m.stop_reason for m in result.members} == {StopReason.CONVERGED}
    assert told.dormant >= 4
    assert len(result.scores) == 2
    assert result.members.index(result.finalists[1]) in (2, 3)


@pytest.mark.slow
def test_a_run_on_disk_keeps_its_lineage(tmp_path):
    settings = {
        "env": "CartPole-v1", "config": SMALL, "eval_every": 128, "eval_episodes": 2, "final_episodes": 2, "seeds": 1,
        "population": 4, "exchange": EXCHANGE, "stop": False, "progress": False,
    }  # fmt: skip
    whole = train(**settings, total_steps=64 * 12, run_dir=tmp_path / "whole")
    train(**settings, total_steps=64 * 8, run_dir=tmp_path / "parts")
    parts = resume(tmp_path / "parts", total_steps=64 * 12, progress=False)
    assert whole.lineage.window.tolist() == [2, 4, 6, 8, 10]  # the budget ends with window 12
    np.testing.assert_array_equal(parts.lineage.parents, whole.lineage.parents)
    np.testing.assert_array_equal(parts.lineage.window, whole.lineage.window)
    assert parts.scores.tobytes() == whole.scores.tobytes()
    assert "a population of 4 each" in str(whole)
    whole.plot(tmp_path / "curves.png")


@pytest.mark.slow
def test_a_replay_is_copied_only_if_asked():
    config = {
        "n_envs": 2,
        "n_steps": 32,
        "train_every": 8,
        "updates": 1,
        "replay_size": 128,
        "warmup_steps": 16,
        "hidden_sizes": [8],
    }
    for copy in (False, True):
        exchange = EXCHANGE | {"copy_replay": copy}
        plan = plan_of(**(SETTINGS | {"seeds": 1, "exchange": exchange}), algorithm="dqn", config=config)
        session = session_of(plan)
        run_windows(session, 2)
        parents = session.copies[-1].parents
        assert (parents != np.arange(4)).any()
        now = session.state()["members"].learner.replay.obs
        same = [np.array_equal(now[i], now[p]) for i, p in enumerate(parents) if i != p]
        assert all(same) == copy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exchange": {"rule": "best"}}, "exchange rule"),
        ({"exchange": {"rule": "pbt", "quantil": 0.2}}, "quantile"),
        ({"exchange": {"rule": "pbt", "quantile": 0.9}}, "quantile must be in"),
        ({"population": 1}, "set population to 2 or more"),
        ({"tune": False}, "by its exchanges"),
        ({"population": 2.5}, "whole number"),
    ],
)
def test_bad_requests(changes, words):
    with pytest.raises(ConfigError, match=words):
        plan_of(**(SETTINGS | changes))
