"""A run as JSON lines: one object per event, appended, for whatever reads files."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensor_optix.callbacks._records import number
from tensor_optix.core.types import EvalMetrics, LoopState, PolicySnapshot
from tensor_optix.loop.event_log import EventLog
from tensor_optix.loop.events import LoopCallback


class JSONLCallback(LoopCallback):
    """Appends a run's events to `path`, which `tensor_optix.loop.event_log.read_events` reads back.

    Every row has `event` and `t` (seconds since the run began); all but "start" and "stop" have `window`:
    "state" (`state`), "episode" (`score`, `metrics`; windows that were not evaluated have no row), "improvement"
    (`score`, `snapshot_id`),
    "plateau" (`state`), "dormant", "degradation" (`score`) and "hyperparams" (`old`, `new`; `window` is the first they
    are in force in). Numbers that are not finite are null. A file that exists is carried on; a full disk costs rows,
    never the run.

    Raises:
      ValueError: `path` is a directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"JSONLCallback got the directory '{path}', expected a file: give '{path}/events.jsonl'")
        self._log = EventLog(self.path)
        self._began = time.monotonic()
        self._window = -1  # the newest that is over

    def on_loop_start(self) -> None:
        self._began, self._window = time.monotonic(), -1
        with contextlib.suppress(OSError):  # the first row says what is wrong
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._append("start", {})

    def on_loop_stop(self) -> None:
        self._append("stop", {})
        with contextlib.suppress(OSError):
            self._log.sync()
        self._log.close()

    def on_state(self, episode_id: int, state: LoopState) -> None:
        self._append("state", {"window": episode_id, "state": LoopState(state).name.lower()})

    def on_episode_end(self, episode_id: int, eval_metrics: EvalMetrics | None) -> None:
        self._window = episode_id
        if eval_metrics is not None:
            metrics = {name: value for name, value in eval_metrics.metrics.items() if number(value) is not None}
            self._append_window("episode", score=eval_metrics.primary_score, metrics=metrics)

    def on_improvement(self, snapshot: PolicySnapshot) -> None:
        self._append_window("improvement", score=snapshot.eval_metrics.primary_score, snapshot_id=snapshot.snapshot_id)

    def on_plateau(self, episode_id: int, state: LoopState) -> None:
        self._append_window("plateau", state=LoopState(state).name.lower())

    def on_dormant(self, episode_id: int) -> None:
        self._append_window("dormant")

    def on_degradation(self, episode_id: int, eval_metrics: EvalMetrics) -> None:
        self._append_window("degradation", score=eval_metrics.primary_score)

    def on_hyperparam_update(self, old_params: dict[str, Any], new_params: dict[str, Any]) -> None:
        self._append("hyperparams", {"window": self._window + 1, "old": old_params, "new": new_params})

    def _append_window(self, event: str, **values: Any) -> None:
        self._append(event, {"window": max(self._window, 0), **values})

    def _append(self, event: str, values: Mapping[str, Any]) -> None:
        row = {"event": event, "t": round(time.monotonic() - self._began, 3), **values}
        self._log.append([_json_form(row)])


def _json_form(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite as None, what it does not know as text."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(name): _json_form(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_form(item) for item in value]
    plain = number(value)
    if plain is None:
        return str(value)
    if not math.isfinite(plain):
        return None
    return value if isinstance(value, int) else plain
