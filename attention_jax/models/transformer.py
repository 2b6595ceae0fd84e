"""The Transformer for translation (Vaswani et al. 2017, arXiv 1706.03762).

Letters in names: B sentences, N hypotheses of all of them, T target and S source tokens, D features.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.kernels.matmul import dot_general, score_rows
from attention_jax.models.registry import register
from attention_jax.nn import position
from attention_jax.nn.dropout import drop
from attention_jax.nn.multihead import MultiHeadAttention, causal_mask

ACTIVATIONS = {"relu": nn.relu, "gelu": functools.partial(nn.gelu, approximate=False), "swish": nn.swish}

_CHOICES = {
    "norm": ("post", "pre", "none"),
    "positions": position.KINDS,
    "embeddings": ("shared", "target", "separate"),
    "activation": tuple(ACTIVATIONS),
}

Cache = dict[str, Any]


class FeedForward(nn.Module):
    """W2 relu(W1 x + b1) + b2 (Section 3.3); `dropout` acts on the hidden layer, which the paper does not have."""

    hidden: int
    features: int
    activation: str
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D]; `rng` is the key of the dropout, none in evaluation."""
        init = nn.initializers.glorot_uniform()
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=init, dot_general=dot_general)
        x = ACTIVATIONS[self.activation](dense(self.hidden, name="hidden")(x))
        return dense(self.features, name="output")(drop(x, self.dropout, rng))


class Sublayer(nn.Module):
    """What surrounds a sub-layer: dropout, the residual sum, and layer norm after ("post") or before ("pre") it."""

    norm: str
    norm_eps: float
    dropout: float
    dtype: Any

    def setup(self) -> None:
        if self.norm != "none":
            self.layer_norm = nn.LayerNorm(self.norm_eps, self.dtype, use_fast_variance=False)

    def __call__(self, x: jax.Array, layer: Callable[..., jax.Array], rng: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D] around `layer(y, rng)`; `rng` is the key of all dropout, none in evaluation."""
        inside, outside = (None, None) if rng is None else jax.random.split(rng)
        y = layer(self.layer_norm(x) if self.norm == "pre" else x, inside)
        x = x + drop(y, self.dropout, outside)
        return self.layer_norm(x) if self.norm == "post" else x


class TransformerLayer(nn.Module):
    """An encoder layer, or with `decoder` a decoder layer, which also asks the source."""

    decoder: bool
    norm: str
    norm_eps: float
    dropout: float
    attention: Callable[..., MultiHeadAttention]
    feed_forward: Callable[..., FeedForward]
    dtype: Any

    def setup(self) -> None:
        sublayer = functools.partial(Sublayer, self.norm, self.norm_eps, self.dropout, self.dtype)
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
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]; `rng` is the key of all dropout, none in evaluation."""
        keys = (None,) * 3 if rng is None else jax.random.split(rng, 3)
        x = self.self_attention_sum(x, lambda y, key: self.self_attention(y, y, mask, key), keys[0])
        if self.decoder:
            x = self.cross_attention_sum(x, lambda y, key: self.cross_attention(y, memory, memory_mask, key), keys[1])
        return self.mlp_sum(x, self.mlp, keys[2])

    def init_cache(self, memory: jax.Array, max_length: int, beam: int) -> dict[str, jax.Array]:
        """Keys and values of the source, and room for those of `beam` hypotheses of `max_length` tokens."""
        source_key, source_value = self.cross_attention.cached(memory, len(memory))
        (b, h, k, _), v, dtype = source_key.shape, source_value.shape[-1], source_key.dtype
        room = {"key": jnp.zeros((b, h, k, max_length * beam), dtype), "value": jnp.zeros((b, h, max_length * beam, v), dtype)}
        return {**room, "source_key": source_key, "source_value": source_value}

    def step(
        self, x_ND: jax.Array, cache: dict[str, jax.Array], index: jax.Array, seen: jax.Array, source_mask: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B · beam, D] at position `index` -> the same layer's output and the cache with that position filled in.

        Args:
            seen: [B, 1, beam, T · beam]: which of a sentence's cached tokens belong to which hypothesis.
        """
        new = dict(cache)

        def ask_the_past(y: jax.Array, _: None) -> jax.Array:
            k_BHKS, v_BHSV = self.self_attention.cached(y, len(seen))  # S is the hypotheses of a sentence
            place = index * seen.shape[2]
            new["key"] = jax.lax.dynamic_update_slice_in_dim(cache["key"], k_BHKS, place, axis=3)
            new["value"] = jax.lax.dynamic_update_slice_in_dim(cache["value"], v_BHSV, place, axis=2)
            return self.self_attention.ask_cached(y, new["key"], new["value"], seen)

        def ask_the_source(y: jax.Array, _: None) -> jax.Array:
            return self.cross_attention.ask_cached(y, cache["source_key"], cache["source_value"], source_mask)

        x_ND = self.self_attention_sum(x_ND, ask_the_past)
        x_ND = self.cross_attention_sum(x_ND, ask_the_source)
        return self.mlp_sum(x_ND, self.mlp), new


class Transformer(nn.Module):
    """Encoder and decoder of `layers` layers each.

    Attributes:
        vocab_size: tokens, shared by source and target.
        pad: the token that is padding.
        layers, features, hidden, heads: N, d_model, d_ff, h.
        key_size, value_size: d_k and d_v; None is d_model / h.
        norm: "post" as in the paper, "pre" (as tensor2tensor's today), "none".
        final_norm: a last layer norm on encoder and decoder; None with "pre" alone. `torch.nn.Transformer` always has it.
        norm_eps: of layer norm; 1e-6 in tensor2tensor, 1e-5 in PyTorch.
        activation: of the feed-forward layers, "relu" as in the paper, "gelu" (the exact one), "swish".
        positions: see `position.Positions`.
        max_length: of learned positions.
        embeddings: "shared" by source, target and output (the paper), by "target" and output, or all "separate".
        scaled_embeddings: multiply them by sqrt(d_model) (Section 3.4).
        output_bias: a bias of the logits; none in the paper.
        attention_bias: of the four projections of every attention; none in the paper.
        scaled_attention: divide the products of queries and keys by sqrt(d_k).
        dropout: P_drop, after each sub-layer and on the sums of embeddings and positions (Section 5.4).
        attention_dropout, relu_dropout: on weights and hidden layers; 0 in the paper, 0.1 in tensor2tensor's later presets.
        remat: recompute each layer's activations in the backward pass.
        scan_layers: compile one encoder and one decoder layer and loop over them, with the same parameter tree and results;
            a deep network compiles sooner and a step needs more memory (experiments/results/compile_time.md). Maps and single
            decoding steps do not use it.
        fused_attention: may use a fused kernel where no maps are asked for.
        dtype: of activations and products, "float32" or "bfloat16"; parameters and logits are float32.
    """

    vocab_size: int = 37_000
    pad: int = 0
    layers: int = 6
    features: int = 512
    hidden: int = 2048
    heads: int = 8
    key_size: int | None = None
    value_size: int | None = None
    norm: str = "post"
    final_norm: bool | None = None
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
        layer = nn.remat(TransformerLayer) if self.remat else TransformerLayer
        make = functools.partial(
            layer,
            norm=self.norm,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention=attention,
            feed_forward=feed_forward,
            dtype=dtype,
        )
        self.encoder = [make(decoder=False) for _ in range(self.layers)]
        self.decoder = [make(decoder=True) for _ in range(self.layers)]
        self.ends_in_norm = self.norm == "pre" if self.final_norm is None else self.final_norm
        if self.ends_in_norm:
            self.encoder_norm, self.decoder_norm = (
                nn.LayerNorm(self.norm_eps, dtype, use_fast_variance=False) for _ in range(2)
            )

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
        if self.output_bias:
            self.logits_bias = self.param("logits_bias", nn.initializers.zeros, (self.vocab_size,))

    def _embedded(
        self, table: nn.Embed, places: position.Positions, tokens: jax.Array, at: jax.Array, train: bool
    ) -> jax.Array:
        x = table(tokens) * (self.features**0.5 if self.scaled_embeddings else 1.0) + places(at)
        rng = self.make_rng("dropout") if train and self.dropout else None
        return drop(x, self.dropout, rng).astype(self.dtype)

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
        mask = (source != self.pad)[:, None, None, :]
        x = self._through(self.encoder, x, mask, None, None, train)
        return self.encoder_norm(x) if self.ends_in_norm else x

    def decode(self, memory: jax.Array, source: jax.Array, target: jax.Array, train: bool = False) -> jax.Array:
        """[B, S, D], [B, S], [B, T] -> logits [B, T, vocab_size]."""
        length = target.shape[1]
        self.target_positions.check_length(length)
        x = self._embedded(self.target_embedding, self.target_positions, target, jnp.arange(length), train)
        source_mask = (source != self.pad)[:, None, None, :]
        return self._logits(self._through(self.decoder, x, causal_mask(length), memory, source_mask, train))

    def _through(
        self,
        layers: list[TransformerLayer],
        x: jax.Array,
        mask: jax.Array,
        memory: jax.Array | None,
        memory_mask: jax.Array | None,
        train: bool,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D] through all layers of one side, each with a dropout key of its own."""
        n = len(layers)
        drops = train and (self.dropout or self.attention_dropout or self.relu_dropout)
        keys = jax.random.split(self.make_rng("dropout"), n) if drops else None
        watched = any(map(self.is_mutable_collection, ("params", "attention", "intermediates")))
        if not self.scan_layers or watched:
            for i, layer in enumerate(layers):
                x = layer(x, mask, memory, memory_mask, keys if keys is None else keys[i])
            return x

        def one(x: jax.Array, of_layer: tuple[Any, jax.Array | None]) -> tuple[jax.Array, None]:
            params, key = of_layer
            return layers[0].clone(parent=None).apply({"params": params}, x, mask, memory, memory_mask, key), None

        # The parameters keep a path for each layer and are stacked here: a copy of them is what the short program costs.
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layer.variables["params"] for layer in layers))
        return jax.lax.scan(one, x, (stacked, keys))[0]

    def _logits(self, x: jax.Array, turned_DV: jax.Array | None = None) -> jax.Array:
        """Scores of all words by the output's table, or by `turned_DV`, which is `_table` turned round."""
        x = self.decoder_norm(x) if self.ends_in_norm else x
        with jax.named_scope("logits"):
            if turned_DV is None:
                logits = score_rows(x, self._table())
            else:
                logits = dot_general(x, turned_DV, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return logits + self.logits_bias if self.output_bias else logits

    def _table(self) -> jax.Array:
        table = self.output_embedding if self.embeddings == "separate" else self.target_embedding
        return table.embedding.astype(self.dtype)

    def init_cache(self, memory: jax.Array, source: jax.Array, max_length: int, beam: int = 1) -> Cache:
        """What `decode_step` needs before the first word of `beam` hypotheses a sentence, as `decode.search` wants it.

        Keys and values stay where they were written, whichever hypothesis goes on from them: `written` tells for each
        hypothesis [B · beam, max_length] by which of its sentence's rows every token was.
        """
        self.target_positions.check_length(max_length)
        layers = [layer.init_cache(memory, max_length, beam) for layer in self.decoder]
        # Turned once: for few rows XLA on CPU would do so in every step.
        table = self._table().T
        shared = {"index": jnp.zeros((), jnp.int32), "source": source, "table": table, "layers": layers}
        return {"written": jnp.zeros((source.shape[0], max_length), jnp.int32), "shared": shared}

    def grow_cache(self, cache: Cache, max_length: int) -> Cache:
        """The cache with room for `max_length` tokens."""
        self.target_positions.check_length(max_length)
        length = cache["written"].shape[1]

        def longer(x: jax.Array, axis: int) -> jax.Array:
            by = x.shape[axis] // length * (max_length - length)
            return jnp.pad(x, [(0, by if i == axis else 0) for i in range(x.ndim)])

        shared = cache["shared"]
        layers = [{**old, "key": longer(old["key"], 3), "value": longer(old["value"], 2)} for old in shared["layers"]]
        return {"written": longer(cache["written"], 1), "shared": {**shared, "layers": layers}}

    def decode_step(self, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """[B · beam] newest target tokens -> logits [B · beam, vocab_size] of the next, and the cache that has seen them."""
        shared, index = cache["shared"], cache["shared"]["index"]
        b, length = shared["source"].shape[0], cache["written"].shape[1]
        beam = token.shape[0] // b
        if shared["layers"][0]["key"].shape[3] != length * beam:
            raise ValueError(f"{token.shape[0]} tokens for {b} sentences, but init_cache was given another beam than {beam}")
        x_ND = self._embedded(self.target_embedding, self.target_positions, token, index[None], False)
        source_mask = (shared["source"] != self.pad)[:, None, None, :]
        rows = jnp.tile(jnp.arange(beam), b)
        written = jax.lax.dynamic_update_slice_in_dim(cache["written"], rows[:, None], index, axis=1)
        own_BKTK = written.reshape(b, beam, length, 1) == jnp.arange(beam)
        seen = own_BKTK & (jnp.arange(length) <= index)[:, None]
        layers = []
        for layer, old in zip(self.decoder, shared["layers"], strict=True):
            x_ND, new = layer.step(x_ND, old, index, seen.reshape(b, 1, beam, length * beam), source_mask)
            layers.append(new)
        shared = {**shared, "index": index + 1, "layers": layers}
        return self._logits(x_ND, shared["table"]), {"written": written, "shared": shared}


register("transformer_base", Transformer)
register("transformer_big", Transformer, features=1024, hidden=4096, heads=16, dropout=0.3)
