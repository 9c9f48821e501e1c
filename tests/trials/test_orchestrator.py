"""Searches whose scores are known for every hyperparameter."""

import gc
import importlib.util
import json
import os
from pathlib import Path
from typing import ClassVar

import optuna
import pytest

from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.orchestrator import TrialOrchestrator
from tests.host_parts import Plain
from tests.trials import parts
from tests.trials.parts import SPACE, STEPS, Guess, Hill, score_of


@pytest.fixture(autouse=True, scope="module")
def cheap_runs():
    """What makes files durable costs more than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def search(agent=parts.agent, pipeline=Hill, space=SPACE, **settings):
    settings.setdefault("n_trials", 3)
    if "trial_steps" not in settings:
        settings.setdefault("trial_episodes", 1)
    return TrialOrchestrator(agent, pipeline, space, **settings)


def params_of(search):
    return [trial.params for trial in search.study.trials]


def states_of(search):
    return [trial.state.name for trial in search.study.trials]


@pytest.fixture(scope="module")
def done():
    """A search that is over, and the pipelines that it made."""
    made = []

    def pipeline():
        made.append(Hill())
        return made[-1]

    search_ = search(pipeline=pipeline, n_trials=4, trial_steps=2 * STEPS + 1)
    return search_, search_.run(), made


AT_ONCE = {"evaluator": EpisodeEvaluator(min_episodes=1)}  # a score after every window


class TestSearch:
    def test_the_answer_is_the_best_trial(self, done):
        search, found, _ = done
        scores = [trial.value for trial in search.study.trials]
        assert scores == pytest.approx([score_of(params["x"]) for params in params_of(search)])
        params, score = found
        assert score == max(scores) == search.best_score
        assert score_of(params["x"]) == pytest.approx(score)
        assert dict(found) == {**found} == params == search.best_params
        assert found["x"] == params["x"]

    def test_the_budget_is_in_environment_steps_that_were_collected(self, done):
        search, _, pipelines = done
        assert [trial.user_attrs["env_steps"] for trial in search.study.trials] == [3 * STEPS] * 4
        assert [pipeline.windows for pipeline in pipelines] == [3] * 4
        assert all(pipeline.closed for pipeline in pipelines)

    def test_the_best_weights_are_there_and_those_of_no_other_trial(self, done):
        search, _, _ = done
        weights = Path(search.best_weights_path)
        assert search.run_ckpt_dir in weights.parents
        assert [p.name for p in search.run_ckpt_dir.iterdir()] == [f"trial-{search.study.best_trial.number:05d}"]
        agent = Plain()
        agent.load_weights(weights)
        assert agent.weight in (1.0, 2.0, 3.0)  # windows learned from

    def test_table(self, done, monkeypatch):
        search, _, _ = done
        if importlib.util.find_spec("pandas") is not None:
            assert list(search.trials_dataframe()["params_x"]) == [params["x"] for params in params_of(search)]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match="pip install pandas"):
            search.trials_dataframe()

    def test_running_again_adds_nothing(self, done):
        search, found, pipelines = done
        assert search.run() == found
        assert len(pipelines) == 4

    def test_windows_as_budget(self):
        found = search(n_trials=1, trial_episodes=2)
        found.run()
        assert found.study.trials[0].user_attrs["env_steps"] == 2 * STEPS

    def test_seeded(self):
        one, same, other = search(seed=5), search(seed=5), search(seed=6)
        for each in (one, same, other):
            each.run()
        assert params_of(one) == params_of(same)
        assert params_of(one) != params_of(other)

    def test_minimise(self):
        space = {"x": ("categorical", 0.2, 0.9)}
        found = search(space=space, n_trials=4, direction="minimize", seed=1)
        params, score = found.run()
        assert {p["x"] for p in params_of(found)} == {0.2, 0.9}
        assert params == {"x": 0.9}
        assert score == pytest.approx(score_of(0.9))

    def test_score_of_the_callers_own(self):
        found = search(n_trials=2, checkpoint_score_fn=lambda agent: agent.params["x"], direction="minimize")
        params, score = found.run()
        assert score == pytest.approx(min(p["x"] for p in params_of(found))) == params["x"]

    def test_validation_decides_where_it_is_given(self):
        found = search(n_trials=1, val_pipeline_factory=lambda params: Shifted())
        assert found.run().score == pytest.approx(score_of(found.best_params["x"]) + 10 * STEPS)


class Shifted(Hill):
    def reward(self):
        return super().reward() + 10


class TestPruning:
    def test_pruned_trials_are_recorded_as_pruned_at_the_window_that_told(self):
        found = search(
            n_trials=6, trial_episodes=4, n_startup_trials=2, pruner_warmup_steps=1, seed=1, rloptimizer_kwargs=AT_ONCE
        )
        found.run()
        pruned = [t for t in found.study.trials if t.state == optuna.trial.TrialState.PRUNED]
        assert pruned
        assert all(t.user_attrs["env_steps"] == 2 * STEPS for t in pruned)
        assert all(sorted(t.intermediate_values) == [0, 1] for t in pruned)
        complete = [t for t in found.study.trials if t.state == optuna.trial.TrialState.COMPLETE]
        assert len(complete) + len(pruned) == 6
        assert all(sorted(t.intermediate_values) == [0, 1, 2, 3] for t in complete)
        assert found.study.trials[0].state == found.study.trials[1].state == optuna.trial.TrialState.COMPLETE

    def test_none_before_the_warmup_is_over(self):
        found = search(n_trials=4, trial_episodes=1, n_startup_trials=1, pruner_warmup_steps=1, seed=1)
        found.run()
        assert states_of(found) == ["COMPLETE"] * 4


class TestFailures:
    def test_a_trial_that_fails_is_recorded_with_its_error_and_the_search_goes_on(self):
        found = search(parts.half_broken_agent, n_trials=5)
        found.run()
        expected = ["FAIL" if p["x"] > 0.5 else "COMPLETE" for p in params_of(found)]
        assert states_of(found) == expected
        assert len(set(expected)) == 2
        errors = {t.user_attrs["error"] for t in found.study.trials if t.state.name == "FAIL"}
        assert errors == {"RuntimeError: x is too large"}

    def test_where_all_fail_the_sentence_has_the_first_error_and_nothing_is_left(self):
        found = search(parts.broken_agent)
        with pytest.raises(RuntimeError) as caught:
            found.run()
        assert "3 of 3 failed; the first with RuntimeError: no such optimiser" in str(caught.value)
        assert list(found.run_ckpt_dir.iterdir()) == []

    def test_a_score_that_is_no_number_is_a_failure(self):
        found = search(checkpoint_score_fn=lambda agent: float("nan"), n_trials=1)
        with pytest.raises(RuntimeError, match="no finite score in 1 windows"):
            found.run()

    def test_pipelines_are_closed_after_an_error(self):
        made = []

        class Faulty(Hill):
            def reward(self):
                made.append(self)
                raise OSError("the simulator is gone")

        with pytest.raises(RuntimeError, match="OSError: the simulator is gone"):
            search(pipeline=Faulty, n_trials=1).run()
        assert made[0].closed

    def test_interrupted(self, tmp_path):
        class Interrupting(Hill):
            def reward(self):
                raise KeyboardInterrupt

        storage = tmp_path / "s.journal"
        with pytest.raises(KeyboardInterrupt):
            search(pipeline=Interrupting, storage=storage, study_name="s", n_trials=1).run()
        found = search(storage=storage, study_name="s", n_trials=1)
        found.run()
        assert states_of(found) == ["FAIL", "COMPLETE"]
        assert params_of(found)[0] == params_of(found)[1]


class TestFiles:
    def test_temporary_files_go_with_the_search(self):
        found = search(n_trials=1)
        found.run()
        directory = found.run_ckpt_dir
        assert directory.is_dir()
        del found
        gc.collect()
        assert not directory.exists()

    def test_or_when_it_is_closed(self):
        found = search(n_trials=1)
        found.run()
        found.close()
        assert not found.run_ckpt_dir.exists()
        assert found.best_weights_path is None

    def test_a_directory_of_the_callers_own_keeps_every_trial_and_a_resumed_study_goes_on(self, tmp_path):
        settings = {"storage": tmp_path / "s.journal", "study_name": "s", "checkpoint_dir": tmp_path / "kept"}
        first = search(n_trials=2, **settings)
        first.run()
        best = first.best_weights_path
        del first
        gc.collect()
        assert Path(best).exists()
        second = search(n_trials=3, **settings)
        second.run()
        whole = search(n_trials=3)
        whole.run()
        assert params_of(second) == params_of(whole)
        assert sorted(p.name for p in (tmp_path / "kept" / "s").iterdir()) == [f"trial-{i:05d}" for i in range(3)]
        assert Path(second.best_weights_path).exists()
        with pytest.raises(ValueError, match="begun with trial_episodes 1, got 2"):
            search(trial_episodes=2, **settings).run()
        with pytest.raises(ValueError, match="begun with param_space"):
            search(space={"x": ("float", 0.0, 2.0)}, **settings).run()


class TestFactories:
    def test_a_factory_without_argument_gets_its_params_set(self):
        found = search(parts.fixed_agent, n_trials=2)
        found.run()
        assert found.best_score == pytest.approx(score_of(found.best_params["x"]))

    def test_an_optional_argument_named_for_it(self):
        found = search(lambda params=None: Guess(**params), lambda config=None: Hill(), n_trials=1)
        assert found.run().score == pytest.approx(score_of(found.best_params["x"]))

    def test_the_space_is_the_agents_bounds_where_none_is_given(self):
        class Bounded(Guess):
            default_param_bounds: ClassVar = {"x": (0.1, 0.2), "y": (1e-5, 1e-1), "absent": (0, 1)}
            default_log_params: ClassVar = {"y"}

        found = search(lambda params: Bounded(**({"x": 0.0, "y": 0.1} | params)), space=None, n_trials=1)
        assert found.space.facts() == {"x": ["float", 0.1, 0.2], "y": ["log_float", 1e-5, 1e-1]}
        with pytest.raises(ValueError, match="makes no agent without hyperparameters"):
            search(lambda params: Guess(x=params["x"]), space=None)
        with pytest.raises(ValueError, match="Plain names no bounds"):
            search(lambda: Plain(x=0.0), space=None)

    def test_stateful_settings_are_not_shared_between_trials(self):
        given = EpisodeEvaluator()
        search(rloptimizer_kwargs={"evaluator": given}, n_trials=2).run()
        assert given._windows == 0

    def test_settings_reach_the_runs(self):
        settings = AT_ONCE | {"target_score": -1e9, "convergence_patience": 1}
        found = search(rloptimizer_kwargs=settings, trial_episodes=5, n_trials=1)
        found.run()
        assert found.study.trials[0].user_attrs["windows"] == 1


class TestStopping:
    def test_from_a_callback(self):
        found = search(n_trials=5, callbacks=[lambda study, trial: found.stop()])
        found.run()
        assert states_of(found) == ["COMPLETE"]
        found._callbacks.clear()
        found.run()
        assert states_of(found) == ["COMPLETE"] * 5

    def test_within_a_trial(self):
        class Stopping(Hill):
            def reward(self):
                found.stop()
                return 0.0

        found = search(pipeline=Stopping, trial_episodes=100)
        with pytest.raises(RuntimeError):
            found.run()
        assert states_of(found) == ["FAIL"]


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"agent": 3}, TypeError, "agent_factory must be a function, got 3"),
        ({"pipeline": "CartPole-v1"}, TypeError, "pipeline_factory must be a function"),
        ({"direction": "up"}, ValueError, 'must be "maximize" or "minimize"'),
        ({"n_trials": 0}, ValueError, "n_trials must be a whole number of at least 1"),
        ({"trial_steps": 0}, ValueError, "trial_steps must be a whole number"),
        ({"trial_steps": 10, "trial_episodes": 1}, TypeError, "two budgets"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be a whole number"),
        ({"rloptimizer_kwargs": {"max_episodes": 3}}, ValueError, "use trial_episodes"),
        ({"rloptimizer_kwargs": {"noise": 3}}, ValueError, "did you mean 'noise_k'"),
        ({"space": {"x": ("normal", 0, 1)}}, ValueError, "begins with 'normal'"),
        ({"agent": lambda params: None, "n_jobs": 2}, TypeError, "agent_factory cannot be sent to another process"),
        (
            {"rloptimizer_kwargs": {"checkpoint_score_fn": lambda agent: 0.0}, "n_jobs": 2},
            TypeError,
            "rloptimizer_kwargs['checkpoint_score_fn'] cannot be sent",
        ),
    ],
)
def test_mistakes_are_said_before_anything_runs(settings, error, said):
    with pytest.raises(error) as caught:
        search(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_optuna_the_command_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install"):
        search()


def test_the_other_address():
    from tensor_optix.core.trial_orchestrator import TrialOrchestrator as other

    assert other is TrialOrchestrator


def test_a_study_holds_json_only(done):
    search, _, _ = done
    for trial in search.study.trials:
        json.dumps(trial.user_attrs, allow_nan=False)
