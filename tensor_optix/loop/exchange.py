"""Exchange between the members of populations: learners and hyperparameters move over the member axis, on the devices.

After every evaluation one compiled program tells the rule what was scored and obeys it by gathers.
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

from tensor_optix.core import backoff_scheduler
from tensor_optix.core.backoff_scheduler import BackoffConfig, SchedulerState
from tensor_optix.core.search_space import SearchSpace, from_unit, to_unit
from tensor_optix.core.types import LoopState, StopReason
from tensor_optix.evolution.population import PopulationRule, Scored
from tensor_optix.loop.compiled import Member, Program
from tensor_optix.loop.meeting import Copies, MeetingReport


class Population(struct.PyTreeNode):
    """One population of K members. Leading axis [G] when stacked."""

    rule: Any  # the rule's state
    scheduler: SchedulerState  # sees the highest score of every evaluation
    seen: jax.Array  # [K] int32, evaluations of each member that the rule has been told of


@dataclass(frozen=True)
class Exchanger:
    """How the populations of a run exchange. Static and hashable.

    Args:
      rule: who copies whom.
      size: K, members of one population.
      space: hyperparameters that the rule moves.
      scheduler: when a population counts as converged.
      stop: stop it then.
      copy_replay: gather replays too.
    """

    rule: PopulationRule
    size: int
    space: SearchSpace
    scheduler: BackoffConfig
    stop: bool = True
    copy_replay: bool = False

    def init(self, hyper: dict[str, jax.Array], keys: jax.Array) -> Population:
        """Populations at the start. hyper: name -> [G, K] float32, as given. keys: [G] typed keys."""

        def one(hyper: dict[str, jax.Array], key: jax.Array) -> Population:
            x0 = jax.vmap(partial(to_unit, self.space))(hyper)
            state = self.rule.init(self.space, x0, key)
            return Population(state, backoff_scheduler.init(self.scheduler), jnp.zeros((self.size,), jnp.int32))

        return jax.vmap(one)(hyper, keys)

    def first(self, population: Population, hyper: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Hyperparameters of the first period, name -> [G K] float32."""
        x = jax.vmap(self.rule.first)(population.rule)
        return jax.vmap(partial(from_unit, self.space))(x.reshape(-1, self.space.dim), hyper)

    @property
    def starts(self) -> tuple[bool, ...]:
        return (True,) * self.size

    def step(
        self, program: Program, members: Member, populations: Population, lanes: jax.Array
    ) -> tuple[Member, Population, MeetingReport]:
        """Tell the rule what was scored, and obey it.

        members: [L], one a lane. lanes: [M] int32, the lane of each member; a lane without a member is left alone.
        """
        n_lanes, shape = members.brain.done.shape[0], (-1, self.size)
        mine = jax.tree.map(lambda x: x[lanes].reshape(shape), (members.brain.done, members.brain.evaluations))
        newest = members.brain.scheduler.scores[lanes, -1].reshape(shape)
        alive, fresh = ~mine[0], mine[1] > populations.seen
        told = Scored(jnp.where(fresh, newest, jnp.float32(0.0)), fresh & alive, alive)
        rule, exchange = jax.vmap(self.rule.step)(populations.rule, told)
        scheduler, over = jax.vmap(self._observe)(populations.scheduler, told)
        populations = Population(rule, scheduler, mine[1])

        first = jnp.arange(exchange.parents.shape[0], dtype=jnp.int32)[:, None] * self.size
        parents = (first + exchange.parents).reshape(-1)
        parent_lane = jnp.arange(n_lanes, dtype=jnp.int32).at[lanes].set(lanes[parents])
        copied = parent_lane != jnp.arange(n_lanes)
        learner = self._gathered(program, members.learner, parent_lane, copied)
        hyper = {name: values[parent_lane] for name, values in members.brain.hyper.items()}
        told_hyper = jax.vmap(partial(from_unit, self.space))(
            exchange.x.reshape(-1, self.space.dim), {name: values[lanes] for name, values in hyper.items()}
        )
        running = ~members.brain.done
        placed = {name: values.at[lanes].set(told_hyper[name]) for name, values in hyper.items()}
        placed = {name: jnp.where(running, placed[name], members.brain.hyper[name]) for name in placed}
        ended = jnp.zeros((n_lanes,), bool).at[lanes].set(jnp.repeat(over & self.stop, self.size)) & running
        brain = members.brain.replace(
            hyper=placed,
            done=members.brain.done | ended,
            stop_reason=jnp.where(ended, jnp.int32(StopReason.CONVERGED), members.brain.stop_reason),
        )
        members = members.replace(brain=brain, learner=learner)
        return members, populations, MeetingReport(parents, brain.stop_reason[lanes])

    def wait(self, windows: np.ndarray, stop_reasons: np.ndarray, met: np.ndarray, interval: int) -> int:
        """Windows to the next evaluation of all: members that run have run equally many."""
        running = stop_reasons == StopReason.RUNNING
        if not running.any():
            return interval
        now = int(windows[running].max()) % interval
        grown = windows.reshape(-1, self.size).sum(axis=1) > met
        return interval - now if now or not grown.any() else 0

    def copies(self, parents: np.ndarray, windows: np.ndarray, stop_reasons: np.ndarray) -> list[Copies]:
        """One entry, if anybody copied anybody."""
        if (parents == np.arange(len(parents))).all():
            return []
        return [Copies(int(windows[stop_reasons == StopReason.RUNNING].max()), parents)]

    def _observe(self, state: SchedulerState, told: Scored) -> tuple[SchedulerState, jax.Array]:
        """The population's own scheduler, and whether it says that learning is over."""
        valid = told.valid.any()
        best = jnp.where(told.valid, told.scores, -jnp.inf).max()
        state, _ = backoff_scheduler.observe(self.scheduler, state, jnp.where(valid, best, jnp.float32(0.0)), valid)
        return state, valid & (state.code == LoopState.DORMANT)

    def _gathered(self, program: Program, learner: Any, parent_lane: jax.Array, copied: jax.Array) -> Any:
        """Each lane's learner after it has taken over what a roll-back would bring back, from its parent's.

        Environments stay each member's own. Where a replay is to be copied, all else comes with it: it is of one piece
        with the environments that fill it.
        """
        algorithm = program.algorithm

        def gather(learner: Any) -> Any:
            snapshots = jax.tree.map(lambda x: x[parent_lane], jax.vmap(algorithm.snapshot)(learner))
            if self.copy_replay and hasattr(learner, "replay"):
                learner = jax.tree.map(lambda x: x[parent_lane], learner)
            return jax.vmap(algorithm.restore)(learner, snapshots)

        return jax.lax.cond(copied.any(), gather, lambda learner: learner, learner)
