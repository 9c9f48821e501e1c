"""Another address of `tensor_optix.loop.host`."""

from tensor_optix.loop.host import LoopController

__all__ = ["LoopController"]
