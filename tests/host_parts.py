"""Agents and sources that tests of the host driver share."""

import json
import math
from pathlib import Path

import numpy as np

from tensor_optix import LoopCallback
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.types import EpisodeData, HyperparamSet


def window_of(rewards, ends=(), episode_id=0, **fields) -> EpisodeData:
    n = len(rewards)
    fields.setdefault("observations", np.zeros((n, 1), np.float32))
    return EpisodeData(
        actions=np.zeros(n), rewards=list(rewards), terminated=[i in ends for i in range(n)], truncated=[False] * n,
        infos=[{}] * n, episode_id=episode_id, **fields,
    )  # fmt: skip


class Source(BasePipeline):
    """Windows from a function of their number; remembers what was asked of it."""

    def __init__(self, window=lambda i: window_of([1.0], ends=(0,), episode_id=i), count=math.inf):
        self.window, self.count = window, count
        self.collected, self.closed, self.opened = 0, 0, 0

    def setup(self):
        self.opened += 1

    def episodes(self):
        while self.collected < self.count:
            self.collected += 1
            yield self.window(self.collected - 1)

    def teardown(self):
        self.closed += 1


class Plain(BaseAgent):
    """The six methods and a number that counts windows as its weights."""

    def __init__(self, **params):
        self.weight, self.params, self.seen = 0.0, params, []

    def act(self, observation):
        return 0

    def learn(self, episode_data):
        self.seen.append(dict(self.params))
        self.weight += 1.0

    def get_hyperparams(self):
        return HyperparamSet(dict(self.params))

    def set_hyperparams(self, hyperparams):
        self.params = dict(hyperparams.params)

    def save_weights(self, path):
        Path(path).write_text(json.dumps(self.weight))

    def load_weights(self, path):
        self.weight = json.loads(Path(path).read_text())


class Forecaster(Plain):
    """Predicts the next value of a stream as a linear function of the last two; learns by least mean squares."""

    def __init__(self, learning_rate=0.02):
        super().__init__(learning_rate=learning_rate)
        self.coefficients = np.zeros(2)

    def act(self, observation):
        return float(self.coefficients @ observation)

    def learn(self, episode_data):
        for x, y in zip(episode_data.observations, episode_data.metadata["targets"], strict=True):
            self.coefficients += self.params["learning_rate"] * (y - self.coefficients @ x) * x
        return {"loss": -float(np.mean(episode_data.rewards))}

    def save_weights(self, path):
        Path(path).write_text(json.dumps(self.coefficients.tolist()))

    def load_weights(self, path):
        self.coefficients = np.array(json.loads(Path(path).read_text()))


class Stream(BasePipeline):
    """An endless second-order autoregressive series; the reward of a forecast is minus its squared error."""

    def __init__(self, agent, n=32):
        self.agent, self.n, self.rng = agent, n, np.random.default_rng(0)

    def setup(self):
        self.last = np.zeros(2)

    def episodes(self):
        for i in range(10_000):
            xs, ys, rewards = [], [], []
            for _ in range(self.n):
                y = 1.2 * self.last[0] - 0.5 * self.last[1] + self.rng.normal()
                rewards.append(-((y - self.agent.act(self.last)) ** 2))
                xs.append(self.last)
                ys.append(y)
                self.last = np.array([y, self.last[0]])
            yield window_of(rewards, episode_id=i, observations=np.array(xs), metadata={"targets": ys})

    def teardown(self):
        pass


def stop_after(opt, windows):
    """Ends a run that would go on until it has learned."""

    class Stop(LoopCallback):
        def on_episode_end(self, episode_id, eval_metrics):
            if episode_id + 1 >= windows:
                opt.stop()

    opt.add_callback(Stop())
