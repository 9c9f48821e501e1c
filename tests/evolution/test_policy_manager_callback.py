"""DORMANT handled: variants are spawned until the budget is spent, the loop goes on and stops for the right reason."""

import json
import logging

import numpy as np
import pytest

from tensor_optix.core.types import EvalMetrics, LoopState, StopReason
from tensor_optix.evolution.ensemble_agent import EnsembleAgent
from tensor_optix.evolution.meta_controller import MetaAction, MetaController
from tensor_optix.evolution.policy_manager import PolicyManager
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.host_state import read_tree, write_tree
from tests.evolution_parts import Chooser, history, loop_of

SCORES = [0.0, 1.0, 2.0, 3.0]


class Says(MetaController):
    """Decides as it is told; the last over and over."""

    def __init__(self, *actions):
        super().__init__()
        self.actions, self.asked = list(actions), []

    def decide(self, history, status):
        self.asked.append((list(history), status))
        return self.actions.pop(0) if len(self.actions) > 1 else self.actions[0]


def reports(caplog):
    return [r for r in caplog.records if "Training Complete" in r.getMessage()]


def manager(**settings):
    return PolicyManager(None, **settings)


class TestTheBudget:
    def test_it_is_used_up_and_the_loop_stops_for_it(self, tmp_path, caplog):
        agent, made = Chooser(), []
        pm = manager(max_spawns=3)

        def factory():
            made.append(Chooser())
            return made[-1]

        loop = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, agent_factory=factory)])
        result = loop.run()
        assert not result.callback_failures
        assert result.stop_reason == StopReason.SPAWN_BUDGET
        assert str(result).startswith("the budget of spawned variants was used up;")
        assert pm.agents == [agent, *made]
        assert (pm.spawn_count, pm.spawns_remaining, pm.budget_exhausted) == (3, 0, True)
        assert loop.state == LoopState.DORMANT
        (record,) = reports(caplog)
        assert record.levelno >= logging.WARNING  # seen without setting up logging
        assert record.getMessage() == pm.report_text
        assert pm.ensemble_action(np.zeros(1)) in (0, 1)
        assert len(result.history) > 4 * 3  # each variant had its time

    def test_without_a_spawn_there_is_one_dormant(self, tmp_path):
        agent = Chooser()
        pm = manager(max_spawns=0)
        result = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, Chooser)]).run()
        assert (result.stop_reason, pm.spawn_count) == (StopReason.SPAWN_BUDGET, 0)

    def test_without_a_limit_the_windows_are_the_limit(self, tmp_path, caplog):
        agent = Chooser()
        pm = manager(max_ensemble_size=2)
        result = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, Chooser)], max_episodes=30).run()
        assert result.stop_reason == StopReason.BUDGET
        assert pm.spawn_count > 3
        assert pm.ensemble_size == 2
        assert agent in pm.agents
        assert not reports(caplog)

    def test_without_a_factory_the_loop_stops_converged_and_reports(self, tmp_path, caplog):
        agent = Chooser()
        pm = manager(max_spawns=3)
        result = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent)]).run()
        assert result.stop_reason == StopReason.CONVERGED
        assert "No further improvement" in reports(caplog)[0].getMessage()

    def test_a_factory_may_take_hyperparameters(self, tmp_path):
        agent, given = Chooser(gamma=0.96), []

        def factory(params):
            given.append(params)
            return Chooser(**params)

        pm = manager(max_spawns=1)
        loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, factory)]).run()
        assert given == [agent.params]

    def test_the_best_policy_is_in_place_at_the_end(self, tmp_path):
        agent = Chooser(learning_rate=1.0)
        pm = manager(max_spawns=2)
        loop = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, Chooser)])
        loop.run()
        best = loop.best_snapshot
        again = Chooser()
        again.load_weights(best.weights_path)
        np.testing.assert_array_equal(agent.logits, again.logits)


class TestStopping:
    def test_a_stop_function_is_called_once_the_budget_is_spent(self, tmp_path):
        agent, calls = Chooser(), []
        pm = manager(max_spawns=1)
        callback = pm.as_callback(agent, Chooser)
        loop = loop_of(tmp_path, agent, SCORES, [callback])
        callback.set_stop_fn(lambda: (calls.append(pm.spawn_count), loop.stop()))
        assert loop.run().stop_reason == StopReason.SPAWN_BUDGET
        assert calls == [1]

    def test_it_works_without_a_loop_that_hands_itself_over(self, tmp_path, caplog):
        registry, agent, calls = CheckpointRegistry(tmp_path), Chooser((1.0, 0.0)), []
        registry.save(agent, EvalMetrics(5.0, {}, 0), agent.get_hyperparams())
        pm = PolicyManager(registry, max_spawns=1)
        callback = pm.as_callback(agent, Chooser)
        callback.set_stop_fn(lambda: calls.append(1))
        callback.on_dormant(3)
        assert (pm.spawn_count, pm.ensemble_size, calls) == (1, 1, [])
        callback.on_dormant(4)
        callback.on_dormant(5)
        assert (pm.spawn_count, calls) == (1, [1, 1])
        assert len(reports(caplog)) == 1

    def test_anothers_keep_going_is_not_heard_once_it_is_stopped(self, tmp_path):
        class Eager(LoopCallback):
            def on_dormant(self, episode_id):
                loop.keep_going()

        agent = Chooser()
        pm = manager(max_spawns=1)
        loop = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, Chooser), Eager()])
        assert loop.run().stop_reason == StopReason.SPAWN_BUDGET

    def test_a_callback_added_while_the_loop_runs_is_wired_too(self, tmp_path):
        agent = Chooser()
        pm = manager(max_spawns=1)

        class Late(LoopCallback):
            def on_episode_end(self, episode_id, eval_metrics):
                if episode_id == 1:
                    loop.add_callback(pm.as_callback(agent, Chooser))

        loop = loop_of(tmp_path, agent, SCORES, [Late()])
        assert loop.run().stop_reason == StopReason.SPAWN_BUDGET


class TestDormant:
    def test_a_worse_policy_goes_back_to_the_best_before_it_spawns(self, tmp_path):
        agent = Chooser(learning_rate=0.5, gamma=0.96)
        pm = manager(max_spawns=1)
        seen = []

        def factory():
            seen.append((agent.logits.copy(), dict(agent.params)))
            return Chooser()

        loop = loop_of(tmp_path, agent, [0.0, 5.0, 3.0], [pm.as_callback(agent, factory)])
        loop.run()
        saved = Chooser()
        saved.load_weights(loop.best_snapshot.weights_path)
        np.testing.assert_array_equal(seen[0][0], saved.logits)
        # Three steps of perturbing at most 10 standard deviations of 1 % apart: the variant is a clone of the best.
        variant = pm.agents[1]
        np.testing.assert_allclose(variant.logits, saved.logits, rtol=0.1)
        assert variant.params["gamma"] != 0.96

    def test_off_policy_agents_are_not_taken_back(self, tmp_path):
        agent = Chooser(on_policy=False)
        pm = manager(max_spawns=1)
        loop_of(tmp_path, agent, [0.0, 5.0, 3.0], [pm.as_callback(agent, Chooser)]).run()
        assert len(agent.loaded) == 1  # at the end

    def test_no_op_goes_on(self, tmp_path):
        agent, meta = Chooser(), Says(MetaAction.NO_OP, MetaAction.NO_OP, MetaAction.STOP)
        pm = manager(max_spawns=5)
        result = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, Chooser, meta)]).run()
        assert len(meta.asked) == 3
        assert (result.stop_reason, pm.spawn_count) == (StopReason.CONVERGED, 0)
        told, status = meta.asked[0]
        assert [m.primary_score for m in told[:4]] == SCORES
        assert status["spawns_remaining"] == 5

    def test_prune_drops_the_weakest_and_spawns_where_nobody_may_go(self, tmp_path):
        agent, meta = Chooser(), Says(MetaAction.SPAWN, MetaAction.PRUNE, MetaAction.PRUNE, MetaAction.STOP)
        pm = manager(max_spawns=5)
        result = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, Chooser, meta)]).run()
        assert not result.callback_failures
        assert (pm.prune_count, pm.spawn_count, pm.ensemble_size) == (1, 2, 2)
        assert agent.torn_down == 0

    def test_the_real_controller_in_the_loop(self, tmp_path):
        agent, pm = Chooser(), manager(max_spawns=2)
        result = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, Chooser, MetaController())]).run()
        assert result.stop_reason == StopReason.SPAWN_BUDGET
        assert pm.regime in ("ranging", "trending", "volatile")

    def test_members_are_scored_where_a_function_is_given(self, tmp_path):
        agent, pm = Chooser(), manager(max_spawns=2)
        values = {}

        def score(member):
            return values.setdefault(id(member), float(len(values)))

        loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, Chooser, score_fn=score)]).run()
        means = [row["mean_score"] for row in pm.status()["agents"]]
        assert means == [0.0, 1.0, 2.0]
        assert pm.weights[0] < pm.weights[1] < pm.weights[2]

    def test_the_trained_agents_scores_are_its_own(self, tmp_path):
        agent, pm = Chooser(), manager(max_spawns=1, score_window=3)
        loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, Chooser)]).run()
        assert pm.status()["agents"][0]["recent_scores"] == [3.0, 3.0, 3.0]
        assert pm.status()["agents"][1]["recent_scores"] == []


class TestWithAnEnsemble:
    def test_variants_act_and_learn_in_the_loop(self, tmp_path):
        agent, pm = Chooser(), manager(max_spawns=2)
        ensemble = EnsembleAgent(pm, agent)
        callback = pm.as_callback(agent, Chooser)
        result = loop_of(tmp_path, ensemble, SCORES, [callback]).run()
        assert not result.callback_failures
        assert result.stop_reason == StopReason.SPAWN_BUDGET
        assert pm.ensemble_size == 3
        counts = [len(member.windows) for member in pm.agents]
        assert counts[0] == result.windows > counts[1] > counts[2] > 0
        assert pm.status()["agents"][0]["recent_scores"] == []  # the scores are the ensemble's, nobody's own

    def test_a_variant_is_the_primarys_clone(self, tmp_path):
        primary, other, pm = Chooser((1.0, 2.0), learning_rate=0.0), Chooser((5.0, 6.0)), manager(max_spawns=1)
        pm.add_agent(primary)
        pm.add_agent(other)
        loop = loop_of(tmp_path, EnsembleAgent(pm, primary), [0.0, 5.0, 3.0], [pm.as_callback(primary, Chooser)])
        assert not loop.run().callback_failures
        assert pm.agents[2].params["learning_rate"] == 0.0
        assert loop.agent.policy_manager.weights == [1.0, 1.0, 0.0]  # the best policy was saved without the variant


class TestScoring:
    def test_weights_follow_the_scores_also_where_the_best_policy_came_back(self, tmp_path, caplog):
        primary, other, pm, weights = Chooser((1.0, 2.0)), Chooser((5.0, 6.0)), manager(max_spawns=2), []
        pm.add_agent(primary)
        pm.add_agent(other)

        def score(agent):
            return {id(primary): -10.0, id(other): 10.0}.get(id(agent), 0.0) + 0.01 * agent.logits[0]

        class Looks(LoopCallback):
            def on_dormant(self, episode_id):
                weights.append(pm.weights)

        callback = pm.as_callback(primary, Chooser, score_fn=score)
        result = loop_of(tmp_path, EnsembleAgent(pm, primary), [0.0, 5.0, 3.0], [callback, Looks()]).run()
        assert not result.callback_failures
        assert [len(row) for row in weights] == [3, 4, 4]  # two variants joined, the last time none
        for row in weights:
            assert row[0] < 0.5 < 1.5 < row[1]
        assert weights[1][0] < weights[1][2] < weights[1][1]  # the first variant is scored with the others
        assert "weight=1.0000" not in reports(caplog)[0].getMessage()

    def test_the_policies_that_came_back_are_what_is_scored(self, tmp_path):
        agent, pm, scored = Chooser(learning_rate=0.5), manager(max_spawns=1), []

        def score(member):
            scored.append(member.logits.copy())
            return 1.0

        loop = loop_of(tmp_path, agent, [0.0, 5.0, 3.0], [pm.as_callback(agent, Chooser, score_fn=score)])
        loop.run()
        best = Chooser()
        best.load_weights(loop.best_snapshot.weights_path)
        np.testing.assert_array_equal(scored[0], best.logits)

    @pytest.mark.parametrize("fails", [False, True])
    def test_what_members_did_there_is_no_experience(self, tmp_path, fails):
        class Remembers(Chooser):
            cached, found = 0, ()

            def act(self, observation):
                self.cached += 1
                return super().act(observation)

            def reset_cache(self):
                self.cached = 0

            def learn(self, episode_data):
                self.found = (*self.found, self.cached)
                return super().learn(episode_data)

        def score(member):
            action = float(member.act(np.zeros(1)))
            if fails:
                raise RuntimeError("no score")
            return action

        agent, pm = Remembers(), manager(max_spawns=2)
        callback = pm.as_callback(agent, Remembers, Says(MetaAction.NO_OP, MetaAction.STOP), score_fn=score)
        result = loop_of(tmp_path, agent, SCORES, [callback], max_episodes=30).run()
        assert bool(result.callback_failures) == fails
        assert set(agent.found) == {0}
        assert agent.cached == 0

    def test_an_ensemble_that_is_weighed_anew_is_another_policy(self, tmp_path):
        """What the evaluator gathered of the old one is forgotten, also where nothing is spawned."""
        primary, other, pm, told = Chooser(), Chooser(), manager(), []
        pm.add_agent(primary)
        pm.add_agent(other)
        values = iter([1.0, 2.0] + [3.0, 3.0] * 9)
        meta = Says(MetaAction.NO_OP, MetaAction.STOP)
        callback = pm.as_callback(primary, Chooser, meta, score_fn=lambda agent: next(values))
        loop = loop_of(tmp_path, EnsembleAgent(pm, primary), SCORES, [callback])
        forget, loop.policy_changed = loop.policy_changed, lambda: (told.append(pm.weights), forget())
        assert not loop.run().callback_failures
        assert len(told) == 1
        assert told[0][0] < told[0][1]


class TestRefusals:
    @pytest.mark.parametrize("name", ["agent_factory", "score_fn"])
    def test_what_is_no_function(self, name):
        with pytest.raises(TypeError, match=f"{name} must be a function, got 3"):
            manager().as_callback(Chooser(), **{name: 3})

    def test_an_ensemble_in_which_no_variant_could_stay(self):
        agent, other, pm = Chooser(), Chooser(), manager(max_spawns=3, max_ensemble_size=1)
        with pytest.raises(ValueError, match=r"max_ensemble_size=1 .* give at least 2, or no agent_factory"):
            pm.as_callback(agent, Chooser)
        pm.as_callback(agent)  # nothing is spawned
        manager(max_spawns=0, max_ensemble_size=1).as_callback(agent, Chooser)
        manager(max_ensemble_size=2).as_callback(agent, Chooser)
        two = manager(max_ensemble_size=2)
        two.keep(other)
        with pytest.raises(ValueError, match="give at least 3"):
            two.as_callback(agent, Chooser)
        two.as_callback(other, Chooser)


class TestResume:
    def test_a_state_is_plain_and_comes_back(self, tmp_path):
        def fresh(directory):
            agent, pm = Chooser((0.3, 0.1)), manager(max_spawns=6, score_window=4)
            return pm, agent, pm.as_callback(agent, Chooser)

        pm, agent, callback = fresh(tmp_path)
        loop_of(tmp_path / "run", agent, SCORES, [callback], max_episodes=20).run()
        assert pm.spawn_count > 0
        pm.boost(1, 3.0)
        (tmp_path / "state").mkdir()
        write_tree(tmp_path / "state", callback.state_dict())
        again, _, other = fresh(tmp_path)
        other.on_loop_start()
        assert other.load_state_dict(read_tree(tmp_path / "state")) == []
        assert again.status() == pm.status()
        for old, new in zip(pm.agents[1:], again.agents[1:], strict=True):
            np.testing.assert_array_equal(old.logits, new.logits)
            assert old.params == new.params
        assert [m.primary_score for m in other.history] == [m.primary_score for m in callback.history]
        assert json.dumps(other.state_dict()["manager"]) == json.dumps(callback.state_dict()["manager"])
        # What is spawned next is the same too.
        pm.registry = again.registry = CheckpointRegistry(tmp_path / "none")
        assert pm.spawn_variant(Chooser()).params == again.spawn_variant(Chooser()).params

    def test_without_a_factory_variants_are_missed(self, tmp_path):
        agent, pm = Chooser(), manager(max_spawns=1)
        callback = pm.as_callback(agent, Chooser)
        loop_of(tmp_path / "run", agent, SCORES, [callback]).run()
        other_agent, other = Chooser(), manager(max_spawns=1)
        bare = other.as_callback(other_agent)
        bare.on_loop_start()
        (problem,) = bare.load_state_dict(callback.state_dict())
        assert "member 1 of the ensemble is missing" in problem
        assert (other.spawn_count, other.agents) == (1, [other_agent])

    def test_who_was_pruned_stays_away(self, tmp_path):
        agent, weak, pm = Chooser(), Chooser(), manager()
        callback = pm.as_callback(agent, Chooser)
        callback.on_loop_start()
        pm.add_agent(weak)
        pm.prune()
        agent2, weak2, again = Chooser(), Chooser(), manager()
        other = again.as_callback(agent2, Chooser)
        other.on_loop_start()
        again.add_agent(weak2)
        assert other.load_state_dict(callback.state_dict()) == []
        assert again.agents == [agent2]
        assert weak2.torn_down == 1

    def test_a_long_history_is_kept_short(self):
        pm, agent = manager(), Chooser()
        callback = pm.as_callback(agent)
        for metrics in history(np.arange(300.0)):
            callback.on_episode_end(metrics.episode_id, metrics)
        assert [m.primary_score for m in callback.history] == list(np.arange(236.0, 300.0))


@pytest.mark.parametrize("action", list(MetaAction))
def test_without_a_factory_whatever_is_decided(tmp_path, action):
    agent, pm = Chooser(), manager()
    pm.add_agent(agent)
    pm.add_agent(Chooser())
    meta = Says(action, MetaAction.STOP)
    result = loop_of(tmp_path, agent, SCORES, [pm.as_callback(agent, meta_controller=meta)]).run()
    assert not result.callback_failures
    assert result.stop_reason == StopReason.CONVERGED
    goes_on = action in (MetaAction.NO_OP, MetaAction.PRUNE)
    assert len(meta.asked) == (2 if goes_on else 1)
    assert pm.prune_count == (action == MetaAction.PRUNE)
