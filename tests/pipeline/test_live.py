"""A live source's windows: every row is one that happened, whatever the source, the learner or the network do."""

import itertools
import queue
import threading
import time

import gymnasium
import numpy as np
import pytest

from tensor_optix.loop.episode_returns import EpisodeReturns
from tensor_optix.pipeline import LivePipeline
from tensor_optix.pipeline.feed import Retry
from tests.pipeline.counting import TERMINATED, Counting

EVERY = LivePipeline.every_n_steps
QUICK = {"reconnect_wait_s": 0.001, "max_wait_s": 0.002}


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    until = time.monotonic() + 2
    while readers() and time.monotonic() < until:
        time.sleep(0.005)
    assert not readers()


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("tensor-optix-live")]


def wait_for(condition):
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.001)


def item(i, end=None):
    return np.array([i, -i], np.float32), float(i), end == "terminated", end == "truncated", {"i": i}


class Source:
    """`stream()` number k goes through `scripts[k]`: items, exceptions, events to wait for, functions to call."""

    def __init__(self, *scripts):
        self.scripts, self.opened, self.closed, self.cleaned, self.given = scripts, [], 0, 0, 0

    def stream(self):
        self.opened.append(time.monotonic())
        return self._stream(self.scripts[min(len(self.opened), len(self.scripts)) - 1])

    def _stream(self, script):
        try:
            for entry in script:
                if isinstance(entry, BaseException):
                    raise entry
                if isinstance(entry, threading.Event):
                    entry.wait(20)
                elif callable(entry):
                    entry()
                else:
                    self.given += 1
                    yield entry
        finally:
            self.cleaned += 1

    def close(self):
        self.closed += 1


class Agent:
    """Its action is its observation's first number; `seen` keeps what it was asked about."""

    def __init__(self):
        self.seen = []

    def act(self, obs):
        self.seen.append(int(obs[0]))
        return np.array(int(obs[0]))


def taken(agent, i):
    """An entry of a script: wait until `agent` has seen observation `i`."""
    return lambda: wait_for(lambda: i in agent.seen)


def windows(source, boundary=None, n=None, agent=None, **options):
    pipeline = LivePipeline(source, agent or Agent(), boundary, **options)
    try:
        return list(itertools.islice(pipeline.episodes(), n))
    finally:
        pipeline.teardown()


def rows(data):
    """(observation, action, reward) of every row."""
    firsts = [int(obs[0]) for obs in data.observations]
    return list(zip(firsts, data.actions.tolist(), data.rewards, strict=True))


def each(*numbers):
    """Rows of observation and action i with the reward of item i + 1."""
    return [(i, i, float(i + 1)) for i in numbers]


# -- rows ---------------------------------------------------------------------------------------------------


def test_a_row_is_an_observation_its_action_and_what_the_next_item_brings():
    agent = Agent()
    first, second = windows(Source([item(i) for i in range(5)]), EVERY(2), agent=agent)
    assert rows(first) == each(0, 1)
    assert rows(second) == each(2, 3)
    assert first.infos == [{"i": 1}, {"i": 2}]
    assert (first.final_obs.tolist(), second.final_obs.tolist()) == ([2, -2], [4, -4])
    assert first.observations.dtype == np.float32
    assert (first.episode_starts, second.episode_starts) == ([0], [])
    assert (first.episode_id, second.episode_id) == (0, 1)
    # One action a row, and that of a window's last observation only after the agent has learned from the window.
    assert agent.seen == [0, 1, 2, 3, 4]
    assert first.metadata == {"final_observations": {}, "cut": [], "tails": [], "dropped": 0}


def test_an_action_waits_for_the_window_before_to_be_learned_from():
    agent = Agent()
    pipeline = LivePipeline(Source([item(i) for i in range(6)]), agent, EVERY(2))
    stream = pipeline.episodes()
    next(stream)
    assert agent.seen == [0, 1]
    pipeline.set_agent(other := Agent())
    next(stream)
    assert (agent.seen, other.seen) == ([0, 1], [2, 3])
    pipeline.teardown()


def test_ends_of_episodes():
    script = [item(0), item(1), item(2, "terminated"), item(3), item(4, "truncated"), item(5), item(6)]
    agent = Agent()
    (data,) = windows(Source(script), agent=agent)
    assert rows(data) == each(0, 1, 3, 5)
    assert data.terminated == [False, True, False, False]
    assert data.truncated == [False, False, True, False]
    assert data.episode_starts == [0, 2, 3]
    assert {row: obs.tolist() for row, obs in data.metadata["final_observations"].items()} == {1: [2, -2], 2: [4, -4]}
    assert data.metadata["cut"] == []
    assert agent.seen == [0, 1, 3, 5, 6]  # never about a final observation


def test_an_episode_without_a_step_makes_no_row():
    (data,) = windows(Source([item(0, "terminated"), item(1), item(2, "terminated"), item(3, "truncated")]))
    assert rows(data) == each(1)
    assert data.episode_starts == [0]


def test_sources_may_reuse_their_buffer():
    buffer, info = np.zeros(2, np.float32), {}

    class Reusing(Source):
        def _stream(self, script):
            for obs, reward, terminated, truncated, its_info in script:
                buffer[:] = obs
                info.update(its_info)
                yield buffer, reward, terminated, truncated, info

    (data,) = windows(Reusing([item(i) for i in range(5)]))
    assert rows(data) == each(0, 1, 2, 3)
    assert data.final_obs.tolist() == [4, -4]
    assert [i["i"] for i in data.infos] == [1, 2, 3, 4]


def test_rewards_of_items_that_follow_no_action_are_not_used():
    first, *others = [item(i) for i in range(3)]
    (data,) = windows(Source([(first[0], None, False, False, None), *others]))
    assert data.rewards == [1.0, 2.0]
    with pytest.raises(ValueError, match="no reward"):
        windows(Source([others[0], (first[0], None, False, False, None)]))


def test_spaces_of_the_source_are_heeded():
    class Spaced(Source):
        observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.int16)
        action_space = gymnasium.spaces.Box(-1, 2, (1,), np.float32)
        sent = ()

        def send_action(self, action):
            self.sent = (*self.sent, action.tolist())

    source = Spaced([item(i) for i in range(4)])
    (data,) = windows(source)
    assert data.observations.dtype == np.int16
    assert data.actions.tolist() == [[0], [1], [2]]
    assert source.sent == ([0], [1], [2], [2])


# -- windows ------------------------------------------------------------------------------------------------


def test_the_default_window():
    assert [data.length for data in windows(Source([item(i) for i in range(250)]))] == [200, 49]


def test_windows_by_time():
    seconds = [0.0]

    class Ticking(Agent):
        def act(self, obs):
            seconds[0] += 1.0
            return super().act(obs)

    source = Source([item(i) for i in range(9)])
    pipeline = LivePipeline(source, Ticking(), LivePipeline.every_n_seconds(3), clock=lambda: seconds[0])
    lengths = []
    for data in pipeline.episodes():
        lengths.append(data.length)
        seconds[0] += 1000.0  # learning takes long, and is no part of the next window
    assert lengths == [4, 4]
    pipeline.teardown()


def test_windows_by_episode():
    ends = {2: "terminated", 3: "terminated", 6: "truncated"}
    source = Source([item(i, ends.get(i)) for i in range(9)])
    assert [rows(data) for data in windows(source, LivePipeline.on_done_signal())] == [each(0, 1), each(4, 5), each(7)]


def test_a_cut_ends_a_window_by_episode():
    source = Source([item(0), item(1), OSError("gone")], [item(5), item(6)])
    first, second = windows(source, LivePipeline.on_done_signal(), **QUICK)
    assert (rows(first), rows(second)) == (each(0), each(5))
    assert (first.metadata["cut"], second.metadata["cut"]) == ([0], [])


def test_a_boundary_that_always_says_yes_makes_no_empty_window():
    asked = []

    def boundary(step_count, elapsed_s, obs):
        asked.append((step_count, int(obs[0])))
        return True

    source = Source([item(0), item(1), item(2, "terminated"), item(3), item(4)])
    assert [rows(data) for data in windows(source, boundary)] == [each(0), each(1), each(3)]
    assert asked == [(1, 1), (1, 2), (1, 4)]


# -- the end ------------------------------------------------------------------------------------------------


def test_the_end_of_the_stream_ends_the_windows():
    source = Source([item(i) for i in range(6)])
    pipeline = LivePipeline(source, Agent(), EVERY(3))
    assert [data.length for data in pipeline.episodes()] == [3, 2]
    assert list(pipeline.episodes()) == []
    assert (len(source.opened), pipeline.n_disconnects) == (1, 0)
    pipeline.teardown()


@pytest.mark.parametrize("script", [[], [item(0)], [item(0, "terminated")]])
def test_a_stream_without_a_row_is_no_error(script):
    assert windows(Source(script)) == []


def test_a_full_window_at_the_end_is_not_followed_by_an_empty_one():
    assert [data.length for data in windows(Source([item(i) for i in range(5)]), EVERY(2))] == [2, 2]


# -- the buffer ---------------------------------------------------------------------------------------------


def test_a_source_waits_for_a_slow_learner():
    source = Source([item(i) for i in range(40)])
    pipeline = LivePipeline(source, Agent(), EVERY(10), buffer_size=3)
    stream = pipeline.episodes()
    seen = rows(next(stream))
    wait_for(lambda: source.given == 15)  # 11 used, 3 in the buffer, 1 in the reader's hand
    time.sleep(0.05)
    assert source.given == 15
    seen += [row for data in stream for row in rows(data)]
    assert seen == each(*range(39))
    assert (len(source.opened), pipeline.n_dropped) == (1, 0)
    pipeline.teardown()


@pytest.mark.parametrize("by_attribute", [False, True])
def test_a_source_that_cannot_wait(by_attribute):
    everything, go = threading.Event(), threading.Event()
    source = Source([*(item(i) for i in range(3)), go, *(item(i) for i in range(3, 30)), everything.set])
    source.when_full = "drop_oldest" if by_attribute else "wait"
    options = {} if by_attribute else {"when_full": "drop_oldest"}
    pipeline = LivePipeline(source, Agent(), EVERY(2), buffer_size=4, **options)
    stream = pipeline.episodes()
    first = next(stream)
    go.set()
    assert everything.wait(5)
    second, third = stream
    # Nothing goes from item 2, for which an action was due, to item 26.
    assert (rows(first), rows(second), rows(third)) == (each(0, 1), each(26, 27), each(28))
    assert (first.metadata["dropped"], second.metadata["dropped"], third.metadata["dropped"]) == (0, 23, 0)
    assert pipeline.n_dropped == 23
    assert (second.episode_starts, second.metadata["tails"]) == ([0], [0])
    pipeline.teardown()


def test_a_gap_within_a_window_is_a_cut():
    full, go = threading.Event(), threading.Event()

    class Slow(Agent):
        def act(self, obs):
            if obs[0] == 2:
                go.set()
                assert full.wait(5)
            return super().act(obs)

    agent = Slow()
    source = Source([item(0), item(1), taken(agent, 1), item(2), go, *(item(i) for i in range(3, 9)), full.set])
    (data,) = windows(source, agent=agent, buffer_size=2, when_full="drop_oldest")
    assert rows(data) == each(0, 1, 7)
    assert (data.terminated, data.truncated) == ([False] * 3, [False, True, False])
    assert (data.metadata["cut"], data.metadata["tails"], data.episode_starts) == ([1], [2], [0, 2])
    assert {row: obs.tolist() for row, obs in data.metadata["final_observations"].items()} == {1: [2, -2]}
    assert data.metadata["dropped"] == 4


def test_an_episode_that_begins_after_what_was_dropped_is_whole():
    full, go = threading.Event(), threading.Event()
    tail = [item(3), item(4, "terminated"), item(5), item(6, "terminated"), item(7), item(8, "terminated")]

    def score(size):
        full.clear(), go.clear()
        agent = Agent()
        source = Source([item(0), item(1), taken(agent, 1), item(2, "terminated"), go, *tail, full.set])
        pipeline = LivePipeline(source, agent, EVERY(2), buffer_size=size, when_full="drop_oldest")
        stream, returns = pipeline.episodes(), EpisodeReturns()
        first = next(stream)
        go.set()
        assert full.wait(5)
        found = [returns.update(data)[0] for data in [first, *stream]]
        pipeline.teardown()
        return found

    assert score(6) == [[3.0], [4.0, 6.0], [8.0]]
    assert score(4) == [[3.0], [6.0, 8.0]]  # begins with the episode
    assert score(2) == [[3.0], [8.0]]
    assert score(3) == [[3.0], [8.0]]  # item 6 ends an episode of which nothing else is left


def test_the_rest_of_an_episode_is_not_scored():
    full, go = threading.Event(), threading.Event()
    source = Source([item(0), item(1), go, *(item(i) for i in range(2, 6)), item(6, "terminated"), full.set])
    pipeline = LivePipeline(source, Agent(), EVERY(1), buffer_size=3, when_full="drop_oldest")
    stream, returns = pipeline.episodes(), EpisodeReturns()
    seen = [next(stream)]
    go.set()
    assert full.wait(5)
    seen += stream
    assert [rows(data) for data in seen] == [each(0), each(4), each(5)]
    assert [returns.update(data)[0] for data in seen] == [[], [], []]
    assert seen[-1].terminated == [True]
    pipeline.teardown()


# -- actions ------------------------------------------------------------------------------------------------


class Controlled(Source):
    """Yields the next item only when it has its action: the item's reward is 100 times that action."""

    def __init__(self, n, fail_at=(), stream_first=False):
        super().__init__()
        self.n, self.fail_at, self.stream_first, self.t, self.threads = n, set(fail_at), stream_first, 0, set()
        self.actions = queue.SimpleQueue()

    def stream(self):
        self.opened.append(self.t)
        self.actions.put(None)  # to the stream before, if it is still there
        self.actions = queue.SimpleQueue()
        return self._stream(self.actions)

    def _stream(self, actions):
        reward = 0.0
        while self.t < self.n:
            yield np.array([self.t, 0.0]), reward, False, False, {}
            action = actions.get(timeout=5)
            if action is None:
                raise ConnectionError("no route")
            reward, self.t = 100.0 * action, self.t + 1

    def send_action(self, action):
        self.threads.add(threading.current_thread())
        if self.t in self.fail_at:
            self.t += 1
            if self.stream_first:
                self.actions.put(None)
                wait_for(lambda: len(self.opened) > 1)
                time.sleep(0.01)
            raise ConnectionError("no route")
        self.actions.put(float(action))


def test_actions_go_back_to_the_source():
    source = Controlled(20)
    first, *_, last = windows(source, EVERY(5))
    assert rows(first) == [(i, i, 100.0 * i) for i in range(5)]
    assert rows(last)[-1] == (18, 18, 1800.0)
    assert source.threads == {threading.current_thread()}


@pytest.mark.parametrize("stream_first", [False, True])
def test_an_action_that_cannot_be_sent_is_one_disconnect(stream_first):
    source = Controlled(8, fail_at=[3], stream_first=stream_first)
    pipeline = LivePipeline(source, Agent(), **QUICK)
    (data,) = pipeline.episodes()
    pipeline.teardown()
    assert pipeline.n_disconnects == 1
    assert rows(data) == [(i, i, 100.0 * i) for i in (0, 1, 2, 4, 5, 6)]
    assert (data.metadata["cut"], data.episode_starts) == ([2], [0, 3])
    assert source.opened == [0, 4]


def test_an_action_that_cannot_be_sent_is_an_error_without_reconnects():
    source = Controlled(8, fail_at=[3])
    source.close = lambda: source.actions.put(None)
    with pytest.raises(RuntimeError, match="no route"):
        windows(source, reconnect_on_disconnect=False)


def test_an_action_that_comes_after_the_end_of_the_stream():
    class Closed(Source):
        def send_action(self, action):
            if action == 1:
                wait_for(lambda: self.cleaned)
                time.sleep(0.02)
                raise ConnectionError("closed")

    pipeline = LivePipeline(Closed([item(0), item(1)]), Agent(), **QUICK)
    (data,) = pipeline.episodes()
    assert rows(data) == each(0)
    assert pipeline.n_disconnects == 0
    pipeline.teardown()


# -- disconnects --------------------------------------------------------------------------------------------


def test_a_disconnect_cuts_the_episode_and_the_stream_is_opened_again():
    source = Source(
        [item(0), item(1), item(2), OSError("gone")], [item(10), item(11, "terminated"), item(12), item(13)]
    )
    pipeline = LivePipeline(source, Agent(), **QUICK)
    (data,) = pipeline.episodes()
    assert rows(data) == each(0, 1, 10, 12)
    assert data.terminated == [False, False, True, False]
    assert data.truncated == [False, True, False, False]
    assert (data.metadata["cut"], data.episode_starts, data.metadata["tails"]) == ([1], [0, 2, 3], [])
    assert data.metadata["final_observations"][1].tolist() == [2, -2]
    assert (pipeline.n_disconnects, len(source.opened), source.cleaned) == (1, 2, 2)
    assert EpisodeReturns().update(data)[0] == [11.0]
    pipeline.teardown()


def test_a_disconnect_right_after_an_end_cuts_nothing():
    (data,) = windows(Source([item(0), item(1, "terminated"), OSError()], [item(5), item(6)]), **QUICK)
    assert rows(data) == each(0, 5)
    assert (data.truncated, data.metadata["cut"]) == ([False, False], [])


def test_the_last_row_is_cut_if_the_stream_ends_right_after_a_disconnect():
    (data,) = windows(Source([item(0), item(1), OSError()], []), **QUICK)
    assert (data.truncated, data.metadata["cut"]) == ([True], [0])


def test_what_is_buffered_comes_before_the_disconnect():
    source = Source([*(item(i) for i in range(50)), OSError("gone")])
    pipeline = LivePipeline(source, Agent(), EVERY(7), reconnect_on_disconnect=False)
    seen = []
    with pytest.raises(RuntimeError, match="OSError: gone") as caught:
        seen += [row for data in pipeline.episodes() for row in rows(data)]
    assert isinstance(caught.value.__cause__, OSError)
    stream = pipeline.episodes()
    with pytest.raises(RuntimeError, match="gone"):
        next(stream)
    pipeline.teardown()
    assert (len(source.opened), pipeline.n_disconnects) == (1, 1)
    assert windows(Source([*(item(i) for i in range(50)), OSError()]), EVERY(7), n=7, reconnect_on_disconnect=False)


def test_reconnects_wait_longer_and_longer_and_end():
    source = Source([item(0), OSError("gone")], [OSError("still gone")])
    pipeline = LivePipeline(
        source, Agent(), reconnect_wait_s=0.02, max_wait_s=0.08, max_reconnects_in_a_row=5, when_full="wait"
    )
    stream = pipeline.episodes()
    with pytest.raises(RuntimeError, match=r"no item in 5 reconnects in a row, at last OSError: still gone"):
        next(stream)
    waits = np.diff(source.opened)
    assert len(waits) == 5
    expected = [0.02, 0.04, 0.08, 0.08, 0.08]
    assert (waits >= np.array(expected) - 1e-4).all(), waits
    retry = Retry(True, 0.02, 0.08, 5)
    assert [retry.delay(failures) for failures in (0, 1, 2, 3, 4, 10_000)] == [0.0, 0.02, 0.04, 0.08, 0.08, 0.08]
    assert pipeline.n_disconnects == 6
    pipeline.teardown()


def test_an_item_makes_reconnects_count_anew():
    scripts = [[item(2 * k), item(2 * k + 1), OSError()] for k in range(9)]
    data = windows(Source(*scripts, []), max_reconnects_in_a_row=1, **QUICK)
    assert rows(data[0]) == each(*range(0, 18, 2))
    assert data[0].metadata["cut"] == list(range(9))


def test_stream_itself_may_raise():
    class Down(Source):
        def stream(self):
            if len(self.opened) < 3:
                self.opened.append(0)
                raise ConnectionRefusedError
            return super().stream()

    source = Down([item(0), item(1)])
    assert rows(windows(source, **QUICK)[0]) == each(0)


def test_a_silent_source_is_left_behind():
    stuck = threading.Event()

    def wake():  # what the first stream still brings comes too late
        stuck.set()
        wait_for(lambda: source.cleaned == 1)

    source = Source([item(0), item(1), stuck, item(66), item(67)], [item(5), item(6), wake, item(7)])
    pipeline = LivePipeline(source, Agent(), EVERY(2), item_timeout_s=0.3, **QUICK)
    first, second = pipeline.episodes()
    assert (rows(first), rows(second)) == (each(0, 5), each(6))
    assert first.metadata["cut"] == [0]
    assert (pipeline.n_disconnects, len(source.opened)) == (1, 2)
    pipeline.teardown()


def test_a_source_silent_for_good():
    stuck = threading.Event()
    source = Source([stuck])
    pipeline = LivePipeline(source, Agent(), item_timeout_s=0.02, max_reconnects_in_a_row=2, **QUICK)
    stream = pipeline.episodes()
    with pytest.raises(
        RuntimeError, match=r"no item in 2 reconnects in a row, at last TimeoutError: no item within 0\.02"
    ):
        next(stream)
    assert pipeline.n_disconnects == 3
    source.close = stuck.set
    pipeline.teardown()


def test_a_slow_learner_is_not_a_silent_source():
    class Slow(Agent):
        def act(self, obs):
            time.sleep(0.25)
            return super().act(obs)

    source = Controlled(3)
    pipeline = LivePipeline(source, Slow(), item_timeout_s=0.2)
    assert sum(data.length for data in pipeline.episodes()) == 2
    assert pipeline.n_disconnects == 0
    pipeline.teardown()


def test_back_off_is_not_silence():
    source = Source([item(0), item(1), OSError()], [item(2), item(3)])
    pipeline = LivePipeline(source, Agent(), item_timeout_s=0.2, reconnect_wait_s=0.5)
    assert [rows(data) for data in pipeline.episodes()] == [each(0, 2)]
    assert pipeline.n_disconnects == 1
    pipeline.teardown()


# -- teardown -----------------------------------------------------------------------------------------------


def ended_within(pipeline, seconds):
    began = time.monotonic()
    pipeline.teardown()
    assert time.monotonic() - began < seconds
    assert not readers()


def test_teardown_while_the_buffer_is_full():
    source = Source([item(i) for i in range(100)])
    pipeline = LivePipeline(source, Agent(), buffer_size=2)
    pipeline.setup()
    wait_for(lambda: source.given == 3)
    ended_within(pipeline, 1.0)
    pipeline.teardown()
    assert (source.closed, source.cleaned) == (1, 1)


def test_teardown_during_back_off():
    source = Source([OSError()])
    pipeline = LivePipeline(source, Agent(), reconnect_wait_s=60.0, max_wait_s=60.0)
    pipeline.setup()
    wait_for(lambda: pipeline.n_disconnects == 1)
    ended_within(pipeline, 1.0)


def test_teardown_while_the_source_is_stuck():
    stuck = threading.Event()
    source = Source([item(0), stuck])
    source.close = stuck.set
    pipeline = LivePipeline(source, Agent())
    pipeline.setup()
    wait_for(lambda: source.given == 1)
    ended_within(pipeline, 1.0)


def test_a_thread_that_cannot_be_stopped_is_a_daemon(monkeypatch):
    monkeypatch.setattr("tensor_optix.pipeline.feed._TO_STOP_CLOSED", 0.05)
    stuck = threading.Event()
    pipeline = LivePipeline(Source([stuck, item(0)]), Agent())
    pipeline.setup()
    pipeline.teardown()
    assert all(thread.daemon for thread in readers())
    stuck.set()


def test_teardown_ends_a_wait_in_another_thread():
    stuck = threading.Event()
    source = Source([item(0), item(1), stuck])
    source.close = stuck.set
    pipeline = LivePipeline(source, Agent())
    pipeline.setup()
    seen = []
    consumer = threading.Thread(target=lambda: seen.extend(pipeline.episodes()))
    consumer.start()
    wait_for(lambda: source.given == 2)
    pipeline.teardown()
    consumer.join(5)
    assert not consumer.is_alive()
    assert seen == []


def test_teardown_after_an_error_of_the_agent():
    class Broken(Agent):
        def act(self, obs):
            raise ZeroDivisionError

    source = Source([item(i) for i in range(9)])
    with pytest.raises(ZeroDivisionError):
        windows(source, agent=Broken())
    assert source.closed == 1


def test_setup_after_teardown_starts_anew():
    source = Source([item(i) for i in range(9)], [item(i) for i in range(20, 24)])
    pipeline = LivePipeline(source, agent := Agent(), EVERY(3))
    old = pipeline.episodes()
    assert rows(next(old)) == each(0, 1, 2)
    pipeline.teardown()
    assert list(old) == []
    pipeline.setup()
    pipeline.setup()  # and once is enough
    (data,) = pipeline.episodes()
    assert rows(data) == each(20, 21, 22)
    assert agent.seen == [0, 1, 2, 20, 21, 22, 23]
    assert (data.episode_id, data.episode_starts, data.metadata["cut"]) == (1, [0], [])
    assert len(source.opened) == 2
    pipeline.teardown()
    assert source.closed == 2


# -- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (item(7)[:4], "got a tuple of 4"),
        (7, "got a int: 7"),
        ("abcde", "got a str"),
        ((np.zeros(2), "much", False, False, {}), "much"),
        ((np.zeros(2), 1.0, False, False, 5), "truncated, info"),
        (({"a": 1}, 1.0, False, False, {}), "arrays of numbers"),
        (("up", 1.0, False, False, {}), "arrays of numbers"),
        ((np.zeros(3), 1.0, False, False, {}), r"the first had \(2,\), now \(3,\) came"),
    ],
)
def test_bad_items_are_named(bad, message):
    source = Source([item(0), item(1), bad, item(2)])
    with pytest.raises((TypeError, ValueError), match=message):
        windows(source)
    assert (len(source.opened), source.cleaned) == (1, 1)  # no disconnect


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_source_that_ends_its_thread_is_an_error():
    with pytest.raises(RuntimeError, match="SystemExit"):
        windows(Source([item(0), SystemExit(3)]))


def test_a_gymnasium_environment_is_no_live_source():
    with pytest.raises(TypeError, match=r"Counting has no stream\(\).*BatchPipeline"):
        LivePipeline(Counting(script=((3, TERMINATED),)), Agent()).setup()
    with pytest.raises(TypeError, match=r"object has no stream\(\)"):
        LivePipeline(object(), Agent()).setup()


def test_no_agent():
    with pytest.raises(ValueError, match="no agent"):
        LivePipeline(Source([])).episodes()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"episode_boundary_fn": 5}, TypeError, "every_n_steps"),
        ({"buffer_size": 0}, ValueError, "buffer_size"),
        ({"when_full": "panic"}, ValueError, "when_full"),
        ({"reconnect_wait_s": -1.0}, ValueError, "reconnect_wait_s"),
        ({"item_timeout_s": 0}, ValueError, "item_timeout_s"),
        ({"max_wait_s": float("inf")}, ValueError, "max_wait_s"),
        ({"max_reconnects_in_a_row": 0}, ValueError, "max_reconnects_in_a_row"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        LivePipeline(Source([]), Agent(), **options)
    with pytest.raises(ValueError, match="at least 1"):
        EVERY(0)
    with pytest.raises(ValueError, match="above 0"):
        LivePipeline.every_n_seconds(0)


def test_it_is_live():
    assert LivePipeline(Source([])).is_live


def test_windows_count_on_after_a_resume():
    pipeline = LivePipeline(Source([item(0), item(1)]), Agent())
    assert pipeline.load_state_dict({"episode_id": 7}) != []
    (data,) = pipeline.episodes()
    assert (data.episode_id, pipeline.state_dict()) == (7, {"episode_id": 8})
    pipeline.teardown()


def test_the_modules_users_import():
    from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline, batch_pipeline, live_pipeline, vector_pipeline

    assert batch_pipeline.BatchPipeline is BatchPipeline
    assert vector_pipeline.VectorBatchPipeline is VectorBatchPipeline
    assert live_pipeline.LivePipeline is LivePipeline
