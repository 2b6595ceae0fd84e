"""Attention with one query for every decoder state, for recurrent networks (Bahdanau et al. 2014, Luong et al. 2015).

Letters in names: B sentences, T queries, S positions of the source, Q, M and K sizes of queries, memory and keys.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.kernels.attention import MASKED
from attention_jax.nn.recurrent import Affine

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class RNNAttention(nn.Module):
    """Attention with one head: computes weights over the source, and the mean of the source under these weights.

    Attributes:
        score: "dot" qᵀm, "general" qᵀ W m, or "concat" vᵀ tanh(W [q; m]) (Luong et al., Section 3.1); "concat" is also
            Bahdanau et al.'s vᵀ tanh(W q + U m) (Section A.1.2).
        query_size, memory_size: sizes Q and M; equal for "dot".
        features: number of rows of W in "concat".
        kernel_init, score_init: initialisers of the matrices and of v.
        dtype: dtype of products; scores and weights are float32.
    """

    score: str
    query_size: int
    memory_size: int
    features: int
    kernel_init: Callable = nn.initializers.glorot_uniform()
    score_init: Callable = nn.initializers.glorot_uniform()
    dtype: Any = jnp.float32

    def setup(self) -> None:
        if self.score != "dot":
            size = self.query_size if self.score == "general" else self.features
            self.key = Affine(self.memory_size, size, False, self.kernel_init, dtype=self.dtype)
        if self.score == "concat":
            self.query = Affine(self.query_size, self.features, False, self.kernel_init, dtype=self.dtype)
            self.vector = Affine(self.features, 1, False, self.score_init, dtype=self.dtype)

    def keys(self, memory_BSM: jax.Array) -> jax.Array:
        """[B, S, M] -> keys [B, S, K], which all queries share."""
        return memory_BSM if self.score == "dot" else self.key(memory_BSM)

    def pure(self) -> Attend:
        """Returns a pure function `(q [B, T, Q], keys, memory, mask [B, S]) -> (context [B, T, M], weights [B, T, S])`.

        The mask is False at padding, which gets no weight; weights are float32.
        """
        if self.score == "concat":
            query, vector = (matrix.kernel.astype(self.dtype) for matrix in (self.query, self.vector))
        scope = "/".join(self.path)

        def attend(q_BTQ: jax.Array, k_BSK: jax.Array, m_BSM: jax.Array, mask_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
            with jax.named_scope(scope):
                if self.score == "concat":
                    hidden_BTSK = jnp.tanh((q_BTQ @ query)[:, :, None] + k_BSK[:, None])
                    scores = jnp.matmul(hidden_BTSK, vector, preferred_element_type=jnp.float32)[..., 0]
                else:
                    scores = jnp.einsum("btk,bsk->bts", q_BTQ, k_BSK, preferred_element_type=jnp.float32)
                weights = nn.softmax(jnp.where(mask_BS[:, None], scores, MASKED))
                return jnp.einsum("bts,bsm->btm", weights.astype(m_BSM.dtype), m_BSM), weights

        return attend

    def pure_step(self, keys: jax.Array, memory: jax.Array, mask: jax.Array) -> Callable[[jax.Array], tuple]:
        """Returns a pure function `q [B · n, Q] -> (context [B · n, M], weights [B · n, S])` of n queries per sentence."""
        attend, (b, _, size) = self.pure(), memory.shape

        def attend_once(q: jax.Array) -> tuple[jax.Array, jax.Array]:
            context, weights = attend(q.reshape(b, -1, q.shape[-1]), keys, memory, mask)
            return context.reshape(-1, size), weights.reshape(-1, mask.shape[1])

        return attend_once

    def sow_weights(self, weights_BTS: jax.Array) -> None:
        """Sows `weights` [B, 1, T, S] into "attention", in the form of a single head."""
        self.sow("attention", "weights", weights_BTS[:, None])
