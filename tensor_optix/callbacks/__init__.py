"""What a person watches while a run goes on. Names are resolved on first use, with the libraries behind them."""

from __future__ import annotations

import importlib
from typing import Any

# name -> module that defines it
_PUBLIC = {
    "JSONLCallback": "tensor_optix.callbacks.jsonl",
    "LoopCallback": "tensor_optix.loop.events",
    "RichDashboardCallback": "tensor_optix.callbacks.rich_dashboard",
    "TensorBoardCallback": "tensor_optix.callbacks.tensorboard_callback",
    "WandbCallback": "tensor_optix.callbacks.wandb_callback",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
