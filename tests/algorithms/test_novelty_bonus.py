"""The bonus for novelty as an option of every algorithm: what it adds, what it leaves alone, and what it is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs, train
from tensor_optix.algorithms import novelty_bonus, registry
from tensor_optix.core import novelty
from tensor_optix.envs.exploration import DeepSea
from tests.laws.test_algorithms import ENVIRONMENTS, SMALL, hyper_of
from tests.runs import assert_same_bits


def algorithm_of(name, **settings):
    cls = registry.get(name)
    env = envs.make(ENVIRONMENTS[cls.action_kinds[0]])
    # Two rewards of 1 are beyond the Huber loss's bend, where more reward makes no difference yet.
    single = {} if cls.is_on_policy else {"n_step": 1}
    return cls(env, cls.config_type(**SMALL[name] | single | settings))


@functools.cache
def run(algorithm, coef, windows=3):
    def program(key):
        key_init, key_windows = jax.random.split(key)
        hyper = hyper_of(algorithm, **({"rnd_coef": coef} if algorithm.config.rnd else {}))
        learner = algorithm.init(key_init, hyper)
        step = lambda learner, key: algorithm.window(learner, hyper, key)  # noqa: E731
        return jax.lax.scan(step, learner, jax.random.split(key_windows, windows))

    return jax.jit(program)(jax.random.key(0))


@pytest.mark.parametrize(
    "name",
    [
        "ppo",
        *(pytest.param(n, marks=pytest.mark.slow) for n in registry.names() if n != "ppo"),
    ],
)
def test_every_algorithm_learns_from_it_and_no_score_sees_it(name):
    algorithm = algorithm_of(name, rnd=True)
    assert {"rnd_coef", "rnd_learning_rate"} <= set(algorithm.hyperparams()) & set(algorithm.hyperparam_limits())
    assert "rnd_coef" not in algorithm_of(name).hyperparams()
    learner, stats = run(algorithm, 1.0)
    assert stats.finite.all()
    other, without = run(algorithm, 0.0)
    assert not np.array_equal(jax.tree.leaves(learner.params)[0], jax.tree.leaves(other.params)[0])
    np.testing.assert_array_equal(stats.return_sum[0], without.return_sum[0])  # in the first window both act alike
    assert int(learner.novelty.obs_moments.count) > 0
    assert int(learner.novelty.opt.count) > 0
    taken = algorithm.restore(other, algorithm.snapshot(learner))
    assert_same_bits(taken.novelty, learner.novelty)


@pytest.mark.slow
def test_nan_in_what_is_known_is_seen():
    algorithm = algorithm_of("dqn", rnd=True)
    learner, _ = run(algorithm, 1.0)
    known = learner.novelty
    # In moments of Adam that are not read before they are NaN: with a learning rate of 0 nothing else sees them.
    broken = known.replace(opt=known.opt._replace(mu=jax.tree.map(lambda leaf: leaf * jnp.nan, known.opt.mu)))
    still = {"rnd_coef": 0.0, "learning_rate": 0.0}
    window = jax.jit(lambda learner, key: algorithm.window(learner, hyper_of(algorithm, **still), key)[1].finite)
    assert window(learner, jax.random.key(0))
    assert not window(learner.replace(novelty=broken), jax.random.key(0))


def test_rows_without_weight_bring_nothing_and_are_not_learned_from():
    known = novelty.init(jax.random.key(0), (3,))
    obs = jax.random.normal(jax.random.key(1), (8, 3))
    weight = jnp.array([1.0, 0.0] * 4)
    hyper = {"rnd_coef": jnp.float32(0.5), "rnd_learning_rate": jnp.float32(1e-3)}
    after, bonus = jax.jit(novelty_bonus.rewarded)(known, obs, weight, hyper)
    np.testing.assert_array_equal(bonus[1::2], 0.0)
    assert (bonus[::2] > 0).all()
    other, again = jax.jit(novelty_bonus.rewarded)(known, obs.at[1::2].set(9.0), weight, hyper)
    assert_same_bits((after, bonus), (other, again))


def test_minibatches_cover_every_row_once():
    seen = []
    hyper = {"rnd_coef": jnp.float32(1.0), "rnd_learning_rate": jnp.float32(0.0)}
    known = novelty.init(jax.random.key(0), (1,))
    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr(novelty, "train", lambda known, obs, *_: seen.append(np.asarray(obs)) or known)
        novelty_bonus.rewarded(known, jnp.arange(24.0).reshape(6, 4, 1), None, hyper, 3)
    assert len(seen) == 3
    np.testing.assert_array_equal(np.sort(np.concatenate(seen).ravel()), np.arange(24.0))
    assert all(rows.min() < 3 and rows.max() > 20 for rows in seen), "each reaches over the whole window"


# Depth of the sea, environment steps, configuration, hyperparameters.
SETTINGS = {
    "ppo": (
        10,
        60_000,
        {"n_envs": 8, "n_steps": 80, "hidden_sizes": [64], "activation": "relu"},
        {"learning_rate": 1e-3, "entropy_coef": 0.01},
    ),
    "dqn": (
        14,
        20_000,
        {"train_every": 4, "updates": 2, "batch_size": 64, "hidden_sizes": [64], "warmup_steps": 500},
        {"learning_rate": 1e-3, "epsilon_steps": 2000.0},
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SETTINGS)
def test_finds_what_dithering_does_not(name):
    depth, steps, config, hyperparams = SETTINGS[name]
    found = {}
    for rnd in (False, True):
        result = train(
            DeepSea(depth),
            name,
            seeds=4,
            total_steps=steps,
            config=config | {"rnd": rnd},
            hyperparams=hyperparams,
            tune=False,
            stop=False,
            final_episodes=4,
            progress=False,
        )
        found[rnd] = int((result.scores > 0.9).sum())
    assert found[False] <= 1, found
    assert found[True] >= 3, found
