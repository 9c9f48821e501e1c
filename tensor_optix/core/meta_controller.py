"""Another address of `tensor_optix.evolution.meta_controller`."""

from tensor_optix.evolution.meta_controller import MetaAction, MetaController

__all__ = ["MetaAction", "MetaController"]
