"""Agents and pipelines for trials: a score that is known for every hyperparameter. Importable by other processes."""

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

from tensor_optix.core.base_pipeline import BasePipeline
from tests.host_parts import Plain, window_of

STEPS = 8  # environment steps of a window
BEST = 0.3
SPACE = {"x": ("float", 0.0, 1.0)}


class Guess(Plain):
    """Plain with something to tune, so that the default tuner has no reason to warn."""

    default_param_bounds: ClassVar = {"unused": (0.1, 1.0)}
    default_tuned = ("unused",)

    def __init__(self, **params):
        super().__init__(unused=0.5, **params)


class Hill(BasePipeline):
    """Windows of one episode of STEPS steps; the return is -(x - BEST)^2 * STEPS of the agent's `x`."""

    def __init__(self):
        self.agent, self.windows, self.closed = None, 0, 0

    def set_agent(self, agent):
        self.agent = agent

    def setup(self):
        pass

    def episodes(self):
        while True:
            self.windows += 1
            yield window_of([self.reward()] * STEPS, ends=(STEPS - 1,), episode_id=self.windows - 1)

    def reward(self):
        return -((float(self.agent.params["x"]) - BEST) ** 2)

    def teardown(self):
        self.closed += 1


class SlowHill(Hill):
    """A window takes a tenth of a second."""

    def reward(self):
        time.sleep(0.1)
        return super().reward()


class FusedHill(SlowHill):
    """Kills its process in the third window, as often as there are files in $FUSES."""

    def reward(self):
        fuses = sorted(Path(os.environ["FUSES"]).glob("*"))
        if self.windows == 3 and fuses:
            fuses[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reward()


def score_of(x):
    return -STEPS * (x - BEST) ** 2


def agent(params):
    return Guess(**params)


def fixed_agent():
    return Guess(x=0.9, other=1)


def broken_agent(params):
    raise RuntimeError("no such optimiser")


def half_broken_agent(params):
    if params["x"] > 0.5:
        raise RuntimeError("x is too large")
    return Guess(**params)
