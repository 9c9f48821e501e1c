"""What a spawned variant's weights are: every one multiplied by a number close to 1, and targets with them."""

import jax
import numpy as np
import pytest

from tensor_optix import envs
from tensor_optix.algorithms import registry
from tensor_optix.algorithms.flat_adam import perturbed

FIRST = {"discrete": "CartPole-v1", "continuous": "Pendulum-v1"}


def test_every_weight_is_multiplied_by_normal_noise():
    tree = {"a": np.full((200, 50), 2.0, np.float32), "b": np.zeros(3, np.float32)}
    new = perturbed(tree, jax.random.key(0), np.float32(0.1))
    ratio = np.asarray(new["a"]) / 2.0
    assert abs(ratio.mean() - 1) < 4 * 0.1 / 100  # 10 000 draws
    assert abs(ratio.std() / 0.1 - 1) < 0.05
    np.testing.assert_array_equal(new["b"], 0)


EVERY_DAY = ("ppo", "sac")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow) for name in registry.names()]
)
def test_targets_follow_and_the_rest_stays(name):
    kind = registry.get(name)
    env = envs.make(FIRST[kind.action_kinds[0]])
    config = {"n_envs": 2, "hidden_sizes": (8,)}
    algorithm = kind(env, kind.config_type(**config))
    hyper = {k: np.float32(v) for k, v in algorithm.hyperparams().items()}
    learner = algorithm.init(jax.random.key(0), hyper)
    moved = algorithm.perturb(learner, jax.random.key(1), np.float32(0.05))
    before, after = jax.tree.leaves(algorithm.policy(learner)), jax.tree.leaves(algorithm.policy(moved))
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, after, strict=True))
    for target, online in getattr(algorithm, "follows", {}).items():
        np.testing.assert_array_equal(getattr(moved.agent, target), getattr(moved.agent, online).params)
    if hasattr(learner, "agent"):
        for network in algorithm.networks:
            old, new = (getattr(x.agent, network) for x in (learner, moved))
            np.testing.assert_array_equal(old.opt.mu, new.opt.mu)
        if hasattr(learner.agent, "log_alpha"):
            np.testing.assert_array_equal(learner.agent.log_alpha.params, moved.agent.log_alpha.params)
    np.testing.assert_array_equal(learner.obs, moved.obs)
