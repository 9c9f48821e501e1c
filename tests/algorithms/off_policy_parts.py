"""Small off-policy agents, pipelines and windows for their tests, and a network that counts its traces."""

import itertools

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tensor_optix.algorithms.flax_dqn import FlaxDQNAgent
from tensor_optix.algorithms.flax_rainbow import FlaxRainbowAgent
from tensor_optix.algorithms.flax_sac import FlaxSACAgent
from tensor_optix.algorithms.flax_td3 import FlaxTD3Agent
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline

AGENTS = {"dqn": FlaxDQNAgent, "rainbow": FlaxRainbowAgent, "sac": FlaxSACAgent, "td3": FlaxTD3Agent}
# One of each family every day, the others as slow tests.
EACH = [pytest.param(kind, marks=() if kind in ("dqn", "sac") else pytest.mark.slow) for kind in AGENTS]
DISCRETE, CONTINUOUS = ("dqn", "rainbow"), ("sac", "td3")
OBS, CHOICES, DIMS = 3, 4, 2
LOW, HIGH = [-2.0, 0.0], [2.0, 10.0]
HYPER = {"batch_size": 8, "learning_starts": 20, "replay_capacity": 300, "updates_per_step": 0.5, "learning_rate": 0.01}
LOSSES = {
    "dqn": {"loss", "q_mean", "td_error_mean"},
    "rainbow": {"loss", "q_mean", "td_error_mean"},
    "sac": {"actor_loss", "critic_loss", "alpha", "entropy", "q_mean"},
    "td3": {"actor_loss", "critic_loss", "q_mean"},
}
COUNTS = {
    "dqn": {"epsilon", "target_updated", "episode_reward"},
    "rainbow": {"target_updated", "episode_reward"},
    "sac": set(),
    "td3": {"policy_update"},
}


def agent_of(kind, seed=0, params=HYPER, **options):
    width = CHOICES if kind in DISCRETE else DIMS
    options.setdefault("hidden_sizes", (4, 4))
    agent = AGENTS[kind](OBS, width, HyperparamSet(dict(params)), seed=seed, **options)
    if kind in CONTINUOUS:
        agent.set_action_bounds(LOW, HIGH)
    return agent


class Noisy(gymnasium.Env):
    """Observations of noise, rewards that depend on the action; ends in either way."""

    def __init__(self, kind):
        self.observation_space = gymnasium.spaces.Box(-9, 9, (OBS,), np.float32)
        bounds = np.float32(LOW), np.float32(HIGH)
        discrete = kind in DISCRETE
        self.action_space = gymnasium.spaces.Discrete(CHOICES) if discrete else gymnasium.spaces.Box(*bounds)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=OBS).astype(np.float32), {}

    def step(self, action):
        obs, reward = self.np_random.normal(size=OBS), float(np.sum(action) + self.np_random.normal())
        terminated, truncated = self.np_random.random(2) < 0.1
        return obs.astype(np.float32), reward, bool(terminated), bool(truncated), {}


def pipeline_of(which, kind, agent, steps=8, seed=0):
    makers = [lambda: Noisy(kind)] * 3
    if which == "one":
        return BatchPipeline(makers[0](), agent, 3 * steps, seed=seed)
    return VectorBatchPipeline(makers, agent, steps, seed=seed)


def window_of(kind, rows=24, seed=0, episode_id=0, **fields):
    """A window of noise; the task ends at its last row."""
    rng = np.random.default_rng(seed)
    discrete = kind in DISCRETE
    actions = rng.integers(0, CHOICES, rows) if discrete else rng.uniform(LOW, HIGH, (rows, DIMS))
    fields = {
        "observations": rng.normal(size=(rows, OBS)).astype(np.float32),
        "actions": actions,
        "rewards": list(rng.normal(size=rows)),
        "terminated": [False] * (rows - 1) + [True],
        "truncated": [False] * rows,
        "infos": [{}] * rows,
        "episode_id": episode_id,
    } | fields
    return EpisodeData(**fields)


def learned(agent, which, kind, count):
    """The agent's own windows, learned from as they come; what the last one reported."""
    return [agent.learn(data) for data in itertools.islice(pipeline_of(which, kind, agent).episodes(), count)][-1]


def present(agent):
    return jax.tree.map(np.array, (agent._params, agent._opt))


TRACES: list = []


class Net(nnx.Module):
    """Counts its traces, and brings variables that are no parameters."""

    def __init__(self, width, rngs, n_in=OBS):
        self.layer, self.out = nnx.Linear(n_in, 6, rngs=rngs), nnx.Linear(6, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, *x):
        TRACES.append(x[0].shape)
        return self.out(self.dropout(nnx.relu(self.layer(jnp.concatenate(x, axis=-1)))))


def own_networks(kind):
    if kind == "dqn":
        return {"q_network": Net(CHOICES, nnx.Rngs(0))}
    critics = tuple(Net(1, nnx.Rngs(i), OBS + DIMS) for i in (1, 2))
    return {"actor": Net(2 * DIMS if kind == "sac" else DIMS, nnx.Rngs(0)), "critics": critics}


def started(kind, seed=0, params=HYPER, **options):
    """An agent that does not act at random any more."""
    agent = agent_of(kind, seed, {**params, "epsilon": 0.0} if kind == "dqn" else params, **options)
    agent.learn(window_of(kind))
    return agent
