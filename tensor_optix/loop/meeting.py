"""Where the members of a run meet between two windows: to exchange (`loop.exchange`) or to spawn (`loop.spawner`).

A run holds G groups (one a seed) of K members each; members g K to (g + 1) K - 1 are group g. One compiled program
changes them all; members that live on several devices meet through XLA's collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tensor_optix.loop.compiled import MEMBERS, Member, Program
from tensor_optix.loop.packing import Packed, pack


class MeetingReport(struct.PyTreeNode):
    """What one meeting did, by member."""

    parents: jax.Array  # [M] int32, whose learner each member goes on with; its own index: with its own
    stop_reason: jax.Array  # [M] int32, `StopReason` afterwards


@dataclass(frozen=True)
class Copies:
    """Who went on with whose learner at one meeting."""

    window: int  # windows that each member had run; where variants are spawned, all of the seed together
    parents: np.ndarray  # [M] int64, the member itself where it copied nobody


class Meeting(Protocol):
    """How the members of a group meet. Static and hashable."""

    @property
    def size(self) -> int:
        """K."""
        ...

    def init(self, hyper: dict[str, jax.Array], keys: jax.Array) -> Any:
        """The groups' states at the start. hyper: name -> [G, K] float32, as given. keys: [G] typed keys."""
        ...

    def first(self, groups: Any, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Hyperparameters of the first period, name -> [M] float32. hyper: as given, [M]."""
        ...

    @property
    def starts(self) -> tuple[bool, ...]:
        """[K]: who learns from the start; the others wait until a meeting wakes them."""
        ...

    def step(
        self, program: Program, members: Member, groups: Any, lanes: jax.Array
    ) -> tuple[Member, Any, MeetingReport]:
        """One meeting. members: [L], one a lane; lanes: [M] int32, each member's; other lanes are left alone."""
        ...

    def wait(self, windows: np.ndarray, stop_reasons: np.ndarray, met: np.ndarray, interval: int) -> int:
        """Windows that may be run before the next meeting: 0, it is now; a large number, there is none in sight.

        windows, stop_reasons: [M], of every member. met: [G], windows of each group at its last meeting. interval: of
        evaluations, in windows.
        """
        ...

    def copies(self, parents: np.ndarray, windows: np.ndarray, stop_reasons: np.ndarray) -> list[Copies]:
        """What a report's `parents` mean. The rest as for `wait`, before the meeting; all [M]."""
        ...


def compiled_meeting(meeting: Meeting, program: Program, mesh: Mesh) -> Callable[..., Any]:
    """(packed members [L], groups [G], lanes [M]) -> both afterwards, donated, and the `MeetingReport`."""
    members, everywhere = NamedSharding(mesh, P(MEMBERS)), NamedSharding(mesh, P())

    def meet(packed: Packed, groups: Any, lanes: jax.Array) -> tuple[Packed, Any, MeetingReport]:
        new, groups, report = meeting.step(program, packed.unpack(), groups, lanes)
        return pack(new, new.brain.done.shape), groups, report

    return jax.jit(
        meet,
        donate_argnums=(0, 1),
        in_shardings=(members, everywhere, everywhere),
        out_shardings=(members, everywhere, everywhere),
    )


def group_key(seed: jax.Array, variant: jax.Array) -> jax.Array:
    """The key of a group, by the seed and the number of its first member, [] uint32 each.

    No member's key is made so: theirs fold in their number, which is far below this.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1)), variant)


def groups_of(meeting: Meeting, seeds: np.ndarray, variants: np.ndarray, hyper: dict[str, np.ndarray]) -> Any:
    """Groups at the start. seeds, variants: [G] uint32, of each one's first member. hyper: name -> [G, K]."""

    def make(seeds: jax.Array, variants: jax.Array, hyper: dict[str, jax.Array]) -> Any:
        return meeting.init(hyper, jax.vmap(group_key)(seeds, variants))

    return jax.jit(make)(seeds, variants, hyper)
