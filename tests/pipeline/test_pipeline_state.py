"""A pipeline's state put back: the next windows are those that would have come."""

import copy
import itertools
import json
import time

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from tensor_optix.loop.durable import plain
from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline
from tests.pipeline.counting import TERMINATED, Counting, Reader
from tests.pipeline.troubled import HangingCartPole, Jittery, assert_same_window, cartpole, pendulum, unlucky

LONG = ((1000, TERMINATED),)


class Scripted:
    """Leans on the observation, and draws from a generator of its own."""

    def __init__(self, space):
        self.space, self.rng = space, np.random.default_rng(1)

    def act_batch(self, obs):
        lean = np.asarray(obs)[:, -1]
        draws = self.rng.random(len(lean))
        if hasattr(self.space, "n"):
            return ((lean + draws) > 0.5).astype(int)
        return np.clip(np.stack([draws * 4 - 2 + lean], 1), -2, 2).astype(np.float32)

    def act(self, obs):
        return self.act_batch(obs[None])[0]


def batch(make, size, **options):
    return BatchPipeline(env_fn=make, window_size=size, seed=3, **options)


def vector(make, size, n=3, **options):
    return VectorBatchPipeline([make] * n, None, size, seed=3, **options)


def processes(make, size):
    return vector(make, size, async_envs=True, n_workers=2)


def one_process(make, size):
    return batch(make, size, step_timeout_s=60)


def through_json(state):
    return json.loads(json.dumps(plain(state)))


def resumed(make_pipeline, space, n_before=2, n_after=3, change=through_json, setup_first=False):
    """Windows after a save, of the pipeline that went on, and of a fresh one with the state put back."""
    agent = Scripted(space)
    going_on, fresh = make_pipeline(), make_pipeline()
    try:
        going_on.set_agent(agent)
        stream = going_on.episodes()
        for _ in range(n_before):
            next(stream)
        saved, draws = change(going_on.state_dict()), agent.rng.bit_generator.state
        expected = list(itertools.islice(stream, n_after))
        assert through_json(going_on.state_dict()) != through_json(saved)
        agent = Scripted(space)
        agent.rng.bit_generator.state = draws
        fresh.set_agent(agent)
        if setup_first:
            fresh.setup()
        sentences = fresh.load_state_dict(saved)
        assert through_json(fresh.state_dict()) == through_json(saved) or sentences or not n_before
        if not setup_first:
            fresh.setup()
        found = list(itertools.islice(fresh.episodes(), n_after))
        assert through_json(fresh.state_dict()) == through_json(going_on.state_dict()) or sentences or not n_before
        return expected, found, sentences, fresh
    finally:
        going_on.teardown()
        fresh.teardown()


@pytest.mark.parametrize(
    ("kind", "make", "setup_first"),
    [
        *itertools.product([batch, vector], [cartpole, pendulum, unlucky], [False, True]),
        (processes, unlucky, False),
        *(pytest.param(processes, make, True, marks=pytest.mark.slow) for make in (cartpole, pendulum)),
        (one_process, unlucky, True),
    ],
)
def test_bit_for_bit(kind, make, setup_first):
    # 100 steps: Pendulum's episode of 200 ends with the second window; CartPole's are open.
    size = 100 if make is pendulum else 37
    probe = make()
    expected, found, sentences, fresh = resumed(lambda: kind(make, size), probe.action_space, setup_first=setup_first)
    assert sentences == []
    for ours, other in zip(found, expected, strict=True):
        assert_same_window(ours, other)
    assert [data.episode_id for data in found] == [2, 3, 4]
    if make is unlucky:
        assert fresh.n_faults > 0
        assert any(data.metadata["dropped"] for data in found)


@pytest.mark.parametrize("n_before", range(7))
def test_at_any_moment(n_before):
    expected, found, sentences, _ = resumed(lambda: vector(pendulum, 40), pendulum().action_space, n_before)
    assert sentences == []
    for ours, other in zip(found, expected, strict=True):
        assert_same_window(ours, other)


def test_without_a_seed():
    pipeline = lambda: VectorBatchPipeline([unlucky] * 2, None, 30)  # noqa: E731
    expected, found, sentences, _ = resumed(pipeline, cartpole().action_space)
    assert sentences == []
    for ours, other in zip(found, expected, strict=True):
        assert_same_window(ours, other)


def test_arrays_may_stay_arrays():
    space = pendulum().action_space
    expected, found, sentences, fresh = resumed(lambda: vector(pendulum, 30), space, change=copy.deepcopy)
    assert sentences == []
    for ours, other in zip(found, expected, strict=True):
        assert_same_window(ours, other)
    tape = fresh.state_dict()["source"]["environments"][0]["tape"]
    assert (tape["actions"].shape, tape["actions"].dtype) == ((150, 1), np.float32)


def test_a_replaced_environment(tmp_path):
    once = str(tmp_path / "once")
    fns = [cartpole, lambda: HangingCartPole(once)]
    make = lambda: VectorBatchPipeline(fns, None, 20, True, seed=3, step_timeout_s=1)  # noqa: E731
    expected, found, sentences, fresh = resumed(make, cartpole().action_space)
    assert sentences == []
    assert fresh.n_faults == 1
    assert fresh.faults == ["environment 1: step: TimeoutError: no answer within 1 s"]
    for ours, other in zip(found, expected, strict=True):
        assert_same_window(ours, other)


def test_actions_drawn_from_the_space():
    class Drawing:
        def act(self, obs):
            return self.space.sample()

    def window(pipeline, n):
        agent = Drawing()
        pipeline.set_agent(agent)
        agent.space = pipeline.env.action_space
        return list(itertools.islice(pipeline.episodes(), n))

    one = batch(pendulum, 30)
    window(one, 2)
    saved = through_json(one.state_dict())
    other = batch(pendulum, 30)
    assert other.load_state_dict(saved) == []
    for a, b in zip(window(one, 2), window(other, 2), strict=True):
        assert_same_window(a, b)


@pytest.mark.parametrize("kind", [vector, pytest.param(processes, marks=pytest.mark.slow)])
def test_draws_from_the_space_within_the_environment(kind):
    expected, found, sentences, _ = resumed(lambda: kind(lambda: Jittery(pendulum()), 30), pendulum().action_space)
    assert sentences == []
    for ours, other in zip(found, expected, strict=True):
        assert_same_window(ours, other)


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.MultiDiscrete([3, 4]),
        gymnasium.spaces.Box(-1, 1, (), np.float32),
        gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(-1, 1, (2,))]),
        gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(3)}),
    ],
)
def test_actions_of_other_spaces(space):
    class Summing(Counting):
        """Its draw depends on every action since the reset."""

        def step(self, action):
            text = f"{type(action).__name__ if not isinstance(action, int) else int} {action}".replace("np.int64", "")
            self.draw = (self.draw * 31 + sum(text.encode())) % 9973
            return *super().step(0)[:4], {}

    class Sampling(Scripted):
        def act(self, obs):
            self.space.seed(int(self.rng.integers(1000)))
            return self.space.sample()

    agent = Sampling(space)
    one, other = (BatchPipeline(Summing(script=LONG, action_space=space), agent, 6, seed=1) for _ in range(2))
    next(one.episodes())
    state, draws = through_json(one.state_dict()), agent.rng.bit_generator.state
    expected = next(one.episodes())
    agent.rng.bit_generator.state = draws
    assert other.load_state_dict(state) == []
    np.testing.assert_array_equal(next(other.episodes()).observations, expected.observations)


def test_an_environment_that_writes_into_its_action():
    class Scribbling(gymnasium.Wrapper):
        def step(self, action):
            result = self.env.step(np.array(action))
            action[:] = 0
            return result

    expected, found, sentences, _ = resumed(lambda: vector(lambda: Scribbling(pendulum()), 30), pendulum().action_space)
    assert sentences == []
    for ours, other in zip(found, expected, strict=True):
        assert_same_window(ours, other)


def test_observations_that_are_not_finite():
    class Broken(gymnasium.ObservationWrapper):
        def observation(self, obs):
            return np.array([np.nan, np.inf, obs[2]], np.float32)

    _, _, sentences, _ = resumed(lambda: vector(lambda: Broken(pendulum()), 30), pendulum().action_space)
    assert sentences == []


def test_an_environment_that_remembers_more_begins_a_fresh_episode():
    # Its observation counts episodes since it was made, which no reset and no action brings back.
    make = lambda: BatchPipeline(Counting(), Reader(), 5, seed=3)  # noqa: E731
    one, other = make(), make()
    next(one.episodes())
    next(one.episodes())
    (sentence,) = other.load_state_dict(one.state_dict())
    assert sentence.startswith("the environment begins a fresh episode: ")
    data = next(other.episodes())
    assert (data.episode_id, data.episode_starts[0]) == (2, 0)
    assert data.observations[0, 2] == 0


def test_only_the_one_that_differs_begins_afresh():
    fns = [cartpole] * 3
    one = VectorBatchPipeline(fns, Scripted(cartpole().action_space), 8, seed=3)
    next(one.episodes())
    state = one.state_dict()
    state["source"]["environments"][1]["obs"][0] += 1
    other = VectorBatchPipeline(fns, Scripted(cartpole().action_space), 8, seed=4)
    (sentence,) = other.load_state_dict(state)
    assert sentence.startswith("environment 1 begins a fresh episode: its reset and its actions")
    data = next(other.episodes())
    assert data.episode_starts[0] == 8
    for i in (0, 2):
        np.testing.assert_array_equal(data.observations[8 * i], state["source"]["environments"][i]["obs"])


def test_long_episodes_are_not_kept():
    make = lambda: BatchPipeline(pendulum(), Scripted(pendulum().action_space), 20, seed=3, max_replay=30)  # noqa: E731
    one = make()
    stream = one.episodes()
    next(stream)
    assert make().load_state_dict(one.state_dict()) == []
    next(stream)
    state = one.state_dict()
    assert state["source"]["environments"][0]["tape"]["actions"] is None
    other = make()
    (sentence,) = other.load_state_dict(through_json(state))
    assert "max_replay" in sentence
    assert next(other.episodes()).episode_starts == [0]


def test_a_replay_that_fails():
    one = BatchPipeline(Counting(script=LONG), Reader(), 5, seed=3)
    next(one.episodes())
    for options, why in (
        ({"bad_steps": [2]}, "a step done again failed"),
        ({"bad_resets": [0]}, "a reset done again failed"),
        ({"script": ((3, TERMINATED), *LONG)}, "ended the episode too early"),
    ):
        other = BatchPipeline(Counting(**{"script": LONG, **options}), Reader(), 5, seed=3)
        (sentence,) = other.load_state_dict(one.state_dict())
        assert why in sentence
        assert next(other.episodes()).length == 5
        assert other.n_faults == 0


def test_before_the_first_window():
    make = lambda: vector(cartpole, 10, 2)  # noqa: E731
    one, other = make(), make()
    assert other.load_state_dict(through_json(one.state_dict())) == []
    for pipeline in (one, other):
        pipeline.set_agent(Scripted(cartpole().action_space))
    assert_same_window(next(other.episodes()), next(one.episodes()))


def test_state_after_teardown_makes_nothing():
    made = []

    def make():
        made.append(1)
        return cartpole()

    pipeline = BatchPipeline(env_fn=make, agent=Scripted(cartpole().action_space), window_size=7, seed=1)
    assert pipeline.state_dict()["source"]["environments"][0]["obs"] is None
    next(pipeline.episodes())
    before = through_json(pipeline.state_dict())
    pipeline.teardown()
    assert through_json(pipeline.state_dict()) == before
    assert len(made) == 1


def test_a_given_vector():
    env = SyncVectorEnv([cartpole] * 2)
    one = VectorBatchPipeline(env, Scripted(cartpole().action_space), 10, seed=3)
    next(one.episodes())
    state = one.state_dict()
    (sentence,) = one.load_state_dict(through_json(state))
    assert "begin fresh episodes" in sentence
    data = next(one.episodes())
    assert data.episode_id == 1
    assert {0, data.metadata["segment_starts"][1]} <= set(data.episode_starts)


def test_another_number_of_environments():
    with pytest.raises(ValueError, match="of 3 environments, but this pipeline has 2"):
        vector(cartpole, 5, 2).load_state_dict(vector(cartpole, 5, 3).state_dict())


def test_saving_does_not_change_what_follows():
    def run(save):
        pipeline = vector(unlucky, 30)
        pipeline.set_agent(Scripted(cartpole().action_space))
        stream = pipeline.episodes()
        for _ in range(3):
            next(stream)
            if save:
                pipeline.state_dict()
        return next(stream)

    assert_same_window(run(True), run(False))


@pytest.mark.slow
def test_fifty_thousand_steps_are_played_again_in_time():
    def make():
        env = gymnasium.make("Pendulum-v1", max_episode_steps=10**9)
        return BatchPipeline(env, Scripted(env.action_space), 25_000, seed=3)

    one = make()
    stream = one.episodes()
    next(stream), next(stream)
    state = through_json(one.state_dict())
    began = time.perf_counter()
    assert make().load_state_dict(state) == []
    assert time.perf_counter() - began < 20
