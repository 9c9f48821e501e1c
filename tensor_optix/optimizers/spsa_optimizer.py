"""Another address of `tensor_optix.optimizers.spsa`."""

from tensor_optix.optimizers.spsa import SPSAOptimizer

__all__ = ["SPSAOptimizer"]
