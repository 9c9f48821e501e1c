"""Another address of `tensor_optix.loop.checkpoint_registry`."""

from tensor_optix.loop.checkpoint_registry import CheckpointRegistry

__all__ = ["CheckpointRegistry"]
