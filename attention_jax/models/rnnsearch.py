"""RNNsearch: a GRU encoder and decoder with attention (Bahdanau et al. 2014, arXiv 1409.0473, Appendix A).

Letters in names: B sentences, T target and S source tokens, D features. Token 0 is padding. Inside, time comes first.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.models.registry import register_model
from attention_jax.models.seq2seq import PAD, Cache, EncoderDecoder, Memory, check_tokens
from attention_jax.nn.dropout import drop
from attention_jax.nn.recurrent import GRU, Affine, Stack
from attention_jax.nn.rnn_attention import RNNAttention

# Section B.1: standard deviations of the attention's two matrices and of every matrix that is not recurrent.
SCORE_STD, STD = 0.001, 0.01


class RNNSearch(EncoderDecoder):
    """One layer of GRU on each side; the encoder reads in both directions, and the decoder attends to its annotations.

    The state s before a token is the query that gives the context c. The token's scores are W_o of a maxout layer over
    U_o s + V_o y + C_o c, with y the embedding of the previous token, and the GRU goes on with y and c.

    Attributes:
        vocab_size: tokens of the target; 0 is padding.
        source_vocab_size: tokens of the source; None is vocab_size.
        features: number n of units in the encoder's two directions each and of the decoder.
        embedding_size: size m of an embedding.
        alignment_size: n', rows of W_a and U_a.
        readout_size: l, outputs of the maxout layer, each the larger of two.
        use_bias: True gives the gates, the first state, the readout and the softmax a bias.
        dropout: share dropped from embeddings and the input of the softmax; none in the paper.
        dtype: dtype of activations and products, "float32" or "bfloat16"; parameters, gates and logits are float32.
    """

    vocab_size: int = 30_000
    source_vocab_size: int | None = None
    features: int = 1000
    embedding_size: int = 620
    alignment_size: int = 1000
    readout_size: int = 500
    use_bias: bool = True
    dropout: float = 0.0
    dtype: str = "float32"

    def setup(self) -> None:
        check_tokens(self.vocab_size, self.source_vocab_size)
        dtype, init, n = jnp.dtype(self.dtype), nn.initializers.normal(STD), self.features
        self.source_embedding = nn.Embed(self.source_vocab_size or self.vocab_size, self.embedding_size, embedding_init=init)
        self.target_embedding = nn.Embed(self.vocab_size, self.embedding_size, embedding_init=init)
        layer = functools.partial(GRU, features=n, use_bias=self.use_bias, kernel_init=init, dtype=dtype)
        self.encoder = Stack(layer, self.embedding_size, bidirectional=True)
        self.decoder = layer(inputs=self.embedding_size)
        self.cross_attention = RNNAttention(
            score="concat",
            query_size=n,
            memory_size=2 * n,
            features=self.alignment_size,
            kernel_init=nn.initializers.normal(SCORE_STD),
            score_init=nn.initializers.zeros_init(),
            dtype=dtype,
        )
        affine = functools.partial(Affine, use_bias=self.use_bias, kernel_init=init, dtype=dtype)
        self.first_state = affine(n, n)
        self.feed = affine(2 * n, 3 * n, use_bias=False)
        self.readout = affine(n + self.embedding_size + 2 * n, 2 * self.readout_size)
        self.output = affine(self.readout_size, self.vocab_size)

    def encode(self, source: jax.Array, train: bool = False) -> Memory:
        """[B, S] -> `annotations` [B, S, 2D], [forward, backward], and the decoder's first `state` [B, D]."""
        x_SBD = self._embed(self.source_embedding, source.T, train)
        y_SBD, (_, (backward_BD,)) = self.encoder(x_SBD, source.T != PAD)
        return {"annotations": y_SBD.swapaxes(0, 1), "state": jnp.tanh(self.first_state(backward_BD))}

    def decode(self, memory: Memory, source: jax.Array, target: jax.Array, train: bool = False) -> jax.Array:
        """Output of `encode`, [B, S], [B, T] -> logits [B, T, vocab_size]."""
        x_TBD = self._embed(self.target_embedding, target.T, train)
        advance = self._advance(self.init_cache(memory, source, target.shape[1]))
        recording = self.cross_attention.is_mutable_collection("attention")

        def step(s_BD: jax.Array, gates_BG: jax.Array) -> tuple[jax.Array, tuple]:
            new_BD, context_BD, weights_BS = advance(gates_BG, s_BD)
            return new_BD, (s_BD, context_BD, weights_BS if recording else None)

        _, (s_TBD, context_TBD, weights_TBS) = jax.lax.scan(step, memory["state"], self.decoder.project(x_TBD))
        if recording:
            self.cross_attention.sow_weights(weights_TBS.swapaxes(0, 1))
        return self._logits(s_TBD, x_TBD, context_TBD, train).swapaxes(0, 1)

    def _advance(self, cache: Cache) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
        """Returns a pure function (gates [B, G], state [B, D]) -> (next state, context, weights [B, S])."""
        recurrence = self.decoder.recurrence("/".join(self.decoder.hidden.path))
        shared, feed = cache["shared"], self.feed.pure()
        attend = self.cross_attention.pure_step(shared["keys"], shared["annotations"], shared["source"] != PAD)

        def advance(gates_BG: jax.Array, s_BD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            context_BD, weights_BS = attend(s_BD)
            (new_BD,) = recurrence(gates_BG + feed(context_BD), (s_BD,))
            return new_BD, context_BD, weights_BS

        return advance

    def _logits(self, s: jax.Array, y: jax.Array, context: jax.Array, train: bool = False) -> jax.Array:
        """[..., D], the embedding of the previous token [..., m], [..., 2D] -> [..., vocab_size] float32."""
        t = self.readout(jnp.concatenate([s, y, context], axis=-1))
        t = t.reshape(*t.shape[:-1], self.readout_size, 2).max(axis=-1)
        return self.output(drop(t, self.dropout, self._dropout_key(train)), jnp.float32)

    def init_cache(self, memory: Memory, source: jax.Array, max_length: int, beam: int = 1) -> Cache:
        """Returns the cache before the first token, in the form of `Seq2Seq.init_cache`."""
        annotations = memory["annotations"]
        shared = {"annotations": annotations, "keys": self.cross_attention.keys(annotations), "source": source}
        return {"state": memory["state"], "shared": shared}

    def decode_step(self, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """[B · beam] newest target tokens -> next logits [B · beam, vocab_size], and the cache with the tokens added."""
        y_BD = self._embed(self.target_embedding, token, False)
        new_BD, context_BD, weights_BS = self._advance(cache)(self.decoder.project(y_BD), cache["state"])
        self.cross_attention.sow_weights(weights_BS[:, None])
        return self._logits(cache["state"], y_BD, context_BD), {**cache, "state": new_BD}


register_model("gru_seq2seq_bahdanau", RNNSearch)
