"""Small TensorFlow agents and windows for tests."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tensor_optix.adapters.tensorflow.tf_agent import TFAgent
from tensor_optix.algorithms.tf_ppo import TFPPOAgent
from tensor_optix.algorithms.tf_ppo_continuous import TFGaussianPPOAgent
from tensor_optix.core.normalizers import ObsNormalizer, RewardNormalizer
from tensor_optix.core.types import EpisodeData, HyperparamSet

OBS = 3


def network(n_outputs, seed=0, hidden=(3,), obs=OBS):
    layers = tf.keras.layers
    sizes = [layers.Dense(n, activation="tanh", kernel_initializer=initial(seed + i)) for i, n in enumerate(hidden)]
    head = layers.Dense(n_outputs, kernel_initializer=initial(seed + 7), bias_initializer=initial(seed + 8, True))
    return tf.keras.Sequential([layers.Input((obs,)), *sizes, head])


def initial(seed, bias=False):
    kinds = tf.keras.initializers
    return kinds.RandomNormal(stddev=0.1, seed=seed) if bias else kinds.GlorotNormal(seed=seed)


def agent_of(kind, params=None, optimizer=None, normalizers=False, seed=0, net_seed=0, hidden=(3,), **settings):
    """A TFAgent ("generic"), TFPPOAgent ("discrete", 2 actions) or TFGaussianPPOAgent ("gaussian", 2 numbers)."""
    optimizer = optimizer or tf.keras.optimizers.Adam(0.01)
    hyperparams = HyperparamSet({"learning_rate": 0.01, **(params or {})}, 3)
    if kind == "generic":
        return TFAgent(network(2, net_seed, hidden), optimizer, hyperparams, seed=seed, **settings)
    nets = network(2 if kind == "discrete" else 4, net_seed, hidden), network(1, net_seed + 50, hidden)
    if normalizers:
        settings |= {"reward_normalizer": RewardNormalizer(), "obs_normalizer": ObsNormalizer((OBS,))}
    if kind == "discrete":
        return TFPPOAgent(*nets, optimizer, hyperparams, seed=seed, **settings)
    return TFGaussianPPOAgent(*nets, optimizer, 2, hyperparams, seed=seed, **settings)


def window(kind, n=12, seed=0, **fields):
    rng = np.random.default_rng(seed)
    terminated = rng.random(n) < 0.2
    actions = rng.normal(size=(n, 2)).astype(np.float32) * 0.5 if kind == "gaussian" else rng.integers(0, 2, n)
    values = {
        "observations": rng.normal(size=(n, OBS)).astype(np.float32), "actions": actions,
        "rewards": rng.normal(size=n).tolist(), "terminated": terminated.tolist(), "truncated": [False] * n,
        "infos": [{}] * n, "episode_id": 0, "final_obs": rng.normal(size=OBS).astype(np.float32),
    }  # fmt: skip
    return EpisodeData(**{**values, **fields})


def everything(agent):
    """All numbers that learning changes, as a list of arrays."""
    owners = [*agent._networks.values(), agent._optimizer]
    numbers = [v.value.numpy() for owner in owners for v in owner.variables]
    return numbers + [np.asarray(x) for part in agent._parts.values() for x in part.state_dict().values()]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def differ(left, right):
    return any((a != b).any() for a, b in zip(left, right, strict=True))
