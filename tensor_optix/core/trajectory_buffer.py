"""The NumPy faces of `tensor_optix.core.returns` under the name of earlier versions."""

from tensor_optix.core.returns import compute_gae, make_minibatches

__all__ = ["compute_gae", "make_minibatches"]
