"""Environments that die, hang or raise, and what to compare windows by. Light: processes import it."""

import os
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np

from tests.pipeline.counting import Counting


class Troubled(Counting):
    """`trouble` ("hang", "die" or "exit") happens at step `at` of the environment, once if `once` is a path."""

    def __init__(self, ident=0, trouble="hang", at=3, once=None, in_reset=False, **options):
        super().__init__(ident, **options)
        self.trouble, self.at, self.once, self.in_reset = trouble, at, once, in_reset

    def reset(self, **options):
        if self.in_reset and self.resets == self.at:
            self.be_troubled()
        return super().reset(**options)

    def step(self, action):
        if not self.in_reset and self.steps == self.at:
            self.be_troubled()
        return super().step(action)

    def be_troubled(self):
        if self.once is not None:
            if Path(self.once).exists():
                return
            Path(self.once).touch()
        if self.trouble == "hang":
            while True:
                time.sleep(3600)
        if self.trouble == "die":
            os._exit(3)
        sys.exit("enough")


class Unlucky(gymnasium.Wrapper):
    """Each step fails with probability `p`, drawn from the environment's own generator."""

    def __init__(self, env, p=0.02):
        super().__init__(env)
        self.p = p

    def step(self, action):
        if self.unwrapped.np_random.random() < self.p:
            raise ValueError("out of luck")
        return self.env.step(action)


class HangingCartPole(gymnasium.Wrapper):
    """Hangs at the 13th step, once."""

    def __init__(self, once):
        super().__init__(cartpole())
        self.trouble = Troubled(once=once)
        self.steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 13:
            self.trouble.be_troubled()
        return self.env.step(action)


class Jittery(gymnasium.ActionWrapper):
    """Adds a draw from the action space to every action."""

    def action(self, action):
        return np.clip(action + 0.1 * self.env.action_space.sample(), -2, 2).astype(np.float32)


def cartpole():
    return gymnasium.make("CartPole-v1")


def pendulum():
    return gymnasium.make("Pendulum-v1")


def unlucky():
    return Unlucky(cartpole())


def assert_same_window(ours, other, without=("pid",)):
    """Bit for bit, but for the timestamp and what infos hold under `without`."""
    for name in ("observations", "actions", "final_obs"):
        a, b = np.asarray(getattr(ours, name)), np.asarray(getattr(other, name))
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name
    for name in ("rewards", "terminated", "truncated", "episode_id", "episode_starts"):
        assert getattr(ours, name) == getattr(other, name), name
    assert len(ours.infos) == len(other.infos)
    for a, b in zip(ours.infos, other.infos, strict=True):
        assert {k: v for k, v in a.items() if k not in without} == {k: v for k, v in b.items() if k not in without}
    a, b = dict(ours.metadata), dict(other.metadata)
    a_finals, b_finals = a.pop("final_observations"), b.pop("final_observations")
    assert a == b
    assert a_finals.keys() == b_finals.keys()
    for row, obs in a_finals.items():
        np.testing.assert_array_equal(obs, b_finals[row])
