"""Rules of thumb that watch what an agent reports of its learning, and act on its hyperparameters when it goes wrong.

Every action is small, bounded, recorded, and taken back step by step once its cause has been gone for a while. The
loop takes over what a rule has changed, so that the tuner goes on from there.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tensor_optix.core.types import HyperparamSet

_log = logging.getLogger(__name__)

COOLDOWN = 5  # windows after an action in which the same rule does not act again
QUIET = 10  # windows without the cause after which an action is taken back
MOST_STEPS = 3  # actions of one rule that may be in force at a time: a factor of 8
_LOSSES = ("loss", "critic_loss", "value_loss", "policy_loss")
_MAX_ENTROPY_COEF = 0.5
_NEAR = 1.5  # factor within which a value still counts as the one that a rule set
_FIRST_ENTROPY_COEF = 1e-3  # where it was 0 before


@dataclass
class Firing:
    """A rule changed a hyperparameter, or took a change back."""

    window: int
    rule: str
    text: str
    name: str  # of the hyperparameter
    before: float
    after: float
    undone: bool = False  # True: an earlier change was taken back


class DiagnosticController:
    """Watches diagnostics window by window.

    Rules, each from window `min_episodes` on:

    * loss-spike: a loss exceeds `loss_spike_factor` times the mean size of its last `loss_window`: learning rate / 2.
    * high-kl: "approx_kl" exceeds twice `target_kl`: learning rate / 2.
    * low-entropy: "entropy" of a *discrete* policy is below `entropy_floor` nats: entropy coefficient * 2. A
      continuous policy's differential entropy has no such floor, and the rule leaves it alone.
    * stuck-epsilon: "epsilon" has been at its floor for `epsilon_patience` windows with a score ("episode_reward")
      below `epsilon_score_threshold`: epsilon is set to `epsilon_reset_value`.

    Args:
        verbose: log firings as warnings rather than as information.
    """

    def __init__(
        self,
        loss_spike_factor: float = 5.0,
        loss_window: int = 10,
        entropy_floor: float = 0.05,
        target_kl: float = 0.02,
        epsilon_patience: int = 20,
        epsilon_reset_value: float = 0.3,
        epsilon_score_threshold: float = 20.0,
        min_episodes: int = 5,
        verbose: bool = False,
    ) -> None:
        positive = {
            "loss_spike_factor": loss_spike_factor,
            "loss_window": loss_window,
            "target_kl": target_kl,
            "epsilon_patience": epsilon_patience,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        self.loss_spike_factor, self.entropy_floor, self.target_kl = loss_spike_factor, entropy_floor, target_kl
        self.epsilon_patience, self.epsilon_reset_value = epsilon_patience, epsilon_reset_value
        self.epsilon_score_threshold, self.min_episodes, self.verbose = epsilon_score_threshold, min_episodes, verbose
        self.firings: list[Firing] = []
        self._losses = {name: deque[float](maxlen=int(loss_window)) for name in _LOSSES}
        self._in_force: dict[str, list[Firing]] = {}  # rule -> its actions that were not taken back yet
        self._set: dict[str, float] = {}  # hyperparameter -> the value that a rule put in force last
        self._last_seen: dict[str, int] = {}  # rule -> newest window with its cause
        self._last_act: dict[str, int] = {}
        self._seen = 0  # windows
        self._at_floor = 0  # windows in a row with epsilon at its floor
        self._continuous = False  # a negative entropy was seen

    def step(self, window: int, agent: Any, diagnostics: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Look at one window's diagnostics; act on the agent's hyperparameters. Returns (rule, text) of each firing."""
        numbers = {k: float(v) for k, v in diagnostics.items() if _is_finite(v)}
        before = len(self.firings)
        self._seen += 1
        causes = {
            "loss-spike": self._loss_spike(numbers),
            "high-kl": numbers.get("approx_kl", 0.0) > 2.0 * self.target_kl,
            "low-entropy": self._low_entropy(numbers, agent),
            "stuck-epsilon": self._stuck_epsilon(numbers, agent),
        }
        if self._seen < self.min_episodes:
            return []
        for rule, present in causes.items():
            if present:
                self._last_seen[rule] = window
                if window - self._last_act.get(rule, -COOLDOWN) >= COOLDOWN:
                    self._act(rule, window, agent)
            elif self._in_force.get(rule) and window - max(self._last_seen[rule], self._last_act[rule]) >= QUIET:
                self._take_back(rule, window, agent)
        return [(firing.rule, firing.text) for firing in self.firings[before:]]

    def forget(self) -> None:
        """The loop put other hyperparameters in force (a roll-back): there is nothing to take back any more."""
        self._in_force.clear()

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain values."""
        return {
            "firings": [asdict(firing) for firing in self.firings],
            "losses": {name: list(values) for name, values in self._losses.items()},
            "in_force": {rule: [self.firings.index(f) for f in acts] for rule, acts in self._in_force.items()},
            "set": dict(self._set),
            "last_seen": dict(self._last_seen),
            "last_act": dict(self._last_act),
            "seen": self._seen,
            "at_floor": self._at_floor,
            "continuous": self._continuous,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved `state_dict`."""
        self.firings = [Firing(**entry) for entry in state["firings"]]
        for name, values in state["losses"].items():
            self._losses[name].extend(values)
        self._in_force = {rule: [self.firings[i] for i in acts] for rule, acts in state["in_force"].items()}
        self._set = dict(state["set"])
        self._last_seen, self._last_act = dict(state["last_seen"]), dict(state["last_act"])
        self._seen, self._at_floor = int(state["seen"]), int(state["at_floor"])
        self._continuous = bool(state["continuous"])

    # -- causes --------------------------------------------------------------------------------------------

    def _loss_spike(self, numbers: Mapping[str, float]) -> bool:
        """A loss far beyond the mean size of its last values; a spike is not one of these."""
        spike = False
        for name, past in self._losses.items():
            if name not in numbers:
                continue
            size = abs(numbers[name])
            usual = sum(past) / len(past) if len(past) >= self.min_episodes else math.inf
            if size > self.loss_spike_factor * usual > 0:
                spike = True
            past.append(min(size, self.loss_spike_factor * usual))
        return spike

    def _low_entropy(self, numbers: Mapping[str, float], agent: Any) -> bool:
        entropy = numbers.get("entropy")
        if entropy is None:
            return False
        self._continuous |= entropy < 0.0
        return not self._continuous and not getattr(agent, "continuous", False) and entropy < self.entropy_floor

    def _stuck_epsilon(self, numbers: Mapping[str, float], agent: Any) -> bool:
        epsilon = numbers.get("epsilon")
        if epsilon is None:
            return False
        floor = agent.get_hyperparams().params.get("epsilon_min", 0.05)
        self._at_floor = self._at_floor + 1 if epsilon <= float(floor) * 1.001 else 0
        score = numbers.get("episode_reward")
        return self._at_floor >= self.epsilon_patience and score is not None and score < self.epsilon_score_threshold

    # -- actions -------------------------------------------------------------------------------------------

    def _act(self, rule: str, window: int, agent: Any) -> None:
        name, change = {
            "loss-spike": ("learning_rate", _half),
            "high-kl": ("learning_rate", _half),
            "low-entropy": ("entropy_coef", _double_entropy),
            "stuck-epsilon": ("epsilon", lambda _: self.epsilon_reset_value),
        }[rule]
        acts = self._in_force.setdefault(rule, [])
        if len(acts) >= MOST_STEPS and rule != "stuck-epsilon":
            return
        firing = self._change(rule, window, agent, name, change)
        if firing is None:
            return
        self._last_act[rule] = window
        if rule == "stuck-epsilon":
            self._at_floor = 0  # epsilon falls again by itself: nothing is to be taken back
        else:
            acts.append(firing)

    def _take_back(self, rule: str, window: int, agent: Any) -> None:
        """The newest action's inverse; the tuner may have moved on meanwhile, so it is its ratio that is undone."""
        done = self._in_force[rule].pop()
        now = agent.get_hyperparams().params.get(done.name)
        left = self._set[done.name]
        if not _is_finite(now) or not left / _NEAR <= float(now) <= left * _NEAR:
            return  # it was moved far from there meanwhile, by the tuner or its bounds
        inverse: Callable[[float], float] = lambda value: value * done.before / done.after  # noqa: E731
        self._change(rule, window, agent, done.name, inverse, undone=True)
        self._last_act[rule] = window

    def _change(
        self, rule: str, window: int, agent: Any, name: str, change: Callable[[float], float], undone: bool = False
    ) -> Firing | None:
        """Put `change(value)` in force; None if the agent has no such hyperparameter, or it is what it was."""
        hyperparams = agent.get_hyperparams()
        before = hyperparams.params.get(name)
        if not _is_finite(before):
            return None
        after = change(float(before))
        if after == before:
            return None
        agent.set_hyperparams(HyperparamSet({**hyperparams.params, name: after}, window))
        self._set[name] = after
        why = "its cause is gone" if undone else "it fired"
        text = f"{rule}: {name} {float(before):.4g} -> {after:.4g} ({why})"
        firing = Firing(window, rule, text, name, float(before), after, undone)
        self.firings.append(firing)
        _log.log(logging.WARNING if self.verbose else logging.INFO, "window %d: %s", window, text)
        return firing


def _half(value: float) -> float:
    return value / 2.0


def _double_entropy(value: float) -> float:
    return min(max(2.0 * value, _FIRST_ENTROPY_COEF), max(_MAX_ENTROPY_COEF, value))


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
