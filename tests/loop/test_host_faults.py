"""An environment that raises is heard of: at the first fault, and in the result, also after a resume."""

import logging

import gymnasium
import numpy as np
import pytest

from tensor_optix import BatchPipeline, Optimizer, RLOptimizer, RNDPipeline
from tensor_optix.core.types import StopReason
from tests.host_parts import Plain, stop_after


class Breaking(gymnasium.Env):
    """No episode ends: each raises at its 30th step, or goes on for ever."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    breaks = True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.breaks and self.t == 30:
            raise ValueError("boom at 30")
        return np.zeros(3, np.float32), 1.0, False, False, {}


class Endless(Breaking):
    breaks = False


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "tensor_optix.pipeline.collector"]


def test_the_first_fault_is_logged_and_all_are_noted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        opt = Optimizer(Plain(), Breaking, n_envs=2, window_size=128, max_episodes=12, checkpoint_dir=tmp_path)
        result = opt.run()
    (warning,) = warnings_of(caplog)
    assert warning.startswith("environment 0 failed: step: ValueError: boom at 30 (")
    assert "test_host_faults.py" in warning
    assert "in step" in warning
    assert opt.pipeline.n_faults == 52  # 64 rows of each of two environments in each of 12 windows
    assert result.notes == [
        "the environment raised 52 times, last: environment 1: step: ValueError: boom at 30; those transitions were "
        "dropped and the episodes cut"
    ]
    assert result.notes[0] in str(result)
    assert result.unit == "reward per step"
    assert "a score is the mean reward of a step: no whole episode ended in the first 10 windows" in str(result)


def test_a_run_without_faults_says_nothing_of_them(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        result = Optimizer(Plain(), "CartPole-v1", window_size=64, max_episodes=2, checkpoint_dir=tmp_path).run()
    assert (warnings_of(caplog), result.notes, result.unit) == ([], [], "episode return")
    assert "mean reward of a step" not in str(result)


def test_a_validation_environment_and_a_wrapped_pipeline_are_heard_of_too(tmp_path):
    agent = Plain()
    wrapped = RNDPipeline(BatchPipeline(Breaking(), agent, 30), obs_dim=3)
    validation = BatchPipeline(Breaking(), agent, 29)
    result = RLOptimizer(agent, wrapped, val_pipeline=validation, max_episodes=2, checkpoint_dir=tmp_path).run()
    assert wrapped.n_faults == 2
    assert wrapped.faults == ["step: ValueError: boom at 30"] * 2
    assert [note.split(", last")[0] for note in result.notes] == ["the environment raised 2 times"]
    result = RLOptimizer(
        agent, BatchPipeline(Endless(), agent, 30), max_episodes=12, val_pipeline=wrapped, checkpoint_dir=tmp_path
    ).run()
    assert [note.split(",")[0] for note in result.notes] == ["the validation environment raised 3 times"]


def test_a_second_run_counts_its_own(tmp_path):
    agent = Plain()
    pipeline = BatchPipeline(Breaking(), agent, 30)
    for _ in range(2):
        result = RLOptimizer(agent, pipeline, max_episodes=1, checkpoint_dir=tmp_path).run()
        assert result.notes == [
            "the environment raised once, last: step: ValueError: boom at 30; that transition was dropped and the "
            "episode cut"
        ]
    assert pipeline.n_faults == 2


@pytest.mark.parametrize("more", [3, 0])
def test_the_count_survives_a_resume(tmp_path, more):
    def run(**settings):
        agent = Plain()
        opt = RLOptimizer(agent, BatchPipeline(Breaking(), agent, 30), checkpoint_dir=tmp_path, **settings)
        return opt, opt.run()

    first, result = run(max_episodes=3)
    assert result.stop_reason == StopReason.BUDGET
    assert result.notes[0].startswith("the environment raised 3 times, last: step: ValueError")
    again, result = run(max_episodes=3 + more, resume_from=first.run_dir)
    times = (90 + 30 * more) // 29
    assert [note.split(", last")[0] for note in result.notes] == [f"the environment raised {times} times"]
    if more:
        assert again.pipeline.n_faults == times


def test_an_interrupted_run_goes_on_counting(tmp_path):
    agent = Plain()
    opt = RLOptimizer(agent, BatchPipeline(Breaking(), agent, 30), max_episodes=6, checkpoint_dir=tmp_path)
    stop_after(opt, 2)
    assert opt.run().notes[0].startswith("the environment raised 2 times")
    agent = Plain()
    opt = RLOptimizer(
        agent, BatchPipeline(Breaking(), agent, 30), max_episodes=6, checkpoint_dir=tmp_path, resume_from=opt.run_dir
    )
    assert [note.split(", last")[0] for note in opt.run().notes] == ["the environment raised 6 times"]
