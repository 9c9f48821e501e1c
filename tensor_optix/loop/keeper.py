"""The contract of what keeps a host run on disk."""

from __future__ import annotations

from typing import Protocol

from tensor_optix.core.autonomy import AutonomyState


class Keeper(Protocol):
    """Keeps a run on disk; told by the controller when the state between two windows is whole."""

    def begin(self) -> bool:
        """Everything is set up. True: the state of an earlier run was put back."""

    def between_windows(self) -> None: ...

    def end(self, state: AutonomyState) -> None:
        """The last window is over, and the brain's state is this; the best policy has not been put back yet."""
