"""RLOptimizer with a param_space: trials first, then the run from the best of them."""

import json
import logging

import pytest

from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.types import HyperparamSet
from tensor_optix.loop.episode_returns import EpisodeEvaluator
from tensor_optix.optimizer import RLOptimizer
from tensor_optix.optimizers.spsa import SPSAOptimizer
from tests.host_parts import Plain
from tests.trials import parts
from tests.trials.parts import SPACE, Guess, Hill


class Counting(Guess):
    """Remembers with which weights it began to learn."""

    def learn(self, episode_data):
        self.began = getattr(self, "began", self.weight)
        super().learn(episode_data)


class Own(BaseOptimizer):
    """A tuner of the user's own; what it tunes it does not tell."""

    def suggest(self, current, history):
        return HyperparamSet({**current.params, "x": current.params["x"] * 0.9})


def optimizer(tmp_path, **settings):
    settings = {
        "agent_factory": lambda params: Counting(**params),
        "pipeline_factory": Hill,
        "param_space": SPACE,
        "n_trials": 3,
        "max_episodes": 4,
        "trial_steps_fraction": 0.5,
        "checkpoint_dir": tmp_path,
    } | settings
    return RLOptimizer(**settings)


def test_the_run_begins_with_the_best_trials_configuration_and_weights(tmp_path):
    made = []

    def pipeline():
        made.append(Hill())
        return made[-1]

    run = optimizer(tmp_path, pipeline_factory=pipeline)
    result = run.run()
    assert [each.windows for each in made] == [2, 2, 2, 4]  # half of the budget each, then the run
    record = json.loads((run.run_dir / "manifest.json").read_text())["trials"]
    assert record["trials"] == 3
    assert run.agent.params["x"] == record["params"]["x"]
    assert record["score"] == pytest.approx(max(parts.score_of(x) for x in proposed()))
    assert run.agent.began >= 1.0  # windows that the trial's best policy had learned from
    assert result.windows == 4
    assert [path.name for path in tmp_path.iterdir()] == [run.run_dir.name]  # trials leave nothing
    assert not run._search._search.run_ckpt_dir.exists()


def proposed():
    """What a search of three trials proposes."""
    from tensor_optix.orchestrator import TrialOrchestrator

    search = TrialOrchestrator(parts.agent, Hill, SPACE, n_trials=3, trial_episodes=2)
    search.run()
    return [trial.params["x"] for trial in search.study.trials]


def test_a_run_that_is_gone_on_with_searches_no_more(tmp_path):
    run = optimizer(tmp_path, n_trials=1)
    run.run()
    again = optimizer(
        tmp_path, n_trials=1, max_episodes=6, resume_from=run.run_dir, trial_agent_factory=parts.broken_agent
    )
    result = again.run()
    assert result.windows == 6
    assert again.agent.params["x"] == run.agent.params["x"]
    assert again.agent.weight >= 2


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"other": ("float", 0, 1)}, "param_space.x ['float', 0.0, 1.0], got nothing"),
        ({"x": ("categorical", (1, 2), (3, 4))}, "param_space.x ['float', 0.0, 1.0], got ['categorical',"),
        (SPACE | {"other": ("float", 0, 1)}, "param_space.other nothing, got ['float', 0.0, 1.0]"),
        ({"x": ("float", 5, 6)}, "param_space.x ['float', 0.0, 1.0], got ['float', 5.0, 6.0]"),
    ],
)
def test_a_run_that_is_gone_on_with_must_have_the_same_space(tmp_path, space, said):
    run = optimizer(tmp_path, n_trials=1, max_episodes=1, trial_steps_fraction=1.0)
    run.run()
    again = optimizer(tmp_path, n_trials=1, max_episodes=3, resume_from=run.run_dir, param_space=space)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - said below
        again.run()
    assert said in str(caught.value)
    assert "give the param_space that it began with" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [SPSAOptimizer, Own])
def test_what_tunes_the_run_does_not_tune_what_its_trials_search(tmp_path, kind):
    seen = []

    class Recording(Counting):
        def learn(self, episode_data):
            seen.append(self.params["x"])
            super().learn(episode_data)

    tuner = SPSAOptimizer({"x": (0.0, 1.0)}) if kind is SPSAOptimizer else Own()
    settings = {"evaluator": EpisodeEvaluator(min_episodes=1), "optimizer": tuner, "max_episodes": 6}
    run = optimizer(tmp_path, agent_factory=lambda params: Recording(**params), **settings)
    run.run()
    trials, after = [seen[i : i + 3] for i in (0, 3, 6)], seen[9:]
    assert [len(set(trial)) for trial in trials] == [1, 1, 1]
    assert len(set(after)) > 1  # the run's own is at work


def test_trials_may_have_a_factory_of_their_own_and_weights_need_not_fit(tmp_path, caplog):
    class Other(Plain):
        def load_weights(self, path):
            if "trial-" in str(path):
                raise RuntimeError("size mismatch")
            super().load_weights(path)

    with caplog.at_level(logging.WARNING):
        run = optimizer(
            tmp_path, n_trials=1, agent_factory=lambda params: Other(**params), trial_agent_factory=parts.agent
        )
        run.run()
    assert "do not fit" in caplog.text
    assert "size mismatch" in caplog.text
    assert isinstance(run.agent, Other)
    assert "x" in run.agent.params


def test_factories_without_a_search_are_called_as_before(tmp_path):
    seen = []
    run = RLOptimizer(
        agent_factory=lambda params: seen.append(params) or Guess(x=0.0),
        pipeline_factory=lambda config=None: seen.append(config) or Hill(),
        checkpoint_dir=tmp_path,
        max_episodes=1,
    )
    run.run()
    assert sorted(map(str, seen)) == ["None", "{}"]


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"agent_factory": None, "agent": Guess(x=0.0)}, TypeError, "give agent_factory and pipeline_factory"),
        ({"pipeline_factory": None, "pipeline": Hill()}, TypeError, "give agent_factory and pipeline_factory"),
        ({"max_episodes": None}, TypeError, "give max_episodes"),
        ({"trial_steps_fraction": 0.0}, ValueError, r"must lie in \(0, 1\], got 0.0"),
        ({"trial_steps_fraction": 2}, ValueError, r"must lie in \(0, 1\], got 2"),
        ({"param_space": {"x": (0, 1)}}, ValueError, "begins with 0"),
        ({"param_space": None, "trial_agent_factory": parts.agent}, TypeError, "give param_space too"),
    ],
)
def test_mistakes_are_said_before_anything_runs(tmp_path, settings, error, said):
    with pytest.raises(error, match=said):
        optimizer(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []
