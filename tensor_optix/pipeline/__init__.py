"""Windows of experience from Gymnasium environments, for the host driver."""

from tensor_optix.pipeline.batch import BatchPipeline
from tensor_optix.pipeline.vector import VectorBatchPipeline

__all__ = ["BatchPipeline", "VectorBatchPipeline"]
