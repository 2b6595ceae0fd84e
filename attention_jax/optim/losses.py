"""Losses per example."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """[B, K], [B] -> [B]: softmax cross entropy in nats.

    With smoothing e the target is (1-e)·onehot + e/K, so that the true class gets 1 - e + e/K (Szegedy et al. 2016,
    Section 7; TensorFlow, PyTorch and timm agree).
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
