"""LSTM encoder and decoder (Sutskever et al. 2014, arXiv 1409.3215) with attention (Luong et al. 2015, arXiv 1508.04025).

Letters in names: B sentences, T target and S source tokens, D features. Token 0 is padding. Inside, time comes first.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.models.registry import register_model
from attention_jax.models.stages import Network
from attention_jax.nn.dropout import drop
from attention_jax.nn.recurrent import LSTM, Affine, Stack, State
from attention_jax.nn.rnn_attention import RNNAttention

PAD = 0

ATTENTIONS = ("none", "bahdanau", "dot", "general", "concat")

Memory = dict[str, Any]
Cache = dict[str, Any]


def uniform(scale: float) -> nn.initializers.Initializer:
    """Returns an initialiser that draws uniformly from [-scale, scale]."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -scale, scale)


def check_tokens(vocab_size: int, source_vocab_size: int | None) -> None:
    """Raises UserError for a vocabulary that has only padding."""
    for field, size in (("vocab_size", vocab_size), ("source_vocab_size", source_vocab_size)):
        if size is not None and size < 2:
            raise UserError(f"model.{field}={size} leaves no word besides padding: give 2 or more.")


class EncoderDecoder(Network):
    """Base class of networks with `encode` and `decode`, the fields `dropout` and `dtype`, and dropout of their embeddings."""

    def __call__(self, source: jax.Array, target: jax.Array, train: bool = False) -> jax.Array:
        """[B, S], [B, T] tokens -> logits [B, T, vocab_size] float32 of the token that follows each target position.

        The target is shifted right: its first token is the start symbol. With `train`, dropout draws from "dropout".
        """
        return self.decode(self.encode(source, train), source, target, train)

    def _embed(self, table: nn.Embed, tokens: jax.Array, train: bool) -> jax.Array:
        return drop(table(tokens), self.dropout, self._dropout_key(train)).astype(self.dtype)

    def _dropout_key(self, train: bool) -> jax.Array | None:
        """Returns the key of one dropout mask."""
        return self.make_rng("dropout") if train and self.dropout else None


class Seq2Seq(EncoderDecoder):
    """LSTM encoder and decoder: the decoder starts from the last state of every encoder layer; the two share no weights.

    Attributes:
        vocab_size: number of target tokens; 0 is padding.
        source_vocab_size: number of source tokens; None is vocab_size. Sutskever et al. have 160,000 for 80,000.
        layers, features: number of layers on each side, and of cells in a layer.
        embedding_size: size of an embedding; None is `features`.
        attention: "none"; Luong et al.'s "dot", "general" and "concat", where the new top state h is the query over the
            encoder's top outputs and the softmax sees tanh(W_c [c; h]) (their Section 3); or "bahdanau", where the top state
            before the token is the query, scored as in "concat", and the context c goes into the first layer too.
        alignment_size: rows of W in the score of "concat" and "bahdanau"; None is `features`.
        input_feeding: tanh(W_c [c; h]) goes into the first layer for the next token (Luong et al., Section 3.3). Without it
            the scores of all tokens are one product, unless attention is "bahdanau".
        reverse_source: the encoder reads from the last word to the first. Attention sees the words in their order.
        use_bias: one set of biases in every LSTM layer, and one in the softmax.
        forget_bias: added to the forget gate; 1 in tensorflow/nmt, not stated by the papers.
        init_scale: parameters start uniform in ±init_scale. None is the papers' 0.08, or 0.1 with attention, times
            sqrt(1000 / features): they have 1000 features, and 32 hardly learn from 0.08.
        dropout: share dropped from embeddings, between layers, and before the softmax, never along time (Zaremba et al. 2014).
        dtype: dtype of activations and products, "float32" or "bfloat16"; parameters, cells, gates and logits are float32.
    """

    vocab_size: int = 80_000
    source_vocab_size: int | None = None
    layers: int = 4
    features: int = 1000
    embedding_size: int | None = None
    attention: str = "none"
    alignment_size: int | None = None
    input_feeding: bool = False
    reverse_source: bool = True
    use_bias: bool = True
    forget_bias: float = 0.0
    init_scale: float | None = None
    dropout: float = 0.0
    dtype: str = "float32"

    def check(self) -> None:
        """Raises UserError for fields that contradict one another, or a value that the class docstring does not list."""
        check_tokens(self.vocab_size, self.source_vocab_size)
        if self.attention not in ATTENTIONS:
            raise UserError(f"model.attention: {self.attention!r} is not one of {', '.join(map(repr, ATTENTIONS))}.")
        if self.input_feeding and self.attention == "none":
            raise UserError(
                "model.input_feeding feeds the output of attention: set model.attention, or model.input_feeding=False."
            )

    def init_range(self) -> float:
        """Returns the bound of the uniform initial parameters."""
        if self.init_scale is not None:
            return self.init_scale
        return (0.08 if self.attention == "none" else 0.1) * (1000 / self.features) ** 0.5

    def setup(self) -> None:
        self.check()
        dtype, init = jnp.dtype(self.dtype), uniform(self.init_range())
        words = self.embedding_size or self.features
        self.source_embedding = nn.Embed(self.source_vocab_size or self.vocab_size, words, embedding_init=init)
        self.target_embedding = nn.Embed(self.vocab_size, words, embedding_init=init)
        layer = functools.partial(
            LSTM,
            features=self.features,
            use_bias=self.use_bias,
            kernel_init=init,
            recurrent_init=init,
            bias_init=init,
            dtype=dtype,
            forget_bias=self.forget_bias,
        )
        stack = functools.partial(Stack, layer, words, self.layers, dropout=self.dropout)
        self.encoder, self.decoder = stack(), stack()
        if self.attention != "none":
            self.cross_attention = RNNAttention(
                score="concat" if self.attention == "bahdanau" else self.attention,
                query_size=self.features,
                memory_size=self.features,
                features=self.alignment_size or self.features,
                kernel_init=init,
                score_init=init,
                dtype=dtype,
            )
            matrix = functools.partial(Affine, use_bias=False, kernel_init=init, dtype=dtype)
            self.combine = matrix(2 * self.features, self.features)
            fed = self.features * (self.input_feeding + (self.attention == "bahdanau"))
            if fed:
                self.feed = matrix(fed, 4 * self.features)
        self.output = Affine(self.features, self.vocab_size, self.use_bias, init, init, dtype)

    def encode(self, source: jax.Array, train: bool = False) -> Memory:
        """[B, S] -> the last state of every layer, and with attention `annotations` [B, S, D], the top outputs."""
        x_SBD = self._embed(self.source_embedding, source.T, train)
        y_SBD, states = self.encoder(x_SBD, source.T != PAD, reverse=self.reverse_source, train=train)
        if self.attention == "none":
            return {"states": states}
        return {"states": states, "annotations": y_SBD.swapaxes(0, 1)}

    def decode(self, memory: Memory, source: jax.Array, target: jax.Array, train: bool = False) -> jax.Array:
        """Output of `encode`, [B, S], [B, T] -> logits [B, T, vocab_size]."""
        x_TBD = self._embed(self.target_embedding, target.T, train)
        if self.input_feeding or self.attention == "bahdanau":
            y_TBD = self._decode_with_feeding(x_TBD, memory, source, train)
            return self.output(y_TBD.swapaxes(0, 1), jnp.float32)
        y_TBD, _ = self.decoder(x_TBD, states=memory["states"], train=train)
        y_BTD = y_TBD.swapaxes(0, 1)
        if self.attention != "none":
            keys, annotations = self.cross_attention.keys(memory["annotations"]), memory["annotations"]
            context_BTD, weights_BTS = self.cross_attention.pure()(y_BTD, keys, annotations, source != PAD)
            self.cross_attention.sow_weights(weights_BTS)
            y_BTD = jnp.tanh(self.combine(jnp.concatenate([context_BTD, y_BTD], axis=-1)))
        return self.output(drop(y_BTD, self.dropout, self._dropout_key(train)), jnp.float32)

    def _decode_with_feeding(self, x_TBD: jax.Array, memory: Memory, source: jax.Array, train: bool) -> jax.Array:
        """[T, B, D] -> input of the softmax [T, B, D], where the attention of one token goes into the LSTM for the next."""
        cache = self.init_cache(memory, source, x_TBD.shape[0])
        advance, recording = self._advance(cache), self.cross_attention.is_mutable_collection("attention")

        def step(carry: tuple, inputs: tuple) -> tuple[tuple, tuple]:
            gates_BG, scales, scale_BD = inputs
            states, y_BD, weights_BS = advance(gates_BG, *carry, scales, scale_BD)
            fed = y_BD if self.input_feeding else None
            return (states, fed), (y_BD, weights_BS if recording else None)

        t, b, _ = x_TBD.shape
        key = self._dropout_key(train)
        scale_TBD = None if key is None else drop(jnp.ones((t, b, self.features), x_TBD.dtype), self.dropout, key)
        inputs = (self.decoder.project(x_TBD), self.decoder.dropout_scales(t, b, train), scale_TBD)
        _, (y_TBD, weights_TBS) = jax.lax.scan(step, (cache["states"], cache.get("fed")), inputs)
        if recording:
            self.cross_attention.sow_weights(weights_TBS.swapaxes(0, 1))
        return y_TBD

    def _advance(self, cache: Cache) -> Callable[..., tuple[list[State], jax.Array, jax.Array | None]]:
        """Returns a pure function of a token's first gates [B, G], states, fed vector [B, D] and dropout masks.

        The function returns the states after the token, the input of the softmax [B, D] and the attention weights [B, S].
        """
        recurrence, attention = self.decoder.recurrence(), self.attention
        if attention != "none":
            annotations, mask_BS = cache["shared"]["annotations"], cache["shared"]["source"] != PAD
            keys, combine = cache["shared"].get("keys", annotations), self.combine.pure()
            attend = self.cross_attention.pure_step(keys, annotations, mask_BS)
            feed: Any = self.feed.pure() if self.input_feeding or attention == "bahdanau" else None

        def advance(
            gates_BG: jax.Array,
            states: list[State],
            fed_BD: jax.Array | None,
            scales: list[jax.Array],
            scale_BD: jax.Array | None,
        ) -> tuple[list[State], jax.Array, jax.Array | None]:
            inputs, weights_BS = [] if fed_BD is None else [fed_BD], None
            if attention == "bahdanau":
                context_BD, weights_BS = attend(states[-1][0])
                inputs.append(context_BD)
            if inputs:
                gates_BG = gates_BG + feed(jnp.concatenate(inputs, axis=-1))
            states = recurrence(gates_BG, states, scales)
            y_BD = states[-1][0]
            if attention in ("dot", "general", "concat"):
                context_BD, weights_BS = attend(y_BD)
            if attention != "none":
                y_BD = jnp.tanh(combine(jnp.concatenate([context_BD, y_BD], axis=-1)))
            return states, y_BD if scale_BD is None else y_BD * scale_BD, weights_BS

        return advance

    def init_cache(self, memory: Memory, source: jax.Array, max_length: int, beam: int = 1) -> Cache:
        """Returns the cache before the first token, with the sentences along the first axis of every leaf.

        Unlike the Transformer's cache, it does not depend on `max_length` and `beam`.
        """
        if self.attention == "none":
            return {"states": memory["states"]}
        shared = {"annotations": memory["annotations"], "source": source}
        cache = {"states": memory["states"], "shared": shared}
        if self.attention != "dot":
            shared["keys"] = self.cross_attention.keys(memory["annotations"])
        if self.input_feeding:
            cache["fed"] = jnp.zeros((source.shape[0], self.features), self.dtype)
        return cache

    def decode_step(self, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """[B · beam] newest target tokens -> next logits [B · beam, vocab_size], and the cache with the tokens added."""
        gates_BG = self.decoder.project(self._embed(self.target_embedding, token, False))
        states, y_BD, weights_BS = self._advance(cache)(gates_BG, cache["states"], cache.get("fed"), [], None)
        new = {**cache, "states": states}
        if self.input_feeding:
            new["fed"] = y_BD
        if weights_BS is not None:
            self.cross_attention.sow_weights(weights_BS[:, None])
        return self.output(y_BD, jnp.float32), new


register_model("lstm_seq2seq", Seq2Seq)
register_model("lstm_seq2seq_attention", Seq2Seq, vocab_size=50_000, attention="general", dropout=0.2)
