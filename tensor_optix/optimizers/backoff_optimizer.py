"""Another address of `tensor_optix.optimizers.backoff`."""

from tensor_optix.optimizers.backoff import BackoffOptimizer

__all__ = ["BackoffOptimizer"]
