"""`LivePipeline` under another name of its module."""

from tensor_optix.pipeline.live import LivePipeline

__all__ = ["LivePipeline"]
