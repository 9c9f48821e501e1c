"""The pure brain as a host loop holds it: one member, plain Python values in and out.

No rule lives here. `HostBrain` keeps an `AutonomyState`, calls `core.autonomy` through two compiled functions, and
translates; fed the same scores as a member of a compiled run it makes the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensor_optix.core import autonomy
from tensor_optix.core.autonomy import NO_LIMIT, AutonomyConfig, AutonomyState
from tensor_optix.core.types import Decision, Event, LoopState, Scores, StopReason
from tensor_optix.loop.events import json_float
from tensor_optix.loop.runtime import compile_program


@dataclass(frozen=True)
class Verdict:
    """A `Decision` in plain values."""

    save_best: bool
    rollback: bool
    reset_envs: bool
    events: Event
    stop_reason: StopReason  # RUNNING: go on


class HostBrain:
    """One member's brain.

    Args:
        config: what the brain is told to do.
        hyper: every numeric hyperparameter, by name; carried as float32.
        key: typed key for the tuner's probes.
        max_windows: budget in windows.
        target_score: in score units.
    """

    def __init__(
        self,
        config: AutonomyConfig,
        hyper: Mapping[str, float],
        key: jax.Array,
        max_windows: int = NO_LIMIT,
        target_score: float = float("inf"),
    ) -> None:
        self.config = config
        values = {name: jnp.float32(value) for name, value in hyper.items()}
        self.state: AutonomyState = _init(config, values, key, jnp.int32(max_windows), jnp.float32(target_score))
        self._due = bool(autonomy.is_due(self.state))

    @property
    def due(self) -> bool:
        """The window that is now being finished ends in an evaluation."""
        return self._due

    @property
    def window(self) -> int:
        """Windows finished."""
        return int(self.state.window)

    @property
    def scheduled(self) -> bool:
        """As `due`, but not merely because the budget ends."""
        return self._due and int(self.state.window) + 1 >= int(self.state.next_evaluation)

    def unjudged(self) -> AutonomyState:
        """The state as it would be if the present window were finished without an evaluation."""
        return autonomy.tick(self.state)

    @property
    def last(self) -> bool:
        """The window that is now being finished is the budget's last."""
        return int(self.state.window) + 1 >= int(self.state.max_windows)

    @property
    def loop_state(self) -> LoopState:
        return LoopState(int(self.state.scheduler.code))

    @property
    def interval(self) -> int:
        """Windows until the next evaluation, counted from the last."""
        return int(self.state.scheduler.interval)

    @property
    def stop_reason(self) -> StopReason:
        return StopReason(int(self.state.stop_reason))

    def hyperparams(self) -> dict[str, float | int]:
        """Those that are tuned, as they are in force: whole numbers as int, others the shortest equal decimal."""
        values = jax.device_get(self.state.hyper)
        return {
            name: round(float(values[name])) if parameter.integer else json_float(values[name]) or 0.0
            for name, parameter in self.config.space.entries
        }

    def finish_window(self, score: float | None, finite: bool = True) -> Verdict:
        """Tell the brain how a window ended: its score, or None if it was not evaluated; True if all is finite.

        A window that was due and not evaluated leaves the next one due.
        """
        if score is None and finite and not self.last:  # the short way
            self.state, due = _tick(self.state)
            self._due = bool(due)
            return _NOTHING
        told = Scores(
            score=jnp.float32(0.0 if score is None else score),
            evaluated=jnp.bool_(score is not None),
            finite=jnp.bool_(finite),
        )
        self.state, decision = _step(self.config, self.state, told)
        decision = jax.device_get(decision)
        self._due = bool(decision.evaluate_next)
        return _verdict(decision)

    def resume(self) -> None:
        """Go on after a DORMANT that somebody handled; nothing happens in any other state.

        Without budget it is the budget that stops the run, and a larger one lets it go on.
        """
        if self.stop_reason == StopReason.CONVERGED:
            self.renew(keep=0.0)

    def renew(self, keep: float = autonomy.KEPT_BY_GROWTH) -> None:
        """A fresh patience, also in the middle; see `autonomy.renew`."""
        self.state = autonomy.renew(self.config, self.state, keep)
        self._due = bool(autonomy.is_due(self.state))

    def override(self, values: Mapping[str, float]) -> None:
        """Hyperparameters that somebody else put in force; see `autonomy.override`."""
        known = {name: jnp.float32(value) for name, value in values.items() if name in self.state.hyper}
        if known:
            self.state = _override(self.config, self.state, known)

    def extend(self, max_windows: int) -> None:
        """A larger budget."""
        self.state = autonomy.extend(self.state, max_windows)
        self._due = bool(autonomy.is_due(self.state))

    def restore(self, state: AutonomyState) -> None:
        """Take over a saved `state`."""
        self.state = state
        self._due = bool(autonomy.is_due(state))


_NOTHING = Verdict(False, False, False, Event.NONE, StopReason.RUNNING)


def _program(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` jitted, its first argument static, and compiled in a third of the time that jit takes."""
    jitted = jax.jit(function, static_argnums=0)
    compiled: dict[Any, Any] = {}

    def call(config: AutonomyConfig, *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        key = config, structure, tuple(jax.typeof(leaf) for leaf in leaves)
        if key not in compiled:
            compiled[key] = compile_program(jitted.lower(config, *args), jax.default_backend(), tiny=True)
        return compiled[key](*args)

    return call


_init = _program(autonomy.init)
_step = _program(autonomy.step)
_override = _program(autonomy.override)


@jax.jit
def _tick(state: AutonomyState) -> tuple[AutonomyState, jax.Array]:
    after = autonomy.tick(state)
    return after, autonomy.is_due(after)


def _verdict(decision: Decision) -> Verdict:
    return Verdict(
        save_best=bool(decision.save_best),
        rollback=bool(decision.rollback),
        reset_envs=bool(decision.reset_envs),
        events=Event(int(np.asarray(decision.events))),
        stop_reason=StopReason(int(decision.stop_reason)),
    )
