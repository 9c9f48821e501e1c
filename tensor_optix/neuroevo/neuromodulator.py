"""One signal for the whole stack: the regime of the scores sets plasticity, exploration and growth together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensor_optix.core.regime_detector import Regime, RegimeDetector
from tensor_optix.core.types import EvalMetrics, HyperparamSet
from tensor_optix.neuroevo.hebbian_hook import either

REGIMES = tuple(regime.label for regime in (Regime.TRENDING, Regime.RANGING, Regime.VOLATILE))
# What a base is multiplied by, in the order of REGIMES.
_FACTORS = {
    "hebbian_lr_scale": (0.5, 2.0, 0.3),
    "entropy_scale": (0.5, 2.0, 1.5),
    "grow_gap_scale": (1.5, 0.5, 1.2),
    "prune_threshold_scale": (1.5, 0.8, 0.3),
}
_THRESHOLDS = {
    "grow_gap_threshold": "grow_gap_scale",
    "grow_grad_threshold": "grow_gap_scale",
    "prune_edge_threshold": "prune_threshold_scale",
    "prune_neuron_threshold": "prune_threshold_scale",
}
_MOST = {"grow_grad_threshold": 1.0}  # it is a share


class NeuromodulatorSignal:
    """Multiplies what it modulates by a factor of the regime.

    | regime | after | Hebbian rate | entropy coefficient | growth thresholds | pruning thresholds |
    | --- | --- | --- | --- | --- | --- |
    | trending: consolidate | dopamine | 0.5 | 0.5 | 1.5 | 1.5 |
    | ranging: grow | acetylcholine | 2 | 2 | 0.5 | 0.8 |
    | volatile: explore | norepinephrine | 0.3 | 1.5 | 1.2 | 0.3 |

    A factor acts on a base, which is what was there at the start. A value that is no longer what the signal wrote has
    been set by someone else (a tuner, a rollback, a person), who means it for the regime in force: it stays, and the
    base becomes that value divided by the factor in force. So factors never pile up.

    Nothing is clipped to an agent's `default_param_bounds`: a modulated entropy coefficient may lie outside the range
    that its tuner searches.

    Args:
        detector: names the regime of a history; None: a `RegimeDetector()`.
        hebbian_hook: its `hebbian_lr`. Also called `hook`.
        agent: its hyperparameter "entropy_coef".
        topology_controller: one or several; `grow_gap_threshold` and `grow_grad_threshold` (at most 1),
            `prune_edge_threshold` and `prune_neuron_threshold`, of these what it has and is not None. Also called
            `controller`.
        hebbian_lr_scale, entropy_scale, grow_gap_scale, prune_threshold_scale: regime -> factor, in the place of those
            above; regimes that are not named keep theirs. A number: that factor in every regime, so that 1 leaves the
            quantity alone.

    Raises:
        ValueError: an unknown regime, a factor below 0, an argument given by both of its names.
        TypeError: what is to be modulated does not have it.
    """

    def __init__(
        self,
        detector: RegimeDetector | None = None,
        hebbian_hook: Any = None,
        agent: Any = None,
        topology_controller: Any = None,
        hebbian_lr_scale: Mapping[str, float] | float | None = None,
        entropy_scale: Mapping[str, float] | float | None = None,
        grow_gap_scale: Mapping[str, float] | float | None = None,
        prune_threshold_scale: Mapping[str, float] | float | None = None,
        *,
        hook: Any = None,
        controller: Any = None,
    ) -> None:
        hebbian_hook = either("hebbian_hook", hebbian_hook, "hook", hook)
        controllers = either("topology_controller", topology_controller, "controller", controller)
        if controllers is None:
            controllers = []
        elif not isinstance(controllers, Sequence):
            controllers = [controllers]
        scales = {
            "hebbian_lr_scale": hebbian_lr_scale,
            "entropy_scale": entropy_scale,
            "grow_gap_scale": grow_gap_scale,
            "prune_threshold_scale": prune_threshold_scale,
        }
        factors = {name: _factors(name, scale) for name, scale in scales.items()}
        self.detector = RegimeDetector() if detector is None else detector
        self._regime: str | None = None
        self._knobs: list[_Knob] = []
        if hebbian_hook is not None:
            self._knobs.append(_attribute(hebbian_hook, "hebbian_lr", factors["hebbian_lr_scale"]))
        if agent is not None:
            self._knobs.append(_entropy(agent, factors["entropy_scale"]))
        for i, one in enumerate(controllers):
            names = [name for name in _THRESHOLDS if hasattr(one, name)]
            if not names:
                raise TypeError(f"a topology_controller has some of {', '.join(_THRESHOLDS)}, got {one!r}")
            end = f"[{i}]" if len(controllers) > 1 else ""
            self._knobs += [_attribute(one, name, factors[_THRESHOLDS[name]], end) for name in names]

    @property
    def current_regime(self) -> str | None:
        """The one in force; None before the first and after `reset_to_base`."""
        return self._regime

    @property
    def state(self) -> dict[str, Any]:
        """The regime, then each quantity's value; "base" and "factors" have theirs by the same names.

        Of several controllers the names end in [0], [1], ...
        """
        values = {knob.name: knob.read() for knob in self._knobs}
        return {
            "regime": self._regime,
            **{name: value for name, value in values.items() if value is not None},
            "base": {knob.name: knob.base for knob in self._knobs if knob.base is not None},
            "factors": {knob.name: knob.factor for knob in self._knobs if knob.base is not None},
        }

    def step(self, history: Sequence[EvalMetrics]) -> str:
        """Names the regime of the evaluations so far, oldest first, and puts it in force."""
        regime = self.detector.detect(history)
        self.apply(regime)
        return regime

    def apply(self, regime: str) -> None:
        """Puts a regime in force: "trending", "ranging" or "volatile"; ValueError for any other."""
        if regime not in REGIMES:
            raise ValueError(f"regime must be one of {', '.join(REGIMES)}, got {regime!r}")
        for knob in self._knobs:
            knob.turn(knob.factors[regime])
        self._regime = regime

    def reset_to_base(self) -> None:
        """No regime in force: everything has its base value."""
        for knob in self._knobs:
            knob.turn(1.0)
        self._regime = None

    # On disk

    def state_dict(self) -> dict[str, Any]:
        """The regime in force, and of each quantity its base, its factor and what was written."""
        knobs = {knob.name: [knob.base, knob.factor, knob.written] for knob in self._knobs}
        return {"regime": self._regime, "knobs": knobs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, and the values that were in force; ValueError if other quantities were modulated."""
        if state["knobs"].keys() != {knob.name for knob in self._knobs}:
            raise ValueError(
                f"the state is of {', '.join(state['knobs'])}, and what is modulated here is "
                f"{', '.join(knob.name for knob in self._knobs)}"
            )
        self._regime = state["regime"]
        for knob in self._knobs:
            knob.base, knob.factor, written = state["knobs"][knob.name]
            if written is not None and knob.read() != written:
                knob.write(written)
            knob.written = knob.read()


@dataclass
class _Knob:
    """One quantity that is modulated, while it is not None."""

    name: str
    read: Callable[[], float | None]
    write: Callable[[float], None]
    factors: Mapping[str, float]
    most: float = math.inf
    factor: float = 1.0  # in force

    def __post_init__(self) -> None:
        self.base = self.written = self.read()

    def turn(self, factor: float) -> None:
        """Puts a factor in force."""
        value = self.read()
        if value != self.written:
            self.base = value if value is None or self.factor == 0 else value / self.factor
        if self.base is not None:
            wanted = min(self.base * factor, self.most)
            if wanted != value:
                self.write(wanted)
        # As it is kept there, which may be rounded: that is not someone else's doing.
        self.factor, self.written = factor, self.read()


def _attribute(owner: Any, name: str, factors: Mapping[str, float], end: str = "") -> _Knob:
    if not hasattr(owner, name):
        raise TypeError(f"the signal sets {name}, which {owner!r} does not have")
    return _Knob(
        name + end,
        lambda: getattr(owner, name),
        lambda value: setattr(owner, name, value),
        factors,
        _MOST.get(name, math.inf),
    )


def _entropy(agent: Any, factors: Mapping[str, float]) -> _Knob:
    def read() -> float | None:
        value = agent.get_hyperparams().params.get("entropy_coef")
        return None if value is None else float(value)

    def write(value: float) -> None:
        now = agent.get_hyperparams()
        agent.set_hyperparams(HyperparamSet({**now.params, "entropy_coef": value}, now.episode_id))

    if read() is None:
        raise TypeError(f'the signal sets the hyperparameter "entropy_coef", which {agent!r} does not have')
    return _Knob("entropy_coef", read, write, factors)


def _factors(name: str, given: Mapping[str, float] | float | None) -> dict[str, float]:
    """Of every regime."""
    factors = dict(zip(REGIMES, _FACTORS[name], strict=True))
    if given is not None:
        factors |= given if isinstance(given, Mapping) else dict.fromkeys(REGIMES, given)
    if set(factors) != set(REGIMES):
        unknown = ", ".join(repr(key) for key in factors if key not in REGIMES)
        raise ValueError(f"{name} has factors for {', '.join(REGIMES)}, got one for {unknown}")
    if not all(math.isfinite(factor) and factor >= 0 for factor in factors.values()):
        raise ValueError(f"factors of {name} must be numbers of at least 0, got {factors}")
    return factors
