"""An environment whose every observation says where it comes from, and an agent that reads it."""

import os

import gymnasium
import numpy as np

TERMINATED, TRUNCATED, BOTH = "terminated", "truncated", "both"
SCRIPT = ((3, TERMINATED), (2, TRUNCATED), (1, TERMINATED), (4, BOTH))


class Counting(gymnasium.Env):
    """Observation: [ident, episode, step in the episode, a draw made at reset]; int16.

    Episode k has the length and end of `script[k]`, over and over. `bad_steps` and `bad_resets` number the calls that
    raise, from 0. With `reuse`, all observations are one buffer.
    """

    def __init__(self, ident=0, script=SCRIPT, bad_steps=(), bad_resets=(), action_space=None, reuse=False):
        self.ident, self.script = ident, script
        self.bad_steps, self.bad_resets = set(bad_steps), set(bad_resets)
        self.observation_space = gymnasium.spaces.Box(-1, 10_000, (4,), np.int16)
        self.action_space = gymnasium.spaces.Discrete(5) if action_space is None else action_space
        self.buffer = np.zeros(4, np.int16) if reuse else None
        self.episode, self.t, self.draw = -1, 0, 0
        self.steps = self.resets = self.closed = 0
        self.received, self.seeds = [], []

    def observation(self):
        values = np.array([self.ident, self.episode, self.t, self.draw], np.int16)
        if self.buffer is None:
            return values
        self.buffer[:] = values
        return self.buffer

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        if self.resets - 1 in self.bad_resets:
            raise OSError("no connection")
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.t = self.episode + 1, 0
        self.draw = int(self.np_random.integers(10_000))
        return self.observation(), {"fresh": self.episode}

    def step(self, action):
        self.steps += 1
        if self.steps - 1 in self.bad_steps:
            raise ValueError(f"step {self.steps - 1} failed")
        self.received.append(action)
        self.t += 1
        length, end = self.script[self.episode % len(self.script)]
        over = self.t >= length
        reward = 1000 * self.ident + 100 * self.episode + 10 * self.t + float(np.sum(action))
        info = {"step": self.t, "pid": os.getpid(), "nested": {"episode": self.episode}}
        if self.t == 2:
            info["second"] = "yes"
        return self.observation(), reward, over and end != TRUNCATED, over and end != TERMINATED, info

    def close(self):
        self.closed += 1


class Reader:
    """Its action follows from the observation; `seen` keeps what it was asked about."""

    def __init__(self, convert=int):
        self.convert = convert
        self.seen = []

    def act(self, obs):
        self.seen.append(np.array(obs))
        return self.convert(int(obs[0] + 2 * obs[1] + 3 * obs[2]) % 5)


class BatchReader:
    """The same for [N, 4] observations."""

    def act_batch(self, obs):
        return (obs[:, 0] + 2 * obs[:, 1] + 3 * obs[:, 2]) % 5
