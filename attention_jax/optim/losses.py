"""Losses for each example and for each token."""

import jax
import jax.numpy as jnp
import optax

from attention_jax.errors import UserError
from attention_jax.kernels.cross_entropy import smoothed_cross_entropy
from attention_jax.kernels.switch import kernels_are_on


def target_distribution(labels: jax.Array, classes: int, label_smoothing: float = 0.0, over: str = "uniform") -> jax.Array:
    """[B] -> [B, K], rows that sum to 1: one-hot, or smoothed by e = `label_smoothing` in one of two published ways.

    Args:
        over: "uniform" spreads e over all classes; the true one gets 1 - e + e/K (Szegedy et al. 2016, Section 7;
            TensorFlow, PyTorch, timm); "others" over the K - 1 others, the true one gets 1 - e (tensor2tensor; He et al.
            2019, Section 5.2). "others" with e is "uniform" with e·K/(K-1).
    """
    onehot = jax.nn.one_hot(labels, classes)
    if over == "others" and label_smoothing and classes == 1:
        raise UserError("loss.smoothing_over='others' with one class: there are no others, give 'uniform' or no smoothing.")
    if over == "others" and label_smoothing:
        return jnp.where(onehot > 0, 1.0 - label_smoothing, label_smoothing / (classes - 1))
    return optax.smooth_labels(onehot, label_smoothing)


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, over: str = "uniform") -> jax.Array:
    """[B, K], [B] -> [B]: softmax cross entropy in nats, in float32 whatever the logits are; see `target_distribution`.

    Unlike tensor2tensor's loss, it does not subtract the entropy of the targets, a constant.
    """
    return soft_cross_entropy(logits, target_distribution(labels, logits.shape[-1], label_smoothing, over))


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[B, K], [B, K] -> [B]: cross entropy in nats with target distributions, in float32.

    A class with target 0 adds 0 whatever its logit is, even for the logit -inf of a class that the network excludes.
    """
    return -jnp.where(targets > 0, targets * jax.nn.log_softmax(logits.astype(jnp.float32)), 0).sum(-1)


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array, threshold: float = 0.0) -> jax.Array:
    """[B, K], [B, K] -> [B]: binary cross entropy of each class in nats, their mean, in float32 (timm's; Wightman et al. 2021).

    Args:
        threshold: targets above it count as 1 and all others as 0; 0 takes targets as they are.
    """
    targets = jnp.where(targets > threshold, 1.0, 0.0) if threshold else targets
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).mean(-1)


def token_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, over: str = "uniform") -> jax.Array:
    """[..., V], [...] -> [...]: `cross_entropy` for large vocabularies, without a target distribution in memory."""
    if not kernels_are_on():
        return cross_entropy(logits, labels, label_smoothing, over)
    classes = logits.shape[-1]
    if over == "others":
        return smoothed_cross_entropy(logits, labels, 1.0 - label_smoothing, label_smoothing / (classes - 1))
    other = label_smoothing / classes
    return smoothed_cross_entropy(logits, labels, 1.0 - label_smoothing + other, other)


def right_tokens(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[..., V], [...] -> [...] bool: True where the label has the largest logit; on CPU `argmax` takes 40 times as long."""
    return jnp.take_along_axis(logits, labels[..., None], -1)[..., 0] >= logits.max(-1)
