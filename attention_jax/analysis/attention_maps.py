"""Returns the attention maps of a network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax import tree


def attention_maps(model: nn.Module, variables: dict[str, Any], *inputs: Any) -> dict[str, jax.Array]:
    """Returns the attention maps of a network, as `{module path/name: array}`.

    BAM gives `channel` [B, C], `spatial` [B, H, W], the map `map` M(F) [B, H, W, C] and the features `input` F and
    `output` F'; squeeze-and-excitation and ECA their `scale` [B, C]; CBAM `channel` [B, C] and `spatial` [B, H, W];
    coordinate attention and gather-excite the `map` [B, H, W, C] that they multiply by, the latter over the entire map
    `scale`; the global context block one map `weights` [B, H, W]; self-attention and the non-local block `weights`
    [B, H, W, h, w], softmax(QKᵀ), so that `weights[i, y, x]` is where image i looks from the query point (y, x); a custom
    module the arrays that it sows into the collection "attention". The result is empty for a network without attention.

    The Transformer gives `weights` [B, heads, queries, keys] of every layer: `encoder_<i>/self_attention`,
    `decoder_<i>/self_attention` (masked: zero for later tokens) and `decoder_<i>/cross_attention`.

    Vision Transformers give the same for `block<i>/attention` over their tokens (class token first); Swin Transformers for
    `stage<i>_block<j>/attention`, window after window: [B · windows, heads, queries, keys]. `query_points.map_query_point` lays
    both on the image.

    `inputs` are the arguments of `model.apply`: normalised images [B, H, W, C], or source and target tokens, given one by one
    or as one tuple.
    """
    if len(inputs) == 1 and isinstance(inputs[0], tuple):
        (inputs,) = inputs

    @jax.jit
    def apply(variables: dict[str, Any], *inputs: Any) -> dict[str, Any]:
        _, sown = model.apply(variables, *inputs, mutable=["attention"])
        # `sow` collects a tuple of one array for each call of the module.
        return jax.tree.map(lambda calls: calls[-1], sown.get("attention", {}), is_leaf=lambda x: isinstance(x, tuple))

    return tree.flatten_by_path(apply(variables, *map(jnp.asarray, inputs)))
