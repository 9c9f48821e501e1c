"""Many trials in one compiled program: batch after batch of members, whose hyperparameters are its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from tensor_optix.core.types import StopReason
from tensor_optix.curves import CurveRecorder
from tensor_optix.loop.events import ChunkReport
from tensor_optix.loop.packing import Packed, pack
from tensor_optix.loop.session import EMPTY, MAX_CHUNK, MemberSpec, Session
from tensor_optix.results import MemberResult, member_result


class Batches(Session):
    """A session that runs one batch of members after the other without compiling anew.

    Made with as many members as the largest batch has. A smaller batch leaves lanes empty: they are not trained, but
    the final evaluation plays its episodes on every lane.
    """

    def run(
        self,
        members: Sequence[MemberSpec],
        goes_on: Callable[[], bool],
        judge: Callable[[ChunkReport], Sequence[int]],
    ) -> tuple[list[MemberResult], Any, int] | None:
        """Fresh members, each to the end of its budget; None if `goes_on` said False between two evaluations.

        judge: told of every evaluation; says which members are not worth going on with.

        Returns their results, their best policies (leading axis: members, on the host) and the environment steps of
        all together.
        """
        if not 1 <= len(members) <= self.layout.lanes:
            raise ValueError(f"a batch of {len(members)} members does not fit the {self.layout.lanes} lanes")
        lanes = np.full(self.layout.lanes, EMPTY)
        lanes[: len(members)] = np.arange(len(members))
        self.specs, self.member_ids = list(members), self._dealt(lanes)
        self.windows = np.zeros(len(members), np.int64)
        self.stop_reasons = np.full(len(members), StopReason.RUNNING)
        self.start()
        steps = self.program.algorithm.steps_per_window
        recorder = CurveRecorder(len(members), steps)
        while not self.done:
            if not goes_on():
                return None
            report = self.step()
            recorder.add(report)
            self._end(judge(report))
        recorder.stop_reasons[:] = self.stop_reasons
        policies, episodes = self.final()
        curves = recorder.curves()
        results = [
            member_result(recorder, curves[i], i, episodes.returns[i], seed=spec.seed, variant=spec.variant)
            for i, spec in enumerate(members)
        ]
        return results, policies, int(self.windows.sum()) * steps

    def _next_chunk(self) -> int:
        """To the next evaluation, whatever the time: which trials are pruned must not depend on the clock."""
        interval = self.program.brain.scheduler.base_interval
        return min(interval - int(self.windows.max()) % interval, MAX_CHUNK)

    def _end(self, members: Sequence[int]) -> None:
        """End these before their budget."""
        going = [i for i in members if self.stop_reasons[i] == StopReason.RUNNING]
        if not going:
            return
        self.stop_reasons[going] = StopReason.PRUNED
        mask = jax.device_put(np.isin(self.member_ids, going), self._sharding)
        self._members = _ended(self._members, mask)


@partial(jax.jit, donate_argnums=0)
def _ended(packed: Packed, members: jax.Array) -> Packed:
    """Packed members [L] of which those [L] have stopped."""
    state = packed.unpack()
    brain = state.brain.replace(done=state.brain.done | members)
    return pack(state.replace(brain=brain), members.shape)
