"""The evaluator of Flax agents: that of every framework."""

from tensor_optix.loop.episode_returns import EpisodeEvaluator as FlaxEvaluator

__all__ = ["FlaxEvaluator"]
