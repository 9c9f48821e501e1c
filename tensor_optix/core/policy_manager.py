"""Another address of `tensor_optix.evolution.policy_manager`."""

from tensor_optix.evolution.policy_manager import PolicyManager
from tensor_optix.evolution.policy_manager_callback import PolicyManagerCallback

__all__ = ["PolicyManager", "PolicyManagerCallback"]
