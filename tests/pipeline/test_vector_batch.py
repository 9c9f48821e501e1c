"""Several environments' windows: each environment's rows are those it would have given alone."""

import itertools
import multiprocessing
import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline
from tests.pipeline.counting import SCRIPT, TERMINATED, BatchReader, Counting, Reader
from tests.pipeline.troubled import Troubled

MODES = list(AutoresetMode)
SEED = 11
SCRIPTS = [SCRIPT, SCRIPT[1:], ((1, TERMINATED),)]


def env_fns(n=3, **options):
    return [lambda i=i: Counting(i, SCRIPTS[i % len(SCRIPTS)], **options) for i in range(n)]


def windows(pipeline, n):
    try:
        pipeline.setup()
        return list(itertools.islice(pipeline.episodes(), n))
    finally:
        pipeline.teardown()


def alone(i):
    """The rows of environment i, one a window."""
    pipeline = BatchPipeline(Counting(i, SCRIPTS[i % len(SCRIPTS)]), Reader(), 1, seed=SEED + i)
    return pipeline.episodes()


def without_pid(info):
    return {key: value for key, value in info.items() if key != "pid"}


def check_against_alone(data, streams):
    """Every row of every block is the next one of its environment, and nothing is left over."""
    starts, lengths = data.metadata["segment_starts"], data.metadata["segment_lengths"]
    assert sum(lengths) == data.length
    assert starts == [sum(lengths[:i]) for i in range(len(lengths))]
    episode_starts, finals = [], {}
    for i, stream in enumerate(streams):
        last = None
        for row in range(starts[i], starts[i] + lengths[i]):
            last = next(stream)
            np.testing.assert_array_equal(data.observations[row], last.observations[0])
            assert data.actions[row] == last.actions[0]
            assert data.rewards[row] == last.rewards[0]
            assert (data.terminated[row], data.truncated[row]) == (last.terminated[0], last.truncated[0])
            assert without_pid(data.infos[row]) == without_pid(last.infos[0])
            episode_starts += [row] * len(last.episode_starts)
            if last.metadata["final_observations"]:
                finals[row] = last.metadata["final_observations"][0]
        np.testing.assert_array_equal(data.final_obs[i], last.final_obs)
    assert data.episode_starts == episode_starts
    assert data.metadata["final_observations"].keys() == finals.keys()
    for row, obs in finals.items():
        np.testing.assert_array_equal(data.metadata["final_observations"][row], obs)


@pytest.mark.parametrize("agent", [Reader, BatchReader])
@pytest.mark.parametrize("window", [1, 2, 7])
@pytest.mark.parametrize("mode", MODES)
def test_sync_equals_each_environment_alone(mode, window, agent):
    pipeline = VectorBatchPipeline(env_fns(), agent(), window, seed=SEED, autoreset_mode=mode)
    streams = [alone(i) for i in range(3)]
    for k, data in enumerate(windows(pipeline, 6)):
        check_against_alone(data, streams)
        assert data.episode_id == k
        assert (data.metadata["n_envs"], len(data.final_obs)) == (3, 3)
        assert all(data.metadata["segment_lengths"])
        assert data.metadata["segment_lengths"] == [window] * 3
        assert data.metadata["n_steps"] == window


@pytest.mark.parametrize("mode", MODES)
def test_async_equals_each_environment_alone(mode):
    pipeline = VectorBatchPipeline(env_fns(), BatchReader(), 7, True, seed=SEED, autoreset_mode=mode)
    streams = [alone(i) for i in range(3)]
    pids = set()
    for data in windows(pipeline, 4):
        check_against_alone(data, streams)
        pids |= {int(info["pid"]) for info in data.infos}
    assert len(pids) == 3
    assert os.getpid() not in pids
    assert_no_workers(pids)


@pytest.mark.parametrize("vector", [SyncVectorEnv, lambda fns, **k: AsyncVectorEnv(fns, context="forkserver", **k)])
@pytest.mark.parametrize("mode", MODES)
def test_a_ready_made_vector_tells_its_mode(mode, vector):
    env = vector(env_fns(), autoreset_mode=mode)
    # Another vector of the same class, made later in another mode, changes nothing.
    SyncVectorEnv(env_fns(), autoreset_mode=MODES[(MODES.index(mode) + 1) % 3])
    try:
        pipeline = VectorBatchPipeline(env, BatchReader(), 7, seed=SEED)
        streams = [alone(i) for i in range(3)]
        for data in windows(pipeline, 3):
            check_against_alone(data, streams)
        assert not env.closed  # it is the caller's
    finally:
        env.close()


def test_a_vector_that_hands_out_one_buffer():
    env = SyncVectorEnv(env_fns(), copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    streams = [alone(i) for i in range(3)]
    for data in windows(VectorBatchPipeline(env, BatchReader(), 7, seed=SEED), 3):
        check_against_alone(data, streams)


def test_environments_that_reuse_their_buffer():
    streams = [alone(i) for i in range(3)]
    for data in windows(VectorBatchPipeline(env_fns(reuse=True), BatchReader(), 7, seed=SEED), 3):
        check_against_alone(data, streams)


def test_next_step_resets_are_no_rows():
    pipeline = VectorBatchPipeline(SyncVectorEnv(env_fns(1)), Reader(), 7, autoreset_mode="next_step")
    (data,) = windows(pipeline, 1)
    # Episodes of 3, 2 and 1 steps; the vector steps 3 and 6 were spent on resets.
    assert data.observations[:, 1:3].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    assert (data.metadata["n_steps"], data.metadata["segment_lengths"]) == (7, [5])
    assert 0.0 not in data.rewards


def test_a_resetting_environment_does_not_ask_the_agent():
    agent = Reader()
    (data,) = windows(VectorBatchPipeline(SyncVectorEnv(env_fns()), agent, 7), 1)
    assert len(agent.seen) == data.length


@pytest.mark.parametrize("async_envs", [False, True])
def test_environment_i_is_seeded_with_seed_plus_i(async_envs):
    (data,) = windows(VectorBatchPipeline(env_fns(), Reader(), 1, async_envs, seed=np.int64(5)), 1)
    draws = [int(np.random.default_rng(5 + i).integers(10_000)) for i in range(3)]
    assert data.observations[:, 3].tolist() == draws
    assert len(set(draws)) == 3


def test_made_in_gymnasium():
    env = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    pipeline = VectorBatchPipeline(env, Reader(lambda _: 1), 30, seed=1)
    (data,) = windows(pipeline, 1)
    assert data.observations.dtype == np.float32
    assert any(data.terminated)
    starts, lengths = data.metadata["segment_starts"], data.metadata["segment_lengths"]
    for start, length in zip(starts, lengths, strict=True):
        ends = sum(data.dones[start : start + length])
        # Each reset took a step, but for one that the window ended before.
        assert 30 - ends <= length <= 30 - ends + data.dones[start + length - 1]
    env.close()


def test_box_actions_are_clipped_for_the_environment_only():
    space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    pipeline = VectorBatchPipeline(env_fns(2, action_space=space), Reader(lambda _: [0.5, -3.0]), 3)
    pipeline.setup()
    data = next(pipeline.episodes())
    assert data.actions.tolist() == [[0.5, -3.0]] * 6
    assert all(a.tolist() == [0.5, -1.0] for env in pipeline.env.envs for a in env.received)


def test_deterministic():
    class Both(BatchReader):
        def act_deterministic(self, obs):
            return 4

    (data,) = windows(VectorBatchPipeline(env_fns(), Both(), 3, deterministic=True), 1)
    assert data.actions.tolist() == [4] * 9
    (data,) = windows(VectorBatchPipeline(env_fns(), Both(), 3), 1)
    assert data.actions.tolist() != [4] * 9


def workers(pipeline):
    return {process.pid for process in pipeline.env.processes}


def assert_no_workers(pids):
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("tensor_optix")]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_teardown_after_an_error_of_an_environment():
    fns = env_fns(bad_steps=range(2, 99))
    pipeline = VectorBatchPipeline(fns, BatchReader(), 5, async_envs=True, max_faults_in_a_row=3)
    pipeline.setup()
    pids = workers(pipeline)
    with pytest.raises(RuntimeError, match="step 4 failed"):
        next(pipeline.episodes())
    pipeline.teardown()
    pipeline.teardown()
    assert_no_workers(pids)


def test_teardown_after_the_death_of_a_process():
    fns = [lambda: Troubled(trouble="die", at=0), *env_fns(2)]
    pipeline = VectorBatchPipeline(fns, BatchReader(), 5, async_envs=True, max_faults_in_a_row=1)
    pipeline.setup()
    env, pids = pipeline.env, workers(pipeline)
    with pytest.raises(RuntimeError, match="ended unexpectedly"):
        next(pipeline.episodes())
    pipeline.teardown()
    assert_no_workers(pids)
    assert env.closed


def test_an_environment_that_cannot_be_made_leaves_no_process():
    def fails():
        raise OSError("no such game")

    pipeline = VectorBatchPipeline([*env_fns(2), fails], BatchReader(), 5, async_envs=True)
    with pytest.raises(RuntimeError, match=r"cannot be made in a process.*OSError: no such game") as caught:
        pipeline.setup()
    assert_no_workers(())
    assert caught.tb  # holds the half-made vector until here: its destructor did not do the work
    pipeline.teardown()


def test_teardown_closes_what_was_made_here():
    pipeline = VectorBatchPipeline(env_fns(2), BatchReader(), 3)
    pipeline.setup()
    envs = pipeline.env.envs
    pipeline.teardown()
    pipeline.teardown()
    assert [env.closed for env in envs] == [1, 1]


def test_forms_of_the_constructor():
    pipeline = VectorBatchPipeline(iter(env_fns(2)))
    assert (pipeline.n_envs, pipeline.window_size, pipeline.n_steps) == (2, 256, 256)
    with pytest.raises(ValueError, match="no agent"):
        pipeline.episodes()
    pipeline.set_agent(BatchReader())
    assert next(pipeline.episodes()).length == 512


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"env_fns": []}, TypeError, "functions that make environments"),
        ({"env_fns": [Counting()]}, TypeError, "functions that make environments"),
        ({"env_fns": Counting()}, TypeError, "functions that make environments"),
        ({"env_fns": env_fns(), "window_size": 0}, ValueError, "window_size must be at least 1"),
        ({"env_fns": env_fns(), "autoreset_mode": "sometimes"}, ValueError, "DISABLED"),
        ({"env_fns": SyncVectorEnv(env_fns()), "async_envs": True}, ValueError, "async_envs"),
        ({"env_fns": SyncVectorEnv(env_fns()), "autoreset_mode": "SAME_STEP"}, ValueError, "made with NEXT_STEP"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        VectorBatchPipeline(**arguments)


def test_a_vector_that_does_not_tell_its_mode():
    class Silent(gymnasium.vector.VectorEnv):
        num_envs = 2

    with pytest.raises(ValueError, match="give autoreset_mode"):
        VectorBatchPipeline(Silent())
    assert VectorBatchPipeline(Silent(), autoreset_mode="SameStep").n_envs == 2


def test_a_wrong_number_of_actions():
    class Short:
        def act_batch(self, obs):
            return [0]

    with pytest.raises(ValueError, match="1 actions for 3 environments"):
        windows(VectorBatchPipeline(env_fns(), Short(), 3), 1)


def test_importing_the_pipelines_loads_no_gymnasium():
    code = "import sys, tensor_optix.pipeline; print('gymnasium' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
