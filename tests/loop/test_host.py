"""The host driver: any agent, any source, the same brain as the compiled driver."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core import autonomy
from tensor_optix.core.autonomy import AutonomyConfig
from tensor_optix.core.backoff_scheduler import BackoffConfig
from tensor_optix.core.backoff_shell import HOST_DEFAULT, BackoffScheduler
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.search_space import search_space
from tensor_optix.core.types import EvalMetrics, Event, HyperparamSet, LoopState, Scores, StopReason
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import RunDirError
from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.host import LoopController
from tensor_optix.loop.host_brain import HostBrain
from tensor_optix.optimizers.spsa import SPSA, SPSAOptimizer
from tests.host_parts import Forecaster, Plain, Source, Stream, window_of


def controller(tmp_path, agent=None, scores=None, **settings) -> LoopController:
    """Told `scores`, one a window, over and over its last ones where they run out."""
    agent = agent if agent is not None else Plain()
    settings.setdefault("pipeline", Source())
    settings.setdefault("checkpoint_registry", CheckpointRegistry(tmp_path / "checkpoints"))
    if scores is not None:
        told = iter(scores)
        settings["checkpoint_score_fn"] = lambda agent: next(told)
    return LoopController(agent, **settings)


def rising(n=40, plateau=200, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([np.linspace(0, 10, n), np.full(plateau, 10.0)]) + noise * rng.normal(size=n + plateau)


class TestSixMethods:
    def test_a_forecaster_on_a_stream_learns_and_stops_by_itself(self, tmp_path):
        agent = Forecaster()
        result = controller(tmp_path, agent, pipeline=Stream(agent), max_episodes=2000).run()
        assert result.stop_reason == StopReason.CONVERGED
        assert result.windows < 400
        np.testing.assert_allclose(agent.coefficients, [1.2, -0.5], atol=0.15)
        assert {m.metrics["unit"] for m in result.history} == {"reward per step"}

    def test_it_converges_without_a_tuner_and_the_best_comes_back(self, tmp_path):
        scores, agent = rising(), Plain()
        loop = controller(tmp_path, agent, scores)
        result = loop.run()
        assert result.stop_reason == StopReason.CONVERGED
        best = int(np.argmax(scores[: result.windows]))
        assert agent.weight == best + 1  # weights of the best window, not of the last
        assert loop.best_snapshot.episode_id == best
        assert result.best_snapshot.eval_metrics.primary_score == scores[best]


class TestSameBrain:
    @pytest.mark.parametrize("kind", ["noise", "rise", "collapse", "faults"])
    def test_both_drivers_decide_alike(self, kind):
        rng = np.random.default_rng([3, len(kind)])
        n = 120
        scores = {
            "noise": rng.normal(size=n),
            "rise": np.linspace(-3, 3, n) + 0.3 * rng.normal(size=n),
            "collapse": np.where(np.arange(n) < 50, np.arange(n) / 10, -20.0) + rng.normal(size=n),
            "faults": np.where(rng.random(n) < 0.05, np.nan, rng.normal(size=n)),
        }[kind].astype(np.float32)
        finite = rng.random(n) > (0.05 if kind == "faults" else 0.0)
        space = search_space({"a": (0.0, 1.0), "b": ("log", 1e-4, 1e-2)})
        config = AutonomyConfig(
            scheduler=BackoffConfig(max_interval=2), tuner=SPSA(), space=space, rollback_on_degradation=True
        )
        hyper = {"a": 0.3, "b": 1e-3, "c": 2.0}
        state = autonomy.init(config, {k: jnp.float32(v) for k, v in hyper.items()}, jax.random.key(5), 100)

        def compiled(state, x):
            told = Scores(x[0], autonomy.is_due(state), x[1])
            state, decision = autonomy.step(config, state, told)
            return state, (decision, state.hyper)

        _, (decisions, hypers) = jax.lax.scan(compiled, state, (jnp.asarray(scores), jnp.asarray(finite)))
        brain = HostBrain(config, hyper, jax.random.key(5), 100)
        for i in range(n):
            verdict = brain.finish_window(float(scores[i]) if brain.due else None, bool(finite[i]))
            assert verdict.events == Event(int(decisions.events[i])), i
            assert verdict.save_best == bool(decisions.save_best[i])
            assert verdict.rollback == bool(decisions.rollback[i])
            assert brain.stop_reason == StopReason(int(decisions.stop_reason[i]))
            for name in hyper:
                # An ulp: the exponential of a log scale is fused differently in a scan.
                np.testing.assert_allclose(brain.state.hyper[name], hypers[name][i], rtol=1e-6)
            if brain.stop_reason != StopReason.RUNNING:
                break
        assert brain.stop_reason != StopReason.RUNNING

    def test_decisions_do_not_change_with_the_scale_of_scores(self, tmp_path):
        def told(scale, offset):
            loop = controller(tmp_path / f"{scale}", scores=rising() * scale + offset)
            return loop.run().windows, loop.best_snapshot.episode_id

        assert told(1.0, 0.0) == told(2.0**20, 0.0) == told(2.0**-20, 0.0) == told(0.5, -64.0)


class TestObeying:
    def test_a_collapse_is_rolled_back_with_its_hyperparameters(self, tmp_path):
        scores = np.concatenate([np.linspace(0, 10, 30), np.full(10, -50.0), np.linspace(0, 10, 30), np.full(99, 10.0)])
        agent = Plain(rate=0.5)
        seen = []

        class Watch(LoopCallback):
            def on_degradation(self, episode_id, eval_metrics):
                seen.append(episode_id)
                assert (agent.weight, agent.params["rate"]) == (30.0, 0.5)  # put back before callbacks hear of it

            def on_episode_end(self, episode_id, eval_metrics):
                seen.append((episode_id, agent.weight, agent.params["rate"]))
                if eval_metrics is not None and eval_metrics.primary_score < 0 and not back():
                    agent.params["rate"] = 99.0  # whatever else happened to them meanwhile

        def back():
            return any(isinstance(x, int) for x in seen) or agent.weight == 30.0

        loop = controller(tmp_path, agent, scores, rollback_on_degradation=True, callbacks=[Watch()])
        loop.run()
        fall = next(x for x in seen if isinstance(x, int))
        assert 30 <= fall < 40
        before = next(x for x in seen if not isinstance(x, int) and x[0] == fall - 1)
        after = seen[seen.index(fall) + 1]
        assert before[1:] == (fall, 99.0)  # one a window
        assert after == (fall + 1, 31.0, 0.5)  # the best's 30, and one window more

    def test_an_agent_with_a_replay_is_not_rolled_back(self, tmp_path):
        class OffPolicy(Plain):
            is_on_policy = False

        scores = np.concatenate([np.linspace(0, 10, 30), np.full(99, -50.0)])
        agent, weights = OffPolicy(), []

        class Watch(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                weights.append(agent.weight)

        controller(tmp_path, agent, scores, rollback_on_degradation=True, callbacks=[Watch()]).run()
        assert len(weights) > 40
        assert weights == [i + 1 for i in range(len(weights))]
        assert agent.weight == 30  # the best, put back only at the end

    def test_nan_scores_are_never_the_best_and_stop_the_third_time(self, tmp_path):
        loop = controller(tmp_path, scores=[math.nan, 1.0, math.nan, math.nan, math.nan])
        result = loop.run()
        assert result.stop_reason == StopReason.NON_FINITE
        assert result.windows == 5
        assert loop.best_snapshot.eval_metrics.primary_score == 1.0

    def test_a_fault_before_the_first_score_goes_back_to_the_beginning(self, tmp_path):
        class Breaks(Plain):
            def learn(self, episode_data):
                super().learn(episode_data)
                return {"loss": math.nan if len(self.seen) == 1 else 0.0}

        agent = Breaks()
        loop = controller(tmp_path, agent, scores=[5.0, 2.0, 1.0], max_episodes=3)
        loop.run()
        assert agent.weight == 1.0  # 0 after the fault, then the best was the second window's
        assert loop.best_snapshot.eval_metrics.primary_score == 2.0

    def test_target(self, tmp_path):
        result = controller(
            tmp_path, scores=[1.0, 9.0, 9.0, 1.0, 9.0, 9.0, 9.0], target_score=8.0, convergence_patience=3
        ).run()
        assert (result.stop_reason, result.windows) == (StopReason.TARGET, 7)

    def test_the_budget_collects_no_window_too_many(self, tmp_path):
        source = Source()
        result = controller(tmp_path, pipeline=source, max_episodes=7).run()
        assert (result.stop_reason, result.windows) == (StopReason.BUDGET, 7)
        assert (source.collected, source.opened, source.closed) == (7, 1, 1)

    def test_the_budget_holds_where_nothing_was_ever_scored(self, tmp_path):
        result = controller(tmp_path, pipeline=Source(lambda i: window_of([1.0, 1.0])), max_episodes=5).run()
        assert (result.stop_reason, result.windows) == (StopReason.BUDGET, 5)
        assert (result.history, result.best_snapshot) == ([], None)

    def test_a_handled_dormant_goes_on(self, tmp_path):
        class Handles(LoopCallback):
            dormant = 0

            def on_dormant(self, episode_id):
                self.dormant += 1
                if self.dormant < 3:
                    loop.keep_going()

        callback = Handles()
        loop = controller(tmp_path, scores=rising(plateau=600), callbacks=[callback])
        result = loop.run()
        assert callback.dormant == 3
        assert result.stop_reason == StopReason.CONVERGED
        assert loop.state == LoopState.DORMANT

    def test_a_dormant_handled_at_the_end_of_the_budget_runs_no_window_more(self, tmp_path):
        class Handles(LoopCallback):
            def on_dormant(self, episode_id):
                loop.keep_going()

        windows = controller(tmp_path / "free", scores=rising()).run().windows
        loop = controller(tmp_path, scores=rising(), callbacks=[Handles()], max_episodes=windows)
        assert loop.run().windows == windows

    def test_keep_going_without_a_dormant_changes_nothing(self, tmp_path):
        class Eager(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                if loop.brain.stop_reason == StopReason.RUNNING:
                    loop.keep_going()

        windows = controller(tmp_path / "free", scores=rising()).run().windows
        loop = controller(tmp_path, scores=rising(), callbacks=[Eager()])
        assert loop.run().windows == windows

    def test_the_default_rule_is_the_measured_one(self, tmp_path):
        loop = controller(tmp_path)
        assert loop.brain.config.scheduler == HOST_DEFAULT

    def test_the_scheduler_shows_what_the_brain_runs(self, tmp_path):
        for given in (None, BackoffScheduler(trend_window=6)):
            loop = controller(tmp_path, backoff_scheduler=given, min_consecutive_degradations=7)
            assert loop.scheduler.config == loop.brain.config.scheduler
            assert loop.scheduler.config.min_consecutive_degradations == 7

    def test_an_exhausted_source_ends_the_run(self, tmp_path):
        result = controller(tmp_path, pipeline=Source(count=0)).run()
        assert (result.stop_reason, result.windows, result.best_snapshot) == (StopReason.EXHAUSTED, 0, None)
        assert controller(tmp_path, pipeline=Source(count=3)).run().windows == 3

    def test_before_the_run_and_after_stop(self, tmp_path):
        loop = controller(tmp_path)
        assert loop.best_snapshot is None
        assert loop.state == LoopState.ACTIVE
        loop.stop()
        assert loop.run().stop_reason == StopReason.INTERRUPTED

    def test_an_error_of_the_agent_passes_through_and_the_best_is_in_place(self, tmp_path):
        class Fails(Plain):
            def learn(self, episode_data):
                super().learn(episode_data)
                if len(self.seen) == 5:
                    raise RuntimeError("out of memory")

        class Closes(LoopCallback):
            told = None

            def on_loop_stop(self):
                self.told = loop.result.stop_reason

        agent, source, callback = Fails(), Source(), Closes()
        loop = controller(tmp_path, agent, scores=[1.0, 2.0, 1.0, 1.0], pipeline=source, callbacks=[callback])
        with pytest.raises(RuntimeError, match="out of memory"):
            loop.run()
        assert callback.told == StopReason.INTERRUPTED
        assert agent.weight == 2.0
        assert source.closed == 1

    def test_a_failing_callback_is_reported_once_and_the_run_goes_on(self, tmp_path):
        class Broken(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                raise ValueError("mine")

        result = controller(tmp_path, callbacks=[Broken()], max_episodes=4).run()
        assert result.windows == 4
        (failure,) = result.callback_failures
        assert (failure.error, failure.count) == ("ValueError: mine", 4)


class TestRollback:
    def test_what_the_discarded_policy_gathered_is_dropped(self, tmp_path):
        """An episode that began before the roll-back is no return of the restored policy."""
        forgotten = []

        class Remembers(EpisodeEvaluator):
            def forget(self):
                forgotten.append(len(self._returns))
                super().forget()

        scores = [*np.linspace(0, 10, 20), *[0.0] * 6, *[10.0] * 4]
        told = iter(scores)
        controller(
            tmp_path, pipeline=Source(lambda i: window_of([1.0, 1.0], ends=(0,), episode_id=i)), evaluator=Remembers(),
            rollback_on_degradation=True, max_episodes=len(scores), checkpoint_score_fn=lambda a: next(told),
        ).run()  # fmt: skip
        assert len(forgotten) == 1

    def test_a_poisoned_environment_is_reset(self, tmp_path):
        class Poisoned(Source):
            resets = 0

            def reset(self):
                self.resets += 1

        class Learns(Plain):
            def learn(self, episode_data):
                super().learn(episode_data)
                return {"loss": float("nan") if source.collected > 4 and not source.resets else 1.0}

        source = Poisoned()
        result = controller(
            tmp_path, Learns(), pipeline=source, max_episodes=12, checkpoint_score_fn=lambda a: 1.0
        ).run()
        assert (result.stop_reason, source.resets) == (StopReason.BUDGET, 1)


class TestDisk:
    def test_a_disk_that_fills_up_costs_a_snapshot_and_not_the_run(self, tmp_path, monkeypatch):
        agent = Plain()
        registry = CheckpointRegistry(tmp_path)
        loop = controller(tmp_path, agent, scores=[1.0, 2.0, 3.0, 4.0], checkpoint_registry=registry, max_episodes=4)
        save, saves = registry.save, []

        def fails_the_third_time(*args):
            saves.append(args)
            if len(saves) == 4:  # the first is the beginning
                raise RunDirError("Could not save a snapshot: disk full.")
            return save(*args)

        monkeypatch.setattr(registry, "save", fails_the_third_time)
        result = loop.run()
        assert result.windows == 4
        assert result.notes == ["window 2 was the best so far and is lost: Could not save a snapshot: disk full."]
        assert agent.weight == 4.0

    def test_a_directory_that_cannot_be_written_is_said_before_the_first_window(self, tmp_path):
        (tmp_path / "file").write_text("")
        source = Source()
        with pytest.raises(RunDirError, match="a file of that name is in the way; choose another path"):
            controller(tmp_path, pipeline=source, checkpoint_registry=CheckpointRegistry(tmp_path / "file")).run()
        assert (source.collected, source.closed) == (0, 1)

    def test_a_damaged_best_falls_back_to_the_next_and_says_so(self, tmp_path):
        class Damages(LoopCallback):
            def on_improvement(self, snapshot):
                if snapshot.eval_metrics.primary_score == 9.0:
                    Path(snapshot.weights_path).write_text("123")

        agent = Plain()
        loop = controller(tmp_path, agent, scores=[1.0, 5.0, 9.0, 2.0], callbacks=[Damages()], max_episodes=4)
        result = loop.run()
        assert agent.weight == 2.0
        (note,) = result.notes
        assert "is damaged" in note


class TestEvaluation:
    def test_the_validation_decides(self, tmp_path):
        agent = Plain()
        val = Source(lambda i: window_of([50.0 + min(i, 6)], ends=(0,)))
        train = Source(lambda i: window_of([100.0 - i], ends=(0,)))
        loop = controller(tmp_path, agent, pipeline=train, val_pipeline=val, max_episodes=7)
        result = loop.run()
        assert result.best_snapshot.eval_metrics.primary_score == 56.0
        assert result.best_snapshot.eval_metrics.generalization_gap == 94.0 - 56.0
        assert val.closed == 1

    def test_acting_in_an_evaluation_leaves_no_trace(self, tmp_path):
        class Caching(Plain):
            def __init__(self):
                super().__init__()
                self.cache = []

            def act(self, observation):
                self.cache.append(observation)
                return 0

            def learn(self, episode_data):
                super().learn(episode_data)
                assert self.cache == ["train"]
                self.cache = []

            def reset_cache(self):
                self.cache = []

        agent = Caching()

        def collect(i):
            agent.act("train")
            return window_of([1.0], ends=(0,), episode_id=i)

        controller(
            tmp_path, agent, pipeline=Source(collect), max_episodes=5, checkpoint_score_fn=lambda a: float(a.act("val"))
        ).run()
        assert len(agent.seen) == 5

    def test_no_score_yet_postpones_the_evaluation(self, tmp_path):
        # A perfect CartPole policy in windows of 200: an episode of 500 steps ends in every second or third.
        def collect(i):
            first = i * 200
            return window_of([1.0] * 200, ends=[t for t in range(200) if (first + t + 1) % 500 == 0], episode_id=i)

        result = controller(
            tmp_path, pipeline=Source(collect), max_episodes=40, evaluator=EpisodeEvaluator(min_episodes=1)
        ).run()
        assert {m.primary_score for m in result.history} == {500.0}
        assert 10 < len(result.history) < 40

    def test_a_score_waits_for_several_episodes_but_not_for_ever(self, tmp_path):
        def windows(per_window):
            source = Source(lambda i: window_of([1.0] * 4, ends=range(per_window(i)), episode_id=i))
            return [m.episode_id for m in controller(tmp_path, pipeline=source, max_episodes=30).run().history]

        assert windows(lambda i: 4) == [*range(2, 30, 3)]
        assert windows(lambda i: 1) == [9, 19, 29]
        assert windows(lambda i: int(i % 10 == 0)) == [9, 19, 29]

    @pytest.mark.parametrize("ends", ["stop", "exhausted"])
    def test_a_run_that_ends_before_its_first_score_keeps_its_last_policy(self, tmp_path, ends):
        class Stops(LoopCallback):
            kept = ()

            def on_episode_end(self, episode_id, eval_metrics):
                if ends == "stop" and episode_id == 3:
                    loop.stop()

            def on_improvement(self, snapshot):
                self.kept = (*self.kept, snapshot.snapshot_id)

        agent, stops = Plain(), Stops()
        source = Source(lambda i: window_of([float(i)], ends=(0,), episode_id=i), count=4)
        loop = LoopController(
            agent, pipeline=source, checkpoint_registry=CheckpointRegistry(tmp_path), callbacks=[stops]
        )
        result = loop.run()
        assert result.stop_reason.label == ("interrupted" if ends == "stop" else "exhausted")
        assert result.best_snapshot.eval_metrics.primary_score == 1.5
        assert [(m.primary_score, m.metrics["episodes"]) for m in result.history] == [(1.5, 4)]
        assert stops.kept == (result.best_snapshot.snapshot_id,)
        assert agent.weight == 4.0

    def test_episodes_between_evaluations_count_too(self, tmp_path):
        source = Source(lambda i: window_of([float(i)], ends=(0,), episode_id=i))
        scheduler = BackoffScheduler(base_interval=3, max_interval_episodes=3)
        result = controller(
            tmp_path,
            pipeline=source,
            backoff_scheduler=scheduler,
            max_episodes=6,
            evaluator=EpisodeEvaluator(min_episodes=1),
        ).run()
        assert [(m.episode_id, m.primary_score) for m in result.history] == [(2, 1.0), (5, 4.0)]

    def test_smoothing(self, tmp_path):
        loop = controller(tmp_path, scores=[0.0, 10.0, 0.0, 8.0, 8.0, 0.0], score_smoothing=2, max_episodes=6)
        loop.run()
        assert loop.best_snapshot.episode_id == 4  # 8 twice, not the lucky 10

    def test_a_nan_is_one_fault_also_when_scores_are_smoothed(self, tmp_path):
        loop = controller(tmp_path, scores=[1.0, math.nan, 2.0, math.nan, 3.0], score_smoothing=2, max_episodes=5)
        faults = []
        finish = loop.brain.finish_window
        loop.brain.finish_window = lambda *told: faults.append(finish(*told)) or faults[-1]
        loop.run()
        assert [Event.NON_FINITE in verdict.events for verdict in faults] == [False, True, False, True, False]


class Noted(BaseOptimizer):
    """A tuner of the user's own: one step up after each evaluation."""

    def __init__(self):
        self.asked = []

    def suggest(self, current, history: Sequence[EvalMetrics]):
        self.asked.append((current.params["rate"], history[-1].primary_score))
        return HyperparamSet({**current.params, "rate": current.params["rate"] + 1.0})


class TestTuning:
    def test_spsa_runs_in_the_brain_and_its_probes_are_in_force_from_the_first_window(self, tmp_path):
        agent = Plain(rate=0.5, layers=3, name="x")
        told = []
        optimizer = SPSAOptimizer({"rate": (0.0, 1.0)}, seed=2)
        loop = controller(
            tmp_path,
            agent,
            optimizer=optimizer,
            max_episodes=120,
            checkpoint_score_fn=lambda a: told.append(a.params["rate"]) or -((a.params["rate"] - 0.8) ** 2),
            backoff_scheduler=BackoffScheduler(dormant_threshold=200, max_interval_episodes=1),
        )
        loop.run()
        rates = [params["rate"] for params in agent.seen]
        assert rates[0] != 0.5
        assert rates == told  # scored under what was learned with
        assert abs(np.mean(rates[-20:]) - 0.8) < 0.1
        assert all(params["layers"] == 3 and params["name"] == "x" for params in agent.seen)

    def test_a_tuner_of_the_users_own_sees_each_score_with_what_earned_it(self, tmp_path):
        agent, optimizer, updates = Plain(rate=0.0), Noted(), []

        class Watch(LoopCallback):
            def on_hyperparam_update(self, old_params, new_params):
                updates.append((old_params["rate"], new_params["rate"]))

        controller(
            tmp_path, agent, optimizer=optimizer, max_episodes=5, callbacks=[Watch()],
            checkpoint_score_fn=lambda a: 10 * a.params["rate"],
        ).run()  # fmt: skip
        assert optimizer.asked == [(0.0, 0.0), (1.0, 10.0), (2.0, 20.0), (3.0, 30.0)]
        assert updates == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
        assert agent.params["rate"] == 4.0  # the best policy's own

    def test_the_best_policys_hyperparameters_come_back(self, tmp_path):
        agent = Plain(rate=0.0)
        scores = iter([1.0, 5.0, 2.0, 2.0])
        controller(tmp_path, agent, optimizer=Noted(), max_episodes=4, checkpoint_score_fn=lambda a: next(scores)).run()
        assert agent.params["rate"] == 1.0


def test_bad_arguments(tmp_path):
    with pytest.raises(TypeError, match="pipeline"):
        LoopController(Plain())
    with pytest.raises(ValueError, match="max_episodes must be at least 1 window, got 0"):
        controller(tmp_path, max_episodes=0)
    with pytest.raises(ValueError, match="max_snapshots must be at least 2 for a run, got 1"):
        controller(tmp_path, checkpoint_registry=CheckpointRegistry(tmp_path, max_snapshots=1))
    with pytest.raises(ValueError, match="score_smoothing must be at least 1"):
        controller(tmp_path, score_smoothing=0)


def test_whole_episodes_of_a_gymnasium_environment_are_the_score(tmp_path):
    from tensor_optix import BatchPipeline

    class Bang(Plain):
        """Pushes the cart to where the pole leans."""

        def act(self, observation):
            return int(observation[2] + observation[3] > 0)

    agent = Bang()
    pipeline = BatchPipeline(env_id="CartPole-v1", agent=agent, window_size=300, seed=0)
    result = controller(
        tmp_path, agent, pipeline=pipeline, max_episodes=20, evaluator=EpisodeEvaluator(min_episodes=1)
    ).run()
    scores = [m.primary_score for m in result.history]
    assert len(scores) >= 10
    assert min(scores) > 100  # a piece of an episode would be less
    lengths = [m.metrics["episode_length"] for m in result.history]
    assert scores == lengths  # a reward of 1 a step
