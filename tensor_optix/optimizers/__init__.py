"""Hyperparameter tuners."""

from tensor_optix.optimizers.spsa import SPSA, SPSAOptimizer, SPSAState

__all__ = ["SPSA", "SPSAOptimizer", "SPSAState"]
