"""The data that both drivers and every algorithm exchange.

Host-side records (`EpisodeData`, `EvalMetrics`, `HyperparamSet`, `PolicySnapshot`) are plain dataclasses;
what the pure brain takes and returns (`Scores`, `Decision`) are pytrees of arrays.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import struct


class LoopState(enum.IntEnum):
    """Where the autonomous loop stands. The integer is what the compiled driver carries."""

    ACTIVE = 0  # improving, or too early to say otherwise
    COOLING = 1  # several evaluations in a row without improvement: evaluations grow rarer
    DORMANT = 2  # no improvement for long enough that learning counts as over
    WATCHDOG = 3  # converged and deployed: only degradation is looked for


class StopReason(enum.IntEnum):
    """Why a member stopped; `describe()` is the sentence that reports print."""

    RUNNING = 0
    CONVERGED = 1
    TARGET = 2
    BUDGET = 3
    NON_FINITE = 4
    INTERRUPTED = 5
    EXHAUSTED = 6
    SPAWN_BUDGET = 7
    UNSPAWNED = 8
    PRUNED = 9

    @property
    def label(self) -> str:
        """The word used in JSON and tables: "converged", "target", ..."""
        return self.name.lower().replace("_", "-")

    def describe(self) -> str:
        return _STOP_SENTENCES[self]


_STOP_SENTENCES = {
    StopReason.RUNNING: "still running",
    StopReason.CONVERGED: "no further improvement is to be expected: the score stopped rising",
    StopReason.TARGET: "the target score was held",
    StopReason.BUDGET: "the budget of environment steps was used up while the score may still rise",
    StopReason.NON_FINITE: "NaN or infinity came back after every roll-back; check_environment says whether the "
    "environment makes it",
    StopReason.INTERRUPTED: "interrupted; the run can be resumed",
    StopReason.EXHAUSTED: "the source of experience ended",
    StopReason.SPAWN_BUDGET: "the budget of spawned variants was used up",
    StopReason.UNSPAWNED: "a place for a variant that was not needed",
    StopReason.PRUNED: "a trial that others were ahead of after as many steps",
}


class Event(enum.IntFlag):
    """What happened in one window of one member. A bit mask, so that it travels as one int32."""

    NONE = 0
    BEST = 1  # this evaluation is the best so far; policy and hyperparameters were saved
    IMPROVING = 2  # the trend test says the score is rising
    PLATEAU = 4  # entered COOLING
    DORMANT = 8  # entered DORMANT
    DEGRADED = 16  # the score fell below the best by more than the noise
    ROLLBACK = 32  # the best policy and its hyperparameters were restored
    NON_FINITE = 64  # NaN or infinity in a score, a parameter or an optimiser state
    HYPERPARAMS = 128  # the tuner changed the hyperparameters
    TARGET = 256  # the score is at or above the target
    STOPPED = 512  # the member stopped; see its StopReason


class Scores(struct.PyTreeNode):
    """What the brain is told about one member's newest window. Scalars; add a member axis with vmap."""

    score: jax.Array  # [] float32, higher is better; ignored unless `evaluated`
    evaluated: jax.Array  # [] bool, an evaluation took place
    finite: jax.Array  # [] bool, the learner holds no NaN or infinity after the window


class Decision(struct.PyTreeNode):
    """What the brain wants done before the next window. Scalars; add a member axis with vmap."""

    evaluate_next: jax.Array  # [] bool, evaluate after the next window
    save_best: jax.Array  # [] bool, the current policy becomes the best
    rollback: jax.Array  # [] bool, put the best policy (and its normalisers, optimiser state) back
    reset_envs: jax.Array  # [] bool, start fresh episodes too: the environment itself may be poisoned
    hyperparams: Any  # pytree of [] float32, in force from the next window on
    events: jax.Array  # [] int32, bits of `Event`
    stop: jax.Array  # [] bool, this member is finished
    stop_reason: jax.Array  # [] int32, a `StopReason`


@dataclass
class EpisodeData:
    """One window of experience, time first (the loop's "episode"; it may hold several environment episodes)."""

    observations: Any  # [T, ...]
    actions: Any  # [T] or [T, action_dim]
    rewards: Sequence[float]  # [T]
    terminated: Sequence[bool]  # [T] the task ended: nothing follows
    truncated: Sequence[bool]  # [T] the episode was cut: bootstrap from what would have followed
    infos: Sequence[Mapping[str, Any]]
    episode_id: int
    values: Any = None
    log_probs: Any = None
    timestamp: float = field(default_factory=time.time)
    metadata: dict[str, Any] = field(default_factory=dict)
    episode_starts: Any = None
    final_obs: Any = None
    hidden_states: Any = None

    @property
    def dones(self) -> list[bool]:
        return [bool(a) or bool(b) for a, b in zip(self.terminated, self.truncated, strict=True)]

    @property
    def total_reward(self) -> float:
        return float(np.sum(np.asarray(self.rewards, dtype=np.float64)))

    @property
    def length(self) -> int:
        return len(self.rewards)


@dataclass
class EvalMetrics:
    """One evaluation. `primary_score` is what every decision is made from; higher is better."""

    primary_score: float
    metrics: dict[str, Any]
    episode_id: int
    timestamp: float = field(default_factory=time.time)

    def beats(self, other: EvalMetrics, margin: float = 0.0) -> bool:
        """True if strictly above `other` by more than `margin` (score units)."""
        return bool(self.primary_score > other.primary_score + margin)

    @property
    def generalization_gap(self) -> float | None:
        """Training minus validation score, or None when either is missing."""
        train, val = self.metrics.get("train_score"), self.metrics.get("val_score")
        return None if train is None or val is None else float(train) - float(val)


@dataclass
class HyperparamSet:
    """Named hyperparameters as they were at window `episode_id`."""

    params: dict[str, Any]
    episode_id: int = 0
    timestamp: float = field(default_factory=time.time)

    def copy(self) -> HyperparamSet:
        return HyperparamSet(dict(self.params), self.episode_id, self.timestamp)


@dataclass
class PolicySnapshot:
    """A saved policy: what it scored, what it was trained with, where its weights lie."""

    snapshot_id: str
    eval_metrics: EvalMetrics
    hyperparams: HyperparamSet
    weights_path: str
    episode_id: int
    timestamp: float = field(default_factory=time.time)
