"""tensor_optix: training that runs itself, JAX first.

    from tensor_optix import train
    result = train("CartPole-v1", seeds=8)
    print(result)

Public names are resolved on first use: importing the package loads no framework but JAX.
"""

from __future__ import annotations

from tensor_optix._lazy import resolver
from tensor_optix.neuroevo import __all__ as _GRAPHS  # a list of names; what they name is loaded on first use

__version__ = "2.0.0.dev0"

# name -> module that defines it, or module:name; the one place where the public surface is listed
_PUBLIC = {
    # the compiled run
    "train": "tensor_optix.training",
    "resume": "tensor_optix.training",
    "load_run": "tensor_optix.finished",
    "RunConfig": "tensor_optix.config",
    "ConfigError": "tensor_optix.config",
    "load_config": "tensor_optix.config",
    "apply_overrides": "tensor_optix.config",
    "TrainResult": "tensor_optix.results",
    "MemberResult": "tensor_optix.results",
    "Policy": "tensor_optix.policy",
    "RunDirError": "tensor_optix.loop.durable",
    # the host run: any agent, any source
    "RLOptimizer": "tensor_optix.optimizer",
    "Optimizer": "tensor_optix.optimizer",
    "make_agent": "tensor_optix.factory",
    "optimal_window_size": "tensor_optix.factory",
    "DiagnosticController": "tensor_optix.core.diagnostic_controller",
    "LoopController": "tensor_optix.loop.host",
    "HostResult": "tensor_optix.loop.host_result",
    "EpisodeEvaluator": "tensor_optix.loop.episode_returns",
    "CheckpointRegistry": "tensor_optix.loop.checkpoint_registry",
    "BatchPipeline": "tensor_optix.pipeline",
    "VectorBatchPipeline": "tensor_optix.pipeline",
    "LivePipeline": "tensor_optix.pipeline",
    "RNDPipeline": "tensor_optix.pipeline",
    "TrainConfig": "tensor_optix.host_config",
    "config_to_dict": "tensor_optix.config",
    "build_agent_from_config": "tensor_optix.building",
    "build_pipeline_from_config": "tensor_optix.building",
    "build_optimizer_from_config": "tensor_optix.building",
    # agents
    "FlaxAgent": "tensor_optix.adapters.jax.flax_agent",
    "FlaxEvaluator": "tensor_optix.adapters.jax.flax_evaluator",
    "FlaxPPOAgent": "tensor_optix.algorithms.flax_ppo",
    "FlaxGaussianPPOAgent": "tensor_optix.algorithms.flax_ppo_continuous",
    "FlaxDQNAgent": "tensor_optix.algorithms.flax_dqn",
    "FlaxRainbowAgent": "tensor_optix.algorithms.flax_rainbow",
    "FlaxSACAgent": "tensor_optix.algorithms.flax_sac",
    "FlaxTD3Agent": "tensor_optix.algorithms.flax_td3",
    "FlaxRecurrentPPOAgent": "tensor_optix.algorithms.flax_recurrent_ppo",
    "FlaxRecurrentGaussianPPOAgent": "tensor_optix.algorithms.flax_recurrent_ppo_continuous",
    "TorchAgent": "tensor_optix.adapters.pytorch.torch_agent",
    "TorchEvaluator": "tensor_optix.adapters.pytorch.torch_evaluator",
    "TorchPPOAgent": "tensor_optix.algorithms.torch_ppo",
    "TorchGaussianPPOAgent": "tensor_optix.algorithms.torch_ppo_continuous",
    "TFAgent": "tensor_optix.adapters.tensorflow.tf_agent",
    "TFEvaluator": "tensor_optix.adapters.tensorflow.tf_evaluator",
    "TFPPOAgent": "tensor_optix.algorithms.tf_ppo",
    "TFGaussianPPOAgent": "tensor_optix.algorithms.tf_ppo_continuous",
    # what a person watches
    "JSONLCallback": "tensor_optix.callbacks",
    "RichDashboardCallback": "tensor_optix.callbacks",
    "TensorBoardCallback": "tensor_optix.callbacks",
    "WandbCallback": "tensor_optix.callbacks",
    # environments and devices
    "make_env": "tensor_optix.envs:make",
    "start_runtime": "tensor_optix.loop.runtime:start",
    "check_environment": "tensor_optix.checking",
    # contracts and data
    "BaseAgent": "tensor_optix.core.base_agent",
    "BaseEvaluator": "tensor_optix.core.base_evaluator",
    "BaseOptimizer": "tensor_optix.core.base_optimizer",
    "BasePipeline": "tensor_optix.core.base_pipeline",
    "LoopCallback": "tensor_optix.loop.events",
    "EpisodeData": "tensor_optix.core.types",
    "EvalMetrics": "tensor_optix.core.types",
    "HyperparamSet": "tensor_optix.core.types",
    "PolicySnapshot": "tensor_optix.core.types",
    "LoopState": "tensor_optix.core.types",
    "StopReason": "tensor_optix.core.types",
    # the brain's parts
    "BackoffScheduler": "tensor_optix.core.backoff_shell",
    "RegimeDetector": "tensor_optix.core.regime_detector",
    "SPSAOptimizer": "tensor_optix.optimizers.spsa",
    "MomentumOptimizer": "tensor_optix.optimizers.momentum",
    "BackoffOptimizer": "tensor_optix.optimizers.backoff",
    "PBTOptimizer": "tensor_optix.optimizers.pbt",
    "AdaptiveOptimizer": "tensor_optix.optimizers.adaptive",
    # search over trials
    "TrialOrchestrator": "tensor_optix.orchestrator",
    "tune": "tensor_optix.trials.compiled",
    # evolution
    "PolicyManager": "tensor_optix.evolution.policy_manager",
    "PolicyManagerCallback": "tensor_optix.evolution.policy_manager_callback",
    "EnsembleAgent": "tensor_optix.evolution.ensemble_agent",
    "MetaController": "tensor_optix.evolution.meta_controller",
    "MetaAction": "tensor_optix.evolution.decisions",
    # replay for hosts
    "PrioritizedReplayBuffer": "tensor_optix.core.prioritized_buffer",
    "HERReplayBuffer": "tensor_optix.core.her_buffer",
    "HERBuffer": "tensor_optix.core.her_buffer",
    # mathematics
    "compute_gae": "tensor_optix.core.returns",
    "compute_vtrace_targets": "tensor_optix.core.returns",
    "make_minibatches": "tensor_optix.core.returns",
    "RunningMeanStd": "tensor_optix.core.normalizers",
    "ObsNormalizer": "tensor_optix.core.normalizers",
    "RewardNormalizer": "tensor_optix.core.normalizers",
} | dict.fromkeys(_GRAPHS, "tensor_optix.neuroevo")

__all__ = sorted({*_PUBLIC, "__version__"})


__getattr__ = resolver(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
