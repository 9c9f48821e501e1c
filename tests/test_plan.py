"""From what was asked for to what is run: defaults, presets, bounds, variants, and every refusal in one sentence."""

import math

import pytest

from tensor_optix.config import ConfigError, RunConfig, from_mapping
from tensor_optix.envs.probes import ConstantReward
from tensor_optix.plan import DEFAULT_TOTAL_STEPS, make_plan
from tests.runs import SMALL, plan_of


def space_of(**settings):
    return dict(plan_of(**settings).space.entries)


def bounds_of(name, **settings):
    entry = space_of(**settings)[name]
    return entry.low, entry.high


class TestDefaults:
    def test_every_default_is_written_out(self):
        run = make_plan(RunConfig("CartPole-v1")).run
        assert run.total_steps == DEFAULT_TOTAL_STEPS
        assert run.eval_max_steps == 500  # the environment's own limit
        assert run.seeds == [0]
        assert None not in (run.eval_every, run.eval_episodes)
        assert {"n_envs", "n_steps", "hidden_sizes", "activation"} <= run.config.keys()
        assert {"learning_rate", "gamma", "clip_range"} <= run.hyperparams.keys()

    def test_what_is_written_out_makes_the_same_plan_again(self):
        first = plan_of(variants=[{"gamma": 0.9}, {"gamma": 0.5}], hyperparams={"learning_rate": 5e-4})
        second = make_plan(from_mapping(first.run.to_dict()))
        assert second.run == first.run
        assert second.members == first.members
        assert second.space == first.space
        assert second.program == first.program
        assert (second.max_windows, second.target_score) == (first.max_windows, first.target_score)

    def test_presets_apply_and_can_be_overridden(self):
        preset = make_plan(RunConfig("CartPole-v1"))
        assert (preset.program.algorithm.config.n_steps, preset.run.eval_every) == (64, 2048)
        assert preset.members[0].hyper["gamma"] == 0.98
        own = make_plan(RunConfig("CartPole-v1", config={"n_steps": 32}, hyperparams={"gamma": 0.9}, eval_every=512))
        assert (own.program.algorithm.config.n_steps, own.run.eval_every) == (32, 512)
        assert own.program.algorithm.config.n_minibatches == 8  # the rest of the preset stands
        assert (own.members[0].hyper["gamma"], own.members[0].hyper["gae_lambda"]) == (0.9, 0.9)

    def test_an_environment_object_has_no_preset(self):
        plan = make_plan(RunConfig("CartPole-v1"), ConstantReward())
        assert plan.program.algorithm.config.n_steps == 128
        assert plan.run.eval_max_steps == 1000

    def test_target_and_budget(self):
        plan = plan_of(total_steps=64 * 3 + 1, target_score=9)
        assert (plan.max_windows, plan.target_score) == (4, 9.0)
        assert plan_of().target_score == math.inf

    @pytest.mark.parametrize(("eval_every", "interval"), [(1, 1), (64, 1), (128, 2), (150, 2), (640, 10)])
    def test_eval_every_becomes_whole_windows(self, eval_every, interval):
        scheduler = plan_of(eval_every=eval_every).program.brain.scheduler
        assert (scheduler.base_interval, scheduler.max_interval) == (interval, interval)

    def test_the_scheduler_can_be_set_by_hand(self):
        brain = plan_of(autonomy={"base_interval": 3, "max_interval": 24, "target_patience": 7}).program.brain
        assert (brain.scheduler.base_interval, brain.scheduler.max_interval, brain.target_patience) == (3, 24, 7)
        kept = plan_of(eval_every=128, autonomy={"max_interval": 16}).program.brain.scheduler
        assert (kept.base_interval, kept.max_interval) == (2, 16)


class TestSearchSpace:
    def test_own_bounds_stretch_to_the_values_given(self):
        low, high = bounds_of("learning_rate")
        assert bounds_of("learning_rate", hyperparams={"learning_rate": high * 10}) == (low, high * 10)
        assert bounds_of("learning_rate", hyperparams={"learning_rate": low / 10}) == (low / 10, high)
        both = [{"learning_rate": low / 2}, {"learning_rate": high * 2}]
        assert bounds_of("learning_rate", variants=both) == (low / 2, high * 2)

    def test_the_users_bounds_are_a_promise(self):
        bounds = {"learning_rate": ["log", 1e-3, 4e-3]}
        entry = space_of(search_space=bounds, hyperparams={"learning_rate": 2e-3})["learning_rate"]
        assert (entry.low, entry.high, entry.log) == (1e-3, 4e-3, True)
        with pytest.raises(ConfigError, match=r"learning_rate=0.01 lies outside its search_space \[0.001, 0.004\]"):
            plan_of(search_space=bounds, hyperparams={"learning_rate": 1e-2})
        with pytest.raises(ConfigError, match=r"gamma=0.5 lies outside its search_space"):
            plan_of(search_space={"gamma": [0.9, 0.99]}, variants=[{"gamma": 0.95}, {"gamma": 0.5}])

    def test_one_that_is_not_tuned_by_itself_can_be_added(self):
        assert "gae_lambda" not in space_of()
        assert "gae_lambda" in space_of(search_space={"gae_lambda": [0.5, 0.99]})

    def test_the_learning_rate_some_or_none_are_tuned(self):
        assert space_of().keys() == {"learning_rate"}
        assert space_of(tune=["gamma", "clip_range"]).keys() == {"gamma", "clip_range"}
        assert space_of(search_space={"gamma": [0.9, 0.999]}).keys() == {"learning_rate", "gamma"}
        assert space_of(tune=["gamma"]).keys() == {"gamma"}
        assert space_of(tune=False) == {}
        assert plan_of(tune=False).program.brain.tuner is None
        assert plan_of(tune=True).program.brain.tuner is not None

    def test_members_and_variants_differ_in_all_that_the_algorithm_names(self):
        named = {"learning_rate", "gamma", "clip_range", "entropy_coef"}
        assert space_of(population=2).keys() == named
        spawning = plan_of(max_spawns=1)
        assert set(spawning.meeting.space.names) == named
        assert spawning.program.brain.space.names == ("learning_rate",)  # each tunes what one learner tunes
        assert space_of(population=2, tune=["gamma"]).keys() == {"gamma"}

    def test_wrong_bounds_are_refused(self):
        for bounds in ([1.0, 0.5], ["log", 0.0, 1.0], "wide", [0.9], ["cubic", 0.1, 0.2]):
            with pytest.raises(ConfigError, match="gamma") as caught:
                plan_of(search_space={"gamma": bounds})
            assert "\n" not in str(caught.value)


class TestMembers:
    def test_every_seed_runs_with_every_variant(self):
        plan = plan_of(seeds=[3, 5], hyperparams={"gamma": 0.9}, variants=[{"learning_rate": 1e-3}, {"gamma": 0.5}])
        told = [(m.seed, m.variant, m.hyper["gamma"], m.hyper["learning_rate"]) for m in plan.members]
        usual = plan_of().members[0].hyper["learning_rate"]
        assert told == [(3, 0, 0.9, 1e-3), (5, 0, 0.9, 1e-3), (3, 1, 0.5, usual), (5, 1, 0.5, usual)]

    def test_without_variants_there_is_one_of_each_seed(self):
        assert [(m.seed, m.variant) for m in plan_of(seeds=3).members] == [(0, 0), (1, 0), (2, 0)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"env": "CartPol-v1"}, "unknown environment 'CartPol-v1'; did you mean CartPole-v1"),
            ({"env": "no_such_module:Thing"}, "cannot load environment 'no_such_module:Thing'"),
            ({"algorithm": "pppo"}, "unknown algorithm 'pppo'; did you mean 'ppo'"),
            ({"hyperparams": {"learning_rat": 1e-3}}, "unknown hyperparameter 'learning_rat'; did you mean 'learning_"),
            ({"variants": [{"gama": 0.9}]}, "unknown hyperparameter 'gama'; did you mean 'gamma'"),
            ({"hyperparams": {"gamma": 1.5}}, r"hyperparameter gamma must lie in \[0, 1\], got 1.5"),
            ({"hyperparams": {"learning_rate": -1e-3}}, "hyperparameter learning_rate must lie in"),
            ({"variants": [{"gamma": -0.1}]}, "hyperparameter gamma must lie in"),
            ({"tune": ["gamm"]}, "unknown tunable hyperparameter 'gamm'; did you mean 'gamma'"),
            ({"search_space": {"gamm": [0.1, 0.2]}}, "unknown hyperparameter in search_space 'gamm'"),
            ({"autonomy": {"dormant_treshold": 3}}, "unknown autonomy setting 'dormant_treshold'; did you mean 'dorm"),
            ({"autonomy": {"dormant_threshold": "many"}}, "dormant_threshold must be a whole number, got 'many'"),
            ({"autonomy": {"dormant_threshold": -1}}, "dormant_threshold"),
            ({"autonomy": {"target_patience": 1.5}}, "target_patience must be a whole number, got 1.5"),
            ({"autonomy": {"rollback_on_degradation": "yes"}}, "rollback_on_degradation must be true or false"),
            ({"config": {"n_env": 4}}, "unknown PPOConfig setting 'n_env'; did you mean 'n_envs'"),
            ({"config": {"n_envs": "four"}}, "n_envs must be a whole number, got 'four'"),
            ({"config": {"n_envs": True}}, "n_envs must be a whole number, got True"),
            ({"config": {"n_envs": 0}}, "n_envs must be at least 1, got 0"),
            ({"config": {"hidden_sizes": 64}}, "hidden_sizes must be a list of positive whole numbers, got 64"),
            ({"config": {"hidden_sizes": [0]}}, "hidden_sizes must be a list of positive whole numbers"),
            ({"config": {"activation": 3}}, "activation must be a name, got 3"),
            ({"config": {"activation": "tanhh"}}, "activation must be one of"),
            ({"config": {"clip_value": 1}}, "clip_value must be true or false, got 1"),
            ({"config": {"initial_log_std": "low"}}, "initial_log_std must be a finite number, got 'low'"),
            ({"config": {**SMALL, "n_minibatches": 3}}, "n_minibatches must divide"),
            ({"total_steps": 10**12, "config": SMALL}, "is more than"),
        ],
    )
    def test_one_sentence_that_names_it(self, settings, said):
        with pytest.raises(ConfigError, match=said) as caught:
            make_plan(RunConfig(**({"env": "CartPole-v1"} | settings)))
        assert "\n" not in str(caught.value)

    def test_whole_floats_pass_for_counts(self):
        assert plan_of(config={**SMALL, "n_envs": 4.0}).program.algorithm.config.n_envs == 4


def test_an_off_policy_algorithm_is_never_rolled_back_for_a_bad_score():
    with pytest.raises(ConfigError, match="rollback_on_degradation is for on-policy algorithms"):
        make_plan(
            from_mapping({"env": "CartPole-v1", "algorithm": "dqn", "autonomy": {"rollback_on_degradation": True}})
        )
    make_plan(from_mapping({"env": "CartPole-v1", "algorithm": "ppo", "autonomy": {"rollback_on_degradation": True}}))
