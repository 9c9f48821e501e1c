"""`VectorBatchPipeline` under another name of its module."""

from tensor_optix.pipeline.vector import VectorBatchPipeline

__all__ = ["VectorBatchPipeline"]
