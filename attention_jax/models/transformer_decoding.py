"""Cached decoding of the Transformer, one token of every hypothesis at a time; the class has these functions as methods.

Letters in names: B sentences, N = B · beam hypotheses with those of a sentence together, D features, H heads, K and V sizes of
a head's keys and values, S keys, T tokens of room in the cache.

A cache has "written" [N, T], which follows its hypothesis in a beam, and entries under "shared" that stay in place:

    index   number of tokens decoded so far
    source  [B, S]
    table   [D, vocabulary] of the logits; transposed once, since for few rows XLA on CPU would do so for every token
    layers  for each decoder layer "key" [B, H, K, T · beam] and "value" [B, H, T · beam, V] of the target, "source_key" and
            "source_value" of the source

Keys and values stay where they were written, even if another hypothesis continues from them: for each hypothesis and token,
`written` is the row, among those of the sentence, that wrote the token.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from attention_jax.models.transformer import Transformer, TransformerLayer

Cache = dict[str, Any]


def init_cache(model: "Transformer", memory: jax.Array, source: jax.Array, max_length: int, beam: int = 1) -> Cache:
    """[B, S, D], [B, S] -> the cache before the first token of `beam` hypotheses per sentence."""
    model.target_positions.check_length(max_length)
    layers = []
    for layer in model.decoder:
        source_key, source_value = layer.cross_attention.to_cache(memory, len(memory))
        (b, h, k, _), v, dtype = source_key.shape, source_value.shape[-1], source_key.dtype
        key, value = jnp.zeros((b, h, k, max_length * beam), dtype), jnp.zeros((b, h, max_length * beam, v), dtype)
        layers.append({"key": key, "value": value, "source_key": source_key, "source_value": source_value})
    table = model.output_table().T
    shared = {"index": jnp.zeros((), jnp.int32), "source": source, "table": table, "layers": layers}
    return {"written": jnp.zeros((source.shape[0], max_length), jnp.int32), "shared": shared}


def grow_cache(model: "Transformer", cache: Cache, max_length: int) -> Cache:
    """Returns the cache enlarged to `max_length` tokens."""
    model.target_positions.check_length(max_length)
    length = cache["written"].shape[1]

    def pad(x: jax.Array, axis: int) -> jax.Array:
        by = x.shape[axis] // length * (max_length - length)
        return jnp.pad(x, [(0, by if i == axis else 0) for i in range(x.ndim)])

    shared = cache["shared"]
    layers = [{**old, "key": pad(old["key"], 3), "value": pad(old["value"], 2)} for old in shared["layers"]]
    return {"written": pad(cache["written"], 1), "shared": {**shared, "layers": layers}}


def decode_step(model: "Transformer", token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """[N] newest target tokens -> logits [N, vocab_size] of the next tokens, and the cache with the newest added."""
    shared, index = cache["shared"], cache["shared"]["index"]
    b, length = shared["source"].shape[0], cache["written"].shape[1]
    beam = token.shape[0] // b
    if shared["layers"][0]["key"].shape[3] != length * beam:
        raise ValueError(f"{token.shape[0]} tokens for {b} sentences, but init_cache was given another beam than {beam}")
    x_ND = model.embed_tokens(model.target_embedding, model.target_positions, token, index[None])
    source_mask = (shared["source"] != model.pad)[:, None, None, :]
    rows = jnp.tile(jnp.arange(beam), b)
    written = jax.lax.dynamic_update_slice_in_dim(cache["written"], rows[:, None], index, axis=1)
    own_BKTK = written.reshape(b, beam, length, 1) == jnp.arange(beam)
    seen = own_BKTK & (jnp.arange(length) <= index)[:, None]
    layers = []
    for layer, old in zip(model.decoder, shared["layers"], strict=True):
        x_ND, new = _decode_layer(layer, x_ND, old, index, seen.reshape(b, 1, beam, length * beam), source_mask)
        layers.append(new)
    new_cache = {"written": written, "shared": {**shared, "index": index + 1, "layers": layers}}
    return model._logits(x_ND, shared["table"]), new_cache


def _decode_layer(
    layer: "TransformerLayer",
    x_ND: jax.Array,
    cache: dict[str, jax.Array],
    index: jax.Array,
    seen: jax.Array,
    source_mask: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """[N, D] for token number `index` -> [N, D], and the layer's cache with the token's keys and values.

    Args:
        seen: [B, 1, beam, T · beam], True where a cached token of the sentence belongs to the hypothesis.
    """
    new = dict(cache)

    def attend_target(y_ND: jax.Array, _: None) -> jax.Array:
        k_BHKS, v_BHSV = layer.self_attention.to_cache(y_ND, len(seen))  # here S counts the hypotheses of a sentence
        start = index * seen.shape[2]
        new["key"] = jax.lax.dynamic_update_slice_in_dim(cache["key"], k_BHKS, start, axis=3)
        new["value"] = jax.lax.dynamic_update_slice_in_dim(cache["value"], v_BHSV, start, axis=2)
        return layer.self_attention.attend_to_cache(y_ND, new["key"], new["value"], seen)

    def attend_source(y_ND: jax.Array, _: None) -> jax.Array:
        return layer.cross_attention.attend_to_cache(y_ND, cache["source_key"], cache["source_value"], source_mask)

    x_ND = layer.self_attention_sum(x_ND, attend_target)
    x_ND = layer.cross_attention_sum(x_ND, attend_source)
    return layer.mlp_sum(x_ND, layer.mlp), new
