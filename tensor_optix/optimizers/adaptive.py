"""Four tuners and a rule that says, from the scores, which of them acts.

Scores of a window are detrended by a straight line. Their lag-1 autocorrelation r, corrected for the bias that few
points and the fitted line give it, and the gap between the best and the newest level say who should act:

    far below the best              `PBT`        back to settings that did well
    r clearly positive              `Momentum`   scores change smoothly: average slopes
    r clearly negative              `Backoff`    scores swing: only the better side counts
    otherwise                       `SPSA`       scores are independent but for what they are to show

All four hear every score. One that did not act credits it to no probe of its own: contrasts tell it the scale of noise,
and `PBT` remembers the pair of setting and score, whoever chose the setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.core.base_optimizer import Tuner
from tensor_optix.core.search_space import SearchSpace
from tensor_optix.optimizers import probes
from tensor_optix.optimizers.backoff import Backoff
from tensor_optix.optimizers.momentum import Momentum
from tensor_optix.optimizers.pbt import PBT
from tensor_optix.optimizers.shell import TunerOptimizer
from tensor_optix.optimizers.spsa import SPSA

NAMES = ("spsa", "momentum", "backoff", "pbt")  # in the order of `AdaptiveState.active`
_SPSA, _MOMENTUM, _BACKOFF, _PBT = (np.int32(i) for i in range(4))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_LEVEL = 4  # periods whose mean is a level: the effects of a cycle's probes cancel in it
_NOISE_RISE = np.float32(10.0)  # a rise is taken to be at least this many standard deviations of a score
_LARGEST = np.float32(1e36)  # score units; sums of a window of them are finite


class Inner(Tuner, Protocol):
    """A tuner that others may stand in for."""

    def hear(
        self,
        state: Any,
        x: jax.Array,
        score: jax.Array,
        noise: jax.Array,
        valid: jax.Array,
        mine: jax.Array | bool,
    ) -> Any:
        """`observe` where `mine`, [] bool; else `x`, float32 [D], was somebody else's suggestion."""
        ...

    def take_over(self, state: Any, x: jax.Array) -> Any:
        """`recentre` on `x`, float32 [D], where nothing was rolled back: another tuner had acted."""
        ...


class AdaptiveState(struct.PyTreeNode):
    """State of `Adaptive`; W is the length of the window."""

    inner: tuple[Any, ...]  # states of the four, in the order of `NAMES`
    active: jax.Array  # [] int32, index of the one whose suggestion is in force
    stay: jax.Array  # [] int32, evaluations of the active one
    wanted: jax.Array  # [] int32, whom the rule named last
    named: jax.Array  # [] int32, how often in a row, 0 if it is the active one
    scores: jax.Array  # [W] float32, the newest last, of which `count` are there
    count: jax.Array  # [] int32, at most W
    best: jax.Array  # [] float32, highest level so far; a level is the mean of some scores
    lowest: jax.Array  # [] float32, lowest level so far
    has_level: jax.Array  # [] bool


@dataclass(frozen=True)
class Adaptive:
    """Routes between four tuners; a `core.base_optimizer.Tuner`.

    Args:
      spsa, momentum, backoff, pbt: the four.
      window: scores that the signals are taken from, at least 8.
      need: scores before the first change of tuner, in [8, window].
      gap: fall of the level below the best, as a share of the rise so far, that calls `pbt`, positive. A rise counts
        as at least ten standard deviations of one score.
      correlation: |r| above which `momentum` or `backoff` is called, in (0, 1).
      min_stay: evaluations that one acts at least.
      confirmations: times in a row that another must be called before it acts.

    Raises:
      TypeError: if a setting is of another kind, for example a mapping where a tuner belongs.
      ValueError: if a setting is out of its range.
    """

    spsa: SPSA = field(default_factory=SPSA)
    momentum: Momentum = field(default_factory=Momentum)
    backoff: Backoff = field(default_factory=Backoff)
    pbt: PBT = field(default_factory=PBT)
    window: int = 20
    need: int = 10
    gap: float = 0.2
    correlation: float = 0.3
    min_stay: int = 3
    confirmations: int = 3

    def __post_init__(self) -> None:
        probes.check_knobs(self)
        if not 8 <= self.need <= self.window:
            raise ValueError(f"8 <= need <= window must hold, got need={self.need}, window={self.window}")
        if not self.gap > 0:
            raise ValueError(f"gap must be positive, got {self.gap}")
        if not 0 < self.correlation < 1:
            raise ValueError(f"correlation must be in (0, 1), got {self.correlation}")
        for name in ("min_stay", "confirmations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 evaluation, got {getattr(self, name)}")

    @property
    def tuners(self) -> tuple[Inner, ...]:
        """The four, in the order of `NAMES`."""
        return (self.spsa, self.momentum, self.backoff, self.pbt)

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> AdaptiveState:
        """A state in which all four are centred on `x0`, float32 [D] in the unit cube; consumes `key`."""
        keys = jax.random.split(key, len(NAMES))
        return AdaptiveState(
            inner=tuple(tuner.init(space, x0, k) for tuner, k in zip(self.tuners, keys, strict=True)),
            active=jnp.int32(_SPSA),
            stay=jnp.int32(0),
            wanted=jnp.int32(_SPSA),
            named=jnp.int32(0),
            scores=jnp.zeros((self.window,), jnp.float32),
            count=jnp.int32(0),
            best=jnp.float32(0.0),
            lowest=jnp.float32(0.0),
            has_level=jnp.bool_(False),
        )

    def suggest(self, state: AdaptiveState) -> tuple[AdaptiveState, jax.Array]:
        """The active tuner's suggestion, float32 [D]; asking again gives it again."""
        return state, self._of_active(state, [t.suggest(s)[1] for t, s in self._pairs(state)])

    def is_probing(self, state: AdaptiveState) -> jax.Array:
        return self._of_active(state, [t.is_probing(s) for t, s in self._pairs(state)])

    def centre(self, state: AdaptiveState) -> jax.Array:
        return self._of_active(state, [t.centre(s) for t, s in self._pairs(state)])

    def recentre(self, state: AdaptiveState, x: jax.Array) -> AdaptiveState:
        """All four begin anew around `x`, float32 [D]; the scores before the roll-back say no more who should act."""
        return state.replace(
            inner=tuple(t.recentre(s, x) for t, s in self._pairs(state)),
            count=jnp.int32(0),
            named=jnp.int32(0),
        )

    def observe(self, state: AdaptiveState, score: jax.Array, noise: jax.Array, valid: jax.Array) -> AdaptiveState:
        """Credits the score to the active tuner's suggestion, lets the others hear it, and says who acts next.

        Whoever takes over begins at the centre of the one before: no probe stays in force.
        """
        _, x = self.suggest(state)
        score = jnp.where(valid, score.astype(jnp.float32), _ZERO)
        inner = tuple(
            t.hear(s, x, score, noise, valid, state.active == np.int32(i))
            for i, (t, s) in enumerate(self._pairs(state))
        )
        state = state.replace(inner=inner, stay=state.stay + jnp.int32(1))
        return probes.select(valid, self._route(self._listen(state, score)), state)

    def _pairs(self, state: AdaptiveState) -> list[tuple[Inner, Any]]:
        return list(zip(self.tuners, state.inner, strict=True))

    def _of_active(self, state: AdaptiveState, values: list[jax.Array]) -> jax.Array:
        return jnp.stack(values)[state.active]

    def _listen(self, state: AdaptiveState, score: jax.Array) -> AdaptiveState:
        """The state with a valid score in its window and in its levels."""
        scores = jnp.concatenate([state.scores[1:], score[None]])
        count = jnp.minimum(state.count + jnp.int32(1), np.int32(self.window))
        level = score + jnp.clip(scores[-_LEVEL:] - score, -_LARGEST, _LARGEST).sum() / np.float32(_LEVEL)
        whole = count >= _LEVEL
        best = jnp.where(state.has_level, jnp.maximum(state.best, level), level)
        lowest = jnp.where(state.has_level, jnp.minimum(state.lowest, level), level)
        return state.replace(
            scores=scores,
            count=count,
            best=jnp.where(whole, best, state.best),
            lowest=jnp.where(whole, lowest, state.lowest),
            has_level=state.has_level | whole,
        )

    def _route(self, state: AdaptiveState) -> AdaptiveState:
        """Whom the signals call, and the change of tuner if they have called long enough."""
        r, gap = self.signals(state)
        called = jnp.where(
            gap < -np.float32(self.gap),
            _PBT,
            jnp.where(
                r > np.float32(self.correlation),
                _MOMENTUM,
                jnp.where(r < -np.float32(self.correlation), _BACKOFF, _SPSA),
            ),
        )
        called = jnp.where(state.count >= self.need, called, state.active)
        again = jnp.where(called == state.wanted, state.named + jnp.int32(1), jnp.int32(1))
        named = jnp.where(called == state.active, jnp.int32(0), again)
        change = (named >= self.confirmations) & (state.stay >= self.min_stay)
        centre = self.centre(state)
        inner = tuple(
            probes.select(change & (called == np.int32(i)), t.take_over(s, centre), s)
            for i, (t, s) in enumerate(self._pairs(state))
        )
        return state.replace(
            inner=inner,
            active=jnp.where(change, called, state.active),
            stay=jnp.where(change, jnp.int32(0), state.stay),
            wanted=called,
            named=jnp.where(change, jnp.int32(0), named),
        )

    def signals(self, state: AdaptiveState) -> tuple[jax.Array, jax.Array]:
        """Lag-1 autocorrelation of the detrended window, and the fall below the best level in rises; float32 [] each.

        Under independent noise a fitted line leaves an autocorrelation of about -2 / n, which is added back.
        """
        there = jnp.arange(self.window, dtype=jnp.int32) >= np.int32(self.window) - state.count
        n = jnp.maximum(state.count.astype(jnp.float32), np.float32(3.0))
        y = jnp.where(there, jnp.clip(state.scores - state.scores[-1], -_LARGEST, _LARGEST), _ZERO)
        unit = jnp.max(jnp.abs(y))
        y = y / jnp.where(unit > 0, unit, _ONE)
        y = jnp.where(there, y - y.sum() / n, _ZERO)
        t = jnp.where(there, jnp.arange(self.window, dtype=jnp.float32), _ZERO)
        t = jnp.where(there, t - t.sum() / n, _ZERO)
        y = y - t * ((t * y).sum() / jnp.maximum(jnp.square(t).sum(), _ONE))
        square = jnp.square(y).sum()
        r = jnp.where(
            square > 0, (y[1:] * y[:-1]).sum() / jnp.where(square > 0, square, _ONE) + np.float32(2.0) / n, _ZERO
        )
        sd = unit * jnp.sqrt(square / (n - np.float32(2.0)))
        newest = state.scores[-1]
        level = jnp.clip(state.scores[-_LEVEL:] - newest, -_LARGEST, _LARGEST).sum() / np.float32(_LEVEL)
        rise = jnp.maximum(state.best - state.lowest, _NOISE_RISE * sd)
        fall = jnp.minimum(level - (state.best - newest), _ZERO)
        gap = jnp.where(state.has_level & (rise > 0), fall / jnp.where(rise > 0, rise, _ONE), _ZERO)
        return r, gap


class AdaptiveOptimizer(TunerOptimizer):
    """`Adaptive` for the host loop; arguments as of `TunerOptimizer`, knobs as of `Adaptive`."""

    pure = Adaptive
