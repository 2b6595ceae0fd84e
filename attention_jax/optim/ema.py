"""Exponential moving average of weights."""

from typing import Any

import jax
import jax.numpy as jnp


def update(average: Any, new: Any, decay: float, step: jax.Array, warmup: bool = True) -> Any:
    """average <- d·average + (1-d)·new, where d = min(decay, (1+t)/(10+t)) with warm-up (TensorFlow's ResNet-RS trainer).

    Args:
        average, new: trees of one structure; parameters and batch statistics alike.
        decay: 0.9999 in the published recipes.
        step: t, optimizer steps done before this one.
        warmup: False keeps d constant, as timm's ModelEma and ConvNeXt do.
    """
    t = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + t) / (10 + t)) if warmup else decay
    return jax.tree.map(lambda a, n: a + (1 - d) * (n - a), average, new)
