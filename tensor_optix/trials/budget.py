"""The budget of a trial, counted in what its pipeline really collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tensor_optix.core.base_pipeline import BasePipeline
from tensor_optix.core.types import EpisodeData


class StepBudget(BasePipeline):
    """The windows of `pipeline` until they hold `steps` environment steps: the last one is that which gets there.

    Args:
        steps: environment steps of all environments together; None: no end, they are only counted.
        at_last: called when the last window has been collected, before it is handed out.
    """

    def __init__(self, pipeline: BasePipeline, steps: int | None, at_last: Callable[[], None]) -> None:
        self.pipeline, self.steps, self._at_last = pipeline, steps, at_last
        self.collected = 0  # environment steps so far

    @property
    def is_live(self) -> bool:
        return self.pipeline.is_live

    def setup(self) -> None:
        self.pipeline.setup()

    def teardown(self) -> None:
        self.pipeline.teardown()

    def set_agent(self, agent: Any) -> None:
        """As of the pipeline, if it has that."""
        set_agent = getattr(self.pipeline, "set_agent", None)
        if set_agent is not None:
            set_agent(agent)

    def reset(self) -> None:
        """As of the pipeline, if it has that."""
        reset = getattr(self.pipeline, "reset", None)
        if reset is not None:
            reset()

    def episodes(self) -> Iterator[EpisodeData]:
        for window in self.pipeline.episodes():
            self.collected += window.length
            over = self.steps is not None and self.collected >= self.steps
            if over:
                self._at_last()
            yield window
            if over:
                return
