"""Another address of `tensor_optix.evolution.ensemble_agent`."""

from tensor_optix.evolution.ensemble_agent import EnsembleAgent

__all__ = ["EnsembleAgent"]
