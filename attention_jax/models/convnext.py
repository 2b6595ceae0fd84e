"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545): a network of convolutions after the macro design of Swin Transformers.

    stem     4x4 convolution of stride 4, LayerNorm                        "patchify stem", Section 2.2
    stages   four, of blocks (Figure 4):
             x + drop_path(layer_scale · W2 gelu(W1 LayerNorm(depthwise 7x7 (x))))
    between  LayerNorm, 2x2 convolution of stride 2                        "separate downsampling layers", Section 2.6
    head     global average pooling, LayerNorm, linear classifier

The isotropic networks (Section 3.3) have the same block in one stage behind a 16x16 stem without normalisation. The steps that
lead here from a ResNet are in `convnext_roadmap.py`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from attention_jax.kernels.matmul import dot_general
from attention_jax.models.gate import Gate
from attention_jax.models.registry import register_model
from attention_jax.models.stages import (
    DTYPES,
    GATE_PLACES,
    Network,
    check_choices,
    check_image_size,
    check_rates,
    check_sizes,
    check_stages,
    grow_drop_rates,
    list_gated_stages,
)
from attention_jax.nn.conv import Conv, StochasticDepth
from attention_jax.nn.norm import BatchNorm

# The released code: truncated normal of standard deviation 0.02, cut at ±2, which is 100 deviations. (Table 5 prints 0.2.)
initial = nn.initializers.normal(0.02)
_NORM_EPS = 1e-6


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm, and two linear layers with GELU between them, as a residual branch.

    Attributes:
        layer_scale: initial value of a scale for each channel of the branch; None has no such scale.
        drop_rate: probability of dropping the branch in training.
        gate: makes the branch's gate, which comes before the scale; None for no gate.
        dtype: dtype of activations and products.
        train: True lets stochastic depth drop the branch.
    """

    layer_scale: float | None
    drop_rate: float
    gate: Callable[..., nn.Module] | None
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        channels = x.shape[-1]
        conv = functools.partial(Conv, use_bias=True, kernel_init=initial, dtype=self.dtype)
        linear = functools.partial(nn.Dense, kernel_init=initial, dtype=self.dtype, dot_general=dot_general)
        y = conv(channels, (7, 7), feature_group_count=channels, name="depthwise")(x)
        y = nn.LayerNorm(_NORM_EPS, self.dtype, use_fast_variance=False, name="norm")(y)
        y = nn.gelu(linear(4 * channels, name="expand")(y), approximate=False)
        y = linear(channels, name="project")(y)
        if self.gate:
            y = self.gate(name="gate")(y)
        if self.layer_scale is not None:
            y = y * self.param("layer_scale", nn.initializers.constant(self.layer_scale), (channels,)).astype(y.dtype)
        return x + StochasticDepth(self.drop_rate, deterministic=not self.train)(y)


class ConvNeXt(Network):
    """Stem, stages of blocks with downsampling between them, global average pooling, LayerNorm, linear classifier.

    Attributes:
        num_classes: number K of classes.
        stage_sizes: blocks in each stage.
        widths: channels of each stage.
        patch_size: side and stride of the stem's convolution, 4; 16 in the isotropic networks.
        stem_norm: False leaves out the LayerNorm after the stem (isotropic).
        layer_scale: see `ConvNeXtBlock`.
        drop_path_rate: stochastic depth, the rate of the last block; rates grow linearly from 0 at the first.
        head_init_scale: factor of the classifier's initial kernel; the recipes of fine-tuning have 0.001 (Table 6).
        gate, gate_at, gate_stages, gate_args: attention to add, see `ResNet`. A "block" has it at the end of its branch,
            before the layer scale. A gate's own normalisation is over the batch: LayerNorm over the one channel of a spatial
            map would leave nothing of it.
        norm_group_size: examples that share the batch statistics of a gate; None is the entire batch that the module sees.
        dtype: dtype of activations and products, "float32" or "bfloat16"; parameters and logits are float32.
        features: True leaves the head out and returns the output of every stage, as dense tasks need them.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    patch_size: int = 4
    stem_norm: bool = True
    layer_scale: float | None = 1e-6
    drop_path_rate: float = 0.0
    head_init_scale: float = 1.0
    gate: str | Callable[..., nn.Module] | None = None
    gate_at: str = "stage"
    gate_stages: tuple[int, ...] | None = None
    gate_args: Mapping[str, Any] = FrozenDict()
    norm_group_size: int | None = None
    dtype: str = "float32"
    features: bool = False

    def check(self) -> None:
        """Raises UserError for a field whose value is not one of those the class docstring lists."""
        check_choices(self, {"gate_at": GATE_PLACES, "dtype": DTYPES})
        check_stages(self, "widths")
        check_rates(self, "drop_path_rate")
        check_sizes(self, "patch_size")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array | tuple[jax.Array, ...]:
        """[B, H, W, C] -> [B, K] float32, or with `features` a tuple of maps [B, H/s, W/s, C] in `dtype`, by growing stride s.

        With `train`, stochastic depth draws from the key "dropout". As in the released code, strides skip pixels that remain at
        the right and at the bottom. Raises UserError when the image has fewer pixels a side than the network's stride.
        """
        self.check()
        _, h, w, _ = images.shape
        reduction = self.patch_size * 2 ** (len(self.stage_sizes) - 1)
        check_image_size(h, w, reduction, "use larger images, a smaller model.patch_size, or fewer stages")
        dtype = jnp.dtype(self.dtype)
        batch_norm = functools.partial(BatchNorm, not train, self.norm_group_size)
        gate = None if self.gate is None else functools.partial(Gate, self.gate, self.gate_args, batch_norm, dtype, train)
        gated, drop_rates = list_gated_stages(self), grow_drop_rates(self.drop_path_rate, self.stage_sizes)
        norm = functools.partial(nn.LayerNorm, _NORM_EPS, dtype, use_fast_variance=False)

        def patches(x: jax.Array, side: int, width: int, name: str) -> jax.Array:
            conv = Conv(width, (side, side), side, "VALID", use_bias=True, kernel_init=initial, dtype=dtype, name=name)
            return conv(x)

        x, maps = images.astype(dtype), []
        for stage, (rates, width) in enumerate(zip(drop_rates, self.widths, strict=True), 1):
            if stage == 1:
                x = patches(x, self.patch_size, width, "stem_conv")
                x = norm(name="stem_norm")(x) if self.stem_norm else x
            else:
                x = patches(norm(name=f"downsample{stage}_norm")(x), 2, width, f"downsample{stage}_conv")
            block_gate = gate if self.gate_at == "block" and stage in gated else None
            for i, rate in enumerate(rates, 1):
                x = ConvNeXtBlock(self.layer_scale, rate, block_gate, dtype, train, name=f"stage{stage}_block{i}")(x)
            if gate and self.gate_at == "stage" and stage in gated:
                x = gate(name=f"stage{stage}_gate")(x)
            maps.append(x)
        if self.features:
            return tuple(maps)

        x = nn.LayerNorm(_NORM_EPS, use_fast_variance=False, name="head_norm")(x.astype(jnp.float32).mean((1, 2)))
        start = nn.initializers.normal(0.02 * self.head_init_scale)
        return nn.Dense(self.num_classes, kernel_init=start, name="head")(x)


for _name, _blocks, _width in (
    ("tiny", 9, 96),
    ("small", 27, 96),
    ("base", 27, 128),
    ("large", 27, 192),
    ("xlarge", 27, 256),
):
    _widths = tuple(_width * 2**i for i in range(4))
    register_model(f"convnext_{_name}", ConvNeXt, stage_sizes=(3, 3, _blocks, 3), widths=_widths)
for _name, _blocks, _width, _scale in (("small", 18, 384, None), ("base", 18, 768, None), ("large", 36, 1024, 1e-6)):
    _isotropic = dict(stage_sizes=(_blocks,), widths=(_width,), patch_size=16, stem_norm=False, layer_scale=_scale)
    register_model(f"convnext_isotropic_{_name}", ConvNeXt, **_isotropic)
