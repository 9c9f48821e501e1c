"""Learning curves: one row per evaluation of a member, gathered from the reports of compiled chunks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from tensor_optix.core.types import Event, LoopState, StopReason
from tensor_optix.loop.events import ChunkReport, event_names

_DTYPES: dict[str, type[np.generic]] = {
    "env_steps": np.int64,
    "window": np.int64,
    "score": np.float32,
    "train_return": np.float32,
    "train_episodes": np.int32,
    "state": np.int8,
    "interval": np.int32,
    "events": np.int32,
}
_NAMED = ("hyperparams", "losses")  # dicts of columns; packed, a column's name is "hyperparams/<name>"


@dataclass(eq=False, repr=False)
class Curve:
    """One member's run as columns, one entry per evaluation, in order."""

    env_steps: np.ndarray  # [n] int64, this member's environment steps when it was evaluated
    window: np.ndarray  # [n] int64, index of the window after which it was evaluated
    score: np.ndarray  # [n] float32, NaN or infinite where the evaluation was
    train_return: np.ndarray  # [n] float32, mean return of the training episodes that ended in that window
    train_episodes: np.ndarray  # [n] int32, how many did; 0: `train_return` holds nothing
    state: np.ndarray  # [n] int8, a `LoopState`
    interval: np.ndarray  # [n] int32, windows between evaluations
    events: np.ndarray  # [n] int32, bits of `Event` since the evaluation before
    hyperparams: dict[str, np.ndarray] = field(default_factory=dict)  # name -> [n] float32, in force in that window
    losses: dict[str, np.ndarray] = field(default_factory=dict)  # name -> [n] float32, what the update said of itself

    def __len__(self) -> int:
        return len(self.window)

    def __repr__(self) -> str:
        return f"Curve({len(self)} evaluations)"

    @classmethod
    def empty(cls, hyperparams: Sequence[str] = (), losses: Sequence[str] = ()) -> Curve:
        """A curve without evaluations."""
        columns = {name: np.zeros(0, dtype) for name, dtype in _DTYPES.items()}
        columns |= {f"hyperparams/{name}": np.zeros(0, np.float32) for name in hyperparams}
        return cls.from_columns(columns | {f"losses/{name}": np.zeros(0, np.float32) for name in losses})

    def columns(self) -> dict[str, np.ndarray]:
        """All columns in one flat dict; a hyperparameter's key is "hyperparams/<name>", a loss's "losses/<name>"."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NAMED}
        return plain | {f"{kind}/{name}": x for kind in _NAMED for name, x in getattr(self, kind).items()}

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray]) -> Curve:
        """Inverse of `columns`."""
        named: dict[str, Any] = {kind: {} for kind in _NAMED}
        for name, column in columns.items():
            kind, slash, rest = name.partition("/")
            if slash:
                named[kind][rest] = column
        plain: dict[str, Any] = {name: columns[name] for name in _DTYPES}
        return cls(**plain, **named)

    def best_so_far(self) -> np.ndarray:
        """[n] float32: the score of the policy kept at that moment; NaN before the first finite score.

        The kept policy is the one last saved (`Event.BEST`): a margin may leave a slightly higher score unsaved.
        """
        saved = (self.events & Event.BEST) != 0
        last = np.maximum.accumulate(np.where(saved, np.arange(len(self)), -1))
        return np.where(last >= 0, self.score[last], np.float32(np.nan)).astype(np.float32)


class CurveRecorder:
    """Gathers chunk reports into curves, whatever the order of the members in each chunk.

    `columns()` and `from_columns` carry a recorder across an interruption.
    """

    def __init__(self, n_members: int, env_steps_per_window: int) -> None:
        if n_members < 1 or env_steps_per_window < 1:
            raise ValueError(
                f"CurveRecorder got n_members={n_members} and env_steps_per_window={env_steps_per_window}; "
                "both must be at least 1."
            )
        self.n_members = n_members
        self.env_steps_per_window = env_steps_per_window
        self.windows = np.zeros(n_members, np.int64)  # [n_members] windows run
        self.stop_reasons = np.zeros(n_members, np.int32)  # [n_members] a `StopReason`
        self._parts: list[dict[str, np.ndarray]] = []  # flat columns, with `member` and `evaluated`

    def add(self, report: ChunkReport) -> None:
        """Append a chunk. Each member's windows must follow on from its last ones."""
        windows = report.windows()
        lanes = np.flatnonzero(report.active.any(axis=0))
        members = np.asarray(report.member_ids)[lanes]
        if members.size and (members.min() < 0 or members.max() >= self.n_members):
            raise ValueError(f"ChunkReport.member_ids holds {members.tolist()}, expected 0 to {self.n_members - 1}.")
        if np.any(np.asarray(report.first_window)[lanes] != self.windows[members]):
            raise ValueError(
                f"chunk starts at windows {np.asarray(report.first_window)[lanes].tolist()} of members "
                f"{members.tolist()}, expected {self.windows[members].tolist()}: pass every chunk once, in order."
            )
        self.windows[members] = windows[-1, lanes] + 1
        reasons = np.where(report.active, report.stop_reason, 0).max(axis=0)
        self.stop_reasons[members] = np.maximum(self.stop_reasons[members], reasons[lanes])
        row, column = report.rows(report.evaluated | (report.events != 0))
        part = {name: np.asarray(getattr(report, name)[row, column], _DTYPES[name]) for name in list(_DTYPES)[2:]}
        part["window"] = windows[row, column]
        part["env_steps"] = (part["window"] + 1) * self.env_steps_per_window
        part["member"] = np.asarray(report.member_ids)[column].astype(np.int64)
        part["evaluated"] = np.asarray(report.evaluated[row, column], bool)
        for kind in _NAMED:
            for name, values in getattr(report, kind).items():
                part[f"{kind}/{name}"] = np.asarray(values[row, column], np.float32)
        self._parts.append(part)

    def columns(self) -> dict[str, np.ndarray]:
        """Everything recorded, as flat arrays (for `np.savez`)."""
        if len(self._parts) > 1:
            self._parts = [{name: np.concatenate([p[name] for p in self._parts]) for name in self._parts[0]}]
        flat = self._parts[0] if self._parts else {}
        return flat | {"windows": self.windows.copy(), "stop_reasons": self.stop_reasons.copy()}

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray], env_steps_per_window: int) -> CurveRecorder:
        """A recorder that goes on where `columns()` was taken."""
        flat = {name: np.asarray(column) for name, column in columns.items()}
        recorder = cls(len(flat["windows"]), env_steps_per_window)
        recorder.windows, recorder.stop_reasons = flat.pop("windows").copy(), flat.pop("stop_reasons").copy()
        recorder._parts = [flat] if flat else []
        return recorder

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], n_members: int, env_steps_per_window: int) -> CurveRecorder:
        """A recorder that goes on after the rows that `event_rows` made (those of `events.jsonl`)."""
        recorder = cls(n_members, env_steps_per_window)
        if not rows:
            return recorder
        bits = {name: int(event) for event in Event for name in event_names(event)}
        part = {
            "member": np.asarray([row["member"] for row in rows], np.int64),
            "evaluated": np.asarray(["score" in row for row in rows], bool),
            "state": np.asarray([LoopState[row["state"].upper()] for row in rows]),
            "events": np.asarray([sum(bits[name] for name in row["events"]) for row in rows]),
            "train_episodes": np.asarray([row.get("train_episodes", 0) for row in rows]),
        }
        for name in ("env_steps", "window", "score", "train_return", "interval"):
            part[name] = np.asarray([_number(row.get(name, 0)) for row in rows])
        for kind in _NAMED:
            for name in rows[0].get(kind, {}):
                part[f"{kind}/{name}"] = np.asarray([_number(row[kind][name]) for row in rows], np.float32)
        recorder._parts = [{name: column.astype(_DTYPES.get(name, column.dtype)) for name, column in part.items()}]
        return recorder

    def curves(self) -> list[Curve]:
        """One curve per member. Events of windows without evaluation count for the next evaluation, or the last."""
        flat = self.columns()
        if "member" not in flat:
            return [Curve.empty() for _ in range(self.n_members)]
        names = [name for name in flat if name not in ("member", "evaluated", "windows", "stop_reasons")]
        order = np.argsort(flat["member"], kind="stable")
        borders = np.searchsorted(flat["member"][order], np.arange(self.n_members + 1))
        curves = []
        for start, end in itertools.pairwise(borders):
            chosen = order[start:end]
            evaluated = flat["evaluated"][chosen]
            columns = {name: flat[name][chosen][evaluated] for name in names}
            columns["events"] = _fold_events(flat["events"][chosen], evaluated)
            curves.append(Curve.from_columns(columns))
        return curves

    def stop_reason(self, member: int) -> StopReason:
        """Why the member stopped, as far as the reports tell."""
        return StopReason(int(self.stop_reasons[member]))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)  # JSON has no NaN


def best_hyperparams(curve: Curve) -> dict[str, float]:
    """Those in force when the kept policy was saved; {} if none ever was."""
    saved = np.flatnonzero(curve.events & Event.BEST)
    return {name: float(str(c[saved[-1]])) for name, c in curve.hyperparams.items()} if saved.size else {}


def pack_curves(curves: Sequence[Curve]) -> dict[str, np.ndarray]:
    """Curves with the same hyperparameters, end to end as flat columns; `member` ([n] int64) says whose each row is."""
    parts = [curve.columns() for curve in curves]
    names = max(parts, key=len, default={})  # a member without evaluations may lack the hyperparameters
    packed = {name: np.concatenate([p[name] for p in parts if name in p]) for name in names}
    return packed | {"member": np.repeat(np.arange(len(curves)), [len(curve) for curve in curves]).astype(np.int64)}


def unpack_curves(columns: Mapping[str, np.ndarray], n_members: int) -> list[Curve]:
    """Inverse of `pack_curves`."""
    if n_members == 0:
        return []
    borders = np.searchsorted(columns["member"], np.arange(1, n_members))
    pieces = {name: np.split(column, borders) for name, column in columns.items() if name != "member"}
    return [Curve.from_columns({name: piece[i] for name, piece in pieces.items()}) for i in range(n_members)]


def _fold_events(events: np.ndarray, evaluated: np.ndarray) -> np.ndarray:
    """[rows] bits -> [evaluations] bits: each takes those since the evaluation before; the last takes the rest too."""
    n = int(evaluated.sum())
    if n == 0:
        return np.zeros(0, np.int32)
    slot = np.minimum(np.cumsum(evaluated) - evaluated, n - 1)
    folded = np.zeros(n, np.int32)
    np.bitwise_or.at(folded, slot, events)
    return folded
