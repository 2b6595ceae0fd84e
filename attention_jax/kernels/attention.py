"""Attention that does not return its weights: an accelerator's fused kernel, and another program for CPU."""

import jax
import jax.numpy as jnp

from attention_jax.kernels.switch import choose_by_platform

# Finite, so that a row without any key gives a mean and not NaN; far below any product.
MASKED = -1e30


def fused_attention(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: jax.Array | None = None,
    scale: float = 1.0,
    bias_1HTS: jax.Array | None = None,
) -> jax.Array:
    """[B, H, T, K]: `jax.nn.dot_product_attention`, computed by another program for float32 on CPU.

    Args:
        mask: bool, broadcast to [B, H, T, S]; False hides a key from a query.
        bias_1HTS: float32, added to the scaled products of every example.
    """

    def native(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, bias: jax.Array | None) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, bias=bias, scale=scale)

    def cpu(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, bias: jax.Array | None) -> jax.Array:
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(_attend(*heads_first, mask, bias, scale), 1, 2)

    arrays = (q_BTHK, k_BSHK, v_BSHK, mask, bias_1HTS)
    if not q_BTHK.dtype == k_BSHK.dtype == v_BSHK.dtype == jnp.float32:
        return native(*arrays)
    return choose_by_platform(cpu, native, *arrays)


# XLA on CPU, left alone, merges the transposes into the products of small matrices, which makes them slow. The barriers
# keep the two apart: 170 sentences of 24 words with 4 heads of 32 take 2.0 ms on one core with the gradient, 4.9 without.
_apart = jax.lax.optimization_barrier


def _forward(
    q_BHTK: jax.Array, k_BHSK: jax.Array, v_BHSK: jax.Array, mask: jax.Array | None, bias: jax.Array | None, scale: float
) -> tuple:
    q_BHTK, k_BHSK, v_BHSK = _apart((q_BHTK, k_BHSK, v_BHSK))
    logits = scale * jnp.einsum("bhtk,bhsk->bhts", q_BHTK, k_BHSK)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    weights = _apart(jax.nn.softmax(logits))
    y_BHTK = _apart(jnp.einsum("bhts,bhsk->bhtk", weights, v_BHSK))
    return y_BHTK, (q_BHTK, k_BHSK, v_BHSK, weights, bias is not None)


def _backward(scale: float, saved: tuple, of_y: jax.Array) -> tuple:
    q_BHTK, k_BHSK, v_BHSK, weights, biased = saved
    of_y = _apart(of_y)
    of_weights = _apart(jnp.einsum("bhtk,bhsk->bhts", of_y, v_BHSK))
    mean = (weights * of_weights).sum(-1, keepdims=True)
    of_products = _apart(scale * weights * (of_weights - mean))  # a hidden key has no weight
    of_bias = of_products.sum(0, keepdims=True) / scale if biased else None
    turned = _apart(tuple(jnp.swapaxes(x, 2, 3) for x in (weights, of_products)))
    of_v = jnp.einsum("bhst,bhtk->bhsk", turned[0], of_y)
    of_k = jnp.einsum("bhst,bhtk->bhsk", turned[1], q_BHTK)
    of_q = jnp.einsum("bhts,bhsk->bhtk", of_products, k_BHSK)
    return *_apart((of_q, of_k, of_v)), None, of_bias


_attend = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0], nondiff_argnums=(5,))
_attend.defvjp(_forward, _backward)
