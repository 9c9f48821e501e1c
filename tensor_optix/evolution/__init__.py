"""Policies that evolve: variants, ensembles and populations. Names are resolved on first use."""

from __future__ import annotations

from tensor_optix._lazy import resolver

# name -> module that defines it
_PUBLIC = {
    "EnsembleAgent": "tensor_optix.evolution.ensemble_agent",
    "MetaAction": "tensor_optix.evolution.decisions",
    "MetaController": "tensor_optix.evolution.meta_controller",
    "PolicyManager": "tensor_optix.evolution.policy_manager",
    "PolicyManagerCallback": "tensor_optix.evolution.policy_manager_callback",
}

__all__ = sorted(_PUBLIC)


__getattr__ = resolver(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
