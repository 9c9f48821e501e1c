"""The brain and the mathematics: pure functions over pytrees. A few names are resolved here on first use."""

from __future__ import annotations

from tensor_optix._lazy import resolver

# name -> module that defines it
_PUBLIC = {
    "BackoffScheduler": "tensor_optix.core.backoff_shell",
    "BaseAgent": "tensor_optix.core.base_agent",
    "BaseEvaluator": "tensor_optix.core.base_evaluator",
    "BaseOptimizer": "tensor_optix.core.base_optimizer",
    "BasePipeline": "tensor_optix.core.base_pipeline",
    "DiagnosticController": "tensor_optix.core.diagnostic_controller",
    "EpisodeData": "tensor_optix.core.types",
    "EvalMetrics": "tensor_optix.core.types",
    "HyperparamSet": "tensor_optix.core.types",
    "LoopState": "tensor_optix.core.types",
    "PolicySnapshot": "tensor_optix.core.types",
    "RegimeDetector": "tensor_optix.core.regime_detector",
}

__all__ = sorted(_PUBLIC)


__getattr__ = resolver(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
