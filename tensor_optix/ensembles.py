"""What a seed's policies come to when they act as one: weighed by fresh episodes, then judged by others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.core.autonomy import NO_LIMIT
from tensor_optix.core.regime_detector import RegimeDetector
from tensor_optix.core.types import EvalMetrics, StopReason
from tensor_optix.evolution.decisions import ensemble_weights
from tensor_optix.evolution.ensemble_policy import Ensemble, EnsembleParams
from tensor_optix.evolution.report import report_text
from tensor_optix.loop.meeting import group_key
from tensor_optix.statistics import bootstrap_interval, mean

if TYPE_CHECKING:
    from tensor_optix.loop.compiled import Program
    from tensor_optix.results import MemberResult

_RECENT = 10  # scores of each member in the report


@dataclass(eq=False)
class EnsembleResult:
    """The policies of one seed and its variants, acting as one."""

    seed: int
    members: list[int]  # which of the result's members; the others were left out, or never spawned
    weights: list[float]  # of each, mean 1
    score: float  # mean of `returns`
    score_interval: tuple[float, float]  # 95 % bootstrap percentile interval of that mean over its episodes
    returns: np.ndarray = field(repr=False)  # [episodes] float64; other fresh episodes than those behind the weights
    report: dict[str, Any] = field(repr=False)  # as `PolicyManager.training_report`, and why the seed stopped

    @property
    def report_text(self) -> str:
        """`report` for people."""
        return report_text(self.report)

    def to_row(self) -> dict[str, Any]:
        """All but the returns."""
        names = ("seed", "members", "weights", "score", "score_interval", "report")
        return {name: getattr(self, name) for name in names} | {"episodes": len(self.returns)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], returns: np.ndarray) -> EnsembleResult:
        """Inverse of `to_row`."""
        values = {name: value for name, value in row.items() if name != "episodes"}
        score, low, high = (
            math.nan if x is None else x for x in (row["score"], *row["score_interval"])
        )  # as JSON has it
        return cls(**values | {"returns": returns, "score": score, "score_interval": (low, high)})


def judged(
    program: Program, policies: Any, groups: Sequence[Sequence[MemberResult]], largest: int, variants: Sequence[int]
) -> tuple[list[EnsembleResult], EnsembleParams]:
    """Every seed's ensemble, and its parameters, stacked [G, K, ...]; members that are no part of it weigh 0.

    Args:
      program: what the members ran.
      policies: the best of every member, [M, ...].
      groups: [G][K], what each member came to: its final episodes give the weights (`decisions.ensemble_weights`).
      largest: policies in an ensemble, the best; 0: all.
      variants: [G], the number of each seed's first member.
    """
    size, episodes = len(groups[0]), max(len(m.returns) for group in groups for m in group)
    scores = np.zeros((len(groups), size, episodes), np.float32)
    counts = np.zeros((len(groups), size), np.int32)
    for g, group in enumerate(groups):
        chosen = sorted((k for k in range(size) if np.isfinite(group[k].score)), key=lambda k: -group[k].score)
        for k in chosen[: largest or size]:
            scores[g, k], counts[g, k] = group[k].returns, episodes
    weights = np.asarray(_weights(scores, counts, np.zeros(counts.shape, np.float32)))
    # Where no score is a number the first member acts alone.
    weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, np.arange(size) == 0).astype(np.float32)
    stacked = jax.tree.map(lambda x: np.asarray(x).reshape(len(groups), size, *np.shape(x)[1:]), policies)
    params = EnsembleParams(stacked, jnp.asarray(weights))
    seeds = np.asarray([group[0].seed for group in groups], np.uint32)
    returns = np.asarray(_play(program, size, episodes)(params, seeds, np.asarray(variants, np.uint32)), np.float64)
    results = []
    for g, group in enumerate(groups):
        inside = np.flatnonzero(counts[g])
        results.append(
            EnsembleResult(
                seed=group[0].seed,
                members=[g * size + int(k) for k in inside],
                weights=[float(weights[g, k]) for k in inside],
                score=float(mean(returns[g])),
                score_interval=bootstrap_interval(returns[g]),
                returns=returns[g],
                report=_report(group, inside, weights[g], largest),
            )
        )
    return results, params


def _play(program: Program, size: int, episodes: int) -> Any:
    """(parameters [G, ...], seeds [G], variants [G]) -> returns [G, episodes] of fresh episodes."""
    acting = Ensemble(program.algorithm, size)

    def one(params: EnsembleParams, seed: jax.Array, variant: jax.Array) -> jax.Array:
        key = jax.random.fold_in(group_key(seed, variant), NO_LIMIT)  # no spawn has this number
        return program.rollouts_of(acting, params, key, episodes).returns

    return jax.jit(lambda *stacked: jax.lax.map(lambda args: one(*args), stacked))


def _report(group: Sequence[MemberResult], inside: np.ndarray, weights: np.ndarray, largest: int) -> dict[str, Any]:
    lived = [member for member in group if member.windows]
    best = [float(kept[-1]) for member in lived if len(kept := member.curve.best_so_far())]
    newest = lived[-1] if lived else group[0]
    history = [EvalMetrics(float(score), {}, i) for i, score in enumerate(newest.curve.score)]
    spawns = max(len(lived) - 1, 0)
    return {
        "ensemble_size": len(inside),
        "max_ensemble_size": largest or None,
        "agents": [
            {
                "index": int(k),
                "weight": float(weights[k]),
                "mean_score": group[k].score,
                "recent_scores": [float(score) for score in group[k].curve.score[-_RECENT:]],
            }
            for k in inside
        ],
        "regime": RegimeDetector().detect(history),
        "spawn_count": spawns,
        "max_spawns": len(group) - 1,
        "spawns_remaining": len(group) - 1 - spawns,
        "budget_exhausted": spawns == len(group) - 1,
        "prune_count": len(lived) - len(inside),
        "best_score": max(best, default=None),
        "best_val_score": None,
        "best_generalization_gap": None,
        "reason": StopReason(newest.stop_reason).describe(),
    }


_weights = jax.jit(jax.vmap(ensemble_weights))
