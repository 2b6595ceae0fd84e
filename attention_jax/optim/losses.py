"""Losses per example and per token."""

import functools

import jax
import jax.numpy as jnp
import optax


def target_distribution(labels: jax.Array, classes: int, label_smoothing: float = 0.0, over: str = "uniform") -> jax.Array:
    """[B] -> [B, K], rows that sum to 1: one-hot, or smoothed by e in one of two published ways.

    Args:
        labels: the true classes.
        classes: K.
        label_smoothing: e.
        over: "uniform" spreads e over all classes, so that the true one gets 1 - e + e/K (Szegedy et al. 2016, Section 7;
            TensorFlow, PyTorch, timm); "others" over the K - 1 others, the true one gets 1 - e (tensor2tensor; He et al.
            2019, Section 5.2). "others" with e is "uniform" with e·K/(K-1).
    """
    onehot = jax.nn.one_hot(labels, classes)
    if over == "others" and label_smoothing:
        return jnp.where(onehot > 0, 1.0 - label_smoothing, label_smoothing / (classes - 1))
    return optax.smooth_labels(onehot, label_smoothing)


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, over: str = "uniform") -> jax.Array:
    """[B, K], [B] -> [B]: softmax cross entropy in nats, in float32 whatever the logits are; see `target_distribution`.

    Nothing is subtracted: tensor2tensor's loss is smaller by the targets' entropy, a constant.
    """
    return soft_cross_entropy(logits, target_distribution(labels, logits.shape[-1], label_smoothing, over))


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[B, K], [B, K] -> [B]: cross entropy in nats with target distributions, in float32."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def token_cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0, over: str = "uniform") -> jax.Array:
    """[..., V], [...] -> [...]: `cross_entropy` for large vocabularies: no target distribution is ever held in memory.

    Its gradient is written out, so that forward-mode differentiation (`jax.jvp`, `jax.jacfwd`) does not pass.
    """
    return _token_forward(logits, labels, label_smoothing, over)[0]


def _shares(classes: int, label_smoothing: float, over: str) -> tuple[float, float]:
    """What the true class and every other one have in `target_distribution`."""
    if over == "others":
        return 1.0 - label_smoothing, label_smoothing / (classes - 1)
    return 1.0 - label_smoothing + label_smoothing / classes, label_smoothing / classes


def _token_forward(logits: jax.Array, labels: jax.Array, label_smoothing: float, over: str) -> tuple:
    wide = logits.astype(jnp.float32)
    true, other = _shares(logits.shape[-1], label_smoothing, over)
    normaliser = jax.nn.logsumexp(wide, -1)
    loss = normaliser - (true - other) * jnp.take_along_axis(wide, labels[..., None], -1)[..., 0]
    if other:
        loss -= other * wide.sum(-1)
    return loss, (logits, labels, normaliser)


def _token_backward(label_smoothing: float, over: str, saved: tuple, of_loss: jax.Array) -> tuple:
    logits, labels, normaliser = saved
    true, other = _shares(logits.shape[-1], label_smoothing, over)
    targets = jnp.where(jnp.arange(logits.shape[-1]) == labels[..., None], true, other)
    probabilities = jnp.exp(logits.astype(jnp.float32) - normaliser[..., None])
    return (of_loss[..., None] * (probabilities - targets)).astype(logits.dtype), None


token_cross_entropy.defvjp(_token_forward, _token_backward)


def right_tokens(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[..., V], [...] -> [...] bool: whether the label has the largest logit; on CPU `argmax` takes 40 times as long."""
    return jnp.take_along_axis(logits, labels[..., None], -1)[..., 0] >= logits.max(-1)
