"""Laws that every algorithm of the registry obeys on a discrete and a continuous environment, where it fits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.algorithms import registry
from tests.runs import assert_same_bits

OFF_POLICY = {
    "n_envs": 2, "n_steps": 16, "train_every": 2, "updates": 2, "batch_size": 8, "replay_size": 40, "warmup_steps": 8,
    "n_step": 2, "hidden_sizes": (8,),
}  # fmt: skip
SMALL = {
    "ppo": {"n_envs": 4, "n_steps": 16, "n_epochs": 2, "n_minibatches": 2, "hidden_sizes": (8,)},
    "recurrent_ppo": {
        "n_envs": 4,
        "n_steps": 16,
        "n_epochs": 2,
        "n_minibatches": 2,
        "hidden_sizes": (8,),
        "hidden_size": 4,
        "sequence_length": 4,
    },
    "graph_ppo": {
        "n_envs": 4,
        "n_steps": 16,
        "n_epochs": 2,
        "n_minibatches": 2,
        "hidden_sizes": (4,),
        "max_neurons": 6,
        "cell": "trainable_gru",
        "feedback": 1,
        "sequence_length": 4,
    },
    "dqn": OFF_POLICY,
    "rainbow": OFF_POLICY | {"hidden_sizes": (8, 8), "n_atoms": 11, "target_period": 5},
    "sac": OFF_POLICY,
    "td3": OFF_POLICY,
}
# Switches that make every hyperparameter count.
FULL = {
    "ppo": {"clip_value": True, "normalize_observations": True, "normalize_rewards": True, "rnd": True},
    "recurrent_ppo": {"clip_value": True, "normalize_observations": True, "normalize_rewards": True, "rnd": True},
    "graph_ppo": {"clip_value": True, "normalize_observations": True, "normalize_rewards": True, "rnd": True},
    "dqn": {"prioritized": True, "n_step": 3, "dueling": True, "hidden_sizes": (8, 8), "rnd": True},
    "rainbow": {"target_period": 0, "rnd": True},
    "sac": {"prioritized": True, "n_step": 3, "rnd": True},
    "td3": {"prioritized": True, "n_step": 3, "rnd": True},
}
# Steps so large that every clip binds, and schedules so short that they have begun to bend.
START = {
    "dqn": {
        "learning_rate": 0.03,
        "epsilon_steps": 30.0,
        "epsilon_end": 0.5,
        "max_grad_norm": 0.1,
        "per_beta_steps": 100.0,
    },
    "rainbow": {"learning_rate": 0.03, "max_grad_norm": 0.1, "per_beta_steps": 100.0},
    "sac": {"learning_rate": 0.03, "per_beta_steps": 100.0},
    "td3": {"learning_rate": 0.03, "per_beta_steps": 100.0},
}
# Small enough to run op by op.
OFF_POLICY_TINY = {"n_steps": 2, "train_every": 2, "updates": 1, "warmup_steps": 4}
TINY = {
    "ppo": {"n_envs": 2, "n_steps": 2, "n_epochs": 1, "n_minibatches": 1},
    "recurrent_ppo": {"n_envs": 2, "n_steps": 2, "n_epochs": 1, "n_minibatches": 1, "sequence_length": 2},
    "graph_ppo": {"n_envs": 2, "n_steps": 2, "n_epochs": 1, "n_minibatches": 1, "sequence_length": 2},
    "dqn": OFF_POLICY_TINY,
    "rainbow": OFF_POLICY_TINY | {"n_step": 2},
    "sac": OFF_POLICY_TINY,
    "td3": OFF_POLICY_TINY | {"policy_delay": 1},
}
ENVIRONMENTS = {"discrete": "CartPole-v1", "continuous": "Pendulum-v1"}
CASES = [(name, kind) for name in registry.names() for kind in registry.get(name).action_kinds]


@functools.cache
def algorithm_of(name, kind, full=False):
    cls = registry.get(name)
    settings = SMALL[name] | (FULL[name] if full else {})
    return cls(envs.make(ENVIRONMENTS[kind]), cls.config_type(**settings))


def hyper_of(algorithm, **changes):
    return {name: jnp.float32(value) for name, value in {**algorithm.hyperparams(), **changes}.items()}


def two_windows(algorithm, hyper, key):
    key_init, key_windows = jax.random.split(key)
    learner = algorithm.init(key_init, hyper)
    keys = jax.random.split(key_windows, 2)
    learner, stats = jax.lax.scan(lambda learner, key: algorithm.window(learner, hyper, key), learner, keys)
    return learner, jax.tree.map(lambda x: x[-1], stats)


@functools.cache
def compiled(name, kind, full=False):
    return jax.jit(functools.partial(two_windows, algorithm_of(name, kind, full)))


@pytest.mark.parametrize(("name", "kind"), CASES)
class TestLaws:
    def test_hashable_and_equal_when_made_alike(self, name, kind):
        algorithm = algorithm_of(name, kind)
        twin = dataclasses.replace(algorithm)
        assert twin == algorithm
        assert hash(twin) == hash(algorithm)

    def test_shapes_and_dtypes_are_stable(self, name, kind):
        algorithm = algorithm_of(name, kind)
        hyper, key = hyper_of(algorithm), jax.random.key(0)
        learner = jax.eval_shape(algorithm.init, key, hyper)
        after, stats = jax.eval_shape(algorithm.window, learner, hyper, key)
        assert jax.tree.structure(learner) == jax.tree.structure(after)
        for a, b in zip(jax.tree.leaves(learner), jax.tree.leaves(after), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
        assert all(x.shape == () for x in jax.tree.leaves(stats))

    def test_keys_are_consumed_once(self, name, kind, checked_keys):
        algorithm = algorithm_of(name, kind)
        jax.make_jaxpr(functools.partial(two_windows, algorithm))(hyper_of(algorithm), jax.random.key(0))
        jax.jit(functools.partial(two_windows, algorithm)).lower(hyper_of(algorithm), jax.random.key(0))

    def test_deterministic_action_ignores_the_key(self, name, kind):
        algorithm = algorithm_of(name, kind)
        learner = jax.jit(algorithm.init)(jax.random.key(0), hyper_of(algorithm))
        policy, obs = algorithm.policy(learner), learner.obs
        act = jax.jit(algorithm.act, static_argnums=4)
        carry = algorithm.initial_carry()
        a, _ = act(policy, obs, carry, jax.random.key(1), True)
        b, _ = act(policy, obs, carry, jax.random.key(2), True)
        np.testing.assert_array_equal(a, b)

    def test_limits_and_bounds_hold_the_defaults(self, name, kind):
        algorithm = algorithm_of(name, kind)
        defaults, limits = algorithm.hyperparams(), algorithm.hyperparam_limits()
        assert limits.keys() == defaults.keys()
        for leaf, value in defaults.items():
            assert limits[leaf][0] <= value <= limits[leaf][1]
        for leaf, parameter in algorithm.search_space().entries:
            assert parameter.low <= defaults[leaf] <= parameter.high
            assert limits[leaf][0] <= parameter.low < parameter.high <= limits[leaf][1]


# Laws that compile a window are checked every day for these, for the others as slow tests.
EVERY_DAY = {("ppo", "discrete")}


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*case, marks=() if case in EVERY_DAY else pytest.mark.slow) for case in CASES]
)
class TestCompiledLaws:
    def test_restore_brings_the_snapshot_back_and_keeps_the_environments(self, name, kind):
        algorithm = algorithm_of(name, kind)
        hyper = hyper_of(algorithm)
        before = jax.jit(algorithm.init)(jax.random.key(0), hyper)
        after, _ = jax.jit(algorithm.window)(before, hyper, jax.random.key(1))
        restored = algorithm.restore(after, algorithm.snapshot(before))
        assert_same_bits(algorithm.policy(restored), algorithm.policy(before))
        assert_same_bits(restored.env_state, after.env_state)

    def test_every_hyperparameter_matters(self, name, kind):
        algorithm = algorithm_of(name, kind, full=True)
        run = compiled(name, kind, full=True)
        start = {**algorithm.hyperparams(), **START.get(name, {"learning_rate": 0.03})}
        base = run(hyper_of(algorithm, **start), jax.random.key(0))[0].params
        for leaf, value in start.items():
            changed = run(hyper_of(algorithm, **start | {leaf: value * 0.5 + 0.01}), jax.random.key(0))[0].params
            same = all(
                np.array_equal(a, b) for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(changed), strict=True)
            )
            assert not same, f"{leaf} has no effect"

    def test_hyperparameters_do_not_recompile(self, name, kind):
        algorithm, traces = algorithm_of(name, kind), []

        @jax.jit
        def window(learner, hyper, key):
            traces.append(1)
            return algorithm.window(learner, hyper, key)

        key_init, key_a, key_b = jax.random.split(jax.random.key(0), 3)
        learner = jax.jit(algorithm.init)(key_init, hyper_of(algorithm))
        learner, _ = window(learner, hyper_of(algorithm), key_a)
        window(learner, hyper_of(algorithm, gamma=0.9), key_b)
        assert len(traces) == 1

    def test_same_key_same_bits_other_key_other_everything(self, name, kind):
        algorithm, run = algorithm_of(name, kind), compiled(name, kind)
        first = run(hyper_of(algorithm), jax.random.key(1))
        assert_same_bits(first, run(hyper_of(algorithm), jax.random.key(1)))
        other = run(hyper_of(algorithm), jax.random.key(2))
        for a, b in zip(jax.tree.leaves(first[0].params), jax.tree.leaves(other[0].params), strict=True):
            assert not np.array_equal(a, b)

    def test_vmap_lanes_are_independent(self, name, kind):
        algorithm = algorithm_of(name, kind)
        run = jax.jit(jax.vmap(functools.partial(two_windows, algorithm)))
        rates = jnp.asarray([1e-4, 1e-3, 1e-2], jnp.float32)
        hyper = {k: jnp.broadcast_to(v, (3,)) for k, v in hyper_of(algorithm).items()} | {"learning_rate": rates}
        keys = jax.random.split(jax.random.key(0), 3)
        all_three = run(hyper, keys)
        changed = run(hyper | {"learning_rate": rates.at[2].set(0.5)}, keys.at[2].set(jax.random.key(99)))
        for lane in (0, 1):
            assert_same_bits(
                jax.tree.map(lambda x, i=lane: x[i], all_three), jax.tree.map(lambda x, i=lane: x[i], changed)
            )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_jit_is_no_jit(name, kind):
    cls = registry.get(name)
    algorithm = cls(envs.make(ENVIRONMENTS[kind]), cls.config_type(**(SMALL[name] | TINY[name])))
    hyper = hyper_of(algorithm)
    learner = jax.jit(algorithm.init)(jax.random.key(5), hyper)
    jitted, _ = jax.jit(algorithm.window)(learner, hyper, jax.random.key(6))
    with jax.disable_jit():
        plain, _ = algorithm.window(learner, hyper, jax.random.key(6))
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(jitted.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_no_tracer_leaks(name, kind):
    algorithm = algorithm_of(name, kind)
    with jax.checking_leaks():
        jax.eval_shape(functools.partial(two_windows, algorithm), hyper_of(algorithm), jax.random.key(0))
