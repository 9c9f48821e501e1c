"""What happened, told in order: the reports of a compiled chunk, and the callbacks that hear of them.

Compiled code calls nothing back. A chunk returns its reports as stacked arrays (`ChunkReport`); between chunks the host
turns them into the calls that the host driver would have made (`replay`) and into log rows (`event_rows`).
"""

from __future__ import annotations

import functools
import logging
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tensor_optix.core.types import EvalMetrics, Event, HyperparamSet, LoopState, PolicySnapshot, StopReason

_LOG = logging.getLogger(__name__)


class LoopCallback:
    """What a person hooks into a run. Every method does nothing by default; override those of interest.

    `episode_id` is the window's index, counted from 0. A run of several members calls a hook once per member:
    `EvalMetrics.metrics["member"]` (int) says whose evaluation it is. An exception in a hook never ends a run.
    """

    def on_loop_start(self) -> None:
        """The run begins."""

    def on_loop_stop(self) -> None:
        """The run is over, whatever ended it."""

    def on_episode_end(self, episode_id: int, eval_metrics: EvalMetrics | None) -> None:
        """A window is over; `eval_metrics` is None when it was not evaluated."""

    def on_state(self, episode_id: int, state: LoopState) -> None:
        """After this window the loop is in this state. A window's first hook, called at the first and at changes."""

    def on_improvement(self, snapshot: PolicySnapshot) -> None:
        """This policy is the best so far. In compiled runs `snapshot.weights_path` is "": it is still on the device."""

    def on_plateau(self, episode_id: int, state: LoopState) -> None:
        """Evaluations have stopped improving: the loop is COOLING."""

    def on_dormant(self, episode_id: int) -> None:
        """Learning counts as over."""

    def on_degradation(self, episode_id: int, eval_metrics: EvalMetrics) -> None:
        """The score fell below the best by more than the noise."""

    def on_hyperparam_update(self, old_params: dict[str, Any], new_params: dict[str, Any]) -> None:
        """Other hyperparameters are in force from this window on (tuner or rollback)."""

    def on_chunk(self, report: ChunkReport) -> None:
        """A chunk of a compiled run is over; its single events have been told already."""


@dataclass(frozen=True, eq=False)
class ChunkReport:
    """What K windows of M members did, as NumPy arrays. Rows where `active` is False hold nothing.

    A column is a lane of the compiled program; `member_ids` says whose. The order may change between chunks, and a lane
    that pads a bucket has no active row (its id may repeat another's, or be -1).
    """

    first_window: np.ndarray  # [M] int64, index of the member's first active row
    active: np.ndarray  # [K, M] bool, a real window of that member
    evaluated: np.ndarray  # [K, M] bool
    score: np.ndarray  # [K, M] float32, meaningful where `evaluated`
    train_return: np.ndarray  # [K, M] float32, mean return of the episodes that ended in the window
    train_episodes: np.ndarray  # [K, M] int32, how many did; 0: `train_return` holds nothing
    state: np.ndarray  # [K, M] int32, a `LoopState`
    interval: np.ndarray  # [K, M] int32, windows between evaluations
    events: np.ndarray  # [K, M] int32, bits of `Event`
    stop_reason: np.ndarray  # [K, M] int32, a `StopReason`
    hyperparams: Mapping[str, np.ndarray]  # name -> [K, M] float32, those in force during the window
    losses: Mapping[str, np.ndarray]  # name -> [K, M] float32
    member_ids: np.ndarray  # [M] int, index into the run's member list

    def __post_init__(self) -> None:
        shape = np.shape(self.active)
        if len(shape) != 2:
            raise ValueError(f"ChunkReport.active has shape {shape}, expected [windows, members].")
        for name, column in self._columns():
            expected = shape[1:] if name in ("first_window", "member_ids") else shape
            if np.shape(column) != expected:
                raise ValueError(
                    f"ChunkReport.{name} has shape {np.shape(column)}, expected {expected} as in `active`."
                )

    def _columns(self) -> Iterator[tuple[str, np.ndarray]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                yield from ((f"{field.name}[{name!r}]", column) for name, column in value.items())
            else:
                yield field.name, value

    def windows(self) -> np.ndarray:
        """[K, M] int64: index of the window in each row. Inactive rows repeat the one before."""
        return np.asarray(self.first_window, np.int64) + np.cumsum(self.active, axis=0, dtype=np.int64) - 1

    def rows(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns ([n] int64 each) where the [K, M] `mask` holds in active rows, by window, then member."""
        row, column = np.nonzero(np.asarray(mask) & self.active)
        order = np.lexsort((np.asarray(self.member_ids)[column], self.windows()[row, column]))
        return row[order], column[order]


@functools.lru_cache(maxsize=1024)
def event_names(bits: int) -> tuple[str, ...]:
    """Lower-case names of the set bits of `Event`, lowest first: `event_names(65) == ("best", "non-finite")`."""
    return tuple(str(event.name).lower().replace("_", "-") for event in Event if event and event & bits)


def event_rows(report: ChunkReport, env_steps_per_window: int) -> list[dict[str, Any]]:
    """Rows for `events.jsonl`: one per member and window that was evaluated or has event bits, in order.

    Keys: `window`, `env_steps` (after the window), `member`, `state`, `interval`, `events`; where they exist `score`,
    `train_return`, `train_episodes`, `losses`, `hyperparams`, `stop_reason`. Strict JSON: NaN and infinity become None.
    """
    row, column = report.rows(report.evaluated | (report.events != 0))
    window = report.windows()[row, column]
    plain = {
        "window": window.tolist(),
        "env_steps": ((window + 1) * env_steps_per_window).tolist(),
        "member": np.asarray(report.member_ids)[column].tolist(),
        "state": [LoopState(s).name.lower() for s in report.state[row, column]],
        "interval": report.interval[row, column].tolist(),
        "events": [list(event_names(bits)) for bits in report.events[row, column].tolist()],
    }
    rows: list[dict[str, Any]] = [dict(zip(plain, values, strict=True)) for values in zip(*plain.values(), strict=True)]
    for out, k, m in zip(rows, row.tolist(), column.tolist(), strict=True):
        if report.evaluated[k, m]:
            out["score"] = json_float(report.score[k, m])
        if report.train_episodes[k, m]:
            out["train_return"] = json_float(report.train_return[k, m])
            out["train_episodes"] = int(report.train_episodes[k, m])
        for name, values in (("losses", report.losses), ("hyperparams", report.hyperparams)):
            if values:
                out[name] = {key: json_float(value[k, m]) for key, value in values.items()}
        if report.stop_reason[k, m]:
            out["stop_reason"] = StopReason(report.stop_reason[k, m]).label
    return rows


def json_float(value: Any) -> float | None:
    """The shortest float that reads back as the same float32; None for NaN and infinity."""
    value = np.float32(value)
    return float(str(value)) if math.isfinite(value) else None


@dataclass
class CallbackFailure:
    """A callback raised. Reported at the first exception, counted from then on."""

    callback: str  # class name
    hook: str  # where it first raised
    error: str  # "ValueError: ..."
    where: str  # file:line in function, innermost first
    count: int = 1


class CallbackList:
    """The callbacks of one run: calls them in order, guards each call, remembers what a replay needs between chunks.

    An exception in a hook is logged once per callback with where it came from, recorded in `failures`, and the run
    goes on; the callback is still called afterwards. Any object with some of the hooks will do.
    """

    def __init__(self, callbacks: Sequence[Any] = (), agents_own: Iterable[Any] = ()) -> None:
        """agents_own: come after the others, but for those that are among them anyway."""
        self.callbacks = list(callbacks)
        for callback in agents_own:
            self.add(callback)
        self.failures: list[CallbackFailure] = []
        self._failure_of: dict[int, CallbackFailure] = {}  # position in `callbacks` -> its failure
        self._hyperparams: dict[int, dict[str, Any]] = {}  # member -> those of its last replayed window
        self._states: dict[int, LoopState] = {}  # member -> the state last told

    def named(self) -> dict[str, Any]:
        """Each by the name that its state is kept under."""
        return {f"callback {i} ({type(callback).__name__})": callback for i, callback in enumerate(self.callbacks)}

    def add(self, callback: Any) -> bool:
        """One more, called after the others; False if it is among them already."""
        if any(callback is each for each in self.callbacks):
            return False
        self.callbacks.append(callback)
        return True

    def call(self, hook: str, *args: Any) -> None:
        """Call `hook` of every callback that has it."""
        for position, callback in enumerate(self.callbacks):
            if not _listens(callback, hook):
                continue
            try:
                getattr(callback, hook)(*args)
            except Exception as error:
                self._failed(position, hook, error)

    def tell_state(self, window: int, state: LoopState, member: int = 0) -> None:
        """Call `on_state` unless this is the member's state that was told last."""
        if self._states.get(member) != state:
            self._states[member] = state
            self.call("on_state", window, state)

    def listens(self, hook: str) -> bool:
        """True if any callback does something on `hook`."""
        return any(_listens(callback, hook) for callback in self.callbacks)

    def _failed(self, position: int, hook: str, error: Exception) -> None:
        known = self._failure_of.get(position)
        if known is not None:
            known.count += 1
            return
        frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this file's call
        where = " < ".join(f"{f.filename}:{f.lineno} in {f.name}" for f in reversed(frames[-3:]))
        name = type(self.callbacks[position]).__name__
        failure = CallbackFailure(name, hook, f"{type(error).__name__}: {error}", where or "its signature")
        self._failure_of[position] = failure
        self.failures.append(failure)
        _LOG.warning(
            "callback %s.%s raised %s (%s); the run goes on, further failures of this callback are only counted",
            name,
            hook,
            failure.error,
            failure.where,
        )

    def replay(self, report: ChunkReport) -> None:
        """Tell the chunk: per window, then member, its hooks; then `on_chunk`."""
        if not self.callbacks:
            return
        windows = report.windows()
        told = report.active if self.listens("on_episode_end") else (report.events != 0)
        if self.listens("on_hyperparam_update"):
            told = told | _may_change(report, report.hyperparams.values())
        if self.listens("on_state"):
            told = told | _may_change(report, [report.state])
        row, column = report.rows(told)
        for k, m in zip(row.tolist(), column.tolist(), strict=True):
            self._replay_window(report, k, m, int(windows[k, m]))
        self.call("on_chunk", report)

    def _replay_window(self, report: ChunkReport, k: int, m: int, window: int) -> None:
        member, events = int(report.member_ids[m]), int(report.events[k, m])
        hyperparams = {name: json_float(values[k, m]) for name, values in report.hyperparams.items()}
        before = self._hyperparams.get(member, hyperparams)
        self._hyperparams[member] = hyperparams
        if before != hyperparams:
            self.call("on_hyperparam_update", dict(before), dict(hyperparams))
        self.tell_state(window, LoopState(report.state[k, m]), member)
        metrics = _eval_metrics(report, k, m, window)
        self.call("on_episode_end", window, metrics if report.evaluated[k, m] else None)
        if events & Event.BEST:
            best = HyperparamSet(hyperparams, window)
            self.call("on_improvement", PolicySnapshot(f"member{member}-window{window}", metrics, best, "", window))
        if events & Event.PLATEAU:
            self.call("on_plateau", window, LoopState(report.state[k, m]))
        if events & Event.DORMANT:
            self.call("on_dormant", window)
        if events & Event.DEGRADED:
            self.call("on_degradation", window, metrics)


def replay(report: ChunkReport, callbacks: CallbackList | Sequence[Any]) -> CallbackList:
    """Turn a chunk's reports into ordered, guarded callback calls.

    Keep the returned `CallbackList` and pass it for the next chunk: it holds the hyperparameters last seen (so that a
    change across the border of two chunks is told) and the failures already reported.
    """
    guarded = callbacks if isinstance(callbacks, CallbackList) else CallbackList(callbacks)
    guarded.replay(report)
    return guarded


def _listens(callback: Any, hook: str) -> bool:
    method = getattr(callback, hook, None)
    return callable(method) and getattr(method, "__func__", None) is not getattr(LoopCallback, hook)


def _may_change(report: ChunkReport, columns: Iterable[np.ndarray]) -> np.ndarray:
    """[K, M] bool: rows where one of the columns differs from the row before, or with none before in this chunk."""
    may = report.active.copy()
    may[1:] &= ~report.active[:-1]
    for values in columns:
        may[1:] |= values[1:] != values[:-1]
    return may


def _eval_metrics(report: ChunkReport, k: int, m: int, window: int) -> EvalMetrics:
    metrics: dict[str, Any] = {name: float(values[k, m]) for name, values in report.losses.items()}
    metrics["member"] = int(report.member_ids[m])
    metrics["interval"] = int(report.interval[k, m])
    if report.train_episodes[k, m]:
        metrics["train_return"] = float(report.train_return[k, m])
    return EvalMetrics(float(report.score[k, m]), metrics, window)
