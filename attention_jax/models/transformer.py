"""The Transformer for translation (Vaswani et al. 2017, arXiv 1706.03762).

Letters in names: B sentences, T target and S source tokens, D features. Token 0 is padding.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.models.registry import register
from attention_jax.nn import position
from attention_jax.nn.logits import score_rows
from attention_jax.nn.multihead import MultiHeadAttention, causal_mask

PAD = 0

_CHOICES = {
    "norm": ("post", "pre", "none"),
    "positions": position.KINDS,
    "embeddings": ("shared", "target", "separate"),
}

Cache = dict[str, Any]


class FeedForward(nn.Module):
    """W2 relu(W1 x + b1) + b2 (Section 3.3); `dropout` acts on the hidden layer, which the paper does not have."""

    hidden: int
    features: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.glorot_uniform())
        x = nn.relu(dense(self.hidden, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return dense(self.features, name="output")(x)


class Sublayer(nn.Module):
    """What surrounds a sub-layer: dropout, the residual sum, and layer norm after ("post") or before ("pre") it."""

    norm: str
    dropout: float
    dtype: Any

    def setup(self) -> None:
        if self.norm != "none":
            self.layer_norm = nn.LayerNorm(1e-6, self.dtype, use_fast_variance=False)

    def __call__(self, x: jax.Array, layer: Callable[[jax.Array], jax.Array], train: bool) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        y = layer(self.layer_norm(x) if self.norm == "pre" else x)
        if self.dropout and train:
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, y.shape)
            y = jnp.where(kept, y / (1 - self.dropout), jnp.zeros((), y.dtype))
        x = x + y
        return self.layer_norm(x) if self.norm == "post" else x


class Layer(nn.Module):
    """An encoder layer, or with `decoder` a decoder layer, which also asks the source."""

    decoder: bool
    norm: str
    dropout: float
    attention: Callable[..., MultiHeadAttention]
    feed_forward: Callable[..., FeedForward]
    dtype: Any

    def setup(self) -> None:
        sublayer = functools.partial(Sublayer, self.norm, self.dropout, self.dtype)
        self.self_attention, self.self_attention_sum = self.attention(), sublayer()
        if self.decoder:
            self.cross_attention, self.cross_attention_sum = self.attention(), sublayer()
        self.mlp, self.mlp_sum = self.feed_forward(), sublayer()

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        x = self.self_attention_sum(x, lambda y: self.self_attention(y, y, mask, train), train)
        if self.decoder:
            x = self.cross_attention_sum(x, lambda y: self.cross_attention(y, memory, memory_mask, train), train)
        return self.mlp_sum(x, lambda y: self.mlp(y, train), train)

    def source_cache(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the source, which no step changes."""
        return self.cross_attention.keys_and_values(memory)

    def step(
        self, x: jax.Array, cache: dict[str, jax.Array], index_B: jax.Array, source_mask: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B, 1, D] at position `index_B` -> the same layer's output and the cache with that position filled in."""
        new = dict(cache)

        def ask_the_past(y: jax.Array) -> jax.Array:
            k, v = self.self_attention.keys_and_values(y)
            here = jnp.arange(cache["key"].shape[1]) == index_B[:, None]  # [B, T]
            new["key"] = jnp.where(here[:, :, None, None], k, cache["key"])
            new["value"] = jnp.where(here[:, :, None, None], v, cache["value"])
            seen = jnp.arange(cache["key"].shape[1]) <= index_B[:, None]
            return self.self_attention.ask(y, new["key"], new["value"], seen[:, None, None])

        x = self.self_attention_sum(x, ask_the_past, False)
        x = self.cross_attention_sum(
            x, lambda y: self.cross_attention.ask(y, cache["source_key"], cache["source_value"], source_mask), False
        )
        return self.mlp_sum(x, lambda y: self.mlp(y, False), False), new


class Transformer(nn.Module):
    """Encoder and decoder of `layers` layers each.

    Attributes:
        vocab_size: tokens, shared by source and target; 0 is padding.
        layers, features, hidden, heads: N, d_model, d_ff, h.
        key_size, value_size: d_k and d_v; None is d_model / h.
        norm: "post" as in the paper, "pre" (with a last layer norm on encoder and decoder, as tensor2tensor's today), "none".
        positions: see `position.Positions`.
        max_length: of learned positions.
        embeddings: "shared" by source, target and output (the paper), by "target" and output, or all "separate".
        scaled_attention: divide the products of queries and keys by sqrt(d_k).
        dropout: P_drop, after each sub-layer and on the sums of embeddings and positions (Section 5.4).
        attention_dropout, relu_dropout: on weights and hidden layers; 0 in the paper, 0.1 in tensor2tensor's later presets.
        remat: recompute each layer's activations in the backward pass.
        fused_attention: may use a fused kernel where no maps are asked for.
        dtype: of activations and products, "float32" or "bfloat16"; parameters and logits are float32.
    """

    vocab_size: int = 37_000
    layers: int = 6
    features: int = 512
    hidden: int = 2048
    heads: int = 8
    key_size: int | None = None
    value_size: int | None = None
    norm: str = "post"
    positions: str = "sinusoidal"
    max_length: int = 512
    embeddings: str = "shared"
    scaled_attention: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.0
    relu_dropout: float = 0.0
    remat: bool = False
    fused_attention: bool = True
    dtype: str = "float32"

    def check(self) -> None:
        """Raises UserError for a field whose value is not one of those the class docstring lists."""
        for field, accepted in _CHOICES.items():
            if getattr(self, field) not in accepted:
                raise UserError(f"model.{field}: {getattr(self, field)!r} is not one of {', '.join(map(repr, accepted))}.")
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
            dropout=self.attention_dropout,
            fused=self.fused_attention,
            dtype=dtype,
        )
        feed_forward = functools.partial(FeedForward, self.hidden, self.features, self.relu_dropout, dtype)
        layer = nn.remat(Layer, static_argnums=(5,)) if self.remat else Layer
        make = functools.partial(
            layer, norm=self.norm, dropout=self.dropout, attention=attention, feed_forward=feed_forward, dtype=dtype
        )
        self.encoder = [make(decoder=False) for _ in range(self.layers)]
        self.decoder = [make(decoder=True) for _ in range(self.layers)]
        if self.norm == "pre":
            self.encoder_norm, self.decoder_norm = (nn.LayerNorm(1e-6, dtype, use_fast_variance=False) for _ in range(2))

        # Tables of N(0, 1/d), so that sqrt(d) times a row has unit entries (tensor2tensor).
        embed = functools.partial(
            nn.Embed, self.vocab_size, self.features, embedding_init=nn.initializers.normal(self.features**-0.5)
        )
        self.target_embedding = embed()
        if self.embeddings != "shared":
            self.source_embedding = embed()
        if self.embeddings == "separate":
            self.output_embedding = embed()
        table = functools.partial(position.Positions, self.positions, self.features, self.max_length)
        self.source_positions = table()
        self.target_positions = table()
        self.embedding_dropout = nn.Dropout(self.dropout)

    def _embedded(
        self, table: nn.Embed, places: position.Positions, tokens: jax.Array, at: jax.Array, train: bool
    ) -> jax.Array:
        x = table(tokens) * self.features**0.5 + places(at)
        return self.embedding_dropout(x, deterministic=not train).astype(self.dtype)

    def __call__(self, source: jax.Array, target: jax.Array, train: bool = False) -> jax.Array:
        """[B, S], [B, T] tokens -> logits [B, T, vocab_size] float32 of the token that follows each target position.

        The target comes shifted right: its first token is the start symbol. With `train`, dropout draws from "dropout".
        """
        return self.decode(self.encode(source, train), source, target, train)

    def encode(self, source: jax.Array, train: bool = False) -> jax.Array:
        """[B, S] -> [B, S, D]; what stands at padding is of no use and is looked at by nothing."""
        self.source_positions.check_length(source.shape[1])
        table = self.target_embedding if self.embeddings == "shared" else self.source_embedding
        x = self._embedded(table, self.source_positions, source, jnp.arange(source.shape[1]), train)
        mask = (source != PAD)[:, None, None, :]
        for layer in self.encoder:
            x = layer(x, mask, None, None, train)
        return self.encoder_norm(x) if self.norm == "pre" else x

    def decode(self, memory: jax.Array, source: jax.Array, target: jax.Array, train: bool = False) -> jax.Array:
        """[B, S, D], [B, S], [B, T] -> logits [B, T, vocab_size]."""
        length = target.shape[1]
        self.target_positions.check_length(length)
        x = self._embedded(self.target_embedding, self.target_positions, target, jnp.arange(length), train)
        source_mask = (source != PAD)[:, None, None, :]
        for layer in self.decoder:
            x = layer(x, causal_mask(length), memory, source_mask, train)
        return self._logits(x)

    def _logits(self, x: jax.Array) -> jax.Array:
        x = self.decoder_norm(x) if self.norm == "pre" else x
        table = self.output_embedding if self.embeddings == "separate" else self.target_embedding
        with jax.named_scope("logits"):
            return score_rows(x, table.embedding.astype(x.dtype))

    def init_cache(self, memory: jax.Array, source: jax.Array, max_length: int) -> Cache:
        """What `decode_step` needs before the first word; every leaf has the sentences along its first axis."""
        self.target_positions.check_length(max_length)
        b, dtype = source.shape[0], jnp.dtype(self.dtype)
        key_size, value_size = (size or self.features // self.heads for size in (self.key_size, self.value_size))
        layers = []
        for layer in self.decoder:
            source_key, source_value = layer.source_cache(memory)
            layers.append(
                {
                    "key": jnp.zeros((b, max_length, self.heads, key_size), dtype),
                    "value": jnp.zeros((b, max_length, self.heads, value_size), dtype),
                    "source_key": source_key,
                    "source_value": source_value,
                }
            )
        return {"index": jnp.zeros(b, jnp.int32), "source": source, "layers": layers}

    def decode_step(self, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """[B] the newest target tokens -> logits [B, vocab_size] of the next ones, and the cache that has seen them."""
        index = cache["index"]
        x = self._embedded(self.target_embedding, self.target_positions, token[:, None], index[:, None], False)
        source_mask = (cache["source"] != PAD)[:, None, None, :]
        layers = []
        for layer, old in zip(self.decoder, cache["layers"], strict=True):
            x, new = layer.step(x, old, index, source_mask)
            layers.append(new)
        return self._logits(x)[:, 0], {**cache, "index": index + 1, "layers": layers}


register("transformer_base", Transformer)
register("transformer_big", Transformer, features=1024, hidden=4096, heads=16, dropout=0.3)
