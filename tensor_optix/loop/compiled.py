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
from tensor_optix.core.types import Decision, Scores
from tensor_optix.envs.evaluate import EpisodeStats, evaluate

MEMBERS = "members"  # name of the mesh axis


class Member(struct.PyTreeNode):
    """One learner and everything it needs to go on exactly. Leading axis [M] when stacked."""

    key: jax.Array  # [] typed key; window w draws from fold_in(key, w)
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
        key_learn, key_evaluate, key_reset = each(_window_keys)(members)
        learner, stats = each(algorithm.window)(members.learner, members.brain.hyper, key_learn)
        due = each(autonomy.is_due)(members.brain)
        new = members.replace(learner=learner)

        def news() -> tuple[Member, jax.Array, jax.Array]:
            return self._decide(new, due, stats.finite, key_evaluate, key_reset)

        def no_news() -> tuple[Member, jax.Array, jax.Array]:
            quiet = new.replace(brain=each(autonomy.tick)(new.brain))
            return quiet, jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)

        # Outside the member axis, so that windows without an evaluation cost nothing but the learning.
        new, score, events = jax.lax.cond(jnp.any(active & (due | ~stats.finite)), news, no_news)
        if shape:  # a single member is left before it could run on
            new = jax.lax.cond(jnp.all(active), lambda: new, lambda: _select(active, new, members))
        return new, _report(members.brain, new.brain, score, events, due, stats, active)

    def _decide(
        self, members: Member, due: jax.Array, finite: jax.Array, key_evaluate: jax.Array, key_reset: jax.Array
    ) -> tuple[Member, jax.Array, jax.Array]:
        """Evaluate who is due, ask the brain, obey; returns (members, scores [B], event bits [B])."""
        each = partial(_each, due.shape)
        score = jax.lax.cond(
            jnp.any(due),
            lambda: each(self.score)(members.learner, key_evaluate),
            lambda: jnp.zeros(due.shape, jnp.float32),
        )
        scores = Scores(jnp.where(due, score, jnp.float32(0.0)), due, finite)
        brain, decision = each(partial(autonomy.step, self.brain))(members.brain, scores)
        best, learner = self._obey(decision, members.learner, members.best, key_reset)
        return Member(members.key, brain, learner, best), scores.score, decision.events

    def chunk(self, members: Member, n_windows: jax.Array, max_windows: int) -> tuple[Member, WindowReport]:
        """Up to `n_windows` (traced) windows of a block [B] (or of a single member, without that axis).

        Reports are [max_windows, B]; unused rows are zero.
        """
        shapes = jax.eval_shape(self.window, members)[1]
        reports = jax.tree.map(lambda s: jnp.zeros((max_windows, *s.shape), s.dtype), shapes)

        def going(carry: tuple[jax.Array, Member, WindowReport]) -> jax.Array:
            i, members, _ = carry
            return (i < n_windows) & ~jnp.all(members.brain.done)

        def body(carry: tuple[jax.Array, Member, WindowReport]) -> tuple[jax.Array, Member, WindowReport]:
            i, members, reports = carry
            members, row = self.window(members)
            return i + 1, members, jax.tree.map(lambda buffer, x: buffer.at[i].set(x), reports, row)

        _, members, reports = jax.lax.while_loop(going, body, (jnp.int32(0), members, reports))
        return members, reports

    def score(self, learner: Learner, key: jax.Array) -> jax.Array:
        """[] float32: mean return of `eval_episodes` whole episodes of the deterministic policy."""
        policy = self.algorithm.policy(learner)
        return self.rollouts(policy, key, self.eval_episodes).returns.mean()

    def rollouts(self, policy: Policy, key: jax.Array, n_episodes: int) -> EpisodeStats:
        """Whole episodes of the deterministic policy in environments of their own; nothing is learned."""

        def act(obs: jax.Array, key: jax.Array) -> jax.Array:
            return self.algorithm.act(policy, obs, self.algorithm.initial_carry(), key, deterministic=True)[0]

        return evaluate(self.algorithm.env, act, key, n_episodes, self.eval_max_steps)

    def best_policy(self, member: Member) -> Policy:
        return self.algorithm.policy(self.algorithm.restore(member.learner, member.best))

    def _obey(
        self, decision: Decision, learner: Learner, best: Snapshot, key_reset: jax.Array
    ) -> tuple[Snapshot, Learner]:
        """Save, roll back, reset: behind conditionals, because most windows do none of it."""
        each = partial(_each, decision.stop.shape)
        best = jax.lax.cond(
            jnp.any(decision.save_best),
            lambda: _select(decision.save_best, each(self.algorithm.snapshot)(learner), best),
            lambda: best,
        )

        def repair() -> Learner:
            restored = _select(decision.rollback, each(self.algorithm.restore)(learner, best), learner)
            return _select(decision.reset_envs, each(self.algorithm.reset_envs)(restored, key_reset), restored)

        return best, jax.lax.cond(jnp.any(decision.rollback | decision.reset_envs), repair, lambda: learner)


def make_mesh(devices: list[Any]) -> Mesh:
    """A one-dimensional mesh: members over devices."""
    return Mesh(np.asarray(devices), (MEMBERS,))


def sharded_init(program: Program, mesh: Mesh) -> Callable[..., Member]:
    """init over stacked arguments [M]; the result is spread over the mesh."""
    init = partial(_mapped, program.init)
    return jax.jit(_shard(init, mesh, n_args=5), out_shardings=NamedSharding(mesh, P(MEMBERS)))


def sharded_chunk(program: Program, mesh: Mesh, block: int, max_windows: int) -> Callable[..., tuple[Member, Any]]:
    """(members [M], n_windows []) -> (members, reports [max_windows, M]); M must divide by devices * block.

    The members' buffers are donated. `n_windows` is traced: chunks of any length run the same program.
    """

    def local(members: Member, n_windows: jax.Array) -> tuple[Member, WindowReport]:
        count = members.brain.done.shape[0]
        rows = (count // block, block) if block > 1 else (count,)
        blocks = jax.tree.map(lambda x: x.reshape(*rows, *x.shape[1:]), members)
        run = partial(program.chunk, n_windows=n_windows, max_windows=max_windows)
        blocks, reports = jax.lax.map(run, blocks)
        members = jax.tree.map(lambda x: x.reshape(count, *x.shape[len(rows) :]), blocks)
        return members, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(max_windows, count), reports)

    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(P(MEMBERS), P()), out_specs=(P(MEMBERS), P(None, MEMBERS)), check_vma=False
    )
    return jax.jit(spread, donate_argnums=0)


def sharded_final(program: Program, mesh: Mesh, n_episodes: int) -> Callable[[Member], tuple[Policy, EpisodeStats]]:
    """members [M] -> best policies [M] and their fresh episodes [M, n_episodes]."""

    def final(member: Member) -> tuple[Policy, EpisodeStats]:
        policy = program.best_policy(member)
        key = jax.random.fold_in(member.key, autonomy.NO_LIMIT)  # no window ever has this number
        return policy, program.rollouts(policy, key, n_episodes)

    return jax.jit(_shard(partial(_mapped, final), mesh, n_args=1))


def _shard(f: Callable[..., Any], mesh: Mesh, n_args: int) -> Callable[..., Any]:
    return jax.shard_map(f, mesh=mesh, in_specs=(P(MEMBERS),) * n_args, out_specs=P(MEMBERS), check_vma=False)


def _mapped(f: Callable[..., Any], *stacked: Any) -> Any:
    return jax.lax.map(lambda args: f(*args), stacked)


def _window_keys(member: Member) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.fold_in(member.key, member.brain.window), 3)
    return keys[0], keys[1], keys[2]


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


def _each(shape: tuple[int, ...], f: Callable[..., Any]) -> Callable[..., Any]:
    """f over a block [B], or f itself for a single member, so that its conditionals stay conditionals."""
    return jax.vmap(f) if shape else f


def _select(condition: jax.Array, then: Any, otherwise: Any) -> Any:
    """Memberwise where: condition [B] (or []), leaves [B, ...] (or [...]) of any dtype, typed keys included."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(pick, then, otherwise)
