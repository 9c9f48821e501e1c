"""Host agents over flax.nnx modules."""
