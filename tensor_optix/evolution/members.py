"""The members of an ensemble: agents, what they weigh, what they scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.evolution.decisions import ensemble_weights
from tensor_optix.evolution.meta_controller import padded


@dataclass(eq=False)
class Member:
    """One agent of an ensemble."""

    agent: BaseAgent
    weight: float
    uid: int  # never given twice: names the member in what is saved
    variant: bool = False  # a callback spawned it, and keeps its state
    scores: list[float] = field(default_factory=list)  # the newest last

    @property
    def mean_score(self) -> float | None:
        return float(np.mean(self.scores)) if self.scores else None

    def record(self) -> dict[str, Any]:
        """All but the agent, as plain values."""
        return {"uid": self.uid, "weight": self.weight, "variant": self.variant, "scores": list(self.scores)}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.uid, self.variant = int(record["uid"]), bool(record["variant"])
        self.weight, self.scores = float(record["weight"]), [float(score) for score in record["scores"]]


def reweigh(members: Sequence[Member], scores: Sequence[Sequence[float]]) -> None:
    """Give the members the weights that follow from `scores`, one row each; one without any keeps its own."""
    width = max((len(row) for row in scores), default=0)
    if not width:
        return
    table = np.stack([padded(row, width) for row in scores])
    counts = np.array([len(row) for row in scores], np.int32)
    present = np.array([member.weight for member in members], np.float32)
    for member, weight in zip(members, _ensemble_weights(table, counts, present), strict=True):
        member.weight = float(weight)


def weakest(members: Sequence[Member]) -> list[Member]:
    """Those that weigh least first; of equal weight the lower mean score, then the older, unscored ones last."""

    def rank(member: Member) -> tuple[float, float, int]:
        score = member.mean_score
        return member.weight, math.inf if score is None else score, member.uid

    return sorted(members, key=rank)


def is_on_policy(agent: Any) -> bool:
    """Agents need not be `BaseAgent`s: without a word they are, as those are."""
    return bool(getattr(agent, "is_on_policy", True))


def tear_down(agent: Any) -> None:
    """Release what the agent holds, if it says how."""
    release = getattr(agent, "teardown", None)
    if release is not None:
        release()


def check_weight(weight: Any) -> float:
    """`weight` as a float; ValueError unless it is finite and at least 0."""
    if isinstance(weight, str) or not 0.0 <= float(weight) < math.inf:
        raise ValueError(f"a weight must be at least 0 and finite, got {weight!r}")
    return float(weight)


_ensemble_weights = jax.jit(ensemble_weights)
