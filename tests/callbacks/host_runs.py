"""One host run that makes every hook speak, and what each chart must show of it, worked out from the calls alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tensor_optix.core.backoff_shell import BackoffScheduler
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.types import HyperparamSet
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.host import HostResult, LoopController
from tests.host_parts import Plain, Source

HOOKS = (
    "on_loop_start", "on_loop_stop", "on_state", "on_episode_end", "on_improvement", "on_plateau", "on_dormant",
    "on_degradation", "on_hyperparam_update",
)  # fmt: skip
NO_NUMBERS = {"unit"}  # metrics that charts leave out


class Counter(Plain):
    """Its weights are a count of windows."""

    def __init__(self):
        super().__init__(learning_rate=0.1, gamma=0.99, layers=3, kind="plain")

    def learn(self, episode_data):
        super().learn(episode_data)
        return {"loss": np.float32(1 / self.weight)}


class Halver(BaseOptimizer):
    """Halves the learning rate at every fourth evaluation."""

    def __init__(self):
        self.asked = 0

    def suggest(self, current, history):
        self.asked += 1
        rate = current.params["learning_rate"] * (0.5 if self.asked % 4 == 0 else 1.0)
        return HyperparamSet({**current.params, "learning_rate": rate}, current.episode_id)

    def on_improvement(self, metrics):
        pass

    def on_plateau(self, history):
        pass


class Calls(LoopCallback):
    """Remembers every call of a hook as (hook, arguments)."""

    def __init__(self):
        self.calls: list[tuple[str, tuple[Any, ...]]] = []


def _remember(hook):
    def method(self, *args):
        self.calls.append((hook, args))

    return method


for _hook in HOOKS:
    setattr(Calls, _hook, _remember(_hook))


def scores() -> list[float]:
    """Rises to 10, stays, collapses to 3 and stays there."""
    clean = np.concatenate([np.linspace(0, 10, 30), np.full(9, 10.0), np.full(300, 3.0)])
    return (clean + 0.1 * np.random.default_rng(0).normal(size=clean.size)).tolist()


def host_run(directory: Path, *callbacks: Any, told: list[float] | None = None) -> tuple[HostResult, Calls]:
    """A whole run with the callbacks attached, and the calls that they were told. Every second window is evaluated."""
    calls, given = Calls(), iter(scores() if told is None else told)
    controller = LoopController(
        Counter(),
        pipeline=Source(),
        optimizer=Halver(),
        checkpoint_registry=CheckpointRegistry(directory),
        backoff_scheduler=BackoffScheduler(base_interval=2, max_interval_episodes=2, dormant_threshold=15),
        checkpoint_score_fn=lambda agent: next(given),
        max_episodes=300 if told is None else 2 * len(told),
        callbacks=[calls, *callbacks],
    )
    result = controller.run()
    assert result.callback_failures == []
    return result, calls


def expected_curves(calls: Calls) -> dict[str, list[tuple[int, float]]]:
    """Tag -> [(step, value)] in order."""
    curves: dict[str, list[tuple[int, float]]] = {}

    def add(tag: str, step: int, value: float) -> None:
        curves.setdefault(tag, []).append((step, float(value)))

    window, state, first_best = -1, None, True
    for hook, args in calls.calls:
        if hook == "on_state":
            assert args[1] != state
            state = args[1]
        elif hook == "on_episode_end":
            window, metrics = args
            if metrics is not None:
                add("loop/state", window, state)
                add("score/primary", window, metrics.primary_score)
                for name in set(metrics.metrics) - NO_NUMBERS:
                    add(f"metrics/{name}", window, metrics.metrics[name])
        elif hook == "on_improvement":
            add("score/best", window, args[0].eval_metrics.primary_score)
            add("loop/state", window, state)
            add("events/improvement", window, 1)
            if first_best:
                for name in ("learning_rate", "gamma", "layers"):
                    add(f"hyperparams/{name}", window, args[0].hyperparams.params[name])
                first_best = False
        elif hook == "on_hyperparam_update":
            for name in ("learning_rate", "gamma", "layers"):
                add(f"hyperparams/{name}", window + 1, args[1][name])
            add("spsa/step_magnitude", window + 1, 0.5)
        elif hook == "on_degradation":
            add("score/at_degradation", window, args[1].primary_score)
            add("loop/state", window, state)
            add("events/degradation", window, 1)
        elif hook in ("on_plateau", "on_dormant"):
            add("events/plateau" if hook == "on_plateau" else "events/convergence", window, 1)
            add("loop/state", window, state)
    return curves


def assert_same_curves(found: dict[str, list[tuple[int, float]]], expected: dict[str, list[tuple[int, float]]]) -> None:
    """The same tags, steps and values (float32)."""
    assert found.keys() == expected.keys()
    for tag, points in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points], tag
        np.testing.assert_allclose([v for _, v in found[tag]], [v for _, v in points], rtol=1e-6, err_msg=tag)
