"""One environment's windows: every row is where it belongs, every end is the one that happened."""

import itertools

import gymnasium
import numpy as np
import pytest

from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline
from tests.pipeline.counting import BOTH, TERMINATED, TRUNCATED, Counting, Reader

LONG = ((1000, TERMINATED),)


def windows(pipeline, n):
    pipeline.setup()
    return list(itertools.islice(pipeline.episodes(), n))


def places(data):
    """(episode, step) of every row."""
    return [(int(e), int(t)) for e, t in data.observations[:, 1:3]]


def test_episodes_go_on_across_windows():
    first, second, third = windows(BatchPipeline(Counting(), Reader(), 4), 3)
    assert places(first) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert places(second) == [(1, 1), (2, 0), (3, 0), (3, 1)]
    assert places(third) == [(3, 2), (3, 3), (4, 0), (4, 1)]
    assert [first.episode_starts, second.episode_starts, third.episode_starts] == [[0, 3], [1, 2], [2]]
    assert [data.episode_id for data in (first, second, third)] == [0, 1, 2]
    assert [data.length for data in (first, second, third)] == [4, 4, 4]


def test_termination_and_truncation_are_kept_apart():
    (data,) = windows(BatchPipeline(Counting(), Reader(), 10), 1)
    ends = {2: TERMINATED, 4: TRUNCATED, 5: TERMINATED, 9: BOTH}
    assert data.terminated == [ends.get(i) in (TERMINATED, BOTH) for i in range(10)]
    assert data.truncated == [ends.get(i) in (TRUNCATED, BOTH) for i in range(10)]
    assert all(type(flag) is bool for flag in data.terminated + data.truncated)


def test_rows_hold_what_the_step_gave():
    (data,) = windows(BatchPipeline(Counting(ident=3), Reader(), 5), 1)
    assert data.observations.dtype == np.int16
    assert data.observations.shape == (5, 4)
    for (episode, t), action, reward, info in zip(places(data), data.actions, data.rewards, data.infos, strict=True):
        assert action == (3 + 2 * episode + 3 * t) % 5
        assert reward == 3000 + 100 * episode + 10 * (t + 1) + action
        assert type(reward) is float
        assert (info["step"], info["nested"]) == (t + 1, {"episode": episode})


def test_final_observations_are_the_terminal_ones():
    first, second, third = windows(BatchPipeline(Counting(), Reader(), 5), 3)
    ends = first.metadata["final_observations"]
    assert {row: tuple(obs[1:3]) for row, obs in ends.items()} == {2: (0, 3), 4: (1, 2)}
    # The first window ends with an episode, the third within one.
    assert tuple(first.final_obs[1:3]) == (1, 2)
    assert tuple(second.final_obs[1:3]) == (3, 4)
    assert tuple(third.final_obs[1:3]) == (5, 2)
    assert first.final_obs.dtype == np.int16


def test_final_obs_within_an_episode_is_the_next_windows_first():
    first, second = windows(BatchPipeline(Counting(script=LONG), Reader(), 4), 2)
    np.testing.assert_array_equal(first.final_obs, second.observations[0])
    assert first.metadata["final_observations"] == {}
    assert (first.episode_starts, second.episode_starts) == ([0], [])


def test_an_environment_may_reuse_its_buffer():
    for ours, other in zip(
        windows(BatchPipeline(Counting(reuse=True), Reader(), 5, seed=1), 3),
        windows(BatchPipeline(Counting(), Reader(), 5, seed=1), 3),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.observations, other.observations)
        np.testing.assert_array_equal(ours.final_obs, other.final_obs)
        assert ours.metadata["final_observations"].keys() == other.metadata["final_observations"].keys()
        for row, obs in other.metadata["final_observations"].items():
            np.testing.assert_array_equal(ours.metadata["final_observations"][row], obs)


def test_the_seed_is_used_once():
    env = Counting()
    (data,) = windows(BatchPipeline(env, Reader(), 10, seed=7), 1)
    assert env.seeds == [7, None, None, None]
    assert len(set(data.observations[data.episode_starts, 3])) == 4
    (same,) = windows(BatchPipeline(Counting(), Reader(), 10, seed=7), 1)
    (other,) = windows(BatchPipeline(Counting(), Reader(), 10, seed=8), 1)
    np.testing.assert_array_equal(data.observations, same.observations)
    assert data.observations[0, 3] != other.observations[0, 3]


def test_the_seed_survives_a_failed_reset():
    env = Counting(bad_resets=[0])
    windows(BatchPipeline(env, Reader(), 2, seed=7), 1)
    assert env.seeds == [7]


def test_a_failed_step_cuts_the_episode():
    # Steps 0 and 1 are kept, 2 fails; the next episode has steps 3 and 4.
    env = Counting(script=LONG, bad_steps=[2])
    pipeline = BatchPipeline(env, Reader(), 4)
    (data,) = windows(pipeline, 1)
    assert places(data) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert data.truncated == [False, True, False, False]
    assert data.terminated == [False] * 4
    assert data.episode_starts == [0, 2]
    assert {r: tuple(o[1:3]) for r, o in data.metadata["final_observations"].items()} == {1: (0, 2)}
    assert (data.metadata["dropped"], data.metadata["cut"]) == (1, [1])
    assert pipeline.n_faults == 1
    assert pipeline.faults == ["step: ValueError: step 2 failed"]
    assert data.rewards == [10 * (t + 1) + 100 * e + a for (e, t), a in zip(places(data), data.actions, strict=True)]


def test_a_failed_step_without_a_kept_row_marks_nothing():
    # The third step fails: first of its window, its episode's rows are in the window before.
    first, second = windows(BatchPipeline(Counting(script=LONG, bad_steps=[2]), Reader(), 2), 2)
    assert first.truncated == second.truncated == [False, False]
    assert first.metadata["dropped"] == 0
    assert (second.metadata["dropped"], second.metadata["cut"], second.metadata["final_observations"]) == (1, [], {})
    assert second.episode_starts == [0]
    assert tuple(first.final_obs[1:3]) == (0, 2)


def test_a_failed_first_step_does_not_touch_the_episode_before():
    script = ((2, TERMINATED), (1000, TERMINATED))
    (data,) = windows(BatchPipeline(Counting(script=script, bad_steps=[2]), Reader(), 3), 1)
    assert data.terminated == [False, True, False]
    assert data.truncated == [False, False, False]
    assert places(data) == [(0, 0), (0, 1), (2, 0)]


def test_failed_resets_are_tried_again():
    env = Counting(bad_resets=[0, 2])
    pipeline = BatchPipeline(env, Reader(), 5)
    (data,) = windows(pipeline, 1)
    assert places(data) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert (pipeline.n_faults, data.metadata["dropped"]) == (2, 0)
    assert pipeline.faults == ["reset: OSError: no connection"] * 2


def test_many_faults_in_a_row_are_an_error():
    pipeline = BatchPipeline(Counting(bad_steps=range(1, 100)), Reader(), 5, max_faults_in_a_row=4)
    pipeline.setup()
    with pytest.raises(RuntimeError, match=r"4 times without a successful step.*step 4 failed") as caught:
        next(pipeline.episodes())
    assert isinstance(caught.value.__cause__, ValueError)
    assert pipeline.n_faults == 4
    broken = BatchPipeline(Counting(bad_resets=range(100)), Reader(), 5)
    with pytest.raises(RuntimeError, match=r"10 times.*no connection"):
        broken.setup()


def test_a_successful_step_ends_the_row_of_faults():
    env = Counting(script=LONG, bad_steps=range(1, 100, 2))
    pipeline = BatchPipeline(env, Reader(), 40, max_faults_in_a_row=2)
    (data,) = windows(pipeline, 1)
    assert data.metadata["dropped"] == pipeline.n_faults == 39
    assert len(pipeline.faults) == 20
    assert pipeline.faults[-1].endswith("step 77 failed")
    assert data.truncated == [True] * 39 + [False]


def test_errors_of_the_agent_are_raised():
    class Failing:
        def act(self, obs):
            raise ValueError("mine")

    pipeline = BatchPipeline(Counting(), Failing(), 5)
    with pytest.raises(ValueError, match="mine"):
        windows(pipeline, 1)
    assert pipeline.n_faults == 0


@pytest.mark.parametrize("convert", [int, np.int64, np.asarray, lambda a: np.array([a]), float])
def test_discrete_actions_arrive_as_int(convert):
    env = Counting()
    (data,) = windows(BatchPipeline(env, Reader(convert), 5), 1)
    assert all(type(action) is int for action in env.received)
    assert data.actions.tolist() == env.received
    assert data.actions.dtype == np.int64


@pytest.mark.parametrize("action", [np.array([1, 2]), 0.5])
def test_discrete_actions_that_are_no_whole_number(action):
    with pytest.raises(ValueError, match="Discrete"):
        windows(BatchPipeline(Counting(), Reader(lambda _: action), 5), 1)


def test_box_actions_are_clipped_for_the_environment_only():
    env = Counting(action_space=gymnasium.spaces.Box(-1, 1, (2, 1), np.float32))
    (data,) = windows(BatchPipeline(env, Reader(lambda _: [0.5, -3.0]), 3), 1)
    assert (data.actions.shape, data.actions.dtype) == ((3, 2, 1), np.float32)
    assert data.actions[0].ravel().tolist() == [0.5, -3.0]
    assert all(a.dtype == np.float32 and a.ravel().tolist() == [0.5, -1.0] for a in env.received)
    with pytest.raises(ValueError, match="shape"):
        windows(BatchPipeline(env, Reader(lambda _: [0.5]), 3), 1)


def test_integer_box_actions_do_not_wrap():
    env = Counting(action_space=gymnasium.spaces.Box(0, 200, (1,), np.uint8))
    windows(BatchPipeline(env, Reader(lambda _: np.array([300])), 1), 1)
    assert env.received[0].tolist() == [200]


def test_other_actions_pass_through():
    env = Counting(action_space=gymnasium.spaces.MultiDiscrete([3, 3]))
    (data,) = windows(BatchPipeline(env, Reader(lambda _: np.array([1, 2])), 3), 1)
    assert data.actions.tolist() == [[1, 2]] * 3


def test_deterministic_asks_for_the_deterministic_action():
    class Both(Reader):
        def act_deterministic(self, obs):
            return 4

    (data,) = windows(BatchPipeline(Counting(), Both(), 5, deterministic=True), 1)
    assert data.actions.tolist() == [4] * 5
    (data,) = windows(BatchPipeline(Counting(), Both(), 5), 1)
    assert data.actions.tolist() != [4] * 5
    (data,) = windows(BatchPipeline(Counting(), Reader(), 5, deterministic=True), 1)
    assert data.length == 5


def test_forms_of_the_constructor():
    agent = Reader()
    assert BatchPipeline(Counting()).window_size == 200
    assert BatchPipeline(env=Counting(), agent=agent, window_size=7).n_steps == 7
    assert BatchPipeline(env=Counting(), n_steps=7).window_size == 7
    assert BatchPipeline(Counting(), agent, 7, n_steps=7).window_size == 7
    env = Counting()
    assert BatchPipeline(env).env is env
    assert not BatchPipeline(env).is_live


def test_an_id_makes_the_environment():
    pipeline = BatchPipeline(env_id="CartPole-v1", n_steps=30, seed=3)
    assert pipeline.env.spec.id == "CartPole-v1"
    pipeline.set_agent(Reader(lambda _: np.array(1)))
    (data,) = windows(pipeline, 1)
    assert (data.observations.shape, data.observations.dtype) == ((30, 4), np.float32)
    assert any(data.terminated)
    pipeline.teardown()
    pipeline.teardown()


def test_teardown_closes_what_was_made_here(monkeypatch):
    made = Counting()
    monkeypatch.setattr(gymnasium, "make", lambda name: made)
    pipeline = BatchPipeline(env_id="Counting-v0", agent=Reader(), n_steps=3)
    pipeline.setup()
    pipeline.teardown()
    pipeline.teardown()
    assert made.closed == 1
    env = Counting()
    given = BatchPipeline(env, Reader(), 3)
    given.setup()
    given.teardown()
    assert env.closed == 0


def test_the_agent_may_be_changed_between_windows():
    pipeline = BatchPipeline(Counting(), Reader(), 3)
    stream = pipeline.episodes()
    next(stream)
    pipeline.set_agent(Reader(lambda _: 4))
    assert next(stream).actions.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "either env or env_id"),
        ({"env": Counting(), "env_id": "CartPole-v1"}, TypeError, "either env or env_id"),
        ({"env": "CartPole-v1"}, TypeError, "env_id"),
        ({"env": Counting(), "window_size": 3, "n_steps": 4}, ValueError, "differ"),
        ({"env": Counting(), "window_size": 0}, ValueError, "window_size must be at least 1"),
        ({"env": Counting(), "n_steps": -1}, ValueError, "n_steps must be at least 1"),
        ({"env": Counting(), "window_size": 2.5}, TypeError, "whole number"),
        ({"env": Counting(), "max_faults_in_a_row": 0}, ValueError, "max_faults_in_a_row"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchPipeline(**arguments)


def test_no_agent():
    with pytest.raises(ValueError, match="no agent"):
        BatchPipeline(Counting()).episodes()


def test_composite_observations_are_refused():
    env = Counting()
    env.observation_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(2)})
    with pytest.raises(TypeError, match="FlattenObservation"):
        BatchPipeline(env, Reader()).setup()


class Bounded:
    """An agent that asks for the bounds of actions."""

    def set_action_bounds(self, low, high):
        self.low, self.high = low, high

    def act(self, observation):
        return np.zeros(1, np.float32)


@pytest.mark.parametrize("vector", [False, True])
def test_the_agent_learns_the_bounds_of_actions(vector):
    first, second = Bounded(), Bounded()
    if vector:
        pipeline = VectorBatchPipeline([lambda: gymnasium.make("Pendulum-v1")] * 2, agent=first, window_size=4)
    else:
        pipeline = BatchPipeline(env_id="Pendulum-v1", agent=first, window_size=4)
    windows = pipeline.episodes()
    next(windows)
    assert (first.low.tolist(), first.high.tolist()) == ([-2.0], [2.0])
    pipeline.set_agent(second)
    next(windows)
    assert second.high.tolist() == [2.0]
    pipeline.teardown()


def test_huge_bounds_are_none():
    from tensor_optix.pipeline.conversion import tell_action_bounds

    agent = Bounded()
    biggest = float(np.finfo(np.float32).max)
    tell_action_bounds(agent, gymnasium.spaces.Box(-biggest, biggest, (1,), np.float32))
    assert (agent.low.tolist(), agent.high.tolist()) == ([-np.inf], [np.inf])


def test_after_a_lost_window_the_open_episode_has_no_beginning():
    class Stops(Reader):
        left = 7

        def act(self, observation):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().act(observation)

    agent = Stops()
    pipeline = BatchPipeline(env=Counting(script=LONG), agent=agent, window_size=4)
    iterator = pipeline.episodes()
    next(iterator)
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    state = pipeline.state_dict()
    again = next(pipeline.episodes())
    assert again.metadata["tails"] == [0]
    assert again.episode_starts == []
    assert "tails" not in next(pipeline.episodes()).metadata
    other = BatchPipeline(env=Counting(script=LONG), agent=Reader(), window_size=4)
    other.load_state_dict(state)
    assert next(other.episodes()).metadata["tails"] == [0]
