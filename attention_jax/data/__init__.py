"""Examples -> numpy batches: sources, per-example transforms, and the loader that owns the order."""

from attention_jax.data.arrays import ArraySource

__all__ = ["ArraySource"]
