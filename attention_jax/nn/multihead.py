"""Multi-head attention over complete sequences, or token by token from a cache.

Letters in names: B examples, T queries, S keys, H heads, K and V sizes of a head's keys and values, D features.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.kernels.attention import MASKED, fused_attention
from attention_jax.kernels.decoding import attend_cached
from attention_jax.kernels.matmul import dot_general
from attention_jax.nn.dropout import drop


def causal_mask(length: int) -> jax.Array:
    """[1, 1, T, T] bool: True where a position sees a key, that is itself and the positions before it."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))


def attend_heads(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHV: jax.Array,
    mask: jax.Array | None = None,
    scale: float = 1.0,
    dropout: float = 0.0,
    rng: jax.Array | None = None,
    bias_1HTS: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns output [B, T, H, V] and weights [B, H, T, S] float32: softmax(scale · QKᵀ) V in every head (Section 3.2.1).

    Args:
        mask: bool, broadcast to [B, H, T, S]; False hides a key from a query.
        dropout: share of the weights that are dropped, drawn with the key `rng`.
        bias_1HTS: float32, added to scale · QKᵀ of every example.
    """
    logits = scale * jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
    if bias_1HTS is not None:
        logits = logits + bias_1HTS
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    weights = jax.nn.softmax(logits)
    used = drop(weights, dropout, rng).astype(v_BSHV.dtype)
    return jnp.einsum("bhts,bshv->bthv", used, v_BSHV), weights


def attend_rows(
    q_ND: jax.Array, k_BHKS: jax.Array, v_BHSV: jax.Array, mask: jax.Array, scale: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Returns output [B · T, H · V] and weights [B, H, T, S]: `attend_heads` for a few queries per example, T, on a cache.

    XLA on CPU is fastest in these layouts and with the transpose of [B, H, T, V] on its own: `translation_profile.py` times it
    with AJ_KERNELS=xla.
    """
    (b, h, k, _), v = k_BHKS.shape, v_BHSV.shape[-1]
    q_BHTK = q_ND.reshape(b, -1, h, k).swapaxes(1, 2)
    products = jnp.einsum("bhtk,bhks->bhts", q_BHTK, k_BHKS, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask, products * scale, MASKED))
    y_BHTV = jnp.einsum("bhts,bhsv->bhtv", weights.astype(v_BHSV.dtype), v_BHSV)
    return y_BHTV.swapaxes(1, 2).reshape(len(q_ND), h * v), weights


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, Section 3.2.2).

    Attributes:
        heads: number of heads h.
        features: size d of the output.
        key_size, value_size: sizes d_k and d_v of a head.
        scaled: True divides the products by sqrt(d_k).
        use_bias: True gives the four projections a bias; the paper's count and tensor2tensor have none.
        dropout: share of the attention weights that are dropped; none in the paper.
        fused: True allows XLA's or the accelerator's fused kernel if no weights are recorded.
        dtype: dtype of the computation.
        kernel_init: initialiser of the four projections.
    """

    heads: int
    features: int
    key_size: int
    value_size: int
    scaled: bool = True
    use_bias: bool = False
    dropout: float = 0.0
    fused: bool = True
    dtype: Any = None
    kernel_init: Callable = nn.initializers.glorot_uniform()

    def setup(self) -> None:
        def dense(features: int) -> nn.Dense:
            return nn.Dense(features, self.use_bias, self.dtype, kernel_init=self.kernel_init, dot_general=dot_general)

        self.query, self.key = dense(self.heads * self.key_size), dense(self.heads * self.key_size)
        self.value = dense(self.heads * self.value_size)
        self.output = dense(self.features)

    def keys_and_values(self, memory: jax.Array, examples: int) -> tuple[jax.Array, jax.Array]:
        """[B, S, D], or the rows [B · S, D] of B `examples`, -> [B, S, H, K] and [B, S, H, V]."""
        k_BSHK = self.key(memory).reshape(examples, -1, self.heads, self.key_size)
        return k_BSHK, self.value(memory).reshape(examples, -1, self.heads, self.value_size)

    def __call__(
        self,
        x_BTD: jax.Array,
        memory_BSD: jax.Array,
        mask: jax.Array | None = None,
        rng: jax.Array | None = None,
        bias_1HTS: jax.Array | None = None,
    ) -> jax.Array:
        """Queries [B, T, D], memory [B, S, D] for keys and values -> [B, T, D]. Sows `weights` [B, H, T, S] into "attention".

        Args:
            mask, bias_1HTS: as in `attend_heads`.
            rng: the key of the dropout; None in evaluation.
        """
        k_BSHK, v_BSHV = self.keys_and_values(memory_BSD, len(memory_BSD))
        b, t, _ = x_BTD.shape
        q_BTHK = self.query(x_BTD).reshape(b, t, self.heads, self.key_size)
        scale = self.key_size**-0.5 if self.scaled else 1.0
        dropout = 0.0 if rng is None else self.dropout
        recording = self.is_mutable_collection("attention")
        if self.fused and not recording and not dropout and self.key_size == self.value_size:
            y_BTHV = fused_attention(q_BTHK, k_BSHK, v_BSHV, mask, scale, bias_1HTS)
        else:
            y_BTHV, weights = attend_heads(q_BTHK, k_BSHK, v_BSHV, mask, scale, dropout, rng, bias_1HTS)
            if recording:
                self.sow("attention", "weights", weights)
        return self.output(y_BTHV.reshape(b, t, self.heads * self.value_size))

    def to_cache(self, memory: jax.Array, examples: int) -> tuple[jax.Array, jax.Array]:
        """[B, S, D] or [B · S, D] -> keys [B, H, K, S] and values [B, H, S, V], in the layout that `attend_to_cache` reads."""
        k_BSHK, v_BSHV = self.keys_and_values(memory, examples)
        return k_BSHK.transpose(0, 2, 3, 1), v_BSHV.swapaxes(1, 2)

    def attend_to_cache(self, x_ND: jax.Array, k_BHKS: jax.Array, v_BHSV: jax.Array, mask: jax.Array) -> jax.Array:
        """[B · T, D] -> [B · T, D]: `__call__` without dropout, with keys and values from `to_cache`; T is small."""
        scale = self.key_size**-0.5 if self.scaled else 1.0
        q_ND = self.query(x_ND)
        if self.is_mutable_collection("attention"):
            y_ND, weights = attend_rows(q_ND, k_BHKS, v_BHSV, mask, scale)
            self.sow("attention", "weights", weights)
        else:
            y_ND = attend_cached(q_ND, k_BHKS, v_BHSV, mask, scale, lambda q, k, v, m: attend_rows(q, k, v, m, scale)[0])
        return self.output(y_ND)
