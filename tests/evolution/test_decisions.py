"""The mathematics of evolution: invariances, limiting cases, bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core.search_space import search_space
from tensor_optix.evolution import decisions
from tensor_optix.evolution.decisions import MetaAction, MetaConfig
from tensor_optix.evolution.meta_controller import MetaController, evaluations_of, padded
from tests.evolution_parts import history

FLAT = np.full(12, 5.0)
RISE = np.linspace(1.0, 5.0, 12)


def decide(scores, train=None, exhausted=False, **settings):
    return MetaController(**settings).decide(history(scores, train), {"budget_exhausted": exhausted})


class TestMeta:
    @pytest.mark.parametrize(
        ("scores", "train", "action"),
        [
            (FLAT, None, MetaAction.SPAWN),
            (RISE, None, MetaAction.NO_OP),
            (-RISE, None, MetaAction.SPAWN),
            (FLAT, FLAT + 0.1, MetaAction.SPAWN),
            (FLAT, FLAT + 2.0, MetaAction.PRUNE),  # the gap is 40 % of the score
            (RISE, RISE * 2, MetaAction.PRUNE),
            (FLAT, FLAT - 2.0, MetaAction.SPAWN),  # better on validation: no overfitting
            (FLAT[:2], None, MetaAction.NO_OP),
            ((), None, MetaAction.NO_OP),
            (np.zeros(5), None, MetaAction.SPAWN),
        ],
    )
    def test_rules(self, scores, train, action):
        assert decide(scores, train) == action
        assert decide(scores, train, exhausted=True) == MetaAction.STOP

    def test_a_gap_that_grows_is_seen_before_it_is_wide(self):
        gap = 0.03 * 5.0 * np.arange(12)
        assert decide(FLAT, FLAT + gap, gap_threshold=9.0) == MetaAction.PRUNE
        assert decide(FLAT, FLAT + gap, gap_threshold=9.0, gap_slope_threshold=0.1) == MetaAction.SPAWN
        assert decide(FLAT[:3], FLAT[:3] + gap[:3], gap_threshold=9.0) == MetaAction.PRUNE

    def test_a_noisy_gap_seldom_counts_as_growing(self):
        """Student's t at 8 degrees of freedom is above 2 in 4 % of cases; a slope above the threshold alone in 32 %."""
        rng = np.random.default_rng(0)
        told = [decide(FLAT, FLAT + 0.8 + 2.0 * rng.normal(size=12), gap_threshold=9.0) for _ in range(200)]
        assert np.mean([action == MetaAction.PRUNE for action in told]) < 0.09  # 3.6 standard errors above 4 %

    @pytest.mark.parametrize("level", [0.0, 1e-9, -1e-6, 1e-3])
    def test_a_validation_score_near_zero_is_no_overfitting(self, level):
        val = np.concatenate([np.linspace(-1.0, 0.0, 20), np.full(10, level)])
        assert decide(val, val + 0.02) == MetaAction.SPAWN
        assert decide(val, val + 0.5) == MetaAction.PRUNE
        assert decide(np.full(12, level), np.full(12, level + 0.05)) == MetaAction.SPAWN  # scores without a scale

    @pytest.mark.parametrize("factor", [1e-6, 3.0, 1e6])
    def test_units_do_not_matter(self, factor):
        rng = np.random.default_rng(1)
        for shift in (-0.3, 0.0, 1.0):
            val = shift + rng.normal(size=12) * 0.1
            train = val + rng.normal(size=12) * 0.2 + 0.1
            assert decide(val * factor, train * factor) == decide(val, train)

    def test_only_the_window_counts_for_trends(self):
        scores = np.concatenate([RISE, np.full(10, 5.0)])
        assert decide(scores) == MetaAction.SPAWN
        assert decide(scores, window=22) == MetaAction.NO_OP

    def test_long_histories_and_windows(self):
        assert decide(np.full(500, 1.0)) == MetaAction.SPAWN
        assert decide(np.linspace(0, 9, 90), window=80) == MetaAction.NO_OP

    def test_what_is_not_finite_is_left_out(self):
        assert decide([5.0, np.nan, 5.0, np.inf, 5.0], [9.0, 9.0, np.nan, 9.0, 9.0]) == MetaAction.PRUNE
        assert decide([np.nan] * 9) == MetaAction.NO_OP
        assert decide([1e300, -1e300, 1e300, 1e300]) in MetaAction

    def test_members_side_by_side(self):
        told = [evaluations_of(history(*case), 10) for case in ((FLAT, None), (RISE, None), (FLAT, FLAT + 2))]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *told)
        left = np.array([True, True, True])
        actions = jax.jit(jax.vmap(functools.partial(decisions.decide, MetaConfig())))(stacked, left)
        assert actions.dtype == jnp.int32
        assert actions.tolist() == [MetaAction.SPAWN, MetaAction.NO_OP, MetaAction.PRUNE]

    def test_bad_thresholds_are_refused(self):
        with pytest.raises(ValueError, match="gap_threshold is -1"):
            MetaController(gap_threshold=-1.0)
        for bad in (2, True, 5.0):
            with pytest.raises(ValueError, match="window"):
                MetaController(window=bad)


def noise_of(scores, train=None, window=10, least=0.001, most=0.1):
    told = evaluations_of(history(scores, train), window)
    return float(decisions.spawn_noise(told, jnp.float32(least), jnp.float32(most), window))


class TestNoise:
    def test_against_the_formula(self):
        rng = np.random.default_rng(3)
        for _ in range(20):
            val = np.cumsum(rng.uniform(0, 0.4, 10)) + 1.0
            train = val + rng.normal(size=10) * 0.3 + 0.4
            scale = max(val.mean(), np.ptp(val))
            slope = np.polyfit(np.arange(10), val, 1)[0]
            t = np.clip(slope / scale / 0.05, 0, 1)
            gap = np.clip((train - val).mean() / max(scale, np.ptp(train)), 0, 1)
            corr = np.clip(1 - np.corrcoef(train, val)[0, 1], 0, 1)
            expected = 0.1 - t * (1 - gap / 2) * (1 - corr / 2) * (0.1 - 0.001)
            np.testing.assert_allclose(noise_of(val, train), expected, rtol=1e-4)

    def test_limits(self):
        assert noise_of(FLAT) == pytest.approx(0.1)
        assert noise_of(RISE) == pytest.approx(0.001, rel=1e-4)  # a steep rise
        assert noise_of(RISE[:2]) == noise_of([]) == noise_of(np.zeros(9)) == pytest.approx(0.1)
        assert noise_of(RISE, RISE) == pytest.approx(0.001, rel=1e-4)
        assert noise_of(RISE, RISE[::-1]) > 0.03  # training and validation part ways
        assert noise_of(RISE, np.full(12, 5.0)) > noise_of(RISE, RISE)

    def test_it_stays_between_its_limits(self):
        rng = np.random.default_rng(0)
        for _ in range(50):
            n = int(rng.integers(0, 20))
            scores = rng.normal(size=n) * 10.0 ** float(rng.integers(-6, 6))
            train = scores + rng.normal(size=n) if rng.random() < 0.5 else None
            assert 0.01 <= noise_of(scores, train, least=0.01, most=0.05) <= 0.05 + 1e-8

    def test_noise_on_weights_falls_with_improvement(self):
        def of(scores):
            told = evaluations_of(history(scores), 10)
            return float(decisions.weight_noise(told, jnp.float32(0.01), 10))

        assert of(FLAT) == pytest.approx(0.01)
        assert of(RISE) == pytest.approx(0.01 / (1 + np.ptp(RISE[-10:]) / np.ptp(RISE)), rel=0.2)
        assert of(RISE) >= decisions.WEIGHT_NOISE[0]


def weights_of(rows, present=None):
    width = max((len(row) for row in rows), default=1) or 1
    table = jnp.asarray(np.stack([padded(row, width) for row in rows]))
    counts = jnp.array([len(row) for row in rows], jnp.int32)
    present = jnp.ones(len(rows), jnp.float32) if present is None else jnp.asarray(present, jnp.float32)
    return np.asarray(jax.jit(decisions.ensemble_weights)(table, counts, present))


class TestEnsembleWeights:
    def test_equal_scores_weigh_the_same(self):
        for value in (0.0, -3.0, 7.0):
            np.testing.assert_array_equal(weights_of([[value]] * 3), np.ones(3, np.float32))

    def test_against_the_formula(self):
        rows = [[1.0, 1.5, 0.5], [2.0], [-3.0, 1.0]]
        means = np.array([np.mean(row) for row in rows])
        raw = np.exp((means - means.max()) / np.std(np.concatenate(rows)))
        np.testing.assert_allclose(weights_of(rows), raw / raw.mean(), rtol=1e-5)

    def test_better_weighs_more_and_the_mean_is_one(self):
        weights = weights_of([[1.0, 1.2], [2.0, 2.1], [3.0, 3.1]])
        assert weights[0] < weights[1] < weights[2]
        assert weights.mean() == pytest.approx(1.0)
        assert (weights > 0).all()

    @pytest.mark.parametrize(("factor", "shift"), [(1.0, -100.0), (16.0, 64.0), (2.0**-20, 0.0), (1e29, 0.0)])
    def test_they_do_not_change_with_units(self, factor, shift):
        rows = [[1.0, 1.5, 0.5], [2.0], [-3.0, 1.0]]
        other = [[factor * s + shift for s in row] for row in rows]
        np.testing.assert_allclose(weights_of(other), weights_of(rows), rtol=2e-4)

    def test_noise_brings_them_together(self):
        calm = weights_of([[1.0, 1.0], [2.0, 2.0]])
        noisy = weights_of([[-9.0, 11.0], [-8.0, 12.0]])
        assert noisy[1] / noisy[0] < 1.2 < calm[1] / calm[0]

    def test_who_has_no_scores_keeps_its_weight(self):
        weights = weights_of([[1.0], [], [1.0]], present=[5.0, 0.25, 5.0])
        np.testing.assert_array_equal(weights, [1.0, 0.25, 1.0])
        np.testing.assert_array_equal(weights_of([[], []], present=[2.0, 3.0]), [2.0, 3.0])


class TestSpawn:
    SPACE = search_space({"gamma": (0.95, 0.999), "lr": ("log", 1e-4, 1e-2), "n": ("int", 1, 8)})

    def many(self, noise, params, n=4000):
        keys = jax.random.split(jax.random.key(0), n)
        params = {name: jnp.float32(value) for name, value in params.items()}
        return jax.jit(jax.vmap(lambda key: decisions.spawn(key, self.SPACE, params, jnp.float32(noise))))(keys)

    @pytest.mark.parametrize("noise", [0.0, 0.1, 5.0])
    def test_bounds_hold_whatever_the_noise(self, noise):
        spawned = self.many(noise, {"gamma": 0.999, "lr": 1e-4, "n": 8})
        for name, parameter in self.SPACE.entries:
            values = np.asarray(spawned[name], np.float64)
            assert parameter.low <= values.min() <= values.max() <= parameter.high
        np.testing.assert_array_equal(spawned["n"], np.round(spawned["n"]))

    def test_the_noise_is_a_share_of_the_range(self):
        spawned = self.many(0.05, {"gamma": 0.975, "lr": 1e-3, "n": 4})
        assert np.std(spawned["gamma"]) == pytest.approx(0.05 * 0.049, rel=0.1)
        assert np.std(np.log(spawned["lr"])) == pytest.approx(0.05 * np.log(100), rel=0.1)

    def test_a_value_at_a_face_turns_back(self):
        spawned = self.many(0.1, {"gamma": 0.999, "lr": 1e-3, "n": 4})
        assert np.mean(np.asarray(spawned["gamma"]) > 0.99899) < 0.05  # clipping would leave half of them there

    def test_without_noise_nothing_moves(self):
        spawned = self.many(0.0, {"gamma": 0.97, "lr": 3e-3, "n": 5}, n=1)
        np.testing.assert_allclose([spawned[k][0] for k in ("gamma", "lr", "n")], [0.97, 3e-3, 5], rtol=1e-5)

    def test_values_without_a_range(self):
        values = jnp.array([0.99, 0.999999, 3e-4, 0.0, -2.0, 5.0, 1.0], jnp.float32)
        keys = jax.random.split(jax.random.key(1), 3000)
        low, high = jnp.full(7, -jnp.inf, jnp.float32), jnp.full(7, jnp.inf, jnp.float32).at[5].set(5.5)
        moved = np.asarray(jax.vmap(lambda k: decisions.spawn_free(k, values, jnp.float32(0.5), low, high))(keys))
        assert (moved[:, :3] > 0).all()
        assert (moved[:, :3] < 1).all()
        assert (moved[:, 3] == 0).all()
        assert (moved[:, 4] < 0).all()
        assert moved[:, 5].max() == 5.5
        assert np.std(np.log(moved[:, 2])) == pytest.approx(0.5, rel=0.1)
