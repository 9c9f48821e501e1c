"""Windows of experience from Gymnasium environments and live sources, for the host driver."""

from tensor_optix.pipeline.batch import BatchPipeline
from tensor_optix.pipeline.live import LivePipeline
from tensor_optix.pipeline.rnd import RNDPipeline
from tensor_optix.pipeline.vector import VectorBatchPipeline

__all__ = ["BatchPipeline", "LivePipeline", "RNDPipeline", "VectorBatchPipeline"]
