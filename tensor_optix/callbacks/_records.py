"""The record of a run that charts are drawn from: hooks in, flat dicts of numbers out, the same for every place.

Keys: `score/primary`, `score/best`, `score/at_degradation`, `metrics/<name>`, `hyperparams/<name>`,
`spsa/step_magnitude`, `events/{improvement,plateau,convergence,degradation}` (1 at the event) and `loop/state` (a
`LoopState`). The step is the window's index.
"""

from __future__ import annotations

import abc
import importlib
import math
import numbers
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from tensor_optix.core.types import EvalMetrics, LoopState, PolicySnapshot
from tensor_optix.loop.events import LoopCallback


class RecordCallback(LoopCallback, abc.ABC):
    """Turns the hooks of a run of one member into records. A subclass says where they go."""

    _window = -1  # the newest that is over
    _first: int | None = None  # the first of this run; above 0 in a run that goes on from an earlier one
    _state = LoopState.ACTIVE
    _hyperparams_known = False  # those in force have been written

    @abc.abstractmethod
    def open(self) -> None:
        """A run begins; one may have gone before."""

    @abc.abstractmethod
    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One record. Steps never fall within a run, and may repeat."""

    @abc.abstractmethod
    def close(self) -> None:
        """The run is over; `open` may have failed, or never been called."""

    def on_loop_start(self) -> None:
        self._window, self._first = -1, None
        self._state, self._hyperparams_known = LoopState.ACTIVE, False
        self.open()

    def on_loop_stop(self) -> None:
        self.close()

    def on_state(self, episode_id: int, state: LoopState) -> None:
        self._state = LoopState(state)

    def on_episode_end(self, episode_id: int, eval_metrics: EvalMetrics | None) -> None:
        self._window = episode_id
        self._first = episode_id if self._first is None else self._first
        if eval_metrics is not None:
            values = {"score/primary": float(eval_metrics.primary_score), **named("metrics", eval_metrics.metrics)}
            self._write_with_state(values)

    def on_improvement(self, snapshot: PolicySnapshot) -> None:
        values = {"score/best": float(snapshot.eval_metrics.primary_score), "events/improvement": 1.0}
        if not self._hyperparams_known:  # the first evaluation is a best: curves begin with the first values
            self._hyperparams_known = True
            values |= named("hyperparams", snapshot.hyperparams.params)
        self._write_with_state(values)

    def on_plateau(self, episode_id: int, state: LoopState) -> None:
        self._write_with_state({"events/plateau": 1.0})

    def on_dormant(self, episode_id: int) -> None:
        self._write_with_state({"events/convergence": 1.0})

    def on_degradation(self, episode_id: int, eval_metrics: EvalMetrics) -> None:
        self._write_with_state({"score/at_degradation": float(eval_metrics.primary_score), "events/degradation": 1.0})

    def on_hyperparam_update(self, old_params: dict[str, Any], new_params: dict[str, Any]) -> None:
        values = named("hyperparams", new_params)
        magnitude = relative_change(old_params, new_params)
        if magnitude > 0:
            values["spsa/step_magnitude"] = magnitude
        self._hyperparams_known = True
        if values:
            self.write(self._window + 1, values)  # the first window they are in force in

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run puts back after `on_loop_start`; plain values."""
        return {"window": self._window, "state": int(self._state), "hyperparams_known": self._hyperparams_known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._window, self._first = int(state["window"]), int(state["window"]) + 1
        self._state, self._hyperparams_known = LoopState(state["state"]), bool(state["hyperparams_known"])

    def _write_with_state(self, values: dict[str, float]) -> None:
        self.write(max(self._window, 0), {**values, "loop/state": float(self._state)})


def number(value: Any) -> float | None:
    """`value` as a float if it is one number (of Python, NumPy, JAX or torch), else None; flags are no numbers."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return None
    return float(value)


def named(group: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Those of `values` that are numbers, under "group/name"."""
    found = ((f"{group}/{name}", number(value)) for name, value in values.items())
    return {name: value for name, value in found if value is not None}


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Name -> (before, after) of the numbers that both have and that differ."""
    pairs = ((name, number(old.get(name)), number(value)) for name, value in new.items())
    return {name: (a, b) for name, a, b in pairs if a is not None and b is not None and a != b}


def relative_change(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """L2 norm of (new - old) / |old| over the numbers that both have; a step away from 0 counts as 1."""
    return math.hypot(*((b - a) / abs(a) if a else 1.0 for a, b in changed(old, new).values()))


def require(module: str, extra: str, wanted_by: str) -> ModuleType:
    """The module of an optional library.

    Raises:
      ImportError: it is missing; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        command = f'pip install "tensor-optix[{extra}]"'
        raise ImportError(f"{wanted_by} needs the package {extra}, which is missing: {command}") from error
