"""Many trials in one compiled program: batch after batch of members, whose hyperparameters are its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensor_optix.core.types import StopReason
from tensor_optix.curves import CurveRecorder
from tensor_optix.loop.session import EMPTY, MemberSpec, Session
from tensor_optix.results import MemberResult, member_result


class Batches(Session):
    """A session that runs one batch of members after the other without compiling anew.

    Made with as many members as the largest batch has. A smaller batch leaves lanes empty, which cost nothing.
    """

    def run(
        self, members: Sequence[MemberSpec], goes_on: Callable[[], bool]
    ) -> tuple[list[MemberResult], Any, int] | None:
        """Fresh members, each to the end of its budget; None if `goes_on` said False between two chunks.

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
            recorder.add(self.step())
        policies, episodes = self.final()
        curves = recorder.curves()
        results = [
            member_result(recorder, curves[i], i, episodes.returns[i], seed=spec.seed, variant=spec.variant)
            for i, spec in enumerate(members)
        ]
        return results, policies, int(self.windows.sum()) * steps
