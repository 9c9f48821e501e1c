"""Algorithms by name. A new algorithm is one file and one line here; the command line and the law tests follow."""

from __future__ import annotations

import importlib
from typing import Any

_ALGORITHMS = {
    "ppo": "tensor_optix.algorithms.ppo:PPO",
}


def names() -> list[str]:
    """What `get` knows."""
    return sorted(_ALGORITHMS)


def get(name: str) -> Any:
    """The algorithm's class: a frozen dataclass (env, config) with a `config_type`. KeyError if unknown."""
    module, _, attribute = _ALGORITHMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
