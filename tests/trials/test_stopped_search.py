"""RLOptimizer with a param_space whose search is stopped."""

import pytest

from tensor_optix.core.types import StopReason
from tensor_optix.optimizer import RLOptimizer
from tests.trials.parts import SPACE, Guess, Hill


def optimizer(tmp_path, **settings):
    settings = {"trial_steps_fraction": 0.5, "pipeline_factory": Hill} | settings
    settings.setdefault("agent_factory", lambda params: Guess(**params))
    return RLOptimizer(param_space=SPACE, n_trials=3, max_episodes=4, checkpoint_dir=tmp_path, **settings)


def test_a_search_that_is_stopped_before_any_trial_ends_leaves_a_result(tmp_path):
    run = optimizer(tmp_path)
    run.stop()
    result = run.run()
    assert (result.stop_reason, result.windows, result.best_snapshot) == (StopReason.INTERRUPTED, 0, None)
    assert result.notes == ["the search was stopped before a trial was complete: there is no policy"]
    assert str(result).startswith("interrupted; 0 windows")
    assert (run.result, run.run_dir, run.agent) == (result, None, None)
    assert not list(tmp_path.iterdir())
    assert run.run().windows == 4  # the stop was for that run
    assert run.result.stop_reason == StopReason.BUDGET


def test_a_search_that_is_stopped_in_its_first_trial(tmp_path):
    class Stops(Hill):
        def episodes(self):
            for window in super().episodes():
                run.stop()
                yield window

    run = optimizer(tmp_path, pipeline_factory=Stops)
    assert run.run().notes == ["the search was stopped before a trial was complete: there is no policy"]


def test_a_search_in_which_every_trial_fails_still_raises(tmp_path):
    def broken(params):
        raise ValueError("no such agent")

    with pytest.raises(RuntimeError, match="no trial is complete"):
        optimizer(tmp_path, agent_factory=broken).run()


def test_trials_that_failed_before_the_stop_are_told_of(tmp_path):
    def broken(params):
        run.stop()
        raise ValueError("no such agent")

    run = optimizer(tmp_path, agent_factory=broken)
    first, second = run.run().notes
    assert first == "the search was stopped before a trial was complete: there is no policy"
    assert "1 of 1 failed; the first with ValueError: no such agent" in second
