"""Pipelines over environments: what they share but for the shape of their windows."""

from __future__ import annotations

from typing import Any, Protocol

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.pipeline.acting import Choose
from tensor_optix.pipeline.rows import Rows
from tensor_optix.pipeline.windows import WindowPipeline


class Source(Protocol):
    """Where the blocks of a window come from."""

    @property
    def faults(self) -> list[str]: ...

    @property
    def n_faults(self) -> int: ...

    def setup(self) -> None: ...

    def close(self) -> None: ...

    def window(self, choose: Choose) -> tuple[list[Rows], int, int]: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> list[str]: ...


class SourcePipeline(WindowPipeline):
    """Subclasses make the source and collect windows from it."""

    def __init__(
        self, agent: BaseAgent | None, window_size: int, seed: int | None, deterministic: bool, source: Source
    ) -> None:
        super().__init__(agent, window_size, seed, deterministic)
        self._source = source
        self._was_loaded = False  # and no window was collected since

    @property
    def faults(self) -> list[str]:
        """The newest faults of environments that the pipeline survived, oldest first, at most 20."""
        return self._source.faults

    @property
    def n_faults(self) -> int:
        """Faults of environments so far."""
        return self._source.n_faults

    def setup(self) -> None:
        """Make the environments if need be, and reset them; after `load_state_dict` they stay as that left them."""
        if not self._was_loaded:
            self._source.setup()
        self._was_loaded = False
        self._is_set_up = True

    def teardown(self) -> None:
        """Close what was made here and end its processes; may be called again, and after any error."""
        self._is_set_up = self._was_loaded = False
        self._source.close()

    def state_dict(self) -> dict[str, Any]:
        """All that the windows to come depend on, but for the agent: JSON-able values and arrays, nested."""
        return {"episode_id": self._episode_id, "source": self._source.state(), "memory": self._memory.state()}

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Put back what `state_dict` gave, before or after `setup`; the open episodes are played again.

        Returns a sentence for each thing that could not be put back exactly; none means that the next windows are
        those that would have come, bit for bit. ValueError if the state is of another number of environments.
        """
        sentences = self._source.load(state["source"])
        self._memory.load(state.get("memory"))
        self._episode_id = int(state["episode_id"])
        self._is_set_up = self._was_loaded = True
        return sentences
