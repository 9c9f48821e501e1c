"""The ensemble and its budget: what comes in, what it weighs, what goes."""

import json

import numpy as np
import pytest

from tensor_optix.core.types import EvalMetrics, HyperparamSet
from tensor_optix.evolution.policy_manager import PolicyManager
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tests.evolution_parts import Chooser, Mover, history


@pytest.fixture
def registry(tmp_path):
    return CheckpointRegistry(tmp_path / "registry")


def saved(registry, agent, score, **metrics):
    return registry.save(agent, EvalMetrics(score, metrics, 0), agent.get_hyperparams())


def manager(registry, n=3, **settings):
    pm = PolicyManager(registry, **settings)
    for i in range(n):
        pm.add_agent(Chooser(seed=i))
    return pm


class TestEnsemble:
    def test_members_are_counted_and_listed(self, registry):
        pm = manager(registry, 2)
        pm.add_agent(Chooser(), weight=0.5)
        assert pm.ensemble_size == 3
        assert pm.weights == [1.0, 1.0, 0.5]
        status = pm.status()
        assert set(status) == {
            "ensemble_size", "max_ensemble_size", "agents", "regime", "spawn_count", "max_spawns", "spawns_remaining",
            "budget_exhausted", "prune_count",
        }  # fmt: skip
        assert status["agents"][2] == {"index": 2, "weight": 0.5, "mean_score": None, "recent_scores": []}

    def test_the_limit_holds_and_the_weakest_goes(self, registry):
        pm = manager(registry, 3, max_ensemble_size=3)
        first = pm.agents
        pm.update_weights({0: 2.0, 1: 1.0, 2: 3.0})
        newcomer = Chooser()
        pm.add_agent(newcomer, weight=0.0)
        assert pm.agents == [first[0], first[2], newcomer]
        assert (first[1].torn_down, newcomer.torn_down, pm.prune_count) == (1, 0, 1)

    def test_an_agent_that_is_trained_is_never_pruned(self, registry):
        pm = PolicyManager(registry, max_ensemble_size=1)
        trained, other = Chooser(), Chooser()
        pm.keep(trained)
        pm.add_agent(other)
        assert pm.agents == [trained]
        assert (trained.torn_down, other.torn_down) == (0, 1)
        assert pm.prune(3) == []
        pm.max_ensemble_size = None
        pm.boost(trained, 0.0)
        others = [Chooser(), Chooser()]
        for agent in others:
            pm.add_agent(agent)
        assert pm.prune(1) == others[:1]  # the trained one weighs less
        assert pm.prune(9) == others[1:]

    def test_prune_returns_who_left_torn_down_and_leaves_one(self, registry):
        pm = manager(registry)
        agents = pm.agents
        for i, score in enumerate([5.0, 1.0, 3.0]):
            pm.record_agent_score(i, score)
        assert pm.prune() == [agents[1]]
        assert pm.prune(bottom_k=9) == [agents[2]]
        assert pm.agents == [agents[0]]
        assert [agent.torn_down for agent in agents] == [0, 1, 1]
        assert pm.prune_count == 2
        with pytest.raises(ValueError, match="bottom_k"):
            pm.prune(-1)

    def test_an_agent_without_teardown_can_leave(self, registry):
        class Bare:
            def act(self, observation):
                return 0

        pm = PolicyManager(registry)
        pm.add_agent(Bare())
        pm.add_agent(Bare())
        assert len(pm.prune()) == 1

    def test_boost(self, registry):
        pm = manager(registry)
        pm.boost(pm.agents[1])
        pm.boost(0, 3.0)
        assert pm.weights == [3.0, 2.0, 1.0]
        with pytest.raises(ValueError, match="not in the ensemble"):
            pm.boost(Chooser())
        with pytest.raises(ValueError, match="at least 0 and finite"):
            pm.boost(0, -1.0)

    def test_what_cannot_be_added(self, registry):
        pm = manager(registry, 1)
        with pytest.raises(ValueError, match="member already"):
            pm.add_agent(pm.agents[0])
        for bad in (-1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match="weight"):
                pm.add_agent(Chooser(), bad)
        for name in ("score_window", "max_spawns", "max_ensemble_size"):
            with pytest.raises(ValueError, match=name):
                PolicyManager(registry, **{name: -1})


class TestScores:
    def test_weights_follow_the_newest_scores(self, registry):
        pm = manager(registry, score_window=2)
        for scores in ([100.0, 0.0, 0.0], [1.0, 2.0, 3.0], [1.1, 2.1, 3.1]):
            for i, score in enumerate(scores):
                pm.record_agent_score(i, score)
        pm.auto_update_weights()
        assert pm.weights[0] < pm.weights[1] < pm.weights[2]
        assert pm.status()["agents"][0]["recent_scores"] == [1.0, 1.1]
        assert pm.status()["agents"][0]["mean_score"] == pytest.approx(1.05)

    def test_only_those_that_are_named_change(self, registry):
        pm = manager(registry)
        pm.boost(1, 7.0)
        pm.update_weights({0: 1.0, 2: 1.0})
        assert pm.weights == [1.0, 7.0, 1.0]
        pm.auto_update_weights()  # nothing was recorded
        assert pm.weights == [1.0, 7.0, 1.0]

    def test_bad_scores(self, registry, caplog):
        pm = manager(registry)
        pm.record_agent_score(0, np.nan)
        assert "not counted" in caplog.text
        assert pm.status()["agents"][0]["recent_scores"] == []
        for bad in (3, -1, True):
            with pytest.raises(ValueError, match="has no member"):
                pm.record_agent_score(bad, 1.0)
        with pytest.raises(ValueError, match="not finite"):
            pm.update_weights({0: np.inf})

    def test_regime(self, registry):
        pm = manager(registry)
        pm.set_regime("volatile")
        assert pm.status()["regime"] == "volatile"
        with pytest.raises(TypeError, match="regime"):
            pm.set_regime(3)


class TestVariants:
    def test_a_variant_is_the_best_policy_with_other_hyperparameters(self, registry):
        best, worse = Chooser((1.0, 2.0), learning_rate=2e-3), Chooser((9.0, 9.0))
        saved(registry, best, 10.0)
        saved(registry, worse, 1.0)
        pm, shell = PolicyManager(registry, max_spawns=2), Chooser()
        assert pm.spawn_variant(shell, noise_scale=0.1) is shell
        np.testing.assert_array_equal(shell.logits, best.logits)
        params = shell.get_hyperparams().params
        assert params["learning_rate"] != 2e-3
        assert 1e-3 < params["learning_rate"] < 4e-3
        assert (params["flag"], params["name"], type(params["n_epochs"])) == (True, "x", int)
        assert (pm.spawn_count, pm.spawns_remaining, pm.budget_exhausted) == (1, 1, False)
        assert best.get_hyperparams().params["learning_rate"] == 2e-3  # nothing is shared with what was saved

    def test_variants_differ_and_repeat_with_the_seed(self, registry):
        saved(registry, Chooser(), 1.0)

        def params(seed):
            pm = PolicyManager(registry, seed=seed)
            return [pm.spawn_variant(Chooser(), 0.1).get_hyperparams().params["learning_rate"] for _ in range(3)]

        assert params(0) == params(0)
        assert len({*params(0), *params(1)}) == 6

    def test_a_mutation_of_ones_own(self, registry):
        pm = PolicyManager(registry)
        shell = pm.spawn_variant(Chooser(), mutation_fn=lambda hp: HyperparamSet({**hp.params, "gamma": 0.96}))
        assert shell.params["gamma"] == 0.96
        shell = pm.spawn_variant(Chooser(), mutation_fn=lambda hp: {"gamma": 0.97})
        assert (shell.params["gamma"], shell.params["n_epochs"]) == (0.97, 4)

    def test_noise_on_weights_where_the_agent_can(self, registry, caplog):
        pm = PolicyManager(registry)
        shell = pm.spawn_variant(Chooser((1.0, 2.0)), weight_noise=0.1)
        assert 0 < np.abs(shell.logits / [1.0, 2.0] - 1).max() < 0.5

        class Cannot(Chooser):
            def perturb_weights(self, noise_scale):
                raise NotImplementedError

        assert (pm.spawn_variant(Cannot((1.0, 2.0)), weight_noise=0.1).logits == [1.0, 2.0]).all()

    def test_the_budget_is_a_budget(self, registry):
        pm = PolicyManager(registry, max_spawns=1)
        pm.spawn_variant(Chooser())
        assert pm.budget_exhausted
        with pytest.raises(RuntimeError, match="all 1 spawns were made"):
            pm.spawn_variant(Chooser())
        assert PolicyManager(registry).spawns_remaining is None
        assert PolicyManager(registry, max_spawns=0).budget_exhausted

    def test_going_back_to_the_best(self, registry):
        pm, agent = PolicyManager(registry), Chooser((0.0, 0.0))
        assert not pm.evolve(agent, -5.0)  # nothing is saved yet
        saved(registry, Chooser((3.0, 0.0), gamma=0.97), 5.0)
        assert not pm.evolve(agent, 5.0)
        assert not pm.evolve(Chooser(on_policy=False), 1.0)
        assert pm.evolve(agent, 4.9)
        assert (agent.logits[0], agent.params["gamma"]) == (3.0, 0.97)
        agent.logits[:] = 0
        assert pm.evolve(agent, np.nan)
        assert agent.logits[0] == 3.0

    def test_noise_scale(self, registry):
        pm = PolicyManager(registry)
        flat, rise = history(np.full(10, 3.0)), history(np.linspace(1, 3, 10))
        assert pm.adaptive_noise_scale(flat) == 0.1
        assert pm.adaptive_noise_scale(rise) == pytest.approx(0.001, rel=1e-3)
        assert pm.adaptive_noise_scale([], min_scale=0.0, max_scale=0.5, window=3) == 0.5
        with pytest.raises(ValueError, match="min_scale"):
            pm.adaptive_noise_scale(flat, 0.2, 0.1)
        with pytest.raises(ValueError, match="window"):
            pm.adaptive_noise_scale(flat, window=2)


class TestReport:
    def test_it_is_data_and_text(self, registry):
        pm = manager(registry, 2, max_spawns=3)
        for score in (0.5, 0.8612):
            saved(registry, Chooser(), score, train_score=score + 0.012, val_score=score)
        pm.update_weights({0: 1.0, 1: 2.0})
        pm.record_agent_score(1, 0.71)
        report = pm.training_report()
        assert report["best_score"] == report["best_val_score"] == 0.8612
        assert report["best_generalization_gap"] == pytest.approx(0.012)
        assert json.loads(json.dumps(report)) == report
        for line in ("Best score       : 0.8612", "0.0120  (train − val)", "Spawns used      : 0 / 3",
                     "Ensemble size    : 2", f"[1] weight={pm.weights[1]:.4f}  mean_score=0.7100"):  # fmt: skip
            assert line in pm.report_text
        assert [s.eval_metrics.primary_score for s in pm.ranked_snapshots] == [0.8612, 0.5]

    def test_before_anything_happened(self, registry):
        pm = PolicyManager(registry)
        assert pm.training_report()["best_score"] is None
        assert "Best score" not in pm.report_text
        assert pm.ranked_snapshots == []

    def test_an_unscored_beginning_is_not_ranked(self, registry):
        saved(registry, Chooser(), -np.inf)
        assert PolicyManager(registry).ranked_snapshots == []


class TestActing:
    def test_one_agent_acts_itself(self, registry):
        pm = manager(registry, 1)
        assert pm.ensemble_action(np.zeros(1)) in (0, 1)

    def test_an_empty_ensemble_says_so(self, registry):
        with pytest.raises(ValueError, match="add_agent"):
            PolicyManager(registry).ensemble_action(np.zeros(1))

    def test_means_and_choices(self, registry):
        pm = PolicyManager(registry)
        pm.add_agent(Mover(1.0), weight=3.0)
        pm.add_agent(Mover(-1.0), weight=1.0)
        np.testing.assert_allclose(pm.ensemble_action(np.zeros(1)), [0.5])
        assert pm.ensemble_action(np.zeros(1)).dtype == np.float32
