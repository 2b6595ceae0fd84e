"""Vision Transformers: an image as a sequence of patches.

Dosovitskiy et al. 2021 (arXiv 2010.11929) and DeiT (Touvron et al. 2021, 2012.12877), with the details and the names of timm.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attention_jax.errors import UserError
from attention_jax.models.registry import register_model
from attention_jax.models.stages import DTYPES, Network, check_choices, check_rates, check_sizes, grow_drop_rates
from attention_jax.models.transformer import FeedForward
from attention_jax.nn.conv import Conv, StochasticDepth
from attention_jax.nn.multihead import MultiHeadAttention

# The initialiser of every linear layer in DeiT, Swin and timm; they cut the normal distribution at ±2, a hundred deviations.
LINEAR_INIT = nn.initializers.normal(0.02)
# PyTorch's default for a convolution, which all three keep: uniform within ±1 / sqrt(pixels of a patch · channels).
_PATCH_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def embed_patches(images: jax.Array, patch: int, width: int, dtype: Any) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H/patch), ceil(W/patch), width]: maps each patch by one linear layer, `patches`."""
    _, h, w, _ = images.shape
    x = jnp.pad(images.astype(dtype), ((0, 0), (0, -h % patch), (0, -w % patch), (0, 0)))
    fields: dict[str, Any] = dict(padding=((0, 0), (0, 0)), use_bias=True, kernel_init=_PATCH_INIT, dtype=dtype)
    return Conv(width, (patch, patch), patch, **fields, name="patches")(x)


class PreNormBlock(nn.Module):
    """A pre-norm block adds attention(LayerNorm(x)) to x, then MLP(LayerNorm(x)) (Dosovitskiy et al., equations 2 and 3).

    Attributes:
        width: number D of features; the MLP has four times as many hidden units, and the exact GELU.
        heads: number of heads; each has D / heads features.
        norm_eps: epsilon of both layer norms.
        drop_rate: probability of dropping each residual branch.
        train: True lets stochastic depth drop branches.
        dtype: dtype of activations and products.
    """

    width: int
    heads: int
    norm_eps: float
    drop_rate: float
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ..., D] -> [B, ..., D]."""
        norm = functools.partial(nn.LayerNorm, self.norm_eps, self.dtype, use_fast_variance=False)
        drop = functools.partial(StochasticDepth, self.drop_rate, not self.train)
        fields: dict[str, Any] = dict(dtype=self.dtype, kernel_init=LINEAR_INIT)
        size = self.width // self.heads
        attention = MultiHeadAttention(self.heads, self.width, size, size, use_bias=True, **fields, name="attention")
        mlp = FeedForward(4 * self.width, self.width, "gelu", 0.0, **fields, name="mlp")
        x = x + drop()(self.attend(norm(name="norm1")(x), attention))
        return x + drop()(mlp(norm(name="norm2")(x)))

    def attend(self, x: jax.Array, attention: MultiHeadAttention) -> jax.Array:
        """[B, T, D] -> [B, T, D]: every token attends to all tokens."""
        return attention(x, x)


class VisionTransformer(Network):
    """Patches and their positions, blocks of self-attention, linear classifier.

    Every layer of attention sows `weights` [B, heads, queries, keys]; the tokens are the class token, DeiT's distillation
    token and the patches row by row, as far as the network has them. There is no gate slot: gates weigh convolutions' maps.

    Attributes:
        num_classes: number K of classes.
        image_size: pixels a side of the images for which positions are learned; for others the table is interpolated
            (bicubic, as in timm and DeiT).
        patch_size: pixels a side of a patch.
        layers, width, heads: L, D and the heads of a layer.
        pool: input of the classifier: the class "token", or the "mean" of the patches in a network without class token
            (Dosovitskiy et al., Appendix D.3; Beyer et al. 2022).
        distilled: True adds a second token with its own classifier; the logits are the mean of both classifiers' (DeiT, Section
            4, in evaluation). The loss that trains the second one on a teacher is not part of this network.
        drop_path_rate: stochastic depth, growing linearly from 0 at the first block to this at the last.
        dropout_rate: dropout before the classifier.
        features: True returns the map of the last block, before the last norm, in place of logits (timm's `features_only`).
        dtype: dtype of activations and products, "float32" or "bfloat16"; parameters and logits are float32.
    """

    num_classes: int = 1000
    image_size: int = 224
    patch_size: int = 16
    layers: int = 12
    width: int = 768
    heads: int = 12
    pool: str = "token"
    distilled: bool = False
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    features: bool = False
    dtype: str = "float32"

    def check(self) -> None:
        """Raises UserError for a field whose value is not one of those the class docstring lists."""
        check_choices(self, {"pool": ("token", "mean"), "dtype": DTYPES})
        check_sizes(self, "image_size", "patch_size", "layers", "width", "heads")
        check_rates(self, "drop_path_rate", "dropout_rate")
        if self.width % self.heads:
            raise UserError(f"model.heads={self.heads} does not divide model.width={self.width}: give a number that does.")
        if self.image_size % self.patch_size:
            raise UserError(
                f"model.patch_size={self.patch_size} does not divide model.image_size={self.image_size}: give the size of an "
                "image that has only complete patches; images of other sizes are padded."
            )
        if self.distilled and self.pool != "token":
            raise UserError("model.distilled is a second token beside the class token: give model.pool='token' with it.")

    def prefix(self) -> tuple[str, ...]:
        """Returns the names of the tokens before the patches."""
        return ("class_token", "distillation_token")[: 1 + self.distilled] if self.pool == "token" else ()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        """[B, H, W, C] -> [B, K] float32, or with `features` a tuple of one map [B, H/patch_size, W/patch_size, D].

        With `train` stochastic depth and dropout draw from the key "dropout".
        """
        self.check()
        dtype, prefix = jnp.dtype(self.dtype), self.prefix()
        x = embed_patches(images, self.patch_size, self.width, dtype)
        b, h, w, d = x.shape
        tokens = [self.param(name, nn.initializers.normal(1e-6), (d,)) for name in prefix]
        rows = [jnp.broadcast_to(jnp.asarray(token, dtype), (b, 1, d)) for token in tokens]
        x = jnp.concatenate([*rows, x.reshape(b, h * w, d)], 1) + self._positions(h, w).astype(dtype)
        (rates,) = grow_drop_rates(self.drop_path_rate, (self.layers,))
        for i, rate in enumerate(rates):
            x = PreNormBlock(d, self.heads, 1e-6, rate, train, dtype, name=f"block{i + 1}")(x)
        if self.features:
            return (x[:, len(prefix) :].reshape(b, h, w, d),)

        x = nn.LayerNorm(1e-6, dtype, use_fast_variance=False, name="norm")(x[:, : len(prefix)] if prefix else x)
        x = x.astype(jnp.float32) if prefix else x.astype(jnp.float32).mean(1, keepdims=True)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        heads = ("head", "head_distillation")[: x.shape[1]]
        logits = [nn.Dense(self.num_classes, kernel_init=LINEAR_INIT, name=name)(x[:, i]) for i, name in enumerate(heads)]
        return sum(logits[1:], logits[0]) / len(logits)

    def _positions(self, h: int, w: int) -> jax.Array:
        """[tokens, D]: the learned table, interpolated if the number of patches is not the number of learned positions."""
        prefix, side = len(self.prefix()), self.image_size // self.patch_size
        table = jnp.asarray(self.param("positions", LINEAR_INIT, (prefix + side**2, self.width)))
        if (h, w) == (side, side):
            return table
        grid = table[prefix:].reshape(side, side, self.width)
        grid = jax.image.resize(grid, (h, w, self.width), "cubic")  # smooths when it shrinks, as timm does
        return jnp.concatenate([table[:prefix], grid.reshape(h * w, self.width)])


# Layers, width, heads: Dosovitskiy et al., Table 1; tiny and small are DeiT's (Table 1 there).
_SIZES = {"tiny": (12, 192, 3), "small": (12, 384, 6), "base": (12, 768, 12), "large": (24, 1024, 16)}
for _name, (_layers, _width, _heads) in _SIZES.items():
    _net: dict[str, Any] = dict(layers=_layers, width=_width, heads=_heads)
    register_model(f"vit_{_name}_patch16_224", VisionTransformer, **_net)
    if _name != "large":
        register_model(f"deit_{_name}_patch16_224", VisionTransformer, **_net)
        register_model(f"deit_{_name}_distilled_patch16_224", VisionTransformer, **_net, distilled=True)
register_model("vit_base_patch32_224", VisionTransformer, patch_size=32)
register_model("vit_base_patch16_384", VisionTransformer, image_size=384)
register_model("vit_large_patch16_384", VisionTransformer, layers=24, width=1024, heads=16, image_size=384)
register_model("deit_base_patch16_384", VisionTransformer, image_size=384)
register_model("deit_base_distilled_patch16_384", VisionTransformer, image_size=384, distilled=True)
register_model("vit_base_patch16_gap_224", VisionTransformer, heads=16, pool="mean")
