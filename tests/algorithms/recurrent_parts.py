"""Small recurrent agents, pipelines and windows for their tests, and a reference in NumPy."""

import itertools

import jax
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tensor_optix.algorithms.flax_recurrent_ppo import FlaxRecurrentPPOAgent
from tensor_optix.algorithms.flax_recurrent_ppo_continuous import FlaxRecurrentGaussianPPOAgent
from tensor_optix.core.types import EpisodeData, HyperparamSet
from tensor_optix.pipeline import BatchPipeline, VectorBatchPipeline
from tests.algorithms import test_recurrent_ppo as reference
from tests.algorithms.test_flax_ppo import CHOICES, DIMS, HIGH, LOW, OBS, Noisy, unit_actions

HYPER = {"n_epochs": 1, "minibatch_size": 16, "bptt_len": 4, "learning_rate": 0.01}
CELLS = ("lstm", "gru")


def agent_of(kind="discrete", seed=0, params=HYPER, bold=True, **options):
    """A small agent; a bold one's policy depends much on what it sees: an almost uniform one hides mistakes."""
    options = {"hidden_sizes": (4,), "hidden_size": 3, **options}
    hyperparams = HyperparamSet(dict(params))
    if kind == "discrete":
        agent = FlaxRecurrentPPOAgent(OBS, CHOICES, hyperparams, seed=seed, **options)
    else:
        agent = FlaxRecurrentGaussianPPOAgent(OBS, DIMS, hyperparams, seed=seed, **options)
        agent.set_action_bounds(LOW, HIGH)
    if bold:
        actor = agent._params["actor"]
        agent._params["actor"] = {**actor, "head": jax.tree.map(lambda x: x * 100.0, actor["head"])}
    return agent


def pipeline_of(which, kind, agent=None, rows=8, **options):
    """One environment or three; windows of 24 rows, so that learning from them is one program for most tests."""
    envs = [lambda i=i: Noisy(kind, i) for i in range(3)]
    if which == "one":
        return BatchPipeline(envs[1](), agent, 3 * rows, **options)
    if which == "several":
        return VectorBatchPipeline(envs, agent, rows, **options)
    return VectorBatchPipeline(SyncVectorEnv(envs, autoreset_mode=AutoresetMode[which]), agent, rows, **options)


WHICH = ("one", "several", "NEXT_STEP", "SAME_STEP", "DISABLED")


def window_of(kind="discrete", rows=24, seed=0, **fields):
    """A window of noise; the task ends at its last row, so that every row is usable."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, CHOICES, rows) if kind == "discrete" else rng.normal(size=(rows, DIMS))
    fields = {
        "observations": rng.normal(size=(rows, OBS)).astype(np.float32),
        "actions": actions,
        "rewards": list(rng.normal(size=rows)),
        "terminated": [False] * (rows - 1) + [True],
        "truncated": [False] * rows,
        "infos": [{}] * rows,
        "episode_id": 0,
    } | fields
    return EpisodeData(**fields)


def present(agent):
    return jax.tree.map(np.array, (agent._params, agent._opt))


def segments_of(data):
    starts = [*data.metadata.get("segment_starts", [0]), data.length]
    return list(itertools.pairwise(starts))


# -- a reference: every environment on its own, one step at a time, in float64 --------------------------------------


class Remembering:
    """What the networks carry of N environments, moved on by the windows that they are shown."""

    def __init__(self, cell, size, n_envs):
        width = {"lstm": 2, "gru": 1}[cell] * size
        self.cell, self.zeros = cell, {"actor": np.zeros(width), "critic": np.zeros(width)}
        self.now = [self.zeros] * n_envs

    @property
    def hidden(self):
        return np.stack([np.concatenate([each["actor"], each["critic"]]) for each in self.now])

    def through(self, agent, data, gamma=0.9, lam=0.8):
        """The rows of each environment, with all that the loss needs."""
        params, blocks = reference.float64(agent._params), []
        actions = unit_actions("discrete" if "log_std" not in params else "continuous", data.actions)
        begins, finals = set(data.episode_starts), data.metadata["final_observations"]
        for i, (start, end) in enumerate(segments_of(data)):
            rows, carry = [], self.now[i]
            for t in range(start, end):
                if t in begins:
                    carry = self.zeros
                row = {"start": t in begins, "obs": np.asarray(data.observations[t], np.float64), "carry": carry}
                out, actor = self.step(params, "actor", row["obs"], carry)
                value, critic = self.step(params, "critic", row["obs"], carry)
                carry = {"actor": actor, "critic": critic}
                row["log_prob"], _ = reference.log_prob_and_entropy(out, params.get("log_std"), actions[t])
                ended = data.terminated[t] or data.truncated[t]
                following = finals[t] if ended else np.asarray(data.final_obs).reshape(-1, OBS)[i]
                beyond, _ = self.step(params, "critic", np.asarray(following, np.float64), carry)
                rows.append({**row, "action": actions[t], "value": value[0], "beyond": beyond[0]})
            ahead = 0.0
            for row, t in zip(reversed(rows), reversed(range(start, end)), strict=True):
                ended = data.terminated[t] or data.truncated[t]
                outside = ended or t == end - 1
                following = 0.0 if data.terminated[t] else row["beyond"] if outside else rows[t + 1 - start]["value"]
                ahead = data.rewards[t] + gamma * following - row["value"] + (0.0 if ended else gamma * lam * ahead)
                row["advantage"], row["target"] = ahead, ahead + row["value"]
            self.now[i] = carry
            blocks.append(rows)
        return blocks

    def step(self, params, name, obs, carry):
        return reference.step_of(params[name], self.cell, obs, carry[name])


def of_rows(blocks, name):
    return np.array([row[name] for rows in blocks for row in rows])
