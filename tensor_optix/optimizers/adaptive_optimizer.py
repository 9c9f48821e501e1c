"""Another address of `tensor_optix.optimizers.adaptive`."""

from tensor_optix.optimizers.adaptive import AdaptiveOptimizer

__all__ = ["AdaptiveOptimizer"]
