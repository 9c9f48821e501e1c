"""Which hyperparameters are in force in a host run: the brain's, those of a tuner beside it, or somebody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_optimizer import BaseOptimizer
from tensor_optix.core.types import EvalMetrics, Event, HyperparamSet, LoopState
from tensor_optix.loop.agent_numbers import numeric
from tensor_optix.loop.events import CallbackList
from tensor_optix.loop.host_brain import HostBrain


class Hyperparams:
    """Those of `agent`. `outside`: a tuner that the brain knows nothing of; None where the brain itself tunes.

    Attributes:
        owed: None, or of a window whose hyperparameters for the next are not in force yet: its events, and whether it
            was evaluated. A run that ended there and goes on with a larger budget begins by putting them in force.
    """

    def __init__(
        self, agent: BaseAgent, brain: HostBrain, outside: BaseOptimizer | None, callbacks: CallbackList
    ) -> None:
        self._agent, self._brain, self._outside, self._callbacks = agent, brain, outside, callbacks
        self.owed: tuple[int, bool] | None = None

    def begin(self) -> None:
        """Put the first in force."""
        if self._outside is None:
            before = self._now()
            self._put_in_force(before, {**before, **self._brain.hyperparams()})

    def owe(self, events: Event, evaluated: bool) -> None:
        """A window was evaluated, or rolled back: others may be due."""
        self.owed = int(events), evaluated

    def next(self, history: Sequence[EvalMetrics]) -> None:
        """Put those of the next window in force. `history`: the evaluations so far."""
        if self.owed is None:
            return
        (events, evaluated), self.owed = self.owed, None
        before = self._now()
        if self._outside is None:
            after = {**before, **self._brain.hyperparams()}
        else:
            after = dict(self._suggested(self._outside, before, history, Event(events), evaluated).params)
        self._put_in_force(before, after)

    @contextlib.contextmanager
    def others_may_change(self) -> Iterator[None]:
        """What a rule or a callback puts in force within is what the brain goes on from."""
        before = self._now()
        yield
        after = self._now()
        changed = {name: value for name, value in numeric(after).items() if before.get(name) != after[name]}
        if changed:
            self._brain.override(changed)
            self._callbacks.call("on_hyperparam_update", before, after)

    def _suggested(
        self,
        tuner: BaseOptimizer,
        before: dict[str, Any],
        history: Sequence[EvalMetrics],
        events: Event,
        evaluated: bool,
    ) -> HyperparamSet:
        if evaluated and Event.IMPROVING in events:
            tuner.on_improvement(history[-1])
        if evaluated and self._brain.loop_state in (LoopState.COOLING, LoopState.DORMANT):
            tuner.on_plateau(list(history))
        return tuner.suggest(HyperparamSet(before, self._brain.window), list(history))

    def _now(self) -> dict[str, Any]:
        return dict(self._agent.get_hyperparams().params)

    def _put_in_force(self, before: Mapping[str, Any], after: dict[str, Any]) -> None:
        if after == before:
            return
        self._agent.set_hyperparams(HyperparamSet(dict(after), self._brain.window))
        self._callbacks.call("on_hyperparam_update", dict(before), dict(after))
