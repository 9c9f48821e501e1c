"""The bonus goes to what is new, reaches the agent and never the score."""

import copy
import itertools
import json

import gymnasium
import jax
import numpy as np
import pytest

from tensor_optix.core import novelty
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.types import EpisodeData, LoopState
from tensor_optix.loop.episode_returns import EpisodeEvaluator, EpisodeReturns
from tensor_optix.loop.events import CallbackList
from tensor_optix.loop.host_state import read_tree, write_tree
from tensor_optix.pipeline import BatchPipeline, RNDPipeline, VectorBatchPipeline, rnd


class Windows(BasePipeline):
    """The given windows; remembers what was asked of it."""

    def __init__(self, *windows, live=False):
        self.windows, self.calls, self.live = windows, [], live

    def setup(self):
        self.calls.append("setup")

    def teardown(self):
        self.calls.append("teardown")

    def set_agent(self, agent):
        self.calls.append(agent)

    def episodes(self):
        return iter(self.windows)

    @property
    def is_live(self):
        return self.live

    def state_dict(self):
        return {"calls": len(self.calls)}

    def load_state_dict(self, state):
        self.calls = ["loaded"] * state["calls"]
        return ["one thing is lost"]


def window(path, ends=(), final=None, finals=None, **fields):
    """Rows at `path`; rows in `ends` terminated."""
    observations = np.asarray(path, np.float32)
    n = len(path)
    return EpisodeData(
        observations, np.zeros(n), [1.0] * n, [i in ends for i in range(n)], [False] * n, [{}] * n, 0,
        final_obs=None if final is None else np.asarray(final, np.float32),
        metadata={} if finals is None else {"final_observations": finals},
        **fields,
    )  # fmt: skip


def run(*windows, n=None, obs_dim=2, **options):
    return list(itertools.islice(RNDPipeline(Windows(*windows), obs_dim, **options).episodes(), n))


def bonus(data):
    return np.asarray(data.rewards) - np.asarray(data.metadata["extrinsic_rewards"])


def noise(n, seed=0, width=2, scale=1.0):
    return (np.random.default_rng(seed).normal(size=(n, width)) * scale).astype(np.float32)


# -- what the bonus is for ----------------------------------------------------------------------------------


def test_what_was_visited_loses_its_bonus_and_what_was_not_keeps_it():
    """A corridor of 12 places; the agent walks to and fro in the first 6, then takes one step further."""
    places = np.eye(12, dtype=np.float32)
    walk = [*range(6), *range(4, 0, -1)] * 10
    visits = [window(places[walk], final=places[0]) for _ in range(40)]
    pipeline = RNDPipeline(Windows(*visits), 12)
    stream = pipeline.episodes()
    first = next(stream)
    early = pipeline.novelty(places)
    *_, last = stream
    late = pipeline.novelty(places)
    assert bonus(last).mean() < 0.1 * bonus(first).mean()
    assert late[:6].max() < 0.3 * early[:6].min()
    assert late[6:].min() > 5 * late[:6].max()
    # The more often a place was visited, the less is it worth: the middle more often than the ends.
    further = window(places[[4, 5]], final=places[6])
    stays, goes = bonus(pipeline._with_bonus(further))
    assert goes > 5 * stays


def test_the_bonus_is_that_of_what_an_action_led_to():
    a, b, c = np.eye(3, dtype=np.float32)
    known = [window(np.stack([a, b] * 50), final=a) for _ in range(30)]
    pipeline = RNDPipeline(Windows(*known), 3)
    list(pipeline.episodes())

    def new(data):
        """Rows whose bonus is that of something new."""
        found = bonus(copy.deepcopy(pipeline)._with_bonus(data))
        return np.flatnonzero(found > 5 * np.median(found)).tolist()

    assert new(window([a, b, c, a, b, a, b], final=a)) == [1]
    # An episode that ended at c, and the reset that gave a: the row led to c.
    assert new(window([a, b, a, b, a, b], ends=[2], finals={2: c}, final=a)) == [2]
    assert new(window([a, b, a, b, a, b], final=c)) == [5]
    assert new(window([a, b, a, b, a, b], ends=[5], finals={5: c}, final=c)) == [5]
    # Two environments, one below the other: b of row 3 does not lead to c of row 4.
    side = window([a, b, a, b, c, a, b, a], final=[a, b])
    side.metadata |= {"segment_starts": [0, 4], "segment_lengths": [4, 4]}
    assert new(side) == []
    side.final_obs = np.stack([c, b])
    assert new(side) == [3]


def test_rows_whose_outcome_is_not_known_get_no_bonus():
    path = noise(6)
    (data,) = run(window(path, ends=[2]))
    assert (bonus(data) > 0).tolist() == [True, True, False, True, True, False]
    path[3] = np.nan
    pipeline = RNDPipeline(Windows(window(path, final=path[0])), 2)
    (data,) = pipeline.episodes()
    assert (bonus(data) > 0).tolist() == [True, True, False, True, True, True]
    assert np.isfinite(pipeline.novelty(noise(5))).all()
    (data,) = run(window(path[:1]))
    assert data.rewards == [1.0]


def test_the_formula():
    pipeline = RNDPipeline(Windows(window(path := noise(40), final=noise(1, 1)[0])), 2, eta=0.5)
    target, (params, _) = copy.deepcopy((pipeline._target, pipeline._predictor))
    (data,) = pipeline.episodes()
    led = np.concatenate([path[1:], noise(1, 1)]).astype(np.float64)
    x = np.clip((led - led.mean(0)) / led.std(0), -5, 5)

    def forward(p):
        return np.maximum(x @ p["hidden_weights"] + p["hidden_bias"], 0) @ p["out_weights"] + p["out_bias"]

    target, params = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p) for p in (target, params))
    error = np.square(forward(params) - forward(target)).sum(1)
    np.testing.assert_allclose(bonus(data), 0.5 * error / error.std(), rtol=2e-3)
    assert forward(target).shape == (40, 64)
    assert data.metadata["intrinsic_mean"] == pytest.approx(bonus(data).mean())


def test_it_is_the_bonus_of_compiled_algorithms():
    """The same networks and rows in `core.novelty`; the moments differ by float32 and 1e-4 samples to start from."""
    pipeline = RNDPipeline(Windows(), 2, eta=1.0)
    params, opt = pipeline._predictor
    state = novelty.init(jax.random.key(0), (2,)).replace(target=pipeline._target, predictor=params, opt=opt)
    for seed in (0, 1):
        rows = noise(64, seed, scale=[0.1, 40.0])
        expected = pipeline._learn(rows.astype(np.float64))
        state = novelty.observe(state, rows)
        np.testing.assert_allclose(novelty.bonus(state, rows), expected, rtol=2e-3)
        state = state.replace(predictor=pipeline._predictor[0])


def test_the_target_stays_as_it_is():
    pipeline = RNDPipeline(Windows(*[window(noise(50))] * 3), 2)
    target, predictor = copy.deepcopy((pipeline._target, pipeline._predictor[0]))
    list(pipeline.episodes())
    jax.tree.map(np.testing.assert_array_equal, target, pipeline._target)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), predictor, pipeline._predictor[0])
    assert all(jax.tree.leaves(moved))
    different = jax.tree.map(lambda a, b: bool((a != b).any()), target, predictor)
    assert different["hidden_weights"]
    assert different["out_weights"]


def test_where_everything_is_alike_the_bonus_is_bounded():
    assert RNDPipeline(Windows(), 2)._scaled(np.array([1.0, 1e9])) == pytest.approx([1.0, 10.0])
    data = run(*[window(np.ones((50, 2)))] * 3)
    assert all(0 <= b <= 1.0 for d in data for b in bonus(d))


# -- who sees it --------------------------------------------------------------------------------------------


def test_the_wrapped_pipelines_window_is_left_alone():
    data = window(noise(20), final=[0, 0])
    (with_bonus,) = run(data)
    assert data.rewards == [1.0] * 20
    assert "extrinsic_rewards" not in data.metadata
    assert with_bonus.metadata["extrinsic_rewards"] == [1.0] * 20
    assert all(type(r) is float for r in with_bonus.rewards + with_bonus.metadata["extrinsic_rewards"])
    assert with_bonus.timestamp == data.timestamp
    np.testing.assert_array_equal(with_bonus.observations, data.observations)
    assert with_bonus.total_reward > 20


@pytest.mark.parametrize("primary_score_fn", [None, lambda data: data.total_reward])
def test_the_score_is_of_the_tasks_rewards_only(primary_score_fn):
    data = window(noise(20), ends=[19], finals={19: np.zeros(2, np.float32)})
    (with_bonus,) = run(data, eta=100.0)
    assert sum(with_bonus.rewards) > 1000
    assert EpisodeReturns().update(with_bonus)[0] == [20.0]
    evaluator = EpisodeEvaluator(primary_score_fn)
    evaluator.observe(with_bonus)
    for metrics in (evaluator.score(with_bonus, {}), evaluator.score_validation(with_bonus)):
        assert metrics.primary_score == 20.0
        assert (metrics.metrics["total_reward"], metrics.metrics["mean_reward"]) == (20.0, 1.0)
        assert metrics.metrics["reward_std"] == 0.0


def test_a_bonus_within_a_bonus():
    inner = RNDPipeline(Windows(window(noise(20))), 2, seed=1)
    (data,) = RNDPipeline(inner, 2, seed=2).episodes()
    assert data.metadata["extrinsic_rewards"] == [1.0] * 20


def test_eta_zero_changes_no_reward():
    (data,) = run(window(noise(20)), eta=0.0)
    assert data.rewards == [1.0] * 20
    assert data.metadata["intrinsic_mean"] == 0.0


# -- the wrapped pipeline -----------------------------------------------------------------------------------


def test_it_passes_on_what_is_asked():
    inner = Windows(live=True)
    pipeline = RNDPipeline(inner, 2)
    agent = object()
    pipeline.setup(), pipeline.set_agent(agent), pipeline.teardown()
    assert inner.calls == ["setup", agent, "teardown"]
    assert pipeline.is_live
    assert not RNDPipeline(Windows(), 2).is_live
    assert pipeline.pipeline is inner
    assert list(pipeline.episodes()) == []


def test_around_real_environments():
    class Left:
        def act(self, obs):
            return 0

    vector = VectorBatchPipeline([lambda: gymnasium.make("CartPole-v1")] * 3, Left(), 40, seed=1)
    for inner in (BatchPipeline(env_id="CartPole-v1", agent=Left(), n_steps=60, seed=1), vector):
        pipeline = RNDPipeline(inner, 4)
        pipeline.setup()
        for data in itertools.islice(pipeline.episodes(), 3):
            assert (bonus(data) > 0).all()  # every outcome is known
            assert set(data.metadata["extrinsic_rewards"]) == {1.0}
        pipeline.teardown()


def test_observations_of_any_shape():
    (data,) = run(window(noise(20).reshape(20, 2, 1)), obs_dim=2)
    assert (bonus(data)[:-1] > 0).all()
    with pytest.raises(ValueError, match=r"observations have 6 numbers each, but RNDPipeline got obs_dim=2"):
        run(window(noise(20, width=6).reshape(20, 2, 3)), obs_dim=2)
    with pytest.raises(ValueError, match="no agent"):
        RNDPipeline(BatchPipeline(env_id="CartPole-v1"), 4).episodes()


# -- eta ----------------------------------------------------------------------------------------------------


def test_the_loop_changes_eta():
    pipeline = RNDPipeline(Windows(), 2, eta=0.2)
    tell = CallbackList([pipeline]).call
    tell("on_improvement", None)
    assert pipeline.eta == pytest.approx(0.18)
    tell("on_plateau", 3, LoopState.COOLING)
    assert pipeline.eta == pytest.approx(0.27)
    for i in range(9):
        tell("on_plateau", i, LoopState.COOLING)
    assert pipeline.eta == pytest.approx(0.8)
    tell("on_dormant", 9)
    assert pipeline.eta == 0.0
    tell("on_improvement", None)
    assert pipeline.eta == 0.0
    tell("on_plateau", 10, LoopState.COOLING)
    assert pipeline.eta == pytest.approx(0.2)
    pipeline.set_eta(1.0)
    tell("on_plateau", 11, LoopState.COOLING)
    assert pipeline.eta == pytest.approx(1.5)
    pipeline.set_eta(0)
    tell("on_plateau", 12, LoopState.COOLING)
    assert pipeline.eta == 0.0


def test_eta_scales_the_bonus():
    small, large = (bonus(run(window(noise(20)), eta=eta)[0]) for eta in (0.1, 0.3))
    np.testing.assert_allclose(large, 3 * small, rtol=1e-6, atol=1e-12)


# -- state and seeds ----------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    data = [window(noise(30 + i, i)) for i in range(6)]
    whole = RNDPipeline(Windows(*data), 2)
    expected = [d.rewards for d in whole.episodes()]
    first = RNDPipeline(Windows(*data[:3]), 2)
    list(first.episodes())
    first.on_improvement(None)
    first.setup()
    write_tree(tmp_path, first.state_dict())
    state = read_tree(tmp_path)
    second = RNDPipeline(inner := Windows(*data[3:]), 2, eta=0.7, seed=5)
    assert second.load_state_dict(state) == ["one thing is lost"]
    assert (second.eta, inner.calls) == (first.eta, ["loaded"])
    second.on_plateau(0, LoopState.COOLING)
    assert second.eta == pytest.approx(0.1 * 0.9 * 1.5)
    second.set_eta(0.1)
    assert [d.rewards for d in second.episodes()] == expected[3:]


def test_what_is_saved_keeps_its_names():
    """Those of runs that were saved by earlier versions."""
    weights = ["hidden_bias", "hidden_weights", "out_bias", "out_weights"]
    groups = ["target", "predictor/0", "predictor/1/mu", "predictor/1/nu"]
    networks = [f"{group}/{name}" for group in groups for name in weights]
    moments = [f"{name}/{k}" for name in ("observations", "errors") for k in ("mean", "var", "count")]
    state = RNDPipeline(Windows(), 2).state_dict()
    assert sorted(state) == sorted(["pipeline", "eta", "base_eta", "key", "predictor/1/count", *networks, *moments])


def test_a_state_of_other_sizes_is_refused():
    state = RNDPipeline(Windows(), 2).state_dict()
    with pytest.raises(ValueError, match=r"saved target/out_bias has shape \(64,\), expected \(32,\)"):
        RNDPipeline(Windows(), 2, embedding_dim=32).load_state_dict(state)
    missing = {k: v for k, v in state.items() if k != "predictor/0/out_bias"}
    with pytest.raises(ValueError, match="predictor/0/out_bias is missing"):
        RNDPipeline(Windows(), 2).load_state_dict(missing)
    json.dumps({k: v for k, v in state.items() if not isinstance(v, np.ndarray)})


def test_a_copy_goes_its_own_way():
    data = [window(noise(30, i)) for i in range(4)]
    pipeline = RNDPipeline(Windows(*data), 2)
    stream = pipeline.episodes()
    next(stream)
    other = copy.deepcopy(pipeline)
    before = other.novelty(noise(9, 9))
    rest = [d.rewards for d in stream]
    np.testing.assert_array_equal(other.novelty(noise(9, 9)), before)
    assert [other._with_bonus(d).rewards for d in data[1:]] == rest


def test_seeds():
    path = noise(30)
    same, again, other = (run(window(path), window(path), seed=seed) for seed in (3, 3, 4))
    assert [d.rewards for d in same] == [d.rewards for d in again]
    assert all((bonus(a)[:-1] != bonus(b)[:-1]).all() for a, b in zip(same, other, strict=True))


def test_keys_are_used_once(checked_keys):
    run(*[window(noise(70))] * 3)


def test_windows_of_other_lengths_do_not_recompile():
    lengths = [129, 256, 150, 192, 200, 255]
    run(window(noise(256)))
    before = rnd._train._cache_size(), rnd._squared_errors._cache_size()
    run(*[window(noise(n, n), final=np.zeros(2)) for n in lengths], predictor_lr=0.01, seed=8)
    assert (rnd._train._cache_size(), rnd._squared_errors._cache_size()) == before


def test_padding_changes_nothing():
    """Rows that are padding teach nothing: after the same rows, a longer bucket knows the same."""
    path = noise(64)
    pipeline = RNDPipeline(Windows(), 2)
    x = np.asarray(path)
    present = np.ones(64, np.float32)
    garbage = np.concatenate([x[:40], 1e6 * np.ones((24, 2), np.float32)])
    present[40:] = 0
    args = pipeline._target, pipeline._predictor
    key, lr = jax.random.key(0), np.float32(1e-3)
    zeros = np.concatenate([x[:40], np.zeros((24, 2), np.float32)])
    one = rnd._train(*args, zeros, present, key, lr)
    two = rnd._train(*args, garbage, present, key, lr)
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pipeline": 5}, TypeError, "wraps a pipeline"),
        ({"obs_dim": 0}, ValueError, "obs_dim"),
        ({"obs_dim": (4,)}, TypeError, "obs_dim"),
        ({"embedding_dim": 0}, ValueError, "embedding_dim"),
        ({"eta": -1.0}, ValueError, "eta"),
        ({"eta": float("nan")}, ValueError, "eta"),
        ({"predictor_lr": 0.0}, ValueError, "predictor_lr"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        RNDPipeline(**{"pipeline": Windows(), "obs_dim": 2, **options})
