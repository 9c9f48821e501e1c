"""Variants that are spawned inside a compiled run: when the newest member of a seed stands still, the next place wakes.

Places are lanes like any other; one that waits is a member that has stopped before its first window, and costs no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.core import autonomy
from tensor_optix.core.autonomy import NO_LIMIT
from tensor_optix.core.search_space import SearchSpace
from tensor_optix.core.types import StopReason
from tensor_optix.evolution.decisions import Evaluations, MetaAction, spawn
from tensor_optix.evolution.spawning import Plateau, SpawnConfig, SpawnPlan, plan
from tensor_optix.loop.compiled import Member, Program
from tensor_optix.loop.meeting import Copies, MeetingReport

_HYPER, _WEIGHTS, _TUNER = 0, 1, 2  # what a spawn draws random numbers for


class Brood(struct.PyTreeNode):
    """What is kept of one seed's variants. Leading axis [G] when stacked."""

    key: jax.Array  # [] typed key
    spawned: jax.Array  # [] int32, so many so far: each draws from fold_in(key, spawned)


@dataclass(frozen=True)
class Spawner:
    """How variants are spawned. Static and hashable.

    Args:
      config: when, and how far a variant goes.
      space: hyperparameters in which variants differ; they stay inside.
    """

    config: SpawnConfig
    space: SearchSpace

    @property
    def size(self) -> int:
        return self.config.size

    @property
    def starts(self) -> tuple[bool, ...]:
        return (True,) + (False,) * self.config.max_spawns

    def init(self, hyper: dict[str, jax.Array], keys: jax.Array) -> Brood:
        return Brood(keys, jnp.zeros(keys.shape, jnp.int32))

    def first(self, groups: Brood, hyper: Mapping[str, Any]) -> dict[str, Any]:
        return dict(hyper)

    def wait(self, windows: np.ndarray, stop_reasons: np.ndarray, met: np.ndarray, interval: int) -> int:
        """Now, where a seed has trained since it last met and nobody of it trains any more."""
        by_seed = windows.reshape(-1, self.size)
        still = ~(stop_reasons.reshape(-1, self.size) == StopReason.RUNNING).any(axis=1)
        return 0 if (still & (by_seed.sum(axis=1) > met)).any() else NO_LIMIT

    def copies(self, parents: np.ndarray, windows: np.ndarray, stop_reasons: np.ndarray) -> list[Copies]:
        """One entry a spawn."""
        itself = np.arange(len(parents))
        made = []
        for child in np.flatnonzero(parents != itself):
            seed = slice(child // self.size * self.size, (child // self.size + 1) * self.size)
            made.append(Copies(int(windows[seed].sum()), np.where(itself == child, parents, itself)))
        return made

    def step(
        self, program: Program, members: Member, groups: Brood, lanes: jax.Array
    ) -> tuple[Member, Brood, MeetingReport]:
        n_lanes, n_seeds = members.brain.done.shape[0], groups.spawned.shape[0]
        places = lanes.reshape(n_seeds, self.size)
        plans = self._plans(members, places)
        spawning, resuming = (plans.asked & (plans.action == int(a)) for a in (MetaAction.SPAWN, MetaAction.NO_OP))
        spent = plans.asked & (plans.action == int(MetaAction.STOP))
        seed = jnp.arange(n_seeds)
        newest = places[seed, plans.newest]
        child = places[seed, jnp.minimum(plans.newest + 1, self.size - 1)]
        parent = places[seed, plans.parent]

        def put(start: Any, where: jax.Array, lane: jax.Array, values: Any) -> Any:
            """`start` [L] with values [G] at lanes [G], in those seeds [G] where it holds."""
            at = jnp.where(where, lane, n_lanes)
            return jax.tree.map(lambda x, new: x.at[at].set(new, mode="drop"), start, values)

        keys = jax.vmap(jax.random.fold_in)(groups.key, groups.spawned)
        made = partial(self._made, program)

        def spawned(members: Member) -> Member:
            waiting = jax.tree.map(lambda x: x[child], members)
            origin = jax.tree.map(lambda x: x[parent], members)
            return put(members, spawning, child, jax.vmap(made)(waiting, origin, keys, plans))

        members = jax.lax.cond(spawning.any(), spawned, lambda members: members, members)
        brain = members.brain
        old = jax.tree.map(lambda x: x[newest], brain)
        brain = put(brain, resuming, newest, jax.vmap(partial(autonomy.resume, program.brain))(old))
        ended = jnp.where(old.stop_reason == StopReason.CONVERGED, jnp.int32(StopReason.SPAWN_BUDGET), old.stop_reason)
        brain = brain.replace(stop_reason=put(brain.stop_reason, spent, newest, ended))
        itself = jnp.arange(lanes.shape[0], dtype=jnp.int32)
        first = seed.astype(jnp.int32) * self.size
        parents = itself.at[jnp.where(spawning, first + plans.newest + 1, itself.size)].set(
            first + plans.parent, mode="drop"
        )
        waits = brain.done & (brain.stop_reason == StopReason.RUNNING)
        reasons = jnp.where(waits, jnp.int32(StopReason.UNSPAWNED), brain.stop_reason)
        report = MeetingReport(parents, reasons[lanes])
        groups = groups.replace(spawned=groups.spawned + spawning.astype(jnp.int32))
        return members.replace(brain=brain), groups, report

    def _plans(self, members: Member, places: jax.Array) -> SpawnPlan:
        """[G], what to do about each seed."""
        brain = members.brain
        done, reason, windows, best, has_best, limit = (
            x[places]
            for x in (
                brain.done,
                brain.stop_reason,
                brain.window,
                brain.best_score,
                brain.has_best,
                brain.max_windows,
            )
        )
        newest = jnp.maximum((windows > 0).sum(axis=1) - 1, 0)
        lane = jnp.take_along_axis(places, newest[:, None], axis=1)[:, 0]
        scores = brain.scheduler.scores[lane]
        count = jnp.minimum(brain.scheduler.evaluations[lane], scores.shape[1])
        nothing = jnp.zeros_like(scores)
        told = Plateau(
            done=done,
            reason=reason,
            windows=windows,
            best=best,
            has_best=has_best,
            evaluations=Evaluations(scores, count, nothing, nothing, jnp.zeros_like(count)),
            budget=limit[:, 0],
        )
        return jax.vmap(partial(plan, self.config))(told)

    def _made(self, program: Program, waiting: Member, origin: Member, key: jax.Array, plan: SpawnPlan) -> Member:
        """A variant of the best policy of `origin`, in the place of `waiting`."""
        draw = partial(jax.random.fold_in, key)
        # A replay is of one piece with the environments that fill it.
        copied = self.config.copy_replay and hasattr(waiting.learner, "replay")
        learner = program.algorithm.restore(origin.learner if copied else waiting.learner, origin.best)
        learner = program.algorithm.perturb(learner, draw(_WEIGHTS), plan.weight_noise)
        hyper = spawn(draw(_HYPER), self.space, origin.brain.best_hyper, plan.noise)
        target = waiting.brain.target_score
        brain = autonomy.init(program.brain, hyper, draw(_TUNER), plan.remaining, target)
        return Member(waiting.key, brain, learner, program.algorithm.snapshot(learner))
