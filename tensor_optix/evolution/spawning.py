"""What one seed's variants do when the newest of them has stopped learning: the pure rule of a run that spawns.

A seed has K places. One member learns from the start, the others wait. Whenever the newest has come to a plateau the
rule decides (`decisions.decide`): it goes on, or the next place wakes as a changed copy of the best policy so far, or,
when no place is left, learning is over.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.core.types import StopReason
from tensor_optix.evolution.decisions import Evaluations, MetaAction, MetaConfig, decide, spawn_noise, weight_noise
from tensor_optix.optimizers.probes import check_knobs


@dataclass(frozen=True)
class SpawnConfig:
    """Static settings.

    Raises:
      TypeError: a setting is of another kind.
      ValueError: it is out of its range.
    """

    max_spawns: int = 4  # variants that may be made of each seed
    max_ensemble_size: int = 0  # policies in the final ensemble, the best; 0: all
    min_noise: float = 0.001  # on a variant's hyperparameters, as a share of each one's range
    max_noise: float = 0.1
    weight_noise: float = 0.01  # on a variant's weights; less while the score still rises
    window: int = 10  # evaluations that decide
    improvement_threshold: float = 0.01  # rise per evaluation, as a share of the scores' scale; less: spawn
    copy_replay: bool = True  # a variant goes on with the replay of the policy that it is made of

    def __post_init__(self) -> None:
        check_knobs(self)
        if self.max_spawns < 1:
            raise ValueError(f"max_spawns must be at least 1, got {self.max_spawns}")
        if self.max_ensemble_size < 0:
            raise ValueError(f"max_ensemble_size must be 0 (all) or more, got {self.max_ensemble_size}")
        if not 0 <= self.min_noise <= self.max_noise <= 1:
            raise ValueError(
                f"expected 0 <= min_noise <= max_noise <= 1 (shares of the range), got {self.min_noise} and "
                f"{self.max_noise}"
            )
        if not 0 <= self.weight_noise <= 1:
            raise ValueError(f"weight_noise must be in [0, 1], got {self.weight_noise}")
        self.meta  # noqa: B018  its own checks

    @property
    def meta(self) -> MetaConfig:
        return MetaConfig(improvement_threshold=self.improvement_threshold, window=self.window)

    @property
    def size(self) -> int:
        """K: the first member, and every variant that may be made."""
        return 1 + self.max_spawns


class Plateau(struct.PyTreeNode):
    """What the rule is told of one seed's K members. A place that still waits has trained for no window."""

    done: jax.Array  # [K] bool
    reason: jax.Array  # [K] int32, `StopReason`; RUNNING where a place waits
    windows: jax.Array  # [K] int32, trained so far
    best: jax.Array  # [K] float32, score of the policy kept
    has_best: jax.Array  # [K] bool, one is kept
    evaluations: Evaluations  # of the newest member
    budget: jax.Array  # [] int32, windows that the members of this seed may train in all


class SpawnPlan(struct.PyTreeNode):
    """What to do about it. Scalars."""

    action: jax.Array  # int32, `MetaAction`; NO_OP also where there is nothing to decide
    asked: jax.Array  # bool, the newest member has come to its end and something was decided
    newest: jax.Array  # int32, the member it is about
    parent: jax.Array  # int32, SPAWN: whose best policy is copied into place newest + 1
    noise: jax.Array  # float32, on its hyperparameters
    weight_noise: jax.Array  # float32, on its weights
    remaining: jax.Array  # int32, windows left


def plan(config: SpawnConfig, told: Plateau) -> SpawnPlan:
    """Decide for one seed.

    Asked where nobody trains and the newest has converged, or was given up for NaN while a place is left; then:
        SPAWN   the score does not rise any more: wake the next place
        NO_OP   it still rises: the newest goes on
        STOP    no place is left
    Without a window of the budget left nothing is decided.
    """
    lived = told.windows > 0
    newest = jnp.maximum(jnp.sum(lived.astype(jnp.int32)) - 1, 0)
    places = newest + 1 < config.size
    broken = told.reason[newest] == StopReason.NON_FINITE
    over = told.done.all() & ((told.reason[newest] == StopReason.CONVERGED) | (broken & places))
    remaining = told.budget - jnp.sum(told.windows)
    action = decide(config.meta, told.evaluations, places)
    # The compiled driver has no second set of scores, so nothing tells overfitting: PRUNE does not come up.
    action = jnp.where(broken | (action == MetaAction.PRUNE), jnp.int32(MetaAction.SPAWN), action)
    asked = lived.any() & over & (remaining > 0)
    worth = jnp.where(told.has_best, told.best, -jnp.inf)
    return SpawnPlan(
        action=jnp.where(asked, action, jnp.int32(MetaAction.NO_OP)),
        asked=asked,
        newest=newest,
        parent=jnp.where(told.has_best.any(), jnp.argmax(worth).astype(jnp.int32), jnp.int32(0)),
        noise=spawn_noise(
            told.evaluations, jnp.float32(config.min_noise), jnp.float32(config.max_noise), config.window
        ),
        weight_noise=jnp.where(
            config.weight_noise > 0,
            weight_noise(told.evaluations, jnp.float32(config.weight_noise), config.window),
            jnp.float32(0.0),
        ),
        remaining=remaining,
    )
