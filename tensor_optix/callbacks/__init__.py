"""What a person watches while a run goes on. Names are resolved on first use, with the libraries behind them."""

from __future__ import annotations

from tensor_optix._lazy import resolver

# name -> module that defines it
_PUBLIC = {
    "JSONLCallback": "tensor_optix.callbacks.jsonl",
    "LoopCallback": "tensor_optix.loop.events",
    "RichDashboardCallback": "tensor_optix.callbacks.rich_dashboard",
    "TensorBoardCallback": "tensor_optix.callbacks.tensorboard_callback",
    "WandbCallback": "tensor_optix.callbacks.wandb_callback",
}

__all__ = sorted(_PUBLIC)


__getattr__ = resolver(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
