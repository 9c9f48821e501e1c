"""Another address of `tensor_optix.orchestrator`."""

from tensor_optix.orchestrator import TrialOrchestrator

__all__ = ["TrialOrchestrator"]
