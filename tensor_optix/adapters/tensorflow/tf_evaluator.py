"""The evaluator of TensorFlow agents: scores come from episodes, whatever the framework."""

from tensor_optix.loop.episode_returns import EpisodeEvaluator as TFEvaluator

__all__ = ["TFEvaluator"]
