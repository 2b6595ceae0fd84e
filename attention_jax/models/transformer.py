"""The Transformer for translation (Vaswani et al. 2017, arXiv 1706.03762).

Letters in names: B sentences, T target and S source tokens, D features.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.kernels.matmul import dot_general, score_rows
from attention_jax.models import transformer_decoding
from attention_jax.models.registry import register_model
from attention_jax.models.seq2seq import EncoderDecoder
from attention_jax.nn import position
from attention_jax.nn.dropout import drop
from attention_jax.nn.multihead import MultiHeadAttention, causal_mask

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "swish": nn.swish,
}

_CHOICES = {
    "norm": ("post", "pre", "none"),
    "positions": position.KINDS,
    "embeddings": ("shared", "target", "separate"),
    "activation": tuple(ACTIVATIONS),
}


class FeedForward(nn.Module):
    """Computes W2 relu(W1 x + b1) + b2 (Section 3.3), with `dropout` of the hidden layer, which the paper does not have."""

    hidden: int
    features: int
    activation: str
    dropout: float
    dtype: Any
    kernel_init: Callable = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, x: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """[..., D] -> [..., D]; `rng` is the key of the dropout, None in evaluation."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init, dot_general=dot_general)
        x = ACTIVATIONS[self.activation](dense(self.hidden, name="hidden")(x))
        return dense(self.features, name="output")(drop(x, self.dropout, rng))


class Sublayer(nn.Module):
    """Computes LayerNorm(x + F(x)) for the norm "post" (Section 3.1), x + F(LayerNorm(x)) for "pre", x + F(x) for "none".

    `residual=False` leaves out "x +".
    """

    norm: str
    norm_eps: float
    dropout: float
    dtype: Any
    residual: bool = True

    def setup(self) -> None:
        if self.norm != "none":
            self.layer_norm = nn.LayerNorm(self.norm_eps, self.dtype, use_fast_variance=False)

    def __call__(self, x: jax.Array, function: Callable[..., jax.Array], rng: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D] around `function(x, rng)`; `rng` is the key of all dropout, None in evaluation."""
        inside, outside = (None, None) if rng is None else jax.random.split(rng)
        y = drop(function(self.layer_norm(x) if self.norm == "pre" else x, inside), self.dropout, outside)
        x = x + y if self.residual else y
        return self.layer_norm(x) if self.norm == "post" else x


class TransformerLayer(nn.Module):
    """An encoder layer, or with `decoder` a decoder layer, which also attends to the encoder's output."""

    decoder: bool
    sublayer: Callable[..., Sublayer]
    attention: Callable[..., MultiHeadAttention]
    feed_forward: Callable[..., FeedForward]

    def setup(self) -> None:
        self.self_attention, self.self_attention_sum = self.attention(), self.sublayer()
        if self.decoder:
            self.cross_attention, self.cross_attention_sum = self.attention(), self.sublayer()
        self.mlp, self.mlp_sum = self.feed_forward(), self.sublayer()

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        *,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]; `rng` is the key of all dropout, None in evaluation."""
        keys = (None,) * 3 if rng is None else jax.random.split(rng, 3)
        x = self.self_attention_sum(x, lambda y, key: self.self_attention(y, y, mask, key), keys[0])
        if memory is not None:
            x = self.cross_attention_sum(x, lambda y, key: self.cross_attention(y, memory, memory_mask, key), keys[1])
        return self.mlp_sum(x, self.mlp, keys[2])


class Transformer(EncoderDecoder):
    """Encoder and decoder of `layers` layers each.

    Attributes:
        vocab_size: number of tokens, of the target alone if the source has its own.
        source_vocab_size: number of source tokens; None is one vocabulary for both.
        pad: number of the padding token.
        layers, features, hidden, heads: the paper's N, d_model, d_ff, h.
        key_size, value_size: d_k and d_v; None is d_model / h.
        norm: see `Sublayer`; "post" as in the paper, "pre" as in today's tensor2tensor, "none".
        final_norm: a last layer norm on encoder and decoder; None is only with "pre". `torch.nn.Transformer` always has it.
        residual: False leaves out the residual connections, to measure their effect.
        causal: False lets a target position see those after it, but for padding, when `decode` is given all of them; the loss
            then reads its answers, and `decode_step`, which has no later tokens, does not.
        norm_eps: epsilon of layer norm; 1e-6 in tensor2tensor, 1e-5 in PyTorch.
        activation: function in the feed-forward layers, "relu" as in the paper, "gelu" (the exact one), "swish".
        positions: see `position.Positions`.
        max_length: number of learned positions.
        embeddings: "shared" by source, target and output (the paper), by "target" and output, or all "separate".
        scaled_embeddings: True multiplies embeddings by sqrt(d_model) (Section 3.4).
        output_bias: True gives the logits a bias; none in the paper.
        attention_bias: True gives the four projections of every attention a bias; none in the paper.
        scaled_attention: True divides the products of queries and keys by sqrt(d_k).
        dropout: P_drop, after each sub-layer and on the sums of embeddings and positions (Section 5.4).
        attention_dropout, relu_dropout: dropout of weights and hidden layers; 0 in the paper, 0.1 in tensor2tensor since.
        remat: True recomputes each layer's activations in the backward pass.
        scan_layers: True compiles one encoder and one decoder layer and loops over them, with the same parameters and results;
            a deep network compiles sooner and a step needs more memory (experiments/results/compile_time.md). Unused for
            attention maps and by `decode_step`.
        fused_attention: True allows a fused kernel when no maps are recorded.
        dtype: dtype of activations and products, "float32" or "bfloat16"; parameters and logits are float32.
    """

    vocab_size: int = 37_000
    source_vocab_size: int | None = None
    pad: int = 0
    layers: int = 6
    features: int = 512
    hidden: int = 2048
    heads: int = 8
    key_size: int | None = None
    value_size: int | None = None
    norm: str = "post"
    final_norm: bool | None = None
    residual: bool = True
    causal: bool = True
    norm_eps: float = 1e-6
    activation: str = "relu"
    positions: str = "sinusoidal"
    max_length: int = 512
    embeddings: str = "shared"
    scaled_embeddings: bool = True
    output_bias: bool = False
    attention_bias: bool = False
    scaled_attention: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.0
    relu_dropout: float = 0.0
    remat: bool = False
    scan_layers: bool = False
    fused_attention: bool = True
    dtype: str = "float32"

    def check(self) -> None:
        """Raises UserError for a field whose value is not one of those the class docstring lists."""
        for field, accepted in _CHOICES.items():
            if getattr(self, field) not in accepted:
                raise UserError(f"model.{field}: {getattr(self, field)!r} is not one of {', '.join(map(repr, accepted))}.")
        if self.embeddings == "shared" and self.source_vocab_size is not None:
            raise UserError(
                "model.embeddings='shared' is one table for source and target, which have two vocabularies "
                "(data.source_tokenizer): give model.embeddings='target' or 'separate', or one vocabulary."
            )
        if self.features % self.heads and None in (self.key_size, self.value_size):
            raise UserError(
                f"model.heads={self.heads} does not divide model.features={self.features}: give model.key_size and "
                "model.value_size, or a number of heads that does."
            )

    def setup(self) -> None:
        self.check()
        dtype = jnp.dtype(self.dtype)
        attention = functools.partial(
            MultiHeadAttention,
            heads=self.heads,
            features=self.features,
            key_size=self.key_size or self.features // self.heads,
            value_size=self.value_size or self.features // self.heads,
            scaled=self.scaled_attention,
            use_bias=self.attention_bias,
            dropout=self.attention_dropout,
            fused=self.fused_attention,
            dtype=dtype,
        )
        feed_forward = functools.partial(FeedForward, self.hidden, self.features, self.activation, self.relu_dropout, dtype)
        sublayer = functools.partial(Sublayer, self.norm, self.norm_eps, self.dropout, dtype, self.residual)
        layer = nn.remat(TransformerLayer) if self.remat else TransformerLayer
        self.encoder = [layer(False, sublayer, attention, feed_forward) for _ in range(self.layers)]
        self.decoder = [layer(True, sublayer, attention, feed_forward) for _ in range(self.layers)]
        self.ends_in_norm = self.norm == "pre" if self.final_norm is None else self.final_norm
        if self.ends_in_norm:
            norm = functools.partial(nn.LayerNorm, self.norm_eps, dtype, use_fast_variance=False)
            self.encoder_norm, self.decoder_norm = norm(), norm()

        # Tables of N(0, 1/d), so that sqrt(d) times a row has unit entries (tensor2tensor).
        init = nn.initializers.normal(self.features**-0.5)
        embed = functools.partial(nn.Embed, features=self.features, embedding_init=init)
        self.target_embedding = embed(self.vocab_size)
        if self.embeddings != "shared":
            self.source_embedding = embed(self.source_vocab_size or self.vocab_size)
        if self.embeddings == "separate":
            self.output_embedding = embed(self.vocab_size)
        positions = functools.partial(position.Positions, self.positions, self.features, self.max_length)
        self.source_positions, self.target_positions = positions(), positions()
        if self.output_bias:
            self.logits_bias = self.param("logits_bias", nn.initializers.zeros, (self.vocab_size,))

    def encode(self, source: jax.Array, train: bool = False) -> jax.Array:
        """[B, S] -> [B, S, D]; values at padding do not matter, since no position attends to them."""
        self.source_positions.check_length(source.shape[1])
        table = self.target_embedding if self.embeddings == "shared" else self.source_embedding
        x = self.embed_tokens(table, self.source_positions, source, jnp.arange(source.shape[1]), train)
        x = self._apply_layers(self.encoder, train, x, (source != self.pad)[:, None, None, :])
        return self.encoder_norm(x) if self.ends_in_norm else x

    def decode(self, memory: jax.Array, source: jax.Array, target: jax.Array, train: bool = False) -> jax.Array:
        """[B, S, D], [B, S], [B, T] -> logits [B, T, vocab_size]."""
        length = target.shape[1]
        self.target_positions.check_length(length)
        x = self.embed_tokens(self.target_embedding, self.target_positions, target, jnp.arange(length), train)
        source_mask = (source != self.pad)[:, None, None, :]
        mask = causal_mask(length) if self.causal else (target != self.pad)[:, None, None, :] | jnp.eye(length, dtype=bool)
        return self._logits(self._apply_layers(self.decoder, train, x, mask, memory, source_mask))

    def embed_tokens(
        self, table: nn.Embed, encoding: position.Positions, tokens: jax.Array, positions: jax.Array, train: bool = False
    ) -> jax.Array:
        """[...] tokens and their positions -> [..., D] sums of both embeddings."""
        x = table(tokens) * (self.features**0.5 if self.scaled_embeddings else 1.0) + encoding(positions)
        return drop(x, self.dropout, self._dropout_key(train)).astype(self.dtype)

    def _apply_layers(self, layers: list[TransformerLayer], train: bool, x: jax.Array, *inputs: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]: applies all layers of one side, which also take `inputs`, each with its own dropout key."""
        drops = train and (self.dropout or self.attention_dropout or self.relu_dropout)
        keys = jax.random.split(self.make_rng("dropout"), len(layers)) if drops else None
        recording = any(map(self.is_mutable_collection, ("params", "attention", "intermediates")))
        if not self.scan_layers or recording:
            for i, layer in enumerate(layers):
                x = layer(x, *inputs, rng=keys if keys is None else keys[i])
            return x
        apply: Callable[..., Any] = layers[0].clone(parent=None).apply

        def apply_layer(x: jax.Array, of_layer: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
            params, key = of_layer
            return apply({"params": params}, x, *inputs, rng=key), None

        # The parameters keep a path for each layer and are stacked here: the short program costs a copy of them.
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layer.variables["params"] for layer in layers))
        return jax.lax.scan(apply_layer, x, (stacked, keys))[0]

    def output_table(self) -> jax.Array:
        """Returns the [vocab_size, D] table that gives the logits."""
        table = self.output_embedding if self.embeddings == "separate" else self.target_embedding
        return table.embedding.astype(self.dtype)

    def _logits(self, x: jax.Array, table_DV: jax.Array | None = None) -> jax.Array:
        """[..., D] -> [..., vocab_size] by `output_table`, or by its transpose `table_DV`."""
        x = self.decoder_norm(x) if self.ends_in_norm else x
        with jax.named_scope("logits"):
            if table_DV is None:
                logits = score_rows(x, self.output_table())
            else:
                logits = dot_general(x, table_DV, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return logits + self.logits_bias if self.output_bias else logits

    init_cache = transformer_decoding.init_cache
    grow_cache = transformer_decoding.grow_cache
    decode_step = transformer_decoding.decode_step


register_model("transformer_base", Transformer)
register_model("transformer_big", Transformer, features=1024, hidden=4096, heads=16, dropout=0.3)
