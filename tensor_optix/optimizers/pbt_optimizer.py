"""Another address of `tensor_optix.optimizers.pbt`."""

from tensor_optix.optimizers.pbt import PBTOptimizer

__all__ = ["PBTOptimizer"]
