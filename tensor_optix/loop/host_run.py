"""A host run on disk: a directory as of a compiled run (`run_dir.py`), with the agent's own files in each checkpoint.

snapshots/              the best and the newest policies (see `checkpoint_registry`)
checkpoints/<window>/   the brain's arrays; files/ holds what `agent.save_state` wrote, and all else that goes on
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from tensor_optix.core.autonomy import NO_LIMIT, AutonomyState
from tensor_optix.core.types import EvalMetrics, Event, LoopState, PolicySnapshot, StopReason
from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.durable import RunDirError
from tensor_optix.loop.events import LoopCallback
from tensor_optix.loop.host import LoopController
from tensor_optix.loop.host_result import HostResult
from tensor_optix.loop.host_state import read_tree, write_tree
from tensor_optix.loop.run_dir import NoCheckpointError, RunDir

_AGENT = "agent"
_SNAPSHOTS = "snapshots"
SAVE_EVERY_S = 30.0  # seconds of training that a crash may cost

_log = logging.getLogger(__name__)


class HostRun:
    """The keeper of a `LoopController`, and the callback that writes its events.

    Make it, hand `registry`, itself as `keeper` and `recorder` as the first callback to a controller, then call
    `attach(controller)`.

    Args:
      directory: from `RunDir.create` (a new run) or `RunDir.open` (one to go on with).
      max_snapshots: as in `CheckpointRegistry`.
      save_every: seconds between checkpoints.
      resuming: put the newest checkpoint back at the start.
    """

    def __init__(
        self, directory: RunDir, max_snapshots: int = 10, save_every: float = SAVE_EVERY_S, resuming: bool = False
    ) -> None:
        self.directory = directory
        self.registry = CheckpointRegistry(directory.path / _SNAPSHOTS, max_snapshots)
        self.recorder = EventRecorder(directory)
        self._save_every, self._resuming = save_every, resuming
        self._last_save = time.perf_counter()
        self._save_failed = False
        self._needed: list[set[str]] = []  # snapshots that the newest checkpoints name

    @property
    def run_dir(self) -> str:
        """Where the run is kept."""
        return str(self.directory.path)

    def attach(self, controller: LoopController) -> None:
        self.controller = controller

    def begin(self) -> bool:
        """Puts the newest whole checkpoint back. False: there is none, so the run begins anew."""
        self._last_save = time.perf_counter()
        if not self._resuming:
            return False
        controller = self.controller
        try:
            loaded = self.directory.load_checkpoint(controller.brain.state)
        except NoCheckpointError:
            if self.directory.checkpoint_steps():
                raise
            self.directory.update_manifest(status="running")
            self.directory.truncate_events(0)
            return False
        budget = int(controller.brain.state.max_windows)
        done, largest = int(loaded.state.window), int(loaded.state.max_windows)
        if budget <= done and largest > budget:
            raise ValueError(f"max_episodes={budget} is not more than the {done} windows that the run already has")
        state = read_tree(loaded.files)
        reopened = self._reopened(loaded.state, state)
        if self.directory.manifest.get("status") == "finished" and budget <= max(done, largest) and not reopened:
            # What came after the checkpoint, the last policy's evaluation, is kept.
            controller.agent.load_state(str(loaded.files / _AGENT))
            controller.brain.restore(loaded.state)
            history = history_of(self.directory.read_events())
            controller.load_ended(state, history, self.directory.manifest["best_snapshot"])
            controller.notes.extend(loaded.skipped)
            return True
        self.directory.update_manifest(status="running")
        self.directory.truncate_events(loaded.events_offset)
        controller.agent.load_state(str(loaded.files / _AGENT))
        controller.brain.restore(
            loaded.state.replace(stop_reason=jnp.int32(StopReason.CONVERGED)) if reopened else loaded.state
        )
        if budget != NO_LIMIT and budget > controller.brain.window:
            controller.brain.extend(budget)
        controller.load_host_state(state, history_of(self.directory.read_events()))
        for callback in reopened:  # the DORMANT that had ended the run is answered again
            callback.on_dormant(done - 1)
        self._protect()
        controller.notes.extend(loaded.skipped)
        return True

    def _reopened(self, brain: AutonomyState, state: Mapping[str, Any]) -> list[Any]:
        """Callbacks that had ended the run for want of a budget of their own, and have one now."""
        if int(brain.stop_reason) != StopReason.SPAWN_BUDGET:
            return []
        parts, saved = self.controller.callbacks.named(), state["parts"]
        return [c for name, c in parts.items() if name in saved and hasattr(c, "has_more") and c.has_more(saved[name])]

    def between_windows(self) -> None:
        if time.perf_counter() - self._last_save >= self._save_every:
            self._save(self.controller.brain.state)

    def rolled_back(self, window: int) -> None:
        """The best policy was put back after this window."""
        self.recorder.rolled_back(window)

    def end(self, state: AutonomyState) -> None:
        """A last checkpoint, also of a finished run: it may be given a larger budget."""
        self._save(state)

    def finish(self, result: HostResult | None) -> None:
        """Writes down how the run ended, and closes the directory."""
        try:
            if result is None:  # it could not begin, or an error ended it
                self.directory.update_manifest(status="failed")
            else:
                label = result.stop_reason.label
                status = "interrupted" if label == "interrupted" else "finished"
                best = None if result.best_snapshot is None else result.best_snapshot.snapshot_id
                self.directory.update_manifest(
                    status=status, stop_reasons={"0": label}, windows=result.windows, best_snapshot=best
                )
        except RunDirError as error:
            _log.warning("%s", error)
        finally:
            self.directory.close()

    def _protect(self) -> None:
        """What the last two checkpoints go back to is not removed to make room for later policies."""
        self._needed = [*self._needed[-1:], self.controller.snapshots_in_use]
        self.registry.protected = set().union(*self._needed)

    def _save(self, state: AutonomyState) -> None:
        controller = self.controller

        def write(files: Path) -> None:
            controller.agent.save_state(str(files / _AGENT))
            write_tree(files, controller.host_state())

        try:
            self.directory.save_checkpoint(int(state.window), state, files=write)
            self._protect()
        except RunDirError as error:
            if not self._save_failed:  # the run goes on; said once
                _log.warning("%s", error)
                controller.notes.append(f"a checkpoint could not be saved: {error}")
            self._save_failed = True
        self._last_save = time.perf_counter()


class EventRecorder(LoopCallback):
    """Writes what happens to `events.jsonl`: a row for each evaluation, and for each change of hyperparameters."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory
        self._state = LoopState.ACTIVE

    def on_state(self, episode_id: int, state: LoopState) -> None:
        self._state = state

    def on_episode_end(self, episode_id: int, eval_metrics: EvalMetrics | None) -> None:
        if eval_metrics is not None:
            score, when = float(eval_metrics.primary_score), float(eval_metrics.timestamp)
            metrics, state = _numbers(eval_metrics.metrics), self._state.name.lower()
            self._row(episode_id, "evaluation", score=score, metrics=metrics, time=when, state=state)

    def on_improvement(self, snapshot: PolicySnapshot) -> None:
        self._row(snapshot.episode_id, Event.BEST, snapshot=snapshot.snapshot_id)

    def on_plateau(self, episode_id: int, state: LoopState) -> None:
        self._row(episode_id, Event.PLATEAU, state=state.name.lower())

    def on_dormant(self, episode_id: int) -> None:
        self._row(episode_id, Event.DORMANT)

    def on_degradation(self, episode_id: int, eval_metrics: EvalMetrics) -> None:
        self._row(episode_id, Event.DEGRADED, score=eval_metrics.primary_score)

    def rolled_back(self, episode_id: int) -> None:
        """The best policy was put back."""
        self._row(episode_id, Event.ROLLBACK)

    def on_hyperparam_update(self, old_params: dict[str, Any], new_params: dict[str, Any]) -> None:
        changed = {k: v for k, v in _numbers(new_params).items() if old_params.get(k) != v}
        self._row(None, Event.HYPERPARAMS, hyperparams=changed)

    def _row(self, window: int | None, event: Event | str, **facts: Any) -> None:
        name = event if isinstance(event, str) else str(event.name).lower().replace("_", "-")
        place = {} if window is None else {"window": int(window)}
        self._directory.append_events([{**place, "event": name, **facts}])


def history_of(events: Iterable[Mapping[str, Any]]) -> list[EvalMetrics]:
    """The evaluations that an `EventRecorder` wrote."""
    return [
        EvalMetrics(float(row["score"]), dict(row["metrics"]), int(row["window"]), float(row["time"]))
        for row in events
        if row["event"] == "evaluation"
    ]


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are single numbers or text, as plain values."""
    plain = {k: v.item() if hasattr(v, "item") and getattr(v, "ndim", 0) == 0 else v for k, v in values.items()}
    return {k: v for k, v in plain.items() if isinstance(v, bool | int | float | str)}
