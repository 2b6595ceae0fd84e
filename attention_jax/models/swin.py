"""Swin Transformers: self-attention inside of windows, which every other block shifts (Liu et al. 2021, arXiv 2103.14030).

The details follow the authors' code and the names timm. A map that is no multiple of the window is padded first and
then shifted, as in the authors' code for detection and in torchvision; timm shifts first, and its masks then let
the first rows attend to the last.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention_jax.errors import UserError
from attention_jax.kernels.matmul import dot_general
from attention_jax.models.registry import register_model
from attention_jax.models.stages import DTYPES, Network, check_choices, check_rates, check_sizes, check_stages, grow_drop_rates
from attention_jax.models.vit import LINEAR_INIT, PreNormBlock, embed_patches
from attention_jax.nn.multihead import MultiHeadAttention

_NORM_EPS = 1e-5


def split_windows(x: Any, window: int) -> Any:
    """[B, H, W, ...] -> [B, windows, window², ...], row by row; `window` divides H and W."""
    b, h, w, *rest = x.shape
    x = x.reshape(b, h // window, window, w // window, window, *rest).swapaxes(2, 3)
    return x.reshape(b, -1, window**2, *rest)


def lay_windows(h: int, w: int, window: int, shifted: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the windows of a map, and by how many rows and columns the map is rolled up and left before it is split.

    The windows are [windows, window²] int: the number of each position on the padded map, row by row. A side with only one
    window does not shift.
    """
    rows, columns = -(-h // window), -(-w // window)
    shift = (window // 2 if shifted and rows > 1 else 0), (window // 2 if shifted and columns > 1 else 0)
    places = np.arange(rows * columns * window**2).reshape(1, rows * window, columns * window)
    return split_windows(np.roll(places, (-shift[0], -shift[1]), (1, 2)), window)[0], shift


class WindowBlock(PreNormBlock):
    """Block whose attention stays inside windows (Liu et al., Section 3.2); `PreNormBlock` has the other attributes.

    Attributes:
        window_size: positions a side of a window.
        shifted: True moves the windows half a window down and right; the edge cuts some of them into two or four smaller ones.
    """

    window_size: int = 7
    shifted: bool = False

    def attend(self, x: jax.Array, attention: MultiHeadAttention) -> jax.Array:
        """[B, H, W, D] -> [B, H, W, D]. `attention` sows `weights` [B · windows, heads, window², window²]."""
        b, h, w, d = x.shape
        side = self.window_size
        places, (down, right) = lay_windows(h, w, side, self.shifted)
        x = jnp.pad(x, ((0, 0), (0, -h % side), (0, -w % side), (0, 0)))
        padded = x.shape
        x = jnp.roll(x, (-down, -right), (1, 2)) if down or right else x
        x = split_windows(x, side).reshape(-1, side**2, d)

        mask = None
        if down or right:
            # The roll brings positions round the edge that are no neighbours: a position sees only those from its own side.
            y, z = np.divmod(places, padded[2])
            regions = jnp.tile(jnp.asarray(2 * (y < down) + (z < right)), (b, 1))
            mask = (regions[:, :, None] == regions[:, None, :])[:, None]
        x = attention(x, x, mask, bias_1HTS=self._relative_bias())

        x = x.reshape(b, padded[1] // side, padded[2] // side, side, side, d).swapaxes(2, 3).reshape(padded)
        x = jnp.roll(x, (down, right), (1, 2)) if down or right else x
        return x[:, :h, :w]

    def _relative_bias(self) -> jax.Array:
        """[1, heads, window², window²]: a learned number for each head and each offset between two positions (equation 4)."""
        offsets = 2 * self.window_size - 1
        table = self.param("relative_bias", LINEAR_INIT, (offsets**2, self.heads))
        y, x = np.divmod(np.arange(self.window_size**2), self.window_size)
        index = (y[:, None] - y + self.window_size - 1) * offsets + x[:, None] - x + self.window_size - 1
        return jnp.asarray(table)[index].transpose(2, 0, 1)[None]


class SwinTransformer(Network):
    """Patches, stages of window attention with four patches merged into one between them, mean, linear classifier.

    Padding, of images to complete patches and of maps to complete windows and pairs, is zeros below and on the right; windows
    attend to it. A map smaller than a window is padded to one. There is no gate slot: gates weigh convolutions' maps.
    `analysis.query_points` puts the windows' attention together on the image.

    Attributes:
        num_classes: number K of classes.
        patch_size: pixels a side of a patch.
        window_size: positions a side of a window; the biases by relative position are learned for this size.
        stage_sizes: blocks in each stage; every second one has shifted windows.
        width: channels of the first stage; each later one has twice as many.
        heads: number of heads in each stage.
        drop_path_rate: stochastic depth, growing linearly from 0 at the first block to this at the last.
        dropout_rate: dropout before the classifier.
        features: True returns the maps after all stages in place of logits, without a norm (timm's `features_only`).
        dtype: dtype of activations and products, "float32" or "bfloat16"; parameters and logits are float32.
    """

    num_classes: int = 1000
    patch_size: int = 4
    window_size: int = 7
    stage_sizes: tuple[int, ...] = (2, 2, 6, 2)
    width: int = 96
    heads: tuple[int, ...] = (3, 6, 12, 24)
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.0
    features: bool = False
    dtype: str = "float32"

    def check(self) -> None:
        """Raises UserError for a field whose value is not one of those the class docstring lists."""
        check_choices(self, {"dtype": DTYPES})
        check_sizes(self, "patch_size", "window_size", "width")
        check_stages(self, "heads")
        check_rates(self, "drop_path_rate", "dropout_rate")
        for stage, heads in enumerate(self.heads):
            if self.width * 2**stage % heads:
                raise UserError(
                    f"model.heads: {heads} does not divide the {self.width * 2**stage} channels of stage {stage + 1}."
                )

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        """[B, H, W, C] -> [B, K] float32, or with `features` a tuple of maps [B, H/s, W/s, C] for s = 4, 8, 16, 32.

        With `train` stochastic depth and dropout draw from the key "dropout".
        """
        self.check()
        dtype = jnp.dtype(self.dtype)
        norm = functools.partial(nn.LayerNorm, _NORM_EPS, dtype, use_fast_variance=False)
        x = norm(name="patches_norm")(embed_patches(images, self.patch_size, self.width, dtype))
        maps, drop_rates = [], grow_drop_rates(self.drop_path_rate, self.stage_sizes)
        for stage, (rates, heads) in enumerate(zip(drop_rates, self.heads, strict=True), 1):
            if stage > 1:
                x = norm(name=f"stage{stage}_merge_norm")(_join_fours(x))
                fields: dict[str, Any] = dict(use_bias=False, dtype=dtype, kernel_init=LINEAR_INIT)
                x = nn.Dense(x.shape[-1] // 2, **fields, dot_general=dot_general, name=f"stage{stage}_merge")(x)
            for i, rate in enumerate(rates):
                block = functools.partial(WindowBlock, x.shape[-1], heads, _NORM_EPS, rate, train, dtype)
                x = block(self.window_size, i % 2 == 1, name=f"stage{stage}_block{i + 1}")(x)
            maps.append(x)
        if self.features:
            return tuple(maps)

        x = norm(name="norm")(x).astype(jnp.float32).mean((1, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=LINEAR_INIT, name="head")(x)


def _join_fours(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 4C]: joins each 2x2, the left column from top to bottom, then the right one."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    x = x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(*x.shape[:3], 4 * c)


# Section 3.3: stage sizes, width and heads; the width of a head is 32.
_SIZES = {"tiny": ((2, 2, 6, 2), 96), "small": ((2, 2, 18, 2), 96), "base": ((2, 2, 18, 2), 128), "large": ((2, 2, 18, 2), 192)}
for _name, (_stages, _width) in _SIZES.items():
    _net: dict[str, Any] = dict(stage_sizes=_stages, width=_width, heads=tuple(_width * 2**i // 32 for i in range(4)))
    register_model(f"swin_{_name}_patch4_window7_224", SwinTransformer, **_net)
    if _name in ("base", "large"):
        register_model(f"swin_{_name}_patch4_window12_384", SwinTransformer, **_net, window_size=12)
