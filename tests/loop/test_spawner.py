"""Variants that are spawned inside the compiled driver: the whole flow, exactness, resume, what comes out."""

import logging

import jax
import numpy as np
import pytest

from tensor_optix import load_run, resume, train
from tensor_optix.config import ConfigError
from tensor_optix.core.types import Event, StopReason
from tensor_optix.loop.events import LoopCallback
from tests.runs import SMALL, assert_same_bits, member, plan_of, run_windows, session_of

# Learning counts as over after eight evaluations without improvement.
QUICK = {"dormant_threshold": 8, "saturation_threshold": 4, "patience_after_fall": 8}
SETTINGS = {"seeds": 2, "max_spawns": 3, "autonomy": QUICK, "evolution": {"window": 8}, "total_steps": 64 * 400}
TRAINED = {
    "config": SMALL, "eval_every": 128, "eval_episodes": 2, "final_episodes": 8, "progress": False,
    "autonomy": QUICK, "evolution": {"window": 8},
}  # fmt: skip


def finished(session):
    while not session.done:
        session.step()
    return session


@pytest.fixture(scope="module")
def whole():
    """A session that ran to its end, and its state before each meeting."""
    session = session_of(plan_of(**SETTINGS))
    before = []
    hold = session._hold_meeting

    def noted(report):
        before.append(session.state())
        hold(report)
        before.append(session.state())

    session._hold_meeting = noted
    return finished(session), before


def test_the_budget_of_spawns_is_spent_in_turn(whole):
    session, _ = whole
    reasons, windows = session.stop_reasons.reshape(2, 4), session.windows.reshape(2, 4)
    over = reasons[:, -1]
    assert set(over.tolist()) <= {StopReason.SPAWN_BUDGET, StopReason.BUDGET}
    assert StopReason.SPAWN_BUDGET in over  # at least one seed got through
    assert (reasons[:, :-1] == StopReason.CONVERGED).all()
    assert (windows > 0).all()
    assert (windows.sum(axis=1) <= session.max_windows).all()
    assert len(session.copies) == 6
    for copy in session.copies:
        (child,) = np.flatnonzero(copy.parents != np.arange(8))
        assert copy.parents[child] // 4 == child // 4
        assert copy.parents[child] < child


def test_a_variant_is_the_best_policy_changed_a_little(whole):
    session, states = whole
    before, after = next(
        (a, b)
        for a, b in zip(states[::2], states[1::2], strict=True)
        if a["stop_reasons"][1] == StopReason.UNSPAWNED and b["stop_reasons"][1] == StopReason.RUNNING
    )
    best, made = member(before["members"].best, 0), member(after["members"], 1)
    for old, new in zip(jax.tree.leaves(best[0]), jax.tree.leaves(made.learner.params), strict=True):
        changed = old != 0
        ratio = new[changed] / old[changed]
        assert (new[~changed] == 0).all()
        assert np.abs(ratio - 1).max() < 0.1  # weight_noise is at most 0.01
        assert (ratio != 1).mean() > 0.9
    assert_same_bits(made.best, jax.tree.map(np.asarray, session.program.algorithm.snapshot(made.learner)))
    waiting = member(before["members"], 1)
    assert_same_bits(made.learner.env_state, waiting.learner.env_state)
    assert_same_bits(made.learner.opt, best[1])
    brain, parent = made.brain, member(before["members"], 0).brain
    assert int(brain.max_windows) == session.max_windows - before["windows"][:4].sum()
    assert not brain.has_best
    assert int(brain.evaluations) == 0
    for name, parameter in session._meeting.space.entries:
        assert parameter.low <= brain.best_hyper[name] <= parameter.high * (1 + 1e-6)
        assert brain.best_hyper[name] != parent.best_hyper[name]


@pytest.mark.slow
def test_chunks_and_devices_are_of_no_consequence(whole):
    one = session_of(plan_of(**SETTINGS), devices=jax.local_devices()[:1])
    one._next_chunk = lambda: 7
    assert_same_bits(finished(one).state(), whole[0].state())


def test_resume_is_exact(whole):
    first = session_of(plan_of(**SETTINGS))
    while not first.copies:
        first.step()
    run_windows(first, 5)
    second = session_of(plan_of(**SETTINGS), start=False)
    second.load(first.state())
    assert_same_bits(finished(second).state(), whole[0].state())


@pytest.mark.slow
def test_a_seed_does_not_depend_on_its_neighbours(whole):
    alone = finished(session_of(plan_of(**(SETTINGS | {"seeds": [1]}))))
    assert_same_bits(alone.state()["members"], jax.tree.map(lambda x: x[4:], whole[0].state()["members"]))


@pytest.mark.slow
def test_a_larger_budget_goes_on_with_the_newest(whole):
    short = finished(session_of(plan_of(**(SETTINGS | {"total_steps": 64 * 60}))))
    assert (short.windows.reshape(2, 4).sum(axis=1) <= 60).all()
    assert StopReason.BUDGET in short.stop_reasons
    longer = session_of(plan_of(**SETTINGS), start=False)
    longer.load(short.state())
    finished(longer)
    assert set(longer.stop_reasons.reshape(2, 4)[:, -1].tolist()) <= {StopReason.SPAWN_BUDGET, StopReason.BUDGET}
    assert (longer.windows.reshape(2, 4).sum(axis=1) > 60).all()


@pytest.mark.slow
def test_a_run_gives_an_ensemble_a_report_and_a_picture(tmp_path, caplog):
    class Told(LoopCallback):
        dormant = 0

        def on_dormant(self, episode_id):
            self.dormant += 1

    told = Told()
    with caplog.at_level(logging.WARNING, "tensor_optix"):
        result = train("CartPole-v1", seeds=2, max_spawns=2, total_steps=64 * 300, run_dir=tmp_path / "run",
                       callbacks=[told], **TRAINED)  # fmt: skip
    assert told.dormant >= 4
    assert caplog.text.count("Training Complete") == 1
    assert len(result.ensembles) == len(result.scores) == 2
    for seed, ensemble in enumerate(result.ensembles):
        assert ensemble.seed == seed
        np.testing.assert_allclose(np.mean(ensemble.weights), 1.0, rtol=1e-5)
        assert len(ensemble.returns) == 8
        assert ensemble.score == ensemble.returns.mean()
        report = ensemble.report
        assert report["spawn_count"] == 2
        assert report["budget_exhausted"]
        assert report["ensemble_size"] == len(ensemble.members) == 3
        assert f"Spawns used      : {report['spawn_count']} / 2" in ensemble.report_text
        assert report["best_score"] == max(result.members[i].curve.best_so_far()[-1] for i in ensemble.members)
    assert "2 seeds, each with up to 2 variants" in str(result)
    assert "4 variants spawned" in str(result)
    result.plot(tmp_path / "curves.png")
    read = load_run(tmp_path / "run")
    obs = np.random.default_rng(0).normal(size=(50, 4))
    np.testing.assert_array_equal(read.ensemble(obs), result.ensemble(obs))
    assert [e.to_row() for e in read.ensembles] == [e.to_row() for e in result.ensembles]
    np.testing.assert_array_equal(read.ensembles[1].returns, result.ensembles[1].returns)
    assert read.to_json()["ensembles"][0]["seed"] == 0


@pytest.mark.slow
def test_an_interrupted_run_on_disk_ends_like_one_that_was_not(tmp_path):
    whole = train("CartPole-v1", seeds=2, max_spawns=2, total_steps=64 * 300, run_dir=tmp_path / "whole", **TRAINED)
    train("CartPole-v1", seeds=2, max_spawns=2, total_steps=64 * 40, run_dir=tmp_path / "parts", **TRAINED)
    parts = resume(tmp_path / "parts", total_steps=64 * 300, progress=False)
    assert {m.stop_reason for m in whole.members} <= {StopReason.CONVERGED, StopReason.SPAWN_BUDGET}
    assert len(parts.ensembles) == 2
    assert parts.lineage.copies.sum() == whole.lineage.copies.sum() == 4


@pytest.mark.slow
def test_places_that_were_not_needed_say_so(tmp_path):
    result = train("CartPole-v1", seeds=1, max_spawns=3, total_steps=64 * 4, **TRAINED)
    assert [m.stop_reason for m in result.members[1:]] == [StopReason.UNSPAWNED] * 3
    assert all(np.isnan(m.score) for m in result.members[1:])
    assert result.ensembles[0].members == [0]
    assert result.ensembles[0].report["spawns_remaining"] == 3
    assert "unspawned (3)" in str(result)
    result.plot(tmp_path / "curves.png")


@pytest.mark.slow
def test_events_tell_the_end_of_each_and_nothing_else(whole):
    session = session_of(plan_of(**(SETTINGS | {"seeds": 1})))
    ends = []
    while not session.done:
        report = session.step()
        ends += [(int(report.member_ids[m]), int(report.stop_reason[k, m]), int(report.events[k, m]))
                 for k, m in zip(*np.nonzero(report.stop_reason), strict=True)]  # fmt: skip
    assert [who for who, _, _ in ends] == [0, 1, 2, 3]
    assert all(events & Event.STOPPED for _, _, events in ends)
    assert ends[-1][1] == session.stop_reasons[3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "env"), [("dqn", "CartPole-v1"), ("sac", "Pendulum-v1"), ("recurrent_ppo", "CartPole-v1")]
)
def test_every_kind_of_algorithm_spawns(algorithm, env):
    config = {"n_envs": 2, "n_steps": 32, "hidden_sizes": [8]}
    if algorithm != "recurrent_ppo":
        config |= {"train_every": 8, "updates": 1, "replay_size": 512, "warmup_steps": 16}
    settings = TRAINED | {"config": config}
    result = train(env, algorithm, seeds=1, max_spawns=1, total_steps=64 * 400, eval_max_steps=50, **settings)
    assert result.members[1].windows > 0
    assert np.isfinite(result.ensembles[0].score)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_spawns": -1}, "max_spawns must be a whole number of at least 0"),
        ({"max_spawns": 2, "population": 4}, "take one of the two out"),
        ({"max_spawns": 2, "stop": False}, "set stop to true"),
        ({"evolution": {"window": 8}}, "set max_spawns to 1 or more"),
        ({"max_spawns": 2, "evolution": {"max_ensemble": 8}}, "did you mean 'max_ensemble_size'"),
        ({"max_spawns": 2, "evolution": {"window": 100}}, "28 are remembered"),
        ({"max_spawns": 2, "evolution": {"max_noise": 2.0}}, "min_noise <= max_noise"),
    ],
)
def test_what_cannot_be_run_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        plan_of(**settings)
