"""Exchange between the members of populations: learners and hyperparameters move over the member axis, on the devices.

A run holds G populations (one a seed) of K members each. After every evaluation one compiled program tells the rule
what was scored and obeys it by gathers; members that live on several devices meet through XLA's collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tensor_optix.core import backoff_scheduler
from tensor_optix.core.backoff_scheduler import BackoffConfig, SchedulerState
from tensor_optix.core.search_space import SearchSpace, from_unit, to_unit
from tensor_optix.core.types import LoopState, StopReason
from tensor_optix.evolution.population import PopulationRule, Scored
from tensor_optix.loop.compiled import MEMBERS, Member, Program
from tensor_optix.loop.packing import Packed, pack


class Population(struct.PyTreeNode):
    """One population of K members. Leading axis [G] when stacked."""

    rule: Any  # the rule's state
    scheduler: SchedulerState  # sees the highest score of every evaluation
    seen: jax.Array  # [K] int32, evaluations of each member that the rule has been told of


class ExchangeReport(struct.PyTreeNode):
    """What one exchange did, by member."""

    parents: jax.Array  # [M] int32, whose learner each member goes on with
    converged: jax.Array  # [G] bool, the population has stopped


@dataclass(frozen=True)
class Exchanger:
    """How the populations of a run exchange. Static and hashable.

    Args:
      rule: who copies whom.
      size: K, members of one population. Members g K to (g + 1) K - 1 are population g.
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

    def step(
        self, program: Program, members: Member, populations: Population, lanes: jax.Array
    ) -> tuple[Member, Population, ExchangeReport]:
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
        return members.replace(brain=brain, learner=learner), populations, ExchangeReport(parents, over & self.stop)

    def _observe(self, state: SchedulerState, told: Scored) -> tuple[SchedulerState, jax.Array]:
        """The population's own scheduler, and whether it says that learning is over."""
        valid = told.valid.any()
        best = jnp.where(told.valid, told.scores, -jnp.inf).max()
        state, _ = backoff_scheduler.observe(self.scheduler, state, jnp.where(valid, best, jnp.float32(0.0)), valid)
        return state, valid & (state.code == LoopState.DORMANT)

    def _gathered(self, program: Program, learner: Any, parent_lane: jax.Array, copied: jax.Array) -> Any:
        """Each lane's learner after it has taken over what a roll-back would bring back, from its parent's.

        Environments stay each member's own, and so does its replay unless it is to be copied.
        """
        algorithm = program.algorithm

        def gather(learner: Any) -> Any:
            snapshots = jax.tree.map(lambda x: x[parent_lane], jax.vmap(algorithm.snapshot)(learner))
            new = jax.vmap(algorithm.restore)(learner, snapshots)
            if self.copy_replay and hasattr(learner, "replay"):
                new = new.replace(replay=jax.tree.map(lambda x: x[parent_lane], learner.replay))
            return new

        return jax.lax.cond(copied.any(), gather, lambda learner: learner, learner)


def compiled_exchange(exchanger: Exchanger, program: Program, mesh: Mesh) -> Callable[..., Any]:
    """(packed members [L], populations [G], lanes [M]) -> both afterwards, donated, and the `ExchangeReport`."""
    members, everywhere = NamedSharding(mesh, P(MEMBERS)), NamedSharding(mesh, P())

    def exchange(packed: Packed, populations: Population, lanes: jax.Array) -> tuple[Packed, Population, Any]:
        new, populations, report = exchanger.step(program, packed.unpack(), populations, lanes)
        return pack(new, new.brain.done.shape), populations, report

    return jax.jit(
        exchange,
        donate_argnums=(0, 1),
        in_shardings=(members, everywhere, everywhere),
        out_shardings=(members, everywhere, everywhere),
    )


def populations_of(
    exchanger: Exchanger, seeds: np.ndarray, variants: np.ndarray, hyper: dict[str, np.ndarray]
) -> Population:
    """Populations at the start. seeds, variants: [G] uint32, of each one's first member. hyper: name -> [G, K]."""

    def key(seed: jax.Array, variant: jax.Array) -> jax.Array:
        # no member's key is made so: theirs fold in their number, which is far below this
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1)), variant)

    def make(seeds: jax.Array, variants: jax.Array, hyper: dict[str, jax.Array]) -> Population:
        return exchanger.init(hyper, jax.vmap(key)(seeds, variants))

    return jax.jit(make)(seeds, variants, hyper)
