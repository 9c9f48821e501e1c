"""The evaluator of PyTorch runs: the one of all frameworks."""

from tensor_optix.loop.episode_returns import EpisodeEvaluator

TorchEvaluator = EpisodeEvaluator
