"""Host runs of real agents under faults: resumed to the bit, interrupted, a full disk, environments that fail."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tensor_optix import HyperparamSet, ObsNormalizer, RewardNormalizer, RLOptimizer, StopReason, VectorBatchPipeline
from tensor_optix.loop import durable
from tensor_optix.loop.run_dir import RunDir

ROOT = Path(__file__).parent.parent.parent
PARAMS = {"learning_rate": 1e-3, "n_epochs": 2, "minibatch_size": 32}


def torch_agent():
    import torch
    from torch import nn

    from tensor_optix import TorchPPOAgent

    torch.manual_seed(0)
    actor, critic = (nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, n)) for n in (2, 1))
    return TorchPPOAgent(
        actor, critic, torch.optim.Adam([*actor.parameters(), *critic.parameters()]), HyperparamSet(dict(PARAMS)),
        reward_normalizer=RewardNormalizer(), obs_normalizer=ObsNormalizer((4,)),
    )  # fmt: skip


def flax_agent():
    from tensor_optix import FlaxPPOAgent

    return FlaxPPOAgent(
        4, 2, HyperparamSet(dict(PARAMS)), hidden_size=16, reward_normalizer=RewardNormalizer(),
        obs_normalizer=ObsNormalizer((4,)),
    )  # fmt: skip


def tf_agent():
    import tensorflow as tf

    from tensor_optix import TFPPOAgent

    tf.keras.utils.set_random_seed(0)
    actor, critic = (
        tf.keras.Sequential([
            tf.keras.layers.Input(shape=(4,)), tf.keras.layers.Dense(16, activation="tanh"), tf.keras.layers.Dense(n)
        ])
        for n in (2, 1)
    )  # fmt: skip
    return TFPPOAgent(
        actor, critic, tf.keras.optimizers.Adam(1e-3), HyperparamSet(dict(PARAMS)),
        reward_normalizer=RewardNormalizer(), obs_normalizer=ObsNormalizer((4,)),
    )  # fmt: skip


AGENTS = {"torch": torch_agent, "flax": flax_agent, "tf": tf_agent}


def run(directory, kind, windows, pipeline=None, **settings):
    agent = AGENTS[kind]()
    pipeline = pipeline or VectorBatchPipeline([lambda: gym.make("CartPole-v1")] * 2, window_size=48, seed=3)
    opt = RLOptimizer(
        agent=agent, pipeline=pipeline, checkpoint_dir=directory, max_episodes=windows, rollback_on_degradation=True,
        diagnostics=True, score_smoothing=2, **settings,
    )  # fmt: skip
    return agent, opt, opt.run()


def behaviour(agent):
    """Numbers that depend on every weight, and on the generator that actions are drawn with."""
    observations = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    return [agent.action_probs(obs).tolist() for obs in observations], agent.act_batch(observations).tolist()


@pytest.mark.parametrize(
    "kind", ["torch", pytest.param("flax", marks=pytest.mark.slow), pytest.param("tf", marks=pytest.mark.slow)]
)
def test_n_and_n_windows_are_2n_to_the_bit(tmp_path, kind):
    agent, whole, result = run(tmp_path, kind, 14)
    _, first, _ = run(tmp_path, kind, 6)
    other, _, again = run(tmp_path, kind, 14, resume_from=first.run_dir)
    assert [m.primary_score for m in again.history] == [m.primary_score for m in result.history]
    assert [m.metrics for m in again.history] == [m.metrics for m in result.history]
    assert behaviour(other)[0] == behaviour(agent)[0]
    assert other.get_hyperparams().params == agent.get_hyperparams().params
    assert whole.best_snapshot.episode_id == again.best_snapshot.episode_id
    assert again.notes == []


def test_a_run_that_is_over_stays_as_it_ended(tmp_path):
    agent, first, result = run(tmp_path, "torch", 5)
    assert result.history[-1].episode_id == 4  # judged only because it was the last
    for _ in range(2):
        other, again, same = run(tmp_path, "torch", 5, resume_from=first.run_dir)
        assert same.windows == 5
        assert [m.primary_score for m in same.history] == [m.primary_score for m in result.history]
        assert same.best_snapshot.snapshot_id == result.best_snapshot.snapshot_id
        assert behaviour(other)[0] == behaviour(agent)[0]
    longer, _, result = run(tmp_path, "torch", 8, resume_from=again.run_dir)
    straight, _, whole = run(tmp_path / "straight", "torch", 8)
    assert [m.primary_score for m in result.history] == [m.primary_score for m in whole.history]
    assert behaviour(longer)[0] == behaviour(straight)[0]


@pytest.mark.slow
def test_a_torch_run_killed_at_random_instants_ends_as_one_that_was_not(tmp_path):
    code = (
        "import sys; from tests.faults.test_host_runs import run\n"
        "run(sys.argv[1], 'torch', 40, save_every=0.0, **({'resume_from': sys.argv[2]} if len(sys.argv) > 2 else {}))"
    )
    agent, _, straight = run(tmp_path / "straight", "torch", 40)
    rng = np.random.default_rng(0)
    kills, left = 0, []
    while kills < 8:
        began = time.time()
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "runs"), *map(str, left)], cwd=ROOT)
        while child.poll() is None and not any(p.stat().st_mtime > began for p in (tmp_path / "runs").glob("*/*")):
            time.sleep(0.05)  # a machine with other work takes long to import everything
        time.sleep(rng.uniform(0.0, 2.0))
        if child.poll() is not None:
            break
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
        left = list((tmp_path / "runs").iterdir()) if (tmp_path / "runs").exists() else []
    assert kills
    (directory,) = (tmp_path / "runs").iterdir()
    other, _, again = run(tmp_path, "torch", 40, resume_from=directory)
    assert [m.primary_score for m in again.history] == [m.primary_score for m in straight.history]
    assert behaviour(other)[0] == behaviour(agent)[0]


class Failing(gym.Wrapper):
    """Raises in one step of two hundred."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.chance = np.random.default_rng(7)

    def step(self, action):
        if self.chance.random() < 0.005:
            raise OSError("the simulator lost its connection")
        return super().step(action)


def test_environments_that_raise_are_counted_and_the_run_goes_on(tmp_path):
    pipeline = VectorBatchPipeline([Failing] * 2, window_size=128, seed=0)
    _, _, result = run(tmp_path, "torch", 8, pipeline=pipeline)
    assert result.windows == 8
    assert pipeline.n_faults > 3
    assert all("lost its connection" in fault for fault in pipeline.faults)


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    from tensor_optix import LoopCallback

    class Press(LoopCallback):
        def on_episode_end(self, episode_id, eval_metrics):
            if episode_id == 4:
                os.kill(os.getpid(), signal.SIGINT)

    began = time.perf_counter()
    _, opt, result = run(tmp_path, "torch", 14, callbacks=[Press()])
    assert (result.stop_reason, result.windows) == (StopReason.INTERRUPTED, 5)
    assert time.perf_counter() - began < 30
    _, _, straight = run(tmp_path, "torch", 14)
    _, _, again = run(tmp_path, "torch", 14, resume_from=opt.run_dir)
    assert [m.primary_score for m in again.history] == [m.primary_score for m in straight.history]


def test_a_full_disk_costs_checkpoints_not_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    _, opt, _ = run(tmp_path, "torch", 3)
    before = RunDir.read(opt.run_dir).checkpoint_steps()
    monkeypatch.setattr(durable, "publish_directory", full)
    monkeypatch.setattr("tensor_optix.loop.run_dir.publish_directory", full)
    _, again, result = run(tmp_path, "torch", 6, resume_from=opt.run_dir, save_every=0.0)
    assert result.windows == 6
    assert any("the disk is full" in note for note in result.notes), result.notes
    assert RunDir.read(again.run_dir).checkpoint_steps() == before
    monkeypatch.undo()
    assert run(tmp_path, "torch", 6, resume_from=opt.run_dir)[2].windows == 6


def test_a_damaged_best_is_passed_over(tmp_path):
    scores = itertools.count()
    _, opt, result = run(tmp_path, "torch", 6, checkpoint_score_fn=lambda agent: float(next(scores)))
    snapshots = sorted((opt.run_dir / "snapshots").glob("snapshot_*"))
    assert len(snapshots) >= 2
    for file in Path(result.best_snapshot.weights_path).rglob("actor.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    agent = torch_agent()
    loaded = opt.registry.load_best(agent)
    assert loaded.eval_metrics.primary_score == result.best_snapshot.eval_metrics.primary_score - 1
