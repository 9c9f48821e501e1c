"""Another address of `tensor_optix.optimizers.momentum`."""

from tensor_optix.optimizers.momentum import MomentumOptimizer

__all__ = ["MomentumOptimizer"]
