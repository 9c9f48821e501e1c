"""The compiled driver: window -> evaluate if due -> brain -> obey, over members; a chunk is a loop of windows.

Everything here is pure and runs inside one XLA program. Members have a leading axis. They are spread over devices and,
within a device, run in blocks one after the other: on a CPU narrow blocks are much faster than one wide vmap, on an
accelerator one block takes all. A block stops as soon as all its members have, so a finished member costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tensor_optix.algorithms.contract import Algorithm, Learner, Policy, Snapshot, WindowStats
from tensor_optix.core import autonomy
from tensor_optix.core.autonomy import AutonomyConfig, AutonomyState
from tensor_optix.core.types import Decision, Event, Scores
from tensor_optix.envs.evaluate import EpisodeStats, evaluate_with_carry
from tensor_optix.loop.packing import Packed, pack

MEMBERS = "members"  # name of the mesh axis
_LEARN, _EVALUATE, _RESET, _GROW = 0, 1, 2, 3  # what a window draws random numbers for


class Member(struct.PyTreeNode):
    """One learner and everything it needs to go on exactly. Leading axis [M] when stacked."""

    key: jax.Array  # [] typed key; window w draws from fold_in(fold_in(key, w), purpose)
    brain: AutonomyState
    learner: Learner
    best: Snapshot  # of the best policy so far; of the untrained one until there is a best


class WindowReport(struct.PyTreeNode):
    """What one window of one member did. Reduced: a few scalars."""

    active: jax.Array  # [] bool, a real window; False where the member had stopped before
    evaluated: jax.Array  # [] bool
    score: jax.Array  # [] float32, 0 unless evaluated
    train_return: jax.Array  # [] float32, mean return of the episodes that ended in it, 0 if none did
    train_episodes: jax.Array  # [] int32
    state: jax.Array  # [] int32, LoopState
    interval: jax.Array  # [] int32, windows until the next evaluation, counted from the last
    events: jax.Array  # [] int32, Event bits
    stop_reason: jax.Array  # [] int32, StopReason
    hyperparams: dict[str, jax.Array]  # name -> [] float32, in force during the window
    losses: dict[str, jax.Array]  # name -> [] float32


@dataclass(frozen=True)
class Program:
    """What a member runs: an algorithm, a brain and how policies are judged. Static and hashable."""

    algorithm: Algorithm
    brain: AutonomyConfig
    eval_episodes: int
    eval_max_steps: int

    def init(
        self,
        key: jax.Array,
        hyper: dict[str, jax.Array],
        max_windows: jax.Array,
        target_score: jax.Array,
        enabled: jax.Array,
    ) -> Member:
        """A fresh member; one that is not `enabled` only fills a lane and never runs."""
        key_learner, key_tuner, key_run = jax.random.split(key, 3)
        brain = autonomy.init(self.brain, hyper, key_tuner, max_windows, target_score)
        brain = brain.replace(done=~enabled)
        learner = self.algorithm.init(key_learner, brain.hyper)
        return Member(key_run, brain, learner, self.algorithm.snapshot(learner))

    def window(self, members: Member) -> tuple[Member, WindowReport]:
        """One window of a block of members [B], or of a single one without that axis."""
        algorithm = self.algorithm
        shape = members.brain.done.shape
        each = partial(_each, shape)
        active = ~members.brain.done
        keys = each(jax.random.fold_in)(members.key, members.brain.window)
        key = partial(_for, keys)
        learner, stats = each(algorithm.window)(members.learner, members.brain.hyper, key(_LEARN))
        due = each(autonomy.is_due)(members.brain)
        score = jax.lax.cond(
            jnp.any(active & due),
            lambda: jnp.where(due, each(self.score)(learner, key(_EVALUATE)), jnp.float32(0.0)),
            lambda: jnp.zeros(shape, jnp.float32),
        )
        brain, decision = self._decide(members.brain, Scores(score, due, stats.finite))
        events = decision.events
        best, learner = self._obey(decision, learner, members.best, partial(key, _RESET))
        if getattr(algorithm, "grows", False):
            learner, brain = self._tell(learner, brain, score, active & due, partial(key, _GROW))
            events = jnp.where(brain.done, events, events & ~jnp.int32(Event.STOPPED))  # growth may have resumed it
        new = Member(members.key, brain, learner, best)
        if shape:  # a single member is left before it could run on
            new = jax.lax.cond(jnp.all(active), lambda: new, lambda: _select(active, new, members))
        return new, _report(members.brain, new.brain, score, events, due, stats, active)

    def _decide(self, brain: AutonomyState, scores: Scores) -> tuple[AutonomyState, Decision]:
        """Ask the brain, but only where there is something to say; most windows bring no news."""
        each = partial(_each, scores.evaluated.shape)
        step = _traced_once(each(partial(autonomy.step, self.brain)))
        _, shapes = jax.eval_shape(step, brain, scores)
        unsaid = (brain, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
        shape = scores.evaluated.shape

        def ask(packed: Packed) -> Packed:
            return pack(step(packed.unpack()[0], scores), shape)

        news = jnp.any(~brain.done & (scores.evaluated | ~scores.finite))
        brain, decision = _only_if(news, ask, pack(unsaid, shape)).unpack()
        return jax.tree.map(partial(jnp.where, news), brain, each(autonomy.tick)(brain)), decision

    def chunk(self, members: Packed, n_windows: jax.Array, max_windows: int) -> tuple[Packed, Packed]:
        """Up to `n_windows` (traced) windows of a block of packed members [B] (or of one, without that axis).

        Returns the members and the packed reports [max_windows, B]; unused rows are zero.
        """
        shape = members.unpack().brain.done.shape

        @_traced_once
        def window(members: Packed) -> tuple[Packed, Packed]:
            new, row = self.window(members.unpack())
            return pack(new, shape), pack(row, shape)

        def going(carry: tuple[jax.Array, Packed, Packed]) -> jax.Array:
            i, members, _ = carry
            return (i < n_windows) & ~jnp.all(members.unpack().brain.done)

        def body(carry: tuple[jax.Array, Packed, Packed]) -> tuple[jax.Array, Packed, Packed]:
            i, members, reports = carry
            members, row = window(members)
            return i + 1, members, jax.tree.map(lambda buffer, x: buffer.at[i].set(x), reports, row)

        row = jax.eval_shape(window, members)[1]
        reports = jax.tree.map(lambda x: jnp.zeros((max_windows, *x.shape), x.dtype), row)
        _, members, reports = jax.lax.while_loop(going, body, (jnp.int32(0), members, reports))
        return members, reports

    def score(self, learner: Learner, key: jax.Array) -> jax.Array:
        """[] float32: mean return of `eval_episodes` whole episodes of the deterministic policy."""
        policy = self.algorithm.policy(learner)
        return self.rollouts(policy, key, self.eval_episodes).returns.mean()

    def rollouts(self, policy: Policy, key: jax.Array, n_episodes: int) -> EpisodeStats:
        """Whole episodes of the deterministic policy in environments of their own; nothing is learned."""
        return self.rollouts_of(self.algorithm, policy, key, n_episodes)

    def rollouts_of(self, acting: Any, policy: Policy, key: jax.Array, n_episodes: int) -> EpisodeStats:
        """`rollouts` of what acts as an algorithm does: with its `act` and its `initial_carry`."""

        def act(obs: jax.Array, carry: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            return acting.act(policy, obs, carry, key, deterministic=True)

        carry = acting.initial_carry()
        return evaluate_with_carry(self.algorithm.env, act, carry, key, n_episodes, self.eval_max_steps)[0]

    def best_policy(self, member: Member) -> Policy:
        return self.algorithm.policy(self.algorithm.restore(member.learner, member.best))

    def _obey(
        self, decision: Decision, learner: Learner, best: Snapshot, key: Callable[[], jax.Array]
    ) -> tuple[Snapshot, Learner]:
        """Save, roll back, reset: behind conditionals, because most windows do none of it."""
        each = partial(_each, decision.stop.shape)
        algorithm = self.algorithm
        best = _where(decision.save_best, lambda _: each(algorithm.snapshot)(learner), best)
        learner = _where(decision.rollback, lambda learner: each(algorithm.restore)(learner, best), learner)
        learner = _where(decision.reset_envs, lambda learner: each(algorithm.reset_envs)(learner, key()), learner)
        return best, learner

    def _tell(
        self, learner: Learner, brain: AutonomyState, score: jax.Array, due: jax.Array, key: Callable[[], jax.Array]
    ) -> tuple[Learner, AutonomyState]:
        """Tell an algorithm that changes its networks of an evaluation; one that has grown gets a fresh patience."""
        each = partial(_each, due.shape)

        def told(state: tuple[Learner, AutonomyState]) -> tuple[Learner, AutonomyState]:
            learner, grew = each(self.algorithm.evaluated)(state[0], score, key())  # type: ignore[attr-defined]
            renewed = each(partial(autonomy.renew, self.brain))(state[1])
            return learner, _where(grew, lambda _: renewed, state[1])

        return _where(due, told, (learner, brain))


def make_mesh(devices: list[Any]) -> Mesh:
    """A one-dimensional mesh: members over devices."""
    return Mesh(np.asarray(devices), (MEMBERS,))


def sharded_init(program: Program, mesh: Mesh) -> Callable[..., Packed]:
    """(seed, variant, and the rest of `Program.init`'s arguments) [M] -> packed members [M], spread over the mesh."""

    def init(seed: jax.Array, variant: jax.Array, *args: Any) -> Packed:
        key = jax.random.fold_in(jax.random.key(seed), variant)
        return pack(program.init(key, *args), ())

    spread = _shard(partial(_mapped, init), mesh, n_args=6)
    return jax.jit(spread, out_shardings=NamedSharding(mesh, P(MEMBERS)))


def sharded_chunk(program: Program, mesh: Mesh, block: int, max_windows: int) -> Callable[..., tuple[Packed, Packed]]:
    """(members [M], n_windows []) -> (members, reports [max_windows, M]), packed; M must divide by devices * block.

    The members' buffers are donated. `n_windows` is traced: chunks of any length run the same program.
    """

    def local(members: Packed, n_windows: jax.Array) -> tuple[Packed, Packed]:
        count = members.unpack().brain.done.shape[0]
        rows = (count // block, block) if block > 1 else (count,)
        blocks = jax.tree.map(lambda x: x.reshape(*rows, *x.shape[1:]), members)
        blocks, reports = _in_turn(partial(program.chunk, n_windows=n_windows, max_windows=max_windows), blocks)
        members = jax.tree.map(lambda x: x.reshape(count, *x.shape[len(rows) :]), blocks)
        lead = 1 + len(rows)  # axes of a report before its own: block, window, and the block's members if they have one
        return members, jax.tree.map(
            lambda x: jnp.moveaxis(x, 0, 1).reshape(max_windows, count, *x.shape[lead:]), reports
        )

    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(P(MEMBERS), P()), out_specs=(P(MEMBERS), P(None, MEMBERS)), check_vma=False
    )
    return jax.jit(spread, donate_argnums=0)


def sharded_final(program: Program, mesh: Mesh, n_episodes: int) -> Callable[[Packed], tuple[Policy, EpisodeStats]]:
    """Packed members [M] -> best policies [M] and their fresh episodes [M, n_episodes]."""

    def final(packed: Packed) -> tuple[Policy, EpisodeStats]:
        member = packed.unpack()
        policy = program.best_policy(member)
        key = jax.random.fold_in(member.key, autonomy.NO_LIMIT)  # no window ever has this number
        return policy, program.rollouts(policy, key, n_episodes)

    return jax.jit(_shard(partial(_mapped, final), mesh, n_args=1))


def _shard(f: Callable[..., Any], mesh: Mesh, n_args: int) -> Callable[..., Any]:
    return jax.shard_map(f, mesh=mesh, in_specs=(P(MEMBERS),) * n_args, out_specs=P(MEMBERS), check_vma=False)


def _mapped(f: Callable[..., Any], *stacked: Any) -> Any:
    return jax.lax.map(lambda args: f(*args), stacked)


def _in_turn(f: Callable[[Any], tuple[Any, Any]], rows: Any) -> tuple[Any, Any]:
    """f of every row, which gives the row as it is afterwards and something else: both, stacked.

    As `lax.map`, but the rows stay in one buffer, so that only one of them is there twice. A replay may be most of what
    the machine has.
    """
    f, count = _traced_once(f), jax.tree.leaves(rows)[0].shape[0]
    other = jax.eval_shape(f, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows))[1]
    others = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), other)

    def turn(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        after = f(jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), carry[0]))
        return jax.tree.map(lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, i, 0), carry, after)

    return jax.lax.fori_loop(0, count, turn, (rows, others))


def _for(keys: jax.Array, purpose: int) -> jax.Array:
    """The keys [B] (or the one []) of this window for one purpose."""
    return _each(keys.shape, lambda key: jax.random.fold_in(key, purpose))(keys)


def _report(
    before: AutonomyState,
    after: AutonomyState,
    score: jax.Array,
    events: jax.Array,
    due: jax.Array,
    stats: WindowStats,
    active: jax.Array,
) -> WindowReport:
    episodes = jnp.maximum(stats.episodes, 1).astype(jnp.float32)
    return WindowReport(
        active=active,
        evaluated=active & due,
        score=score,
        train_return=jnp.where(stats.episodes > 0, stats.return_sum / episodes, jnp.float32(0.0)),
        train_episodes=stats.episodes,
        state=after.scheduler.code,
        interval=after.scheduler.interval,
        events=events,
        stop_reason=after.stop_reason,
        hyperparams=before.hyper,
        losses=stats.losses,
    )


def _only_if(condition: jax.Array, f: Callable[[Any], Any], x: Any) -> Any:
    """f(x) where condition [] holds, otherwise x itself.

    A loop of at most one round, since XLA's CPU compiler carries x through it in place: with `lax.cond` the whole
    program takes a fifth longer to compile and a window of PPO 5 % longer to run.
    """

    def once(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        return jnp.bool_(False), f(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], once, (condition, x))[1]


def _where(condition: jax.Array, f: Callable[[Any], Any], x: Any) -> Any:
    """f(x) for the members of a block whose condition [B] holds (or for the single one: []), x for the others."""

    def changed(x: Any) -> Any:
        return _select(condition, f(x), x) if condition.ndim else f(x)

    return _only_if(jnp.any(condition), changed, x)


def _traced_once(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, for a caller that asks for its shapes first and then calls it."""
    return jax.jit(f, inline=True)


def _each(shape: tuple[int, ...], f: Callable[..., Any]) -> Callable[..., Any]:
    """f over a block [B], or f itself for a single member, so that its conditionals stay conditionals."""
    return jax.vmap(f) if shape else f


def _select(condition: jax.Array, then: Any, otherwise: Any) -> Any:
    """Memberwise where: condition [B] (or []), leaves [B, ...] (or [...]) of any dtype, typed keys included."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(pick, then, otherwise)
