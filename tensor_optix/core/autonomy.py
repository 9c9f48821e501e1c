"""The brain: scheduler, tuner, best-of, degradation, target and stop in one pure step.

Both drivers call `is_due`, take an evaluation when it says so, and obey the `Decision` that `step` returns. Nothing
here knows an environment, a network, a file or a framework. Every decision is the same for score -> a*score + b,
a > 0; only what the user gives in score units (`improvement_margin`, `target_score`) moves with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.core import backoff_scheduler
from tensor_optix.core.backoff_scheduler import BackoffConfig, SchedulerState
from tensor_optix.core.base_optimizer import Tuner
from tensor_optix.core.search_space import SearchSpace, from_unit, search_space, to_unit
from tensor_optix.core.types import Decision, Event, LoopState, Scores, StopReason

NO_LIMIT = 2**31 - 1  # windows; the counters that outlive it are on the host
KEPT_BY_GROWTH = 0.5  # share of the interval between evaluations that stays after what learns has grown


@dataclass(frozen=True)
class AutonomyConfig:
    """What the brain is told to do. Static; thresholds that a user varies per run are in `init`."""

    scheduler: BackoffConfig = dataclasses.field(default_factory=BackoffConfig)
    tuner: Tuner | None = None  # None: hyperparameters stay as given
    space: SearchSpace = dataclasses.field(default_factory=lambda: search_space({}))
    stop_on_convergence: bool = True  # False: a DORMANT learner resumes, with a fresh patience
    watchdog: bool = False  # True: after convergence keep watching for degradation instead of stopping
    rollback_on_degradation: bool = False  # put the best policy back when the score fell below it
    improvement_margin: float = 0.0  # score units that a new best must exceed the old one by
    target_patience: int = 5  # evaluations in a row at the target before stopping
    max_faults: int = 3  # non-finite windows without a valid evaluation in between before stopping

    def __post_init__(self) -> None:
        if self.improvement_margin < 0:
            raise ValueError(f"improvement_margin must be >= 0 score units, got {self.improvement_margin}")
        for name in ("target_patience", "max_faults"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.watchdog and not self.stop_on_convergence:
            raise ValueError("watchdog starts at convergence: it needs stop_on_convergence=True")


class AutonomyState(struct.PyTreeNode):
    """The brain of one member. Scalars; add a member axis with vmap."""

    scheduler: SchedulerState
    tuner: Any  # the tuner's state, () without one
    hyper: dict[str, jax.Array]  # name -> [] float32, in force
    best_hyper: dict[str, jax.Array]  # name -> [] float32, of the best policy
    best_score: jax.Array  # [] float32, 0 until has_best
    has_best: jax.Array  # [] bool
    window: jax.Array  # [] int32, windows finished
    next_evaluation: jax.Array  # [] int32, evaluate when `window` gets here
    evaluations: jax.Array  # [] int32, valid ones
    target_hits: jax.Array  # [] int32, evaluations in a row at the target
    faults: jax.Array  # [] int32, non-finite windows since the last valid evaluation
    credit: jax.Array  # [] bool, nothing but learning happened since the last evaluation
    max_windows: jax.Array  # [] int32, budget
    target_score: jax.Array  # [] float32, +inf: none
    done: jax.Array  # [] bool
    stop_reason: jax.Array  # [] int32, a StopReason


def init(
    config: AutonomyConfig,
    hyper: Mapping[str, jax.Array],
    key: jax.Array,
    max_windows: jax.Array | int = NO_LIMIT,
    target_score: jax.Array | float = float("inf"),
) -> AutonomyState:
    """A brain at the start of a run.

    hyper: every hyperparameter of the algorithm, [] float32 each. key: for the tuner's probes.
    """
    hyper = {name: jnp.asarray(value, jnp.float32) for name, value in hyper.items()}
    tuner: Any = ()
    start = dict(hyper)
    if config.tuner is not None:
        tuner, x = config.tuner.suggest(config.tuner.init(config.space, to_unit(config.space, hyper), key))
        start = from_unit(config.space, x, hyper)
    return AutonomyState(
        scheduler=backoff_scheduler.init(config.scheduler),
        tuner=tuner,
        hyper=start,
        best_hyper=dict(hyper),  # what a fault before the first evaluation goes back to
        best_score=jnp.float32(0.0),
        has_best=jnp.bool_(False),
        window=jnp.int32(0),
        next_evaluation=jnp.int32(config.scheduler.base_interval),
        evaluations=jnp.int32(0),
        target_hits=jnp.int32(0),
        faults=jnp.int32(0),
        credit=jnp.bool_(True),
        max_windows=jnp.asarray(max_windows, jnp.int32),
        target_score=jnp.asarray(target_score, jnp.float32),
        done=jnp.bool_(False),
        stop_reason=jnp.int32(StopReason.RUNNING),
    )


def is_due(state: AutonomyState) -> jax.Array:
    """[] bool: the window that is now being finished ends in an evaluation."""
    last = state.window + 1 >= state.max_windows  # the budget's last policy is judged too
    return ~state.done & ((state.window + 1 >= state.next_evaluation) | last)


def step(config: AutonomyConfig, state: AutonomyState, scores: Scores) -> tuple[AutonomyState, Decision]:
    """What to do after one window. A finished member's state comes back unchanged."""
    active = ~state.done
    due = is_due(state) & scores.evaluated
    valid = due & scores.finite & jnp.isfinite(scores.score)
    fault = active & (~scores.finite | (due & ~jnp.isfinite(scores.score)))
    score = jnp.where(valid, scores.score, jnp.float32(0.0))

    scheduler, verdict = backoff_scheduler.observe(config.scheduler, state.scheduler, score, valid)
    better = valid & (~state.has_best | (score > state.best_score + jnp.float32(config.improvement_margin)))
    # Of equals the newer is kept: at a capped score (CartPole's 500) it has held the cap for longer.
    tied = valid & state.has_best & (score == state.best_score) & (config.improvement_margin == 0.0)
    save = better | tied
    degraded = valid & verdict.degraded
    rollback = fault | (degraded & config.rollback_on_degradation)

    state_in, state = (
        state,
        state.replace(
            scheduler=scheduler,
            best_hyper=_select(save, state.hyper, state.best_hyper),
            best_score=jnp.where(save, score, state.best_score),
            has_best=state.has_best | save,
            window=state.window + 1,
            next_evaluation=jnp.where(due | fault, state.window + 1 + verdict.interval, state.next_evaluation),
            evaluations=state.evaluations + valid.astype(jnp.int32),
            target_hits=jnp.where(
                valid, jnp.where(score >= state.target_score, state.target_hits + 1, 0), state.target_hits
            ),
            faults=jnp.where(fault, state.faults + 1, jnp.where(valid, 0, state.faults)),
            credit=jnp.where(rollback, False, state.credit | valid),
        ),
    )
    state = _tune(config, state, score, verdict.noise, valid, rollback, state_in.credit)
    state, stop, dormant = _stop(config, state, valid, fault)
    state = _select(active, state, state_in)
    events = _events(
        (Event.BEST, better),
        (Event.IMPROVING, valid & verdict.improving),
        (Event.PLATEAU, valid & verdict.plateau_entered),
        (Event.DORMANT, dormant),
        (Event.DEGRADED, degraded),
        (Event.ROLLBACK, rollback),
        (Event.NON_FINITE, fault),
        (Event.HYPERPARAMS, _differs(state.hyper, state_in.hyper)),
        (Event.TARGET, valid & (score >= state.target_score)),
        (Event.STOPPED, stop),
    )
    return state, Decision(
        evaluate_next=is_due(state),
        save_best=active & save,
        rollback=active & rollback,
        reset_envs=active & fault,
        hyperparams=state.hyper,
        events=jnp.where(active, events, jnp.int32(0)),
        stop=active & stop,
        stop_reason=state.stop_reason,
    )


def tick(state: AutonomyState) -> AutonomyState:
    """`step` for a window that brought no news: not due, nothing non-finite. Drivers may take this shorter way."""
    return state.replace(window=state.window + (~state.done).astype(jnp.int32))


def renew(config: AutonomyConfig, state: AutonomyState, keep: float = KEPT_BY_GROWTH) -> AutonomyState:
    """What learns has grown: a fresh patience, also after a DORMANT. What has ended for good stays ended.

    Also out of budget the patience is fresh, for a larger budget may follow.

    keep: share of the interval between evaluations that stays.
    """
    fresh, spent = resume(config, state, keep), state.window >= state.max_windows
    fresh = fresh.replace(
        done=spent, stop_reason=jnp.where(spent, jnp.int32(StopReason.BUDGET), jnp.int32(StopReason.RUNNING))
    )
    reason = state.stop_reason
    over = state.done & (reason != StopReason.CONVERGED) & (reason != StopReason.BUDGET)
    return jax.tree.map(lambda old, new: jnp.where(over, old, new), state, fresh)


def resume(config: AutonomyConfig, state: AutonomyState, keep: float = 0.0) -> AutonomyState:
    """Carry on after a DORMANT that somebody handled (a spawn, "no, go on").

    keep: share of the interval between evaluations that stays.
    """
    scheduler = backoff_scheduler.restart(config.scheduler, state.scheduler, keep)
    return state.replace(
        scheduler=scheduler,
        next_evaluation=state.window + scheduler.interval,
        done=jnp.bool_(False),
        stop_reason=jnp.int32(StopReason.RUNNING),
    )


def override(config: AutonomyConfig, state: AutonomyState, values: Mapping[str, jax.Array]) -> AutonomyState:
    """Other hyperparameters were put in force from outside (a diagnostic rule, a callback), in the middle of a period.

    values: name -> [] float32; names that the brain does not carry are passed over. If one of them is tuned, the tuner
    begins again around its centre moved to the new values, and the running period's score is credited to nothing.
    """
    hyper = {name: jnp.asarray(values.get(name, old), jnp.float32) for name, old in state.hyper.items()}
    moved = np.array([name in values for name in config.space.names], bool)
    if config.tuner is None or not moved.any():
        return state.replace(hyper=hyper)
    centre = jnp.where(moved, to_unit(config.space, hyper), config.tuner.centre(state.tuner))
    return state.replace(hyper=hyper, tuner=config.tuner.recentre(state.tuner, centre), credit=jnp.bool_(False))


def extend(state: AutonomyState, max_windows: jax.Array | int) -> AutonomyState:
    """A larger budget; a member that only the old budget had stopped runs on."""
    reopened = state.stop_reason == StopReason.BUDGET
    return state.replace(
        max_windows=jnp.asarray(max_windows, jnp.int32),
        done=jnp.where(reopened, False, state.done),
        stop_reason=jnp.where(reopened, jnp.int32(StopReason.RUNNING), state.stop_reason),
    )


def _tune(
    config: AutonomyConfig,
    state: AutonomyState,
    score: jax.Array,
    noise: jax.Array,
    valid: jax.Array,
    rollback: jax.Array,
    credit: jax.Array,
) -> AutonomyState:
    """Credit the score to the hyperparameters that were in force, then take the next ones."""
    if config.tuner is None:
        return state.replace(hyper=_select(rollback, state.best_hyper, state.hyper))
    tuner = config.tuner
    observed = tuner.observe(state.tuner, score, noise, credit)
    # The best policy comes back with its own hyperparameters; the tuner starts a new cycle around them.
    recentred = tuner.recentre(state.tuner, to_unit(config.space, state.best_hyper))
    suggested, x = tuner.suggest(_select(rollback, recentred, observed))
    base = _select(rollback, state.best_hyper, state.hyper)
    tuned = state.replace(tuner=suggested, hyper=from_unit(config.space, x, base))
    return _select(rollback | valid, tuned, state)


def _stop(
    config: AutonomyConfig, state: AutonomyState, valid: jax.Array, fault: jax.Array
) -> tuple[AutonomyState, jax.Array, jax.Array]:
    """Stop, watch or go on; returns (state, stopped now, dormant now)."""
    dormant = valid & (state.scheduler.code == LoopState.DORMANT)
    converged = dormant & config.stop_on_convergence & (not config.watchdog)
    reason = jnp.int32(StopReason.RUNNING)
    for condition, why in (  # the last one that holds wins
        (state.window >= state.max_windows, StopReason.BUDGET),
        (converged, StopReason.CONVERGED),
        (valid & (state.target_hits >= config.target_patience), StopReason.TARGET),
        (fault & (state.faults >= config.max_faults), StopReason.NON_FINITE),
    ):
        reason = jnp.where(condition, jnp.int32(why), reason)
    stop = reason != StopReason.RUNNING
    scheduler = state.scheduler
    if config.watchdog:
        scheduler = _select(dormant, backoff_scheduler.enter_watchdog(config.scheduler, scheduler), scheduler)
    elif not config.stop_on_convergence:
        scheduler = _select(dormant, backoff_scheduler.restart(config.scheduler, scheduler), scheduler)
    return state.replace(scheduler=scheduler, done=stop, stop_reason=reason), stop, dormant


def _select(condition: jax.Array, then: Any, otherwise: Any) -> Any:
    """Leafwise where, for scalars of any dtype, typed keys included."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), then, otherwise)


def _differs(a: Mapping[str, jax.Array], b: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.stack([jnp.bool_(False), *(a[name] != b[name] for name in a)]).any()


def _events(*pairs: tuple[Event, jax.Array]) -> jax.Array:
    return sum((jnp.where(on, jnp.int32(bit), jnp.int32(0)) for bit, on in pairs), jnp.int32(0))
