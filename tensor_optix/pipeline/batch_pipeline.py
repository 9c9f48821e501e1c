"""`BatchPipeline` under another name of its module."""

from tensor_optix.pipeline.batch import BatchPipeline

__all__ = ["BatchPipeline"]
