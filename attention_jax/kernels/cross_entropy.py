"""Cross entropy of tokens with its own gradient, for all platforms, which keeps only the logits.

Differentiation by JAX keeps a second array as large as the logits, [tokens, vocabulary]: the largest of a step.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def smoothed_cross_entropy(logits: jax.Array, labels: jax.Array, true: float, other: float) -> jax.Array:
    """[..., V], [...] -> [...] float32, in nats: the target is `true` for the label and `other` for every other class."""
    return _forward(logits, labels, true, other)[0]


def _forward(logits: jax.Array, labels: jax.Array, true: float, other: float) -> tuple:
    wide = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(wide, -1)
    loss = normaliser - (true - other) * jnp.take_along_axis(wide, labels[..., None], -1)[..., 0]
    if other:
        loss -= other * wide.sum(-1)
    return loss, (logits, labels, normaliser)


def _backward(true: float, other: float, saved: tuple, of_loss: jax.Array) -> tuple:
    logits, labels, normaliser = saved
    targets = jnp.where(jnp.arange(logits.shape[-1]) == labels[..., None], true, other)
    probabilities = jnp.exp(logits.astype(jnp.float32) - normaliser[..., None])
    return (of_loss[..., None] * (probabilities - targets)).astype(logits.dtype), None


smoothed_cross_entropy.defvjp(_forward, _backward)
