"""Agents that evolve cheaply, and histories of evaluations."""

import itertools
import json
from pathlib import Path

import numpy as np

from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.types import EpisodeData, EvalMetrics, HyperparamSet
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.host import LoopController
from tests.host_parts import Source


def history(scores, train=None):
    """Evaluations of these scores; with training scores they are validation scores."""
    pairs = [{}] * len(scores) if train is None else [
        {"train_score": float(t), "val_score": float(s)} for t, s in zip(train, scores, strict=True)
    ]  # fmt: skip
    return [EvalMetrics(float(s), dict(m), i) for i, (s, m) in enumerate(zip(scores, pairs, strict=True))]


class Chooser(BaseAgent):
    """Two or more actions of fixed chances; its weights are the logits, and a window makes its actions likelier."""

    default_param_bounds = {"learning_rate": (1e-4, 1e-2), "gamma": (0.95, 0.999), "n_epochs": (1, 10)}  # noqa: RUF012
    default_log_params = ("learning_rate",)

    def __init__(self, logits=(0.0, 0.0), seed=0, on_policy=True, **params):
        self.logits = np.array(logits, np.float64)
        self.params = {"learning_rate": 1e-3, "gamma": 0.99, "n_epochs": 4, "flag": True, "name": "x", **params}
        self.rng, self.on_policy = np.random.default_rng(seed), on_policy
        self.windows, self.torn_down, self.loaded = [], 0, []

    @property
    def is_on_policy(self):
        return self.on_policy

    def action_probs(self, observation):
        chances = np.exp(self.logits - self.logits.max())
        return chances / chances.sum()

    def act(self, observation):
        return int(self.rng.choice(len(self.logits), p=self.action_probs(observation)))

    def act_deterministic(self, observation):
        return int(np.argmax(self.logits))

    def learn(self, episode_data):
        self.windows.append(episode_data)
        np.add.at(self.logits, np.asarray(episode_data.actions, int), self.params["learning_rate"])
        return {"loss": float(len(self.windows))}

    def get_hyperparams(self):
        return HyperparamSet(dict(self.params))

    def set_hyperparams(self, hyperparams):
        self.params.update(hyperparams.params)

    def save_weights(self, path):
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "logits.json").write_text(json.dumps(self.logits.tolist()))

    def load_weights(self, path):
        self.loaded.append(path)
        self.logits = np.array(json.loads((Path(path) / "logits.json").read_text()))

    def average_weights(self, paths):
        self.logits = np.mean([json.loads((Path(p) / "logits.json").read_text()) for p in paths], axis=0)

    def perturb_weights(self, noise_scale):
        self.logits = self.logits * (1 + noise_scale * self.rng.normal(size=self.logits.shape))

    def teardown(self):
        self.torn_down += 1


class Mover(Chooser):
    """A continuous action, in the bounds that it was told."""

    def __init__(self, value=0.0, **params):
        super().__init__((value,), **params)
        self.bounds = None

    action_probs = property()  # it has none

    def act(self, observation):
        return self.logits.astype(np.float32) + np.float32(0.0)

    act_deterministic = act

    def act_batch(self, observations):
        return np.repeat(self.logits[None].astype(np.float32), len(observations), axis=0)

    def learn(self, episode_data):
        self.windows.append(episode_data)

    def set_action_bounds(self, low, high):
        self.bounds = (low, high)


def window(actions=(0, 1), episode_id=0) -> EpisodeData:
    n = len(actions)
    return EpisodeData(
        observations=np.zeros((n, 1), np.float32), actions=list(actions), rewards=[1.0] * n,
        terminated=[False] * (n - 1) + [True], truncated=[False] * n, infos=[{}] * n, episode_id=episode_id,
    )  # fmt: skip


def loop_of(directory, agent, scores, callbacks=(), **settings):
    """A loop that is told `scores`, one a window, the last over and over; it is DORMANT after a few equal ones."""
    told = itertools.chain(scores, itertools.repeat(scores[-1]))
    return LoopController(
        agent, pipeline=settings.pop("pipeline", None) or Source(lambda i: window(episode_id=i)),
        checkpoint_registry=CheckpointRegistry(directory), callbacks=list(callbacks),
        backoff_scheduler=BackoffScheduler(plateau_threshold=2, dormant_threshold=4, max_interval_episodes=1),
        checkpoint_score_fn=lambda agent: float(next(told)), **{"max_episodes": 400, **settings},
    )  # fmt: skip
