"""Rules of populations on synthetic scores: who copies whom, valid hyperparameters, do they find an optimum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix.core.search_space import search_space
from tensor_optix.evolution.population import PopulationPBT, Scored, SharedSPSA

D = 2
SPACE = search_space({"a": ("log", 1e-4, 1e-2), "b": (0.0, 1.0)})
RULES = [
    PopulationPBT(every=1),
    PopulationPBT(every=2, selection="binary"),
    PopulationPBT(every=3, resample=0.2, spread=0.5),
    SharedSPSA(),
]


def start(rule, size, seed=0, at=0.5):
    return rule.init(SPACE, jnp.full((size, D), at, jnp.float32), jax.random.key(seed))


def told(scores, valid=None, alive=None):
    scores = jnp.asarray(scores, jnp.float32)
    everybody = jnp.ones(scores.shape, bool)
    return Scored(scores, everybody if valid is None else valid, everybody if alive is None else alive)


@functools.partial(jax.jit, static_argnums=0)
def run(rule, state, scores, valid):
    """Exchanges of a stream of scores [T, K]."""
    return jax.lax.scan(
        lambda s, x: rule.step(s, Scored(x[0], x[1], jnp.ones(x[0].shape, bool))), state, (scores, valid)
    )


@pytest.mark.parametrize("rule", RULES, ids=["pbt", "binary", "resample", "spsa"])
class TestEveryRule:
    @pytest.mark.parametrize("size", [2, 5])
    def test_parents_and_points_are_valid(self, rule, size):
        stream = jax.random.cauchy(jax.random.key(1), (40, size), jnp.float32) * 1e6
        _, out = run(rule, start(rule, size), stream, stream < 1e6)
        assert out.parents.dtype == jnp.int32
        assert out.x.shape == (40, size, D)
        assert ((out.parents >= 0) & (out.parents < size)).all()
        assert ((out.x >= 0) & (out.x <= 1)).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))

    def test_scores_in_another_unit_change_nothing(self, rule):
        stream = jax.random.randint(jax.random.key(2), (30, 6), -50, 50).astype(jnp.float32)
        _, out = run(rule, start(rule, 6), stream, jnp.ones((30, 6), bool))
        _, other = run(rule, start(rule, 6), 4 * stream + 1024, jnp.ones((30, 6), bool))
        np.testing.assert_array_equal(out.parents, other.parents)
        np.testing.assert_allclose(out.x, other.x, atol=1e-6)

    def test_populations_do_not_depend_on_their_neighbours(self, rule):
        stream = jax.random.normal(jax.random.key(3), (2, 12, 4))
        states = jax.tree.map(lambda *x: jnp.stack(x), start(rule, 4, 1), start(rule, 4, 2))
        valid = jnp.ones((12, 4), bool)
        both = jax.vmap(functools.partial(run, rule), in_axes=(0, 0, None))
        _, out = both(states, stream, valid)
        _, changed = both(states, stream.at[1].add(7.0 * jnp.arange(4.0)[None]), valid)
        np.testing.assert_array_equal(out.x[0], changed.x[0])
        np.testing.assert_array_equal(out.parents[0], changed.parents[0])

    def test_keys_are_used_once(self, rule, checked_keys):
        state = start(rule, 4)
        jax.make_jaxpr(rule.step)(state, told([1.0, 2.0, 3.0, 4.0]))


class TestPBT:
    def test_the_worst_copy_the_best(self):
        rule = PopulationPBT(every=1, quantile=0.25)
        scores = [5.0, 1.0, 8.0, 2.0, 7.0, 6.0, 3.0, 4.0]
        for seed in range(5):
            _, out = rule.step(start(rule, 8, seed), told(scores))
            assert set(np.flatnonzero(out.parents != np.arange(8))) == {1, 3}
            assert set(np.asarray(out.parents)[[1, 3]].tolist()) <= {2, 4}

    def test_equal_scores_copy_nobody(self):
        for rule in (PopulationPBT(every=1), PopulationPBT(every=1, selection="binary")):
            _, out = rule.step(start(rule, 6), told([3.0] * 6))
            np.testing.assert_array_equal(out.parents, np.arange(6))

    def test_binary_copies_only_the_better_one_met(self):
        rule, scores = PopulationPBT(every=1, selection="binary"), np.arange(6.0)
        met = set()
        for seed in range(20):
            _, out = rule.step(start(rule, 6, seed), told(scores))
            parents = np.asarray(out.parents)
            assert (scores[parents] >= scores).all()
            assert parents[5] == 5
            met |= set(parents[:5].tolist())
        assert met >= {1, 2, 3, 4, 5}

    def test_between_exchanges_nobody_copies_and_the_mean_counts(self):
        rule = PopulationPBT(every=3, quantile=0.5)
        state = start(rule, 2)
        # the first is better on average, though not in the last evaluation
        for i, scores in enumerate([[9.0, 0.0], [9.0, 0.0], [0.0, 1.0]]):
            state, out = rule.step(state, told(scores))
            np.testing.assert_array_equal(out.parents, [0, 0] if i == 2 else [0, 1])

    def test_who_was_not_scored_copies_and_the_dead_do_neither(self):
        rule = PopulationPBT(every=1, quantile=0.25)
        valid = jnp.array([True, True, True, False])
        _, out = rule.step(start(rule, 4), told([1.0, 2.0, 3.0, 99.0], valid))
        np.testing.assert_array_equal(out.parents, [0, 1, 2, 2])
        alive = jnp.array([False, True, True, True])
        _, out = rule.step(start(rule, 4), told([-9.0, 2.0, 3.0, 1.0], alive, alive))
        np.testing.assert_array_equal(out.parents, [0, 1, 2, 2])
        _, out = rule.step(start(rule, 4), told([9.0, 2.0, 3.0, 1.0], alive, alive))
        assert out.parents[3] == 2

    def test_copies_move_by_at_most_perturb_and_others_not_at_all(self):
        rule = PopulationPBT(every=1, perturb=0.1, quantile=0.25)
        moves = []
        for seed in range(50):
            state = start(rule, 4, seed)
            _, out = rule.step(state, told([1.0, 2.0, 3.0, 4.0]))
            np.testing.assert_array_equal(out.x[1:], state.x[1:])
            moves.append(out.x[0] - state.x[3])
        moves = np.asarray(moves)
        assert 0.08 < np.abs(moves).max() <= 0.2  # a reflection may add to it, by no more than itself
        assert np.unique(moves).size == moves.size

    def test_the_first_member_begins_as_given_and_the_others_spread(self):
        rule = PopulationPBT(spread=1.0)
        x = np.concatenate([start(rule, 9, seed, at=0.9).x for seed in range(40)]).reshape(40, 9, D)
        assert (x[:, 0] == np.float32(0.9)).all()
        assert x[:, 1:].min() < 0.05
        assert x[:, 1:].max() > 0.95
        narrow = np.abs(start(PopulationPBT(spread=0.1), 200).x[1:] - 0.5)
        assert 0.09 < narrow.max() <= 0.1  # a half width
        # Of 400 uniform draws in a tenth of the range each lies within 4.5 standard errors (0.015) of its share.
        whole = np.asarray(start(rule, 401, at=0.9).x[1:, 0])
        np.testing.assert_allclose([(whole < edge).mean() for edge in np.arange(0.1, 1.0, 0.1)],
                                   np.arange(0.1, 1.0, 0.1), atol=0.11)  # fmt: skip

    def test_bad_settings(self):
        for settings, words in (
            ({"every": 0}, "every must be at least 1"),
            ({"selection": "best"}, "truncation"),
            ({"quantile": 0.6}, "quantile must be in"),
            ({"perturb": 0.0}, "perturb must be in"),
            ({"resample": 1.5}, "resample must be in"),
        ):
            with pytest.raises(ValueError, match=words):
                PopulationPBT(**settings)
        with pytest.raises(TypeError, match="every must be a whole number"):
            PopulationPBT(every=2.5)


class TestSharedSPSA:
    def test_a_mapping_is_no_tuner(self):
        with pytest.raises(TypeError, match=r"spsa must be of type SPSA, for example SPSA\(\), got \{'c': 0.1\}"):
            SharedSPSA({"c": 0.1})

    def test_pairs_probe_on_both_sides_at_the_same_time(self):
        state = start(SharedSPSA(), 5)
        x = np.asarray(SharedSPSA().first(state))
        np.testing.assert_allclose(x[0] + x[1], 1.0, atol=1e-6)
        np.testing.assert_allclose(x[2] + x[3], 1.0, atol=1e-6)
        np.testing.assert_array_equal(x[4], [0.5, 0.5])
        assert (np.abs(x[:4] - 0.5) > 0.1).all()

    def test_what_learning_adds_to_everybody_moves_nothing(self):
        rule = SharedSPSA()
        state, _ = run(rule, start(rule, 6), jnp.cumsum(jnp.ones((50, 6)) * 3.0, axis=0), jnp.ones((50, 6), bool))
        np.testing.assert_allclose(state.centre.centre, 0.5, atol=1e-6)


@pytest.mark.parametrize("kind", ["level", "rate"])
@pytest.mark.parametrize(("rule", "enough"), [(SharedSPSA(), 0.9), (PopulationPBT(every=2), 0.6)], ids=["spsa", "pbt"])
def test_a_population_finds_an_optimum_under_noise_and_drift(rule, enough, kind):
    """8 members, 100 evaluations, noise of 20 % of the objective's range; learners of their own level."""
    seeds, size, optimum = 100, 8, jnp.array([0.3, 0.75])

    def one(key):
        key_rule, key_level, key_noise = jax.random.split(key, 3)
        state = rule.init(SPACE, jnp.full((size, D), 0.5), key_rule)
        level = 0.2 * jax.random.normal(key_level, (size,))

        def period(carry, inputs):
            state, x, total, level = carry
            t, noise = inputs
            f = -jnp.square((x - optimum[None]) / 0.75).mean(axis=-1)
            total = total + 1 + f
            score = total if kind == "rate" else f + level + 3 * (1 - jnp.exp(-t / 40))
            state, out = rule.step(state, told(score + 0.2 * noise))
            return (state, out.x, total[out.parents], level[out.parents]), out.x.mean(axis=0)

        inputs = (jnp.arange(100.0), jax.random.normal(key_noise, (100, size)))
        _, centres = jax.lax.scan(period, (state, rule.first(state), jnp.zeros((size,)), level), inputs)
        return centres[-10:].mean(axis=0)

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds))
    share = float((jnp.abs(found - optimum[None]) <= 0.1).mean())
    assert share >= enough, share
