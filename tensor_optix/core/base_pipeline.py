"""Where windows of experience come from in the host driver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from tensor_optix.core.types import EpisodeData


class BasePipeline(ABC):
    """A source of windows: a simulator, a vector of them, a live feed."""

    @abstractmethod
    def setup(self) -> None:
        """Acquire what the source needs; called once before the first window."""

    @abstractmethod
    def episodes(self) -> Iterator[EpisodeData]:
        """Windows without end; a source that runs dry ends the iteration."""

    @abstractmethod
    def teardown(self) -> None:
        """Release everything, also after an error."""

    @property
    def is_live(self) -> bool:
        """True when windows come in real time and cannot be asked for again."""
        return False
