"""Hyperparameter tuners, each a pure one and its face for the host loop. Names are resolved on first use."""

from __future__ import annotations

from tensor_optix._lazy import resolver

# name -> module that defines it
_PUBLIC = {
    "SPSA": "tensor_optix.optimizers.spsa",
    "SPSAState": "tensor_optix.optimizers.spsa",
    "SPSAOptimizer": "tensor_optix.optimizers.spsa",
    "Momentum": "tensor_optix.optimizers.momentum",
    "MomentumState": "tensor_optix.optimizers.momentum",
    "MomentumOptimizer": "tensor_optix.optimizers.momentum",
    "Backoff": "tensor_optix.optimizers.backoff",
    "BackoffState": "tensor_optix.optimizers.backoff",
    "BackoffOptimizer": "tensor_optix.optimizers.backoff",
    "PBT": "tensor_optix.optimizers.pbt",
    "PBTState": "tensor_optix.optimizers.pbt",
    "PBTOptimizer": "tensor_optix.optimizers.pbt",
    "Adaptive": "tensor_optix.optimizers.adaptive",
    "AdaptiveState": "tensor_optix.optimizers.adaptive",
    "AdaptiveOptimizer": "tensor_optix.optimizers.adaptive",
    "TunerOptimizer": "tensor_optix.optimizers.shell",
    "TUNERS": "tensor_optix.optimizers.registry",
}

__all__ = sorted(_PUBLIC)


__getattr__ = resolver(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
