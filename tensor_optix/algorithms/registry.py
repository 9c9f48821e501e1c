"""Algorithms by name. A new algorithm is one file and one line here; the command line and the law tests follow."""

from __future__ import annotations

import importlib
from typing import Any

_ALGORITHMS = {
    "dqn": "tensor_optix.algorithms.dqn:DQN",
    "graph_ppo": "tensor_optix.algorithms.graph_ppo:GraphPPO",
    "ppo": "tensor_optix.algorithms.ppo:PPO",
    "rainbow": "tensor_optix.algorithms.rainbow:Rainbow",
    "sac": "tensor_optix.algorithms.sac:SAC",
    "td3": "tensor_optix.algorithms.td3:TD3",
    "recurrent_ppo": "tensor_optix.algorithms.recurrent_ppo:RecurrentPPO",
}


def names() -> list[str]:
    """What `get` knows."""
    return sorted(_ALGORITHMS)


def get(name: str) -> Any:
    """The algorithm's class: a frozen dataclass (env, config) with a `config_type`. KeyError if unknown."""
    module, _, attribute = _ALGORITHMS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
