"""From examples to numpy batches: sources, transforms of single examples, and the loader, which decides the order."""

from attention_jax.data.images.sources import ArraySource

__all__ = ["ArraySource"]
