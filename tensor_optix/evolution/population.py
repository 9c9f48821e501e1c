"""Populations that learn side by side: who copies whom, and which hyperparameters each member takes next.

A rule is asked after every evaluation of a whole population. All is pure and of fixed shapes, so a rule runs inside the
compiled program; the driver obeys by gathering learners over the member axis. Scores count by their order or by their
differences against their own scale: rules do not change under score -> a * score + b, a > 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from tensor_optix.core.search_space import SearchSpace
from tensor_optix.optimizers.pbt import reflect
from tensor_optix.optimizers.probes import check_knobs
from tensor_optix.optimizers.spsa import SPSA, SPSAState, climb

_COPY, _EXPLORE, _DRAW = 0, 1, 2  # what an exchange draws random numbers for


class Exchange(struct.PyTreeNode):
    """What a population of K members with D tuned hyperparameters does next."""

    parents: jax.Array  # [K] int32: member i goes on with the learner of parents[i]; i itself: with its own
    x: jax.Array  # [K, D] float32, hyperparameters to put in force, in the unit cube


class Scored(struct.PyTreeNode):
    """What a rule is told after an evaluation."""

    scores: jax.Array  # [K] float32, higher is better; any number where not valid
    valid: jax.Array  # [K] bool, the member was evaluated and its score is finite
    alive: jax.Array  # [K] bool, the member still trains: others neither copy nor are copied


class PopulationRule(Protocol):
    """A rule as a frozen, hashable config with pure methods."""

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> Any:
        """The state of a population that starts from `x0`, float32 [K, D] in the unit cube; consumes `key`."""
        ...

    def first(self, state: Any) -> jax.Array:
        """float32 [K, D]: hyperparameters of the first period."""
        ...

    def step(self, state: Any, told: Scored) -> tuple[Any, Exchange]:
        """What to do after an evaluation."""
        ...


class PBTState(struct.PyTreeNode):
    """State of `PopulationPBT`."""

    x: jax.Array  # [K, D] float32, in force
    total: jax.Array  # [K] float32, sum of the scores since the last exchange, less `reference`
    count: jax.Array  # [K] int32, how many they are
    reference: jax.Array  # [K] float32, first of them: sums of differences lose no bits to a large offset
    evaluations: jax.Array  # [] int32
    key: jax.Array  # [] typed key


@dataclass(frozen=True)
class PopulationPBT:
    """Population based training (Jaderberg et al. 2017): the worst go on as changed copies of the best.

    Members are compared by their mean score since the last exchange. A copy takes over parameters, optimiser and
    normalisers, and hyperparameters moved by up to `perturb` of each one's range (on its own scale, so by equal factors
    where that is logarithmic); at a bound the move is reflected, so that none piles up there.

    Args:
      every: evaluations between two exchanges.
      selection: "truncation": each of the worst `quantile` copies a random one of the best `quantile`; "binary": each
        member meets another at random and copies it if that one is better.
      quantile: share of the members, in (0, 0.5].
      perturb: half width of the move, in units of the range, in (0, 1].
      resample: probability that one hyperparameter of a copy is drawn anew from its whole range instead.
      spread: half width, in units of the range, of the box around the given hyperparameters that the first ones of all
        members but the first are drawn from, reflected at the bounds; 1 draws evenly from the whole range.
      copy_replay: copy the replay too, where the algorithm has one, with the environments that fill it.

    Raises:
      TypeError: a setting is of another kind.
      ValueError: it is out of its range.
    """

    every: int = 4
    selection: str = "truncation"
    quantile: float = 0.2
    perturb: float = 0.1
    resample: float = 0.0
    spread: float = 1.0
    copy_replay: bool = False

    def __post_init__(self) -> None:
        check_knobs(self)
        if self.every < 1:
            raise ValueError(f"every must be at least 1 evaluation, got {self.every}")
        if self.selection not in ("truncation", "binary"):
            raise ValueError(f'selection must be "truncation" or "binary", got {self.selection!r}')
        for name, low, high in (("quantile", 0.0, 0.5), ("perturb", 0.0, 1.0)):
            if not low < getattr(self, name) <= high:
                raise ValueError(f"{name} must be in ({low:g}, {high:g}], got {getattr(self, name)}")
        for name in ("resample", "spread"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> PBTState:
        key, key_spread = jax.random.split(key)
        size = x0.shape[0]
        moves = jax.random.uniform(key_spread, x0.shape, jnp.float32, -self.spread, self.spread)
        first = (jnp.arange(size) == 0)[:, None]
        zeros = jnp.zeros((size,), jnp.float32)
        return PBTState(
            x=jnp.where(first, x0, reflect(x0 + moves)),
            total=zeros,
            count=jnp.zeros((size,), jnp.int32),
            reference=zeros,
            evaluations=jnp.int32(0),
            key=key,
        )

    def first(self, state: PBTState) -> jax.Array:
        return state.x

    def step(self, state: PBTState, told: Scored) -> tuple[PBTState, Exchange]:
        fresh = state.count == 0
        reference = jnp.where(fresh & told.valid, told.scores, state.reference)
        total = state.total + jnp.where(told.valid, told.scores - reference, jnp.float32(0.0))
        count = state.count + told.valid.astype(jnp.int32)
        state = state.replace(total=total, count=count, reference=reference, evaluations=state.evaluations + 1)
        due = state.evaluations % self.every == 0
        itself = jnp.arange(told.scores.shape[0], dtype=jnp.int32)
        mean = reference + total / jnp.maximum(count, 1).astype(jnp.float32)
        key = jax.random.fold_in(state.key, state.evaluations)
        parents = jnp.where(due, self._parents(mean, count > 0, told.alive, key), itself)
        x = jnp.where((parents != itself)[:, None], self._explored(state.x[parents], key), state.x)
        kept = jnp.where(due, 0, state.count)
        return state.replace(x=x, count=kept, total=jnp.where(due, jnp.float32(0.0), state.total)), Exchange(parents, x)

    def _parents(self, mean: jax.Array, scored: jax.Array, alive: jax.Array, key: jax.Array) -> jax.Array:
        """[K] int32. A member without a score since the last exchange is worse than any other."""
        size = mean.shape[0]
        key = jax.random.fold_in(key, _COPY)
        itself = jnp.arange(size, dtype=jnp.int32)
        worth = jnp.where(alive & scored & jnp.isfinite(mean), mean, -jnp.inf)
        if self.selection == "binary":
            parents = (itself + jax.random.randint(key, (size,), 1, max(size, 2), jnp.int32)) % size
            chosen = jnp.ones((size,), bool)
        else:
            count = max(1, int(self.quantile * size))
            order = jnp.argsort(-jnp.where(alive, worth, -jnp.inf), stable=True).astype(jnp.int32)
            parents = order[jax.random.randint(key, (size,), 0, count, jnp.int32)]
            # the dead are not among the worst: those of the living are
            rank_of_worst = jnp.argsort(jnp.argsort(jnp.where(alive, worth, jnp.inf), stable=True))
            chosen = rank_of_worst < count
        better = worth[parents] > worth
        return jnp.where(alive & alive[parents] & chosen & better, parents, itself)

    def _explored(self, x: jax.Array, key: jax.Array) -> jax.Array:
        key_move, key_draw, key_which = jax.random.split(jax.random.fold_in(key, _EXPLORE), 3)
        moved = reflect(x + jax.random.uniform(key_move, x.shape, jnp.float32, -self.perturb, self.perturb))
        if self.resample == 0:
            return moved
        anew = jax.random.uniform(key_draw, x.shape, jnp.float32)
        return jnp.where(jax.random.bernoulli(key_which, self.resample, x.shape), anew, moved)


class SharedSPSAState(struct.PyTreeNode):
    """State of `SharedSPSA`."""

    centre: SPSAState  # of which the probes and the contrast are not used
    signs: jax.Array  # [K, D] float32 in {-1, 0, 1}, probe directions in force
    previous: jax.Array  # [K] float32, scores of the evaluation before
    known: jax.Array  # [K] bool, there is one
    key: jax.Array  # [] typed key


@dataclass(frozen=True)
class SharedSPSA:
    """SPSA with one vector for all members: they probe it at the same time, and their slopes are averaged.

    Members come in pairs that probe centre + c d and centre - c d in the same window, so what learning adds to every
    score drops out of each pair's difference at once, where one learner alone needs four windows (`optimizers.spsa`).
    A probe's effect is what the score rose by in its window: members differ in level. Each pair has a random direction
    of its own; the mean over P pairs is scaled by sqrt(P), so that without any slope it has the spread of a single
    contrast, and the step rule of `SPSA` takes it from there. An odd member acts at the centre.
    """

    spsa: SPSA = field(default_factory=SPSA)

    def __post_init__(self) -> None:
        check_knobs(self)

    def init(self, space: SearchSpace, x0: jax.Array, key: jax.Array) -> SharedSPSAState:
        key, key_centre = jax.random.split(key)
        size = x0.shape[0]
        state = SharedSPSAState(
            centre=self.spsa.init(space, x0[0], key_centre),
            signs=jnp.zeros(x0.shape, jnp.float32),
            previous=jnp.zeros((size,), jnp.float32),
            known=jnp.zeros((size,), bool),
            key=key,
        )
        return state.replace(signs=self._signs(state))

    def first(self, state: SharedSPSAState) -> jax.Array:
        middle, width = self.spsa.pair(state.centre)
        probing = (state.signs != 0).any(axis=-1, keepdims=True)
        return jnp.where(probing, middle[None] + state.signs * width[None], state.centre.centre[None])

    def step(self, state: SharedSPSAState, told: Scored) -> tuple[SharedSPSAState, Exchange]:
        usable = told.valid & told.alive & state.known
        gain = jnp.where(usable, told.scores - state.previous, jnp.float32(0.0))
        pairs = state.signs.shape[0] // 2
        both = usable[0 : 2 * pairs : 2] & usable[1 : 2 * pairs : 2]
        contrast = jnp.where(both, gain[0 : 2 * pairs : 2] - gain[1 : 2 * pairs : 2], jnp.float32(0.0))
        directions = state.signs[0 : 2 * pairs : 2]
        centre = climb(self.spsa, state.centre, contrast, both, directions)
        state = state.replace(
            centre=centre,
            previous=jnp.where(told.valid, told.scores, state.previous),
            known=state.known | told.valid,
        )
        state = state.replace(signs=self._signs(state))
        itself = jnp.arange(told.scores.shape[0], dtype=jnp.int32)
        return state, Exchange(itself, self.first(state))

    def _signs(self, state: SharedSPSAState) -> jax.Array:
        size, d = state.signs.shape
        key = jax.random.fold_in(jax.random.fold_in(state.key, _DRAW), state.centre.cycle)
        drawn = jax.random.rademacher(key, (size // 2, d), jnp.float32)
        rest = jnp.zeros((size % 2, d), jnp.float32)
        return jnp.concatenate([jnp.stack([drawn, -drawn], axis=1).reshape(-1, d), rest])


RULES: dict[str, type[PopulationPBT | SharedSPSA]] = {"pbt": PopulationPBT, "spsa": SharedSPSA}
