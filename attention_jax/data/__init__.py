"""Examples -> numpy batches: sources, per-example transforms, and the loader that owns the order."""

from attention_jax.data.images.sources import ArraySource

__all__ = ["ArraySource"]
