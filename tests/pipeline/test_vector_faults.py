"""Faults of environments side by side: what one loses, the others keep."""

import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline
from tests.pipeline.counting import TERMINATED, BatchReader, Counting, Reader
from tests.pipeline.troubled import assert_same_window

LONG = ((1000, TERMINATED),)


def windows(pipeline, n):
    try:
        pipeline.setup()
        return list(itertools.islice(pipeline.episodes(), n))
    finally:
        pipeline.teardown()


def block(data, i):
    start = data.metadata["segment_starts"][i]
    return slice(start, start + data.metadata["segment_lengths"][i])


def check_blocks(data, alone):
    """Each block is the window of the environment alone, in every field."""
    starts, cuts, dropped = [], [], 0
    for i, own in enumerate(alone):
        rows = block(data, i)
        np.testing.assert_array_equal(data.observations[rows], own.observations)
        np.testing.assert_array_equal(data.actions[rows], own.actions)
        assert data.rewards[rows] == own.rewards
        assert data.terminated[rows] == own.terminated
        assert data.truncated[rows] == own.truncated
        assert data.infos[rows] == own.infos
        starts += [rows.start + row for row in own.episode_starts]
        cuts += [rows.start + row for row in own.metadata["cut"]]
        dropped += own.metadata["dropped"]
        finals = {
            row - rows.start: obs.tolist()
            for row, obs in data.metadata["final_observations"].items()
            if rows.start <= row < rows.stop
        }
        assert finals == {row: obs.tolist() for row, obs in own.metadata["final_observations"].items()}
        np.testing.assert_array_equal(data.final_obs[i], own.final_obs)
    assert data.episode_starts == starts
    assert (data.metadata["cut"], data.metadata["dropped"]) == (cuts, dropped)


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
@pytest.mark.parametrize("trial", range(8))
def test_each_block_is_what_the_environment_gives_alone(trial, mode):
    draw = np.random.default_rng(trial)
    n, size = int(draw.integers(1, 5)), int(draw.integers(1, 9))
    faults = [
        {"bad_steps": draw.integers(0, 40, draw.integers(0, 12)), "bad_resets": draw.integers(0, 12, 3)}
        for _ in range(n)
    ]
    fns = [lambda i=i: Counting(i, **faults[i]) for i in range(n)]
    agent = (Reader, BatchReader)[trial % 2]()
    pipeline = VectorBatchPipeline(fns, agent, size, seed=trial, autoreset_mode=mode, max_faults_in_a_row=30)
    single = [BatchPipeline(fns[i](), Reader(), size, seed=trial + i, max_faults_in_a_row=30) for i in range(n)]
    alone = zip(*[one.episodes() for one in single], strict=True)
    for data, own in zip(windows(pipeline, 6), alone, strict=False):
        assert data.metadata["segment_lengths"] == [size] * n
        check_blocks(data, own)
    assert pipeline.n_faults > 0


def test_one_failed_step():
    fns = [lambda i=i: Counting(i, LONG, bad_steps=[2] if i == 1 else []) for i in range(3)]
    pipeline = VectorBatchPipeline(fns, BatchReader(), 4)
    (data,) = windows(pipeline, 1)
    assert data.observations[:, :3].tolist() == [
        *([0, 0, t] for t in range(4)),
        *([1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]),
        *([2, 0, t] for t in range(4)),
    ]
    assert data.terminated == [False] * 12
    assert [row for row, flag in enumerate(data.truncated) if flag] == [5]
    assert data.episode_starts == [0, 4, 6, 8]
    assert {row: tuple(obs[:3]) for row, obs in data.metadata["final_observations"].items()} == {5: (1, 0, 2)}
    assert (data.metadata["dropped"], data.metadata["cut"], data.metadata["n_steps"]) == (1, [5], 5)
    assert pipeline.n_faults == 1
    assert pipeline.faults == ["environment 1: step: ValueError: step 2 failed"]


def test_a_late_environment_steps_alone_and_shapes_stay():
    shapes, steps = [], []

    class Watching(BatchReader):
        def act_batch(self, obs):
            shapes.append(obs.shape)
            steps.append([env.steps for env in pipeline.env.envs])
            return super().act_batch(obs)

    fns = [lambda i=i: Counting(i, LONG, bad_steps=[0, 1] if i == 1 else []) for i in range(2)]
    pipeline = VectorBatchPipeline(fns, Watching(), 3)
    windows(pipeline, 1)
    assert set(shapes) == {(2, 4)}
    assert steps[-2:] == [[3, 3], [3, 4]]


def test_the_agent_is_asked_for_what_steps_only():
    agent = Reader()
    fns = [lambda i=i: Counting(i, LONG, bad_steps=[0, 1] if i == 1 else []) for i in range(2)]
    (data,) = windows(VectorBatchPipeline(fns, agent, 3), 1)
    assert len(agent.seen) == data.length + 2


def test_many_faults_in_a_row_of_one_environment_are_an_error():
    # The good steps of environment 0 do not make up for the faults of environment 1.
    fns = [lambda: Counting(0), lambda: Counting(1, bad_steps=range(1, 100))]
    pipeline = VectorBatchPipeline(fns, BatchReader(), 50, max_faults_in_a_row=4)
    with pytest.raises(RuntimeError, match=r"environment 1 failed 4 times.*step 4 failed") as caught:
        windows(pipeline, 1)
    assert isinstance(caught.value.__cause__, ValueError)
    broken = VectorBatchPipeline([lambda: Counting(), lambda: Counting(bad_resets=range(99))], BatchReader(), 5)
    with pytest.raises(RuntimeError, match=r"environment 1 failed 10 times.*reset: OSError: no connection"):
        broken.setup()


def test_faults_spread_over_environments_are_no_error():
    fns = [lambda i=i: Counting(i, LONG, bad_steps=range(i, 100, 4)) for i in range(4)]
    pipeline = VectorBatchPipeline(fns, BatchReader(), 20, max_faults_in_a_row=2)
    (data,) = windows(pipeline, 1)
    assert data.length == 80
    assert pipeline.n_faults == data.metadata["dropped"] == len(data.metadata["cut"]) + 1  # step 0 had no row before
    assert len(pipeline.faults) == 20


def test_errors_of_the_agent_are_raised():
    class Failing:
        def act_batch(self, obs):
            raise ValueError("mine")

    pipeline = VectorBatchPipeline([Counting], Failing(), 5)
    with pytest.raises(ValueError, match="mine"):
        windows(pipeline, 1)
    assert pipeline.n_faults == 0


def test_a_given_vector_raises_with_a_clear_sentence():
    env = SyncVectorEnv([lambda: Counting(bad_steps=[2])] * 2)
    pipeline = VectorBatchPipeline(env, BatchReader(), 5)
    with pytest.raises(RuntimeError, match=r"step of the given vector environment failed with ValueError: step 2") as e:
        windows(pipeline, 1)
    assert isinstance(e.value.__cause__, ValueError)
    assert (pipeline.n_faults, pipeline.faults) == (0, [])


def test_environments_that_are_not_alike():
    def other():
        env = Counting()
        env.observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.int16)
        return env

    with pytest.raises(ValueError, match=r"environment 1 has observations of Box.*environment 0.*alike"):
        VectorBatchPipeline([Counting, other], BatchReader(), 5).setup()
    narrow = lambda: Counting(action_space=gymnasium.spaces.Discrete(2))  # noqa: E731
    with pytest.raises(ValueError, match="environment 2 has actions of"):
        VectorBatchPipeline([Counting, Counting, narrow], BatchReader(), 5).setup()


def test_an_environment_that_cannot_be_made_closes_the_others():
    made = []

    def makes():
        made.append(Counting())
        return made[-1]

    def fails():
        raise OSError("no such game")

    with pytest.raises(OSError, match="no such game"):
        VectorBatchPipeline([makes, makes, fails], BatchReader(), 5).setup()
    assert [env.closed for env in made] == [1, 1]


def test_one_that_cannot_be_closed_keeps_no_other_open():
    class Clinging(Counting):
        def close(self):
            raise OSError("still in use")

    pipeline = VectorBatchPipeline([Counting, Clinging, Counting], BatchReader(), 5)
    envs = pipeline.env.envs
    with pytest.raises(OSError, match="still in use"):
        pipeline.teardown()
    assert [envs[0].closed, envs[2].closed] == [1, 1]
    pipeline.teardown()


def test_composite_observations_are_refused():
    def composite():
        env = Counting()
        env.observation_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(2)})
        return env

    for env_fns in ([composite] * 2, SyncVectorEnv([composite] * 2)):
        with pytest.raises(TypeError, match="FlattenObservation"):
            VectorBatchPipeline(env_fns, BatchReader(), 5).setup()


def test_the_same_twice():
    def run():
        fns = [lambda i=i: Counting(i, bad_steps=[4, 9]) for i in range(3)]
        return windows(VectorBatchPipeline(fns, BatchReader(), 7, seed=3), 4)

    for ours, other in zip(run(), run(), strict=True):
        assert_same_window(ours, other, without=())
