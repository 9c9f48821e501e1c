"""Population based training for one learner: its own recent settings are the population.

Jaderberg et al. (2017) let bad members copy good ones and change the copy. A single learner has no others to copy, so
it keeps a ring of (setting, merit) pairs. While the newest setting is not among the worst it explores around the one it
has adopted; when it is, it adopts one of the best in the ring and goes on with that, slightly changed. No gradient is
estimated, so a score may depend on the hyperparameters in any way; it needs many evaluations and settles less exactly
than the others.

*Merit.* Raw scores cannot be compared: learning raises them, so the newest would be best whatever acted. The merit of a
period is its score less a running mean of the scores before it. A steady rise adds the same to every merit. A setting
that makes scores rise faster shows, and so does one that sets the score itself. What is left of a rise that
levels off is taken out by a straight line through the merits in the ring.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tensor_optix.core.search_space import SearchSpace
from tensor_optix.optimizers import probes
from tensor_optix.optimizers.shell import TunerOptimizer

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_SMALLEST_SHRINK = np.float32(2.0**-10)
_FEW = 3  # with fewer settings remembered there is no worst
_STIFFNESS = np.float32(1000.0)  # holds the line level while it has few points; 23 of them have this sum of squares
_LARGEST = np.float32(1e36)  # score units; squares are taken after scaling


class PBTState(struct.PyTreeNode):
    """State of `PBT`; D is the number of tuned hyperparameters, N the length of the ring."""

    anchor: jax.Array  # [D] float32, the adopted setting, in the unit cube
    current: jax.Array  # [D] float32, in force
    gap: jax.Array  # [D] float32, from one integer to the next; 0 where continuous
    settings: jax.Array  # [N, D] float32, that acted
    merits: jax.Array  # [N] float32, score units; of periods that counted
    count: jax.Array  # [] int32, merits ever taken; the newest is in slot (count - 1) % N
    last: jax.Array  # [] float32, newest score
    lead: jax.Array  # [] float32, newest score less the running mean
    known: jax.Array  # [] bool, `last` and `lead` are of the learner as it is now
    shrink: jax.Array  # [] float32 in (0, 1], factor on the changes, lowered by invalid periods
    draws: jax.Array  # [] int32, suggestions drawn
    seed: jax.Array  # [] uint32


@dataclass(frozen=True)
class PBT:
    """Exploit and explore over the settings of one learner; a `core.base_optimizer.Tuner`.

    Lengths are in units of a hyperparameter's range, on its own scale: equal factors where that is logarithmic. At a
    bound a change is reflected, so that settings do not pile up there.

    Args:
      history: N, periods that are remembered, at least 3.
      quantile: share of them that counts as best, and as worst, in (0, 0.5].
      explore: largest change of the adopted setting while the newest is not among the worst, in (0, 1].
      exploit: largest change of a setting that is adopted, in (0, 1].
      memory: decay of the running mean that scores are compared with, in [0, 1).

    Raises:
      TypeError: if a knob is of another kind, for example a fraction where a whole number belongs.
      ValueError: if a knob is out of its range.
    """

    history: int = 50
    quantile: float = 0.2
    explore: float = 0.1
    exploit: float = 0.05
    memory: float = 0.8

    def __post_init__(self) -> None:
        probes.check_knobs(self)
        if self.history < _FEW:
            raise ValueError(f"history must be at least {_FEW} periods, got {self.history}")
        if not 0 < self.quantile <= 0.5:
            raise ValueError(f"quantile must be in (0, 0.5], got {self.quantile}")
        for name in ("explore", "exploit"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory must be in [0, 1), got {self.memory}")

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> PBTState:
        """A state that has adopted `x0`, float32 [D] in the unit cube, and begins there; consumes `key`."""
        probes.check_start(space, x0)
        x0 = jnp.clip(x0.astype(jnp.float32), _ZERO, _ONE)
        return PBTState(
            anchor=x0,
            current=x0,
            gap=jnp.asarray(np.array([p.resolution for _, p in space.entries], np.float32).reshape(space.dim)),
            settings=jnp.zeros((self.history, space.dim), jnp.float32),
            merits=jnp.zeros((self.history,), jnp.float32),
            count=jnp.int32(0),
            last=jnp.float32(0.0),
            lead=jnp.float32(0.0),
            known=jnp.bool_(False),
            shrink=jnp.float32(1.0),
            draws=jnp.int32(0),
            seed=jax.random.bits(key, dtype=jnp.uint32),
        )

    def suggest(self, state: PBTState) -> tuple[PBTState, jax.Array]:
        """The setting in force, float32 [D]; asking again gives it again."""
        return state, state.current

    def is_probing(self, state: PBTState) -> jax.Array:
        """bool []: another setting than the adopted one is in force."""
        return (state.current != state.anchor).any()

    def centre(self, state: PBTState) -> jax.Array:
        return state.anchor

    def recentre(self, state: PBTState, x: jax.Array) -> PBTState:
        """Adopts `x`, float32 [D], and forgets what there was before: nothing pulls back from `x`."""
        forgotten = state.replace(count=jnp.int32(0), known=jnp.bool_(False), lead=jnp.float32(0.0))
        return self.take_over(forgotten, x)

    def take_over(self, state: PBTState, x: jax.Array) -> PBTState:
        """`recentre` where nothing was rolled back, and another tuner had acted: scores go on."""
        x = jnp.clip(x.astype(jnp.float32), _ZERO, _ONE)
        return state.replace(anchor=x, current=x)

    def observe(self, state: PBTState, score: jax.Array, noise: jax.Array, valid: jax.Array) -> PBTState:
        """Credits the score of the period that has just ended to the setting that acted in it; see `Tuner.observe`.

        An invalid period makes the changes smaller, so that settings that break the learner are not met for ever. Only
        settings that did not are ever adopted.
        """
        return self.hear(state, state.current, score, noise, valid, True)

    def hear(
        self,
        state: PBTState,
        x: jax.Array,
        score: jax.Array,
        noise: jax.Array,
        valid: jax.Array,
        mine: jax.Array | bool,
    ) -> PBTState:
        """`observe` where `mine`; else somebody else's `x` acted: the pair is remembered, the suggestion stays."""
        mine, counted = jnp.asarray(mine), valid & state.known
        state = self._remember(state, x, jnp.where(valid, score.astype(jnp.float32), state.last), valid)
        narrower = jnp.maximum(state.shrink * np.float32(0.5), _SMALLEST_SHRINK)
        wider = jnp.minimum(state.shrink * np.float32(1.1), _ONE)
        state = state.replace(shrink=jnp.where(mine, jnp.where(valid, wider, narrower), state.shrink))
        return probes.select(mine, self._next(state, counted), state)

    def _remember(self, state: PBTState, x: jax.Array, score: jax.Array, valid: jax.Array) -> PBTState:
        """The pair of a period in the ring, unless its score is the first since scores could be compared."""
        # only differences of scores are kept: they lose no bits to a large offset
        merit = jnp.clip(jnp.clip(score - state.last, -_LARGEST, _LARGEST) + state.lead, -_LARGEST, _LARGEST)
        counts = valid & state.known
        here = counts & (jnp.arange(self.history, dtype=jnp.int32) == state.count % self.history)
        lead = jnp.where(state.known, np.float32(self.memory) * merit, _ZERO)
        return state.replace(
            settings=jnp.where(here[:, None], x, state.settings),
            merits=jnp.where(here, merit, state.merits),
            count=state.count + counts.astype(jnp.int32),
            last=score,
            lead=jnp.where(valid, lead, state.lead),
            known=state.known | valid,
        )

    def _next(self, state: PBTState, counted: jax.Array) -> PBTState:
        """Exploit if the newest setting is among the worst, else explore. counted: [] bool, it is in the ring."""
        merits, filled = self._levelled(state)
        n = filled.sum()
        share = jnp.maximum((np.float32(self.quantile) * n.astype(jnp.float32)).astype(jnp.int32), 1)
        better = (merits[None, :] > merits[:, None]) & filled[None, :]  # [i, j]: j is better than i
        rank = better.sum(axis=1)
        newest = rank[(state.count - 1) % self.history]
        bad = counted & (n >= _FEW) & (newest >= n - share)
        key_pick, key_move = jax.random.split(jax.random.fold_in(jax.random.key(state.seed), state.draws))
        lots = jax.random.uniform(key_pick, (self.history,), jnp.float32)
        chosen = state.settings[jnp.argmax(jnp.where(filled & (rank < share), lots, -_ONE))]
        move = jax.random.uniform(key_move, state.anchor.shape, jnp.float32, -1.0, 1.0)

        def changed(x: jax.Array, reach: float) -> jax.Array:
            return reflect(x + move * jnp.maximum(np.float32(reach) * state.shrink, state.gap))

        current = jnp.where(bad, changed(chosen, self.exploit), changed(state.anchor, self.explore))
        anchor = jnp.where(bad, chosen, state.anchor)
        return state.replace(anchor=anchor, current=current, draws=state.draws + jnp.int32(1))

    def _levelled(self, state: PBTState) -> tuple[jax.Array, jax.Array]:
        """Merits [N] less their straight line over time, in units of the largest; and which slots are filled [N]."""
        slots = jnp.arange(self.history, dtype=jnp.int32)
        age = ((state.count - 1 - slots) % self.history).astype(jnp.float32)
        filled = slots < state.count
        scale = jnp.max(jnp.where(filled, jnp.abs(state.merits), _ZERO))
        merits = jnp.where(filled, state.merits / jnp.where(scale > 0, scale, _ONE), _ZERO)
        n = jnp.maximum(filled.sum().astype(jnp.float32), _ONE)
        centred = jnp.where(filled, age - jnp.where(filled, age, _ZERO).sum() / n, _ZERO)
        slope = (centred * merits).sum() / (jnp.square(centred).sum() + _STIFFNESS)
        return merits - slope * centred, filled


def reflect(x: jax.Array) -> jax.Array:
    """`x` folded back into [0, 1] at its bounds."""
    folded = jnp.abs(x) % np.float32(2.0)
    return jnp.where(folded > _ONE, np.float32(2.0) - folded, folded)


class PBTOptimizer(TunerOptimizer):
    """`PBT` for the host loop; arguments as of `TunerOptimizer`, knobs as of `PBT`."""

    pure = PBT
