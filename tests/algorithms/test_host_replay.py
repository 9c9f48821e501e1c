"""What is stored of windows: every transition that happened, once, as it happened; and how it is drawn again."""

import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tensor_optix.algorithms.host_replay import HostReplay
from tensor_optix.core.types import EpisodeData
from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline

OBS, ACTIONS, GAMMA = 3, 4, np.float32(0.9)
SOURCES = ("one", "several", "NEXT_STEP", "SAME_STEP", "DISABLED")


class Logged(gymnasium.Env):
    """Noise; ends in either way, or raises. `log` takes (observation, action, reward, terminated, next observation)."""

    def __init__(self, log, seed, faults=0.0):
        self.log, self.rng, self.faults = log, np.random.default_rng(seed), faults
        self.observation_space = gymnasium.spaces.Box(-9, 9, (OBS,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)

    def reset(self, *, seed=None, options=None):
        self.obs, self.episode = self.rng.normal(size=OBS).astype(np.float32), []
        self.log.append(self.episode)
        return self.obs.copy(), {}

    def step(self, action):
        if self.rng.random() < self.faults:
            raise OSError("a fault of the environment")
        terminated, truncated = (bool(x) for x in self.rng.random(2) < 0.12)
        following, reward = self.rng.normal(size=OBS).astype(np.float32), float(np.float32(self.rng.normal()))
        self.episode.append((self.obs, int(action), reward, terminated, following))
        self.obs = following
        return following.copy(), reward, terminated, truncated, {}


class Player:
    """Acts at random; raises at the steps `fails`."""

    def __init__(self, fails=()):
        self.rng, self.fails, self.calls = np.random.default_rng(0), fails, 0

    def act(self, obs):
        return self.act_batch(obs[None])[0]

    def act_batch(self, obs):
        self.calls += 1
        if self.calls in self.fails:
            raise ArithmeticError("a fault of the agent")
        return self.rng.integers(0, ACTIONS, len(obs))


def pipeline_of(source, agent, log, steps, faults=0.0):
    makers = [lambda i=i: Logged(log, i, faults) for i in range(3)]
    if source == "one":
        return BatchPipeline(makers[0](), agent, steps, max_faults_in_a_row=100)
    if source == "several":
        return VectorBatchPipeline(makers, agent, steps, max_faults_in_a_row=100)
    return VectorBatchPipeline(SyncVectorEnv(makers, autoreset_mode=AutoresetMode[source]), agent, steps)


def stored_all(replay, windows):
    for data in windows:
        assert replay.store(data, np.asarray(data.actions, np.int32))


def everything(replay, n_step=1):
    places = np.arange(len(replay))
    return replay.read(places, n_step, float(GAMMA))


def key(obs):
    return obs.tobytes()


def by_first_observation(log):
    """Observation -> (its episode, its step in there)."""
    return {key(row[0]): (episode, t) for episode in log for t, row in enumerate(episode)}


def check_sums(drawn, log, n_step, newest):
    """Every row against its episode in the log; `newest` are observations of rows that nothing followed when drawn."""
    known = by_first_observation(log)
    for i in range(len(drawn.reward)):
        episode, t = known[key(drawn.obs[i])]
        assert drawn.action[i] == episode[t][1]
        reward, discount, end = np.float32(0.0), np.float32(1.0), t
        for end in range(t, min(t + n_step, len(episode))):
            reward = reward + discount * np.float32(episode[end][2])
            discount = discount * GAMMA
            if key(episode[end][0]) in newest:
                break
        np.testing.assert_allclose(drawn.reward[i], reward, rtol=1e-6)
        np.testing.assert_array_equal(drawn.next_obs[i], episode[end][4])
        np.testing.assert_allclose(drawn.discount[i], 0.0 if episode[end][3] else discount, rtol=1e-6)


@pytest.mark.parametrize("faults", [0.0, 0.1])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("steps", [1, 7])
def test_every_transition_that_happened_is_stored_once_and_as_it_happened(source, steps, faults):
    if faults and source not in ("one", "several"):
        pytest.skip("a vector environment that was given raises what its environments raise")
    log, replay = [], HostReplay(10_000)
    windows = list(itertools.islice(pipeline_of(source, Player(), log, steps, faults).episodes(), 40))
    stored_all(replay, windows)
    happened = [row for episode in log for row in episode]
    drawn = everything(replay)
    assert len(replay) == len(happened) == sum(len(data.rewards) for data in windows)
    assert sorted(map(key, drawn.obs)) == sorted(key(row[0]) for row in happened)
    newest = {key(episode[-1][0]) for episode in log if episode}
    for n_step in (1, 3, 50):
        check_sums(everything(replay, n_step), log, n_step, newest)


def test_sums_do_not_cross_a_window_that_was_lost():
    log, replay = [], HostReplay(10_000)
    player = Player(fails={25, 58, 59})
    pipeline = pipeline_of("several", player, log, 6)
    lost, windows = 0, pipeline.episodes()
    while len(replay) < 300:
        try:
            stored_all(replay, [next(windows)])
        except ArithmeticError:
            windows, lost = pipeline.episodes(), lost + 1
    assert lost == 3
    drawn, known = everything(replay, 3), by_first_observation(log)
    ends = set(map(key, everything(replay).obs))
    for i in range(len(drawn.reward)):
        episode, t = known[key(drawn.obs[i])]
        reward, discount, end = 0.0, 1.0, t
        for end in range(t, min(t + 3, len(episode))):
            reward, discount = reward + discount * episode[end][2], discount * 0.9
            if end + 1 == len(episode) or key(episode[end + 1][0]) not in ends:
                break
        np.testing.assert_allclose(drawn.reward[i], reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(drawn.next_obs[i], episode[end][4])
    assert len(ends) < sum(map(len, log))


@pytest.mark.parametrize("capacity", [1, 5, 30])
def test_more_rows_in_a_window_than_there_is_room_for(capacity):
    log, replay = [], HostReplay(capacity)
    windows = list(itertools.islice(pipeline_of("several", Player(), log, 7).episodes(), 20))
    stored_all(replay, windows)
    newest = {key(episode[-1][0]) for episode in log if episode}
    drawn = everything(replay)
    assert set(map(key, drawn.obs)) == set(map(key, np.concatenate([w.observations for w in windows])[-capacity:]))
    lost = {key(row[0]) for episode in log for row in episode} - set(map(key, drawn.obs))
    known = by_first_observation(log)
    for obs in drawn.obs:  # a row that nothing in the ring follows, though something did
        episode, t = known[key(obs)]
        if t + 1 < len(episode) and key(episode[t + 1][0]) in lost:
            newest.add(key(obs))
    check_sums(everything(replay, 3), log, 3, newest)


def test_a_row_that_made_room_is_not_linked():
    replay, two = HostReplay(5), {"segment_starts": [0, 2]}
    obs = np.float32([0, 1, 100, 101, 102, 103, 104])[:, None]
    stored_all(replay, [rows(0, 7, 0, observations=obs, metadata=two, final_obs=np.float32([[2.0], [105.0]]))])
    stored_all(replay, [rows(2, 1, 1, metadata={"segment_starts": [0, 1]}, final_obs=np.float32([[3.0], [0.0]]))])
    drawn = everything(replay, 2)  # row 104 lies where row 1 lay, which row 2 follows
    assert dict(zip(drawn.obs[:, 0], drawn.next_obs[:, 0], strict=True)) == {
        101: 103, 102: 104, 103: 105, 104: 105, 2: 3,
    }  # fmt: skip


def test_windows_that_tell_no_starts_of_episodes():
    first = rows(0, 4, 0, episode_starts=None, terminated=[False, True, False, False], final_obs=np.float32([4.0]))
    for second, linked in ((rows(4, 2, 1, episode_starts=None), True), (rows(9, 2, 1, episode_starts=None), False)):
        replay = HostReplay(100)
        stored_all(replay, [first, second])
        sums = dict(zip(everything(replay).obs[:, 0], everything(replay, 3).reward, strict=True))
        np.testing.assert_allclose([sums[0], sums[1], sums[3]], [0.9, 1.0, 3 + 0.9 * 4 if linked else 3.0])


# -- rows whose successor the window does not tell ------------------------------------------------------------------


def without_ends(data):
    """As a source that knows only rows would give it."""
    data.final_obs = None
    data.metadata = {name: value for name, value in data.metadata.items() if name != "final_observations"}
    return data


@pytest.mark.parametrize("source", ["one", "several"])
@pytest.mark.parametrize("steps", [1, 5])
def test_rows_wait_for_what_they_led_to(source, steps):
    log, replay = [], HostReplay(10_000)
    windows = [without_ends(w) for w in itertools.islice(pipeline_of(source, Player(), log, steps).episodes(), 60)]
    stored_all(replay, windows)
    # A truncated row's successor is never told, and the newest rows still wait.
    kept = [row for episode in log for t, row in enumerate(episode) if row[3] or t + 1 < len(episode)]
    drawn = everything(replay)
    assert sorted(map(key, drawn.obs)) == sorted(key(row[0]) for row in kept)
    known = by_first_observation(log)
    for obs, action, reward, following, discount in zip(
        drawn.obs, drawn.action, drawn.reward, drawn.next_obs, drawn.discount, strict=True
    ):
        row = known[key(obs)][0][known[key(obs)][1]]
        assert (action, reward) == row[1:3]
        assert (discount == 0) == row[3]
        if not row[3]:
            np.testing.assert_array_equal(following, row[4])
    linked = everything(replay, 2)
    for i, obs in enumerate(linked.obs):
        episode, t = known[key(obs)]
        goes_on = t + 1 < len(episode) and key(episode[t + 1][0]) in set(map(key, drawn.obs))
        expected = np.float32(episode[t][2]) + (GAMMA * np.float32(episode[t + 1][2]) if goes_on else 0)
        np.testing.assert_allclose(linked.reward[i], expected, rtol=1e-5)


def rows(start, count, episode_id, **fields):
    """Rows of one endless episode whose observation is a count."""
    fields = {
        "observations": np.arange(start, start + count, dtype=np.float32)[:, None],
        "actions": np.zeros(count, np.int32),
        "rewards": list(np.arange(start, start + count, dtype=float)),
        "terminated": [False] * count,
        "truncated": [False] * count,
        "infos": [{}] * count,
        "episode_id": episode_id,
        "episode_starts": [],
    } | fields
    return EpisodeData(**fields)


@pytest.mark.parametrize(
    ("second", "completed"),
    [
        (rows(3, 3, 1), True),
        (rows(3, 3, 2), False),  # a window is missing between
        (rows(3, 3, 1, episode_starts=None), False),  # nobody says that it goes on
        (rows(3, 3, 1, episode_starts=[0]), False),
        (rows(3, 3, 1, metadata={"tails": [0]}), False),
    ],
)
def test_a_waiting_row_is_dropped_unless_the_next_window_is_known_to_go_on(second, completed):
    replay = HostReplay(100)
    stored_all(replay, [rows(0, 3, 0), second])
    drawn = everything(replay)
    assert sorted(drawn.obs[:, 0]) == ([0, 1, 2, 3, 4] if completed else [0, 1, 3, 4])
    np.testing.assert_array_equal(drawn.next_obs, drawn.obs + 1)
    two = {
        float(obs[0]): reward
        for obs, reward in zip(everything(replay, 2).obs, everything(replay, 2).reward, strict=True)
    }
    np.testing.assert_allclose(two[1.0], 1 + 0.9 * 2 if completed else 1)
    np.testing.assert_allclose(two[0.0], 0.9)


def test_a_window_with_a_nan_is_not_stored():
    replay = HostReplay(100)
    stored_all(replay, [rows(0, 3, 0, final_obs=np.float32([3.0]))])
    for bad in (
        rows(3, 3, 1, rewards=[0.0, float("nan"), 0.0]),
        rows(3, 3, 1, rewards=[0.0, float("inf"), 0.0]),
        rows(3, 3, 1, observations=np.float32([[3], [np.nan], [5]])),
        rows(3, 3, 1, final_obs=np.float32([np.nan])),
    ):
        assert not replay.store(bad, np.zeros(3, np.int32))
    assert not replay.store(rows(3, 3, 1), np.float32([0, np.nan, 0]))
    assert len(replay) == 3


def test_another_kind_of_observation_is_refused():
    replay = HostReplay(100)
    stored_all(replay, [rows(0, 3, 0)])
    with pytest.raises(ValueError, match=r"float32\[1\], and the window brings float32\[2\]"):
        replay.store(rows(0, 3, 1, observations=np.zeros((3, 2))), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match=r"brings uint8\[1\]"):
        replay.store(rows(0, 3, 1, observations=np.zeros((3, 1), np.uint8)), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        HostReplay(0)


# -- the ring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 4, 17, 40])
def test_the_oldest_rows_make_room_and_no_sum_reaches_what_took_their_place(capacity):
    replay = HostReplay(capacity)
    ends = [9, 10, 40, 47]
    stored_all(
        replay,
        [
            rows(start, stop - start, i, final_obs=np.float32([stop]))
            for i, (start, stop) in enumerate(itertools.pairwise([0, *ends]))
        ],
    )
    drawn = everything(replay, 3)
    kept = np.arange(47 - min(capacity, 47), 47)
    np.testing.assert_array_equal(np.sort(drawn.obs[:, 0]), kept)
    count = np.minimum(3, 47 - drawn.obs[:, 0])
    np.testing.assert_array_equal(drawn.next_obs[:, 0], drawn.obs[:, 0] + count)
    np.testing.assert_allclose(drawn.discount, 0.9**count, rtol=1e-6)
    for other in (3, 20, 60):
        smaller = everything(replay.resized(other), 3)
        np.testing.assert_array_equal(np.sort(smaller.obs[:, 0]), kept[-other:])
        counts = np.minimum(3, 47 - smaller.obs[:, 0])
        np.testing.assert_array_equal(smaller.next_obs[:, 0], smaller.obs[:, 0] + counts)


def test_a_state_put_back_goes_on_alike():
    log = []
    windows = list(itertools.islice(pipeline_of("several", Player(), log, 5).episodes(), 30))
    windows[15] = without_ends(windows[15])
    one = HostReplay(120)
    stored_all(one, windows[:16])
    again = HostReplay.from_state(one.state_dict())
    for replay in (one, again):
        stored_all(replay, windows[16:])
    for name, column in one.state_dict()["columns"].items():
        np.testing.assert_array_equal(column, again.state_dict()["columns"][name], err_msg=name)
    assert one.state_dict()["count"] == again.state_dict()["count"]


# -- drawing ---------------------------------------------------------------------------------------------------------


def test_images_stay_bytes():
    replay = HostReplay(10)
    images = np.random.default_rng(0).integers(0, 255, (4, 5, 5, 1)).astype(np.uint8)
    stored_all(replay, [rows(0, 4, 0, observations=images)])
    drawn = everything(replay)
    assert drawn.obs.dtype == np.uint8
    np.testing.assert_array_equal(drawn.next_obs, images[1:])


def test_priorities_decide_how_often_a_row_is_drawn():
    """Shares of 2e5 draws within 5 standard errors at a fixed seed; stratified draws vary less than that."""
    replay, rng = HostReplay(8), np.random.default_rng(0)
    stored_all(replay, [rows(0, 5, 0, final_obs=np.float32([5.0]))])
    replay.set_priorities(np.arange(4), np.float32([-1, 2, 0.5, np.nan]), 0.5)
    raw = np.array([1.5, 2.5, 1.0, 2.5, 1.0])  # the last was never drawn: 1, the greatest when it came
    for alpha, beta in ((0.7, 0.4), (1.5, 1.0), (0.7, 0.0)):
        places, weights = replay.draw_by_priority(rng, (2000, 100), alpha, beta)
        probability = raw**alpha / (raw**alpha).sum()
        shares = np.bincount(places.ravel(), minlength=5) / 2e5
        assert (np.abs(shares - probability) < 5 * np.sqrt(probability * (1 - probability) / 2e5)).all()
        expected = (5 * probability[places]) ** -beta
        np.testing.assert_allclose(weights, expected / expected.max(axis=1, keepdims=True), rtol=1e-5)
        assert weights.dtype == np.float32
    stored_all(replay, [rows(5, 1, 1, final_obs=np.float32([6.0]))])
    assert replay.state_dict()["columns"]["priority"][5] == 2.5  # a new row is as urgent as the greatest so far
    np.testing.assert_allclose(replay.state_dict()["columns"]["power"], np.append(raw, 2.5) ** 0.7)
    replay.set_priorities(np.array([1, 1]), np.float32([7.5, 3.5]), 0.5)  # the greater of two in one batch
    assert replay.state_dict()["columns"]["priority"][1] == 8.0
    np.testing.assert_allclose(replay.state_dict()["columns"]["power"][1], 8.0**0.7)


def test_without_priorities_all_rows_are_alike():
    replay, rng = HostReplay(8), np.random.default_rng(0)
    stored_all(replay, [rows(0, 5, 0, final_obs=np.float32([5.0]))])
    shares = np.bincount(replay.draw(rng, (200, 1000)).ravel()) / 2e5
    assert len(shares) == 5
    assert (np.abs(shares - 0.2) < 5 * np.sqrt(0.16 / 2e5)).all()
