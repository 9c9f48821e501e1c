"""An agent's whole state as arrays of bytes, for a state that is kept as plain values."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tensor_optix.core.base_agent import BaseAgent

_ROOT = "state"


def to_bytes(agent: BaseAgent) -> dict[str, np.ndarray]:
    """What `save_state` wrote: path relative to the directory it was told to write into -> uint8 [size]."""
    with tempfile.TemporaryDirectory() as folder:
        agent.save_state(str(Path(folder) / _ROOT))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {str(p.relative_to(folder).as_posix()): np.frombuffer(p.read_bytes(), np.uint8) for p in files}


def from_bytes(agent: BaseAgent, files: Mapping[str, np.ndarray]) -> None:
    """Let the agent read what `to_bytes` gave."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            if not path.resolve().is_relative_to(Path(folder).resolve()):
                raise ValueError(f"an agent's file is called {name!r}, which lies outside of its directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(np.asarray(content, np.uint8).tobytes())
        agent.load_state(str(Path(folder) / _ROOT))
