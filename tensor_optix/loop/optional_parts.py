"""Parts of a host run that may or may not be there: a validation source, methods that a contract leaves open."""

from __future__ import annotations

import contextlib
from typing import Any

from tensor_optix.core.base_agent import BaseAgent
from tensor_optix.core.base_pipeline import BasePipeline


def call_if_there(part: Any, method: str, *args: Any) -> None:
    """Call `method` of `part` if it has one."""
    found = getattr(part, method, None)
    if found is not None:
        found(*args)


def set_up(agent: BaseAgent, *sources: BasePipeline | None) -> None:
    """Set up the sources that are there, and hand them the agent if they ask for one."""
    for source in sources:
        if source is not None:
            source.setup()
    for source in sources:
        call_if_there(source, "set_agent", agent)


def release(*sources: BasePipeline | None) -> None:
    """Tear down the sources that are there, each also if another raises; the first one first."""
    with contextlib.ExitStack() as stack:
        for source in reversed(sources):
            if source is not None:
                stack.callback(source.teardown)
