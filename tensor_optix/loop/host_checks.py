"""What the arguments of a host run must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tensor_optix.loop.checkpoint_registry import CheckpointRegistry
from tensor_optix.loop.events import LoopCallback


def check_arguments(
    pipeline: Any, callbacks: Any, max_episodes: Any, score_smoothing: int, registry: CheckpointRegistry | None
) -> None:
    """TypeError or ValueError unless a `LoopController` can begin with them."""
    if pipeline is None:
        raise TypeError("LoopController got no pipeline: give pipeline=..., for example a BatchPipeline")
    if not callable(getattr(pipeline, "episodes", None)):
        raise TypeError(f"pipeline must be a BasePipeline, got {pipeline!r}: wrap an environment in BatchPipeline")
    if isinstance(callbacks, LoopCallback) or not isinstance(callbacks, Sequence | None):
        raise TypeError(f"callbacks must be a list of callbacks, got {callbacks!r}")
    check_budget(max_episodes)
    if score_smoothing < 1:
        raise ValueError(f"score_smoothing must be at least 1 evaluation, got {score_smoothing}")
    if registry is not None and registry.max_snapshots < 2:  # the best, and one being tried
        raise ValueError(f"max_snapshots must be at least 2 for a run, got {registry.max_snapshots}")


def check_budget(max_episodes: int | None) -> None:
    """TypeError or ValueError unless it is a number of windows, or None."""
    if max_episodes is None:
        return
    if isinstance(max_episodes, bool) or not isinstance(max_episodes, int | np.integer):
        raise TypeError(f"max_episodes must be a whole number of windows, got {max_episodes!r}")
    if max_episodes < 1:
        raise ValueError(f"max_episodes must be at least 1 window, got {max_episodes}")
