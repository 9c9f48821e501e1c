"""Pure environments: what one has to be, how to make one, and how N of them are stepped in compiled code."""

from tensor_optix.envs.evaluate import EpisodeStats, evaluate, evaluate_with_carry
from tensor_optix.envs.registry import list_environments, make
from tensor_optix.envs.vector import EpisodeSums, StepOut, VectorEnv, VectorState

__all__ = [
    "EpisodeStats",
    "EpisodeSums",
    "StepOut",
    "VectorEnv",
    "VectorState",
    "evaluate",
    "evaluate_with_carry",
    "list_environments",
    "make",
]
