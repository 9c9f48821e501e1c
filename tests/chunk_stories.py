"""Made-up runs of known content, cut into chunk reports with members in any order: the oracle is the story itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tensor_optix.core.types import Event, LoopState, StopReason
from tensor_optix.loop.events import ChunkReport
from tensor_optix.results import CurveRecorder, TrainResult, member_result

ENV_STEPS_PER_WINDOW = 100
_FLOATS = ("score", "train_return", "lr", "policy_loss")


class Story:
    """What every window of every member held: columns [windows of that member], one dict per member."""

    def __init__(self, lengths: list[int], seed: int = 0, stop: StopReason = StopReason.CONVERGED) -> None:
        self.rng = np.random.default_rng(seed)
        self.members = [self._member(n, stop) for n in lengths]

    def _member(self, n: int, stop: StopReason) -> dict[str, np.ndarray]:
        rng, t = self.rng, np.arange(n)
        score = (200 * (1 - np.exp(-t / 15.0)) + rng.normal(0, 5, n)).astype(np.float32)
        evaluated = (rng.random(n) < 0.7) | (t == 0)
        seen = np.where(evaluated, score, -np.inf)
        best = evaluated & (seen >= np.maximum.accumulate(seen))
        events = np.where(best, int(Event.BEST), 0) | np.where(rng.random(n) < 0.05, int(Event.ROLLBACK), 0)
        events[-1:] |= int(Event.STOPPED)
        columns: dict[str, Any] = {
            "evaluated": evaluated,
            "score": score,
            "train_return": rng.normal(100, 10, n),
            "train_episodes": rng.integers(0, 3, n),
            "state": np.where(t > 0.7 * n, LoopState.COOLING, LoopState.ACTIVE),
            "interval": 1 + t // 10,
            "events": events,
            "stop_reason": np.where(t == n - 1, stop, 0),
            "lr": 1e-3 * np.exp(np.cumsum(rng.normal(0, 0.05, n))),
            "policy_loss": np.sin(0.3 * t),
        }
        return {name: self._cast(name, column) for name, column in columns.items()}

    @staticmethod
    def _cast(name: str, column: np.ndarray) -> np.ndarray:
        return column.astype(bool if name == "evaluated" else np.float32 if name in _FLOATS else np.int32)

    def chunks(self, size: int) -> Iterator[ChunkReport]:
        """Reports of `size` windows; finished members drop out, the others come in a new order each time."""
        done = 0
        while True:
            alive = [i for i, member in enumerate(self.members) if len(member["score"]) > done]
            if not alive:
                return
            yield self._chunk(self.rng.permutation(alive), done, size)
            done += size

    def _chunk(self, ids: np.ndarray, done: int, size: int) -> ChunkReport:
        columns = {}
        for name in self.members[0]:
            columns[name] = np.stack([self._padded(self.members[i][name][done : done + size], size) for i in ids], 1)
        lengths = np.array([len(self.members[i]["score"]) - done for i in ids])
        return ChunkReport(
            first_window=np.full(len(ids), done),
            active=np.arange(size)[:, None] < lengths,
            hyperparams={"lr": columns.pop("lr")},
            losses={"policy_loss": columns.pop("policy_loss")},
            member_ids=ids,
            **columns,
        )

    @staticmethod
    def _padded(column: np.ndarray, size: int) -> np.ndarray:
        """Rows after a member's end repeat its last one, as a frozen member's would."""
        return np.concatenate([column, np.repeat(column[-1:], size - len(column))])


def recorded(story: Story, size: int = 8) -> CurveRecorder:
    recorder = CurveRecorder(len(story.members), ENV_STEPS_PER_WINDOW)
    for report in story.chunks(size):
        recorder.add(report)
    return recorder


def make_result(
    lengths: list[int], seed: int = 0, stop: StopReason = StopReason.CONVERGED, **given: Any
) -> TrainResult:
    """A whole result; the final returns are 20 episodes around 200 plus the member's index."""
    recorder = recorded(Story(lengths, seed, stop))
    rng = np.random.default_rng(seed)
    members = [
        member_result(recorder, curve, i, 200 + i + rng.normal(0, 3, 20), seed=i)
        for i, curve in enumerate(recorder.curves())
    ]
    values: dict[str, Any] = {
        "env": "CartPole-v1",
        "algorithm": "ppo",
        "members": members,
        "env_steps": sum(member.env_steps for member in members),
        "compile_s": 3.25,
        "run_s": 2.0,
        "wall_s": 6.5,
    }
    return TrainResult(**(values | given))
