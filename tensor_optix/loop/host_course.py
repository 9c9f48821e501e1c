"""The course of a host run in columns, from the rows of its `events.jsonl`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tensor_optix.core.types import EvalMetrics, LoopState

MARKS = ("best", "plateau", "dormant", "degraded", "rollback")  # events that are moments


@dataclasses.dataclass
class Course:
    """What happened, each at the number of windows that were over by then."""

    at: np.ndarray  # [E] of the evaluations
    score: np.ndarray  # [E] float64, what decided
    train: np.ndarray  # [E] score of training windows, where others decided; NaN otherwise
    states: list[tuple[int, LoopState]]  # from where on, and which; empty where the rows do not say
    marks: dict[str, list[int]]  # name in MARKS -> when
    hyperparams: dict[str, dict[int, float]]  # those that changed: since when -> which value
    unit: str | None  # of the scores, where that is known
    decided_by: str  # "score", "validation" or "checkpoint_score_fn"
    end: int  # windows of the whole run

    @property
    def best_so_far(self) -> np.ndarray:
        """[E] float64; NaN before the first finite score."""
        return np.fmax.accumulate(np.where(np.isfinite(self.score), self.score, np.nan)) if len(self.score) else self.at


def course_of(
    rows: Iterable[Mapping[str, Any]],
    hyperparams: Mapping[str, Any] | None = None,
    windows: int | None = None,
) -> Course:
    """From the rows in order. hyperparams: those at the start; windows: of the whole run, also unevaluated ones."""
    at: list[int] = []
    evaluations: list[Mapping[str, Any]] = []
    states: list[tuple[int, LoopState]] = []
    marks: dict[str, list[int]] = {name: [] for name in MARKS}
    tracks = {name: {0: float(value)} for name, value in (hyperparams or {}).items() if _is_number(value)}
    over = 0
    for row in rows:
        over = max(over, int(row.get("window", over - 1)) + 1)
        event = row.get("event")
        if event == "evaluation":
            at.append(over)
            evaluations.append(row)
            if "state" in row:
                states = states or [(0, LoopState.ACTIVE)]
                state = LoopState[str(row["state"]).upper()]
                if states[-1][1] != state:
                    states.append((over, state))
        elif event == "hyperparams":
            for name, value in row["hyperparams"].items():
                if _is_number(value):
                    tracks.setdefault(name, {})[over] = float(value)
        elif event in marks:
            marks[event].append(over)
    facts: Mapping[str, Any] = evaluations[-1].get("metrics", {}) if evaluations else {}
    outside = "checkpoint_score" in facts
    validated = "val_score" in facts and not outside
    train = "train_score" if "train_score" in facts else "primary_score" if outside else ""
    return Course(
        np.asarray(at, np.int64),
        _column(row.get("score") for row in evaluations),
        _column(row.get("metrics", {}).get(train) for row in evaluations),
        states,
        marks,
        {name: track for name, track in tracks.items() if len(set(track.values())) > 1},
        None if outside else facts.get("val_unit", facts.get("unit")),
        "checkpoint_score_fn" if outside else "validation" if validated else "score",
        max(over, windows or 0),
    )


def rows_of(history: Sequence[EvalMetrics]) -> list[dict[str, Any]]:
    """The rows that can be made of evaluations alone."""
    rows: list[dict[str, Any]] = []
    best = -np.inf
    for each in history:
        place = {"window": each.episode_id}
        rows.append({**place, "event": "evaluation", "score": each.primary_score, "metrics": each.metrics})
        if each.primary_score > best:
            best = each.primary_score
            rows.append({**place, "event": "best"})
    return rows


def _column(values: Iterable[Any]) -> np.ndarray:
    """float64; the log writes NaN and infinities as their names."""
    return np.asarray([np.nan if value is None else float(value) for value in values], np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
