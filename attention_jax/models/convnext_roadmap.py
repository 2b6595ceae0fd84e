"""The road from a ResNet to ConvNeXt (Liu et al. 2022, Section 2): one network in which every step of the roadmap is a field.

`ROADMAP` has the steps of Tables 10 and 11 in their order, and `convnext_from_resnet50.STEP` and `convnext_from_resnet200.STEP`
are the networks after each step. They follow the authors' ablation code: no layer scale, and PyTorch's default initialisation
of convolutions. The last step has ConvNeXt's multiply-adds but not all its LayerNorms; ConvNeXt itself is in `convnext.py`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from attention_jax.kernels.max_pool import max_pool
from attention_jax.models.gate import Gate
from attention_jax.models.registry import register_model
from attention_jax.models.stages import (
    DTYPES,
    Network,
    check_choices,
    check_image_size,
    check_rates,
    check_stages,
    grow_drop_rates,
    list_gated_stages,
)
from attention_jax.nn.conv import Conv, StochasticDepth
from attention_jax.nn.norm import BatchNorm

_CHOICES = {
    "stem": ("imagenet", "patchify"),
    "block": ("bottleneck", "inverted", "depthwise_first"),
    "activation": ("relu", "gelu"),
    "norm": ("batch", "layer"),
    "downsampling": ("block", "separate", "separate_norm"),
    "gate_at": ("stage",),
    "dtype": DTYPES,
}


def _convolve_as_torch(x: jax.Array, features: int, side: int, stride: int, groups: int = 1, **options: Any) -> jax.Array:
    """[B, H, W, C] -> [B, H/stride, W/stride, features]; kernel and bias start uniform in ±1/sqrt(weights of an output)."""
    limit = 1 / math.sqrt(side * side * x.shape[-1] // groups)

    def start(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    options.update(kernel_init=start, bias_init=start, feature_group_count=groups)
    return Conv(features, (side, side), stride, **options)(x)


class RoadmapBlock(nn.Module):
    """A residual block of three convolutions: see `ConvNeXtRoadmap` for `kind` and the other fields."""

    kind: str
    width: int
    stride: int
    kernel_size: int
    depthwise: bool
    activation: Callable[[jax.Array], jax.Array]
    fewer_activations: bool
    fewer_norms: bool
    norm: Callable[..., nn.Module]
    use_bias: bool
    drop_rate: float
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H/stride, W/stride, width], or 4·width channels for a bottleneck."""
        width, inputs, size, stride = self.width, x.shape[-1], self.kernel_size, self.stride
        # (filters, kernel, stride) of the three layers; Figure 3 (a), (b) and (c).
        layers = {
            "bottleneck": [(width, 1, 1), (width, size, stride), (4 * width, 1, 1)],
            "inverted": [(4 * width, 1, 1), (4 * width, size, stride), (width, 1, 1)],
            "depthwise_first": [(inputs, size, stride), (4 * width, 1, 1), (width, 1, 1)],
        }[self.kind]
        y = x
        for i, (features, side, step) in enumerate(layers, 1):
            groups = features if side > 1 and self.depthwise else 1
            y = _convolve_as_torch(y, features, side, step, groups, use_bias=self.use_bias, dtype=self.dtype, name=f"conv{i}")
            if i == 1 or not self.fewer_norms:
                y = self.norm(name=f"norm{i}")(y)
            if i == 2 or (i == 1 and not self.fewer_activations):
                y = self.activation(y)
        y = StochasticDepth(self.drop_rate, deterministic=not self.train)(y)
        if x.shape[-1] != y.shape[-1] or stride > 1:
            x = _convolve_as_torch(x, y.shape[-1], 1, stride, use_bias=False, dtype=self.dtype, name="shortcut_conv")
            x = self.norm(name="shortcut_norm")(x)
        return x + y if self.fewer_activations else self.activation(x + y)


class ConvNeXtRoadmap(Network):
    """Stem, four stages of residual blocks, global average pooling, linear classifier.

    Attributes:
        num_classes: number K of classes.
        stage_sizes: blocks in each stage (Section 2.2).
        width: channels of the first stage; the number doubles from stage to stage (Section 2.3).
        stem: "imagenet" as ResNet's; "patchify", one 4x4 convolution of stride 4 with a bias (Section 2.2).
        depthwise: True gives the convolution of `kernel_size` one filter a channel (Section 2.3).
        block: "bottleneck" as ResNet's, with outputs of four times the width; "inverted", narrow outside and four times as wide
            inside; "depthwise_first", as "inverted" with the depthwise convolution moved up (Sections 2.4 and 2.5, Figure 3).
        kernel_size: side of the depthwise convolution's kernel (Section 2.5).
        activation: "relu" or "gelu" (Section 2.6).
        fewer_activations: True keeps the activation after the second layer of a block alone, and none after the addition.
        fewer_norms: True keeps the normalisation after the first layer of a block alone.
        norm: "batch", or "layer", with biases in the convolutions of blocks.
        final_norm: True puts a LayerNorm between pooling and classifier.
        downsampling: "block" strides in the first block of a stage; "separate" puts a 2x2 convolution of stride 2 before it;
            "separate_norm" also a normalisation after that.
        drop_path_rate: stochastic depth, the rate of the last block; rates grow linearly from 0 at the first.
        gate, gate_at, gate_stages, gate_args: attention after stages, see `ResNet`.
        norm_group_size: examples that share batch statistics; None is the entire batch that the module sees.
        norm_running_var: "biased" or "unbiased", see `BatchNorm`.
        dtype: dtype of activations and products, "float32" or "bfloat16"; parameters, statistics and logits are float32.
        features: True leaves the head out and returns the output of every stage, as dense tasks need them.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    stem: str = "imagenet"
    depthwise: bool = False
    block: str = "bottleneck"
    kernel_size: int = 3
    activation: str = "relu"
    fewer_activations: bool = False
    fewer_norms: bool = False
    norm: str = "batch"
    final_norm: bool = False
    downsampling: str = "block"
    drop_path_rate: float = 0.0
    gate: str | Callable[..., nn.Module] | None = None
    gate_at: str = "stage"
    gate_stages: tuple[int, ...] | None = None
    gate_args: Mapping[str, Any] = FrozenDict()
    norm_group_size: int | None = None
    norm_running_var: str = "biased"
    dtype: str = "float32"
    features: bool = False

    def check(self) -> None:
        """Raises UserError for a field whose value is not one of those the class docstring lists."""
        check_choices(self, {**_CHOICES, "norm_running_var": ("biased", "unbiased")})
        check_stages(self)
        check_rates(self, "drop_path_rate")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array | tuple[jax.Array, ...]:
        """[B, H, W, C] -> [B, K] float32, or with `features` a tuple of maps [B, H/s, W/s, C] in `dtype`, by growing stride s.

        With `train` it updates the collection "batch_stats", and stochastic depth draws from the key "dropout". Raises
        UserError when the image has fewer pixels a side than the network's stride.
        """
        self.check()
        _, h, w, _ = images.shape
        check_image_size(h, w, 4 * 2 ** (len(self.stage_sizes) - 1), "use larger images or fewer stages")
        dtype = jnp.dtype(self.dtype)
        batch_norm = functools.partial(BatchNorm, not train, self.norm_group_size, running_var=self.norm_running_var)
        layer_norm = functools.partial(nn.LayerNorm, 1e-6, dtype, use_fast_variance=False)
        norm: Callable[..., nn.Module] = batch_norm if self.norm == "batch" else layer_norm
        activation = nn.relu if self.activation == "relu" else functools.partial(nn.gelu, approximate=False)
        block = functools.partial(RoadmapBlock, kind=self.block, norm=norm, activation=activation, dtype=dtype, train=train)
        shared = ("kernel_size", "depthwise", "fewer_activations", "fewer_norms")
        block = functools.partial(block, use_bias=self.norm == "layer", **{field: getattr(self, field) for field in shared})
        patches: dict[str, Any] = dict(padding="VALID", use_bias=True, dtype=dtype)
        gated, drop_rates = list_gated_stages(self), grow_drop_rates(self.drop_path_rate, self.stage_sizes)

        x, maps = images.astype(dtype), []
        if self.stem == "imagenet":
            x = _convolve_as_torch(x, self.width, 7, 2, dtype=dtype, use_bias=False, name="stem_conv")
            x = max_pool(nn.relu(norm(name="stem_norm")(x)), (3, 3), (2, 2), ((1, 1), (1, 1)))
        else:
            x = _convolve_as_torch(x, self.width, 4, 4, **patches, name="stem_conv")
        for stage, rates in enumerate(drop_rates, 1):
            width, strided = self.width * 2 ** (stage - 1), stage > 1
            if strided and self.downsampling != "block":
                x, strided = _convolve_as_torch(x, width, 2, 2, **patches, name=f"downsample{stage}_conv"), False
                x = norm(name=f"downsample{stage}_norm")(x) if self.downsampling == "separate_norm" else x
            for i, rate in enumerate(rates):
                stride = 2 if strided and i == 0 else 1
                x = block(width=width, stride=stride, drop_rate=rate, name=f"stage{stage}_block{i + 1}")(x)
            if self.gate and stage in gated:
                x = Gate(self.gate, self.gate_args, batch_norm, dtype, train, name=f"stage{stage}_gate")(x)
            maps.append(x)
        if self.features:
            return tuple(maps)

        x = x.astype(jnp.float32).mean((1, 2))
        if self.final_norm:
            x = nn.LayerNorm(1e-6, use_fast_variance=False, name="head_norm")(x)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.02), name="head")(x)


# Each step keeps the fields of the steps before it; after the comparison of kernel sizes, the road goes on with 7.
_STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("baseline", {}),
    ("stage_ratio", {}),
    ("patchify", dict(stem="patchify")),
    ("depthwise", dict(depthwise=True)),
    ("width", {}),
    ("inverted", dict(block="inverted")),
    ("moved_up", dict(block="depthwise_first")),
    ("kernel_5", dict(kernel_size=5)),
    ("kernel_7", dict(kernel_size=7)),
    ("kernel_9", dict(kernel_size=9)),
    ("kernel_11", dict(kernel_size=11)),
    ("gelu", dict(kernel_size=7, activation="gelu")),
    ("fewer_activations", dict(fewer_activations=True)),
    ("fewer_norms", dict(fewer_norms=True)),
    ("layer_norm", dict(norm="layer")),
    ("final_norm", dict(final_norm=True)),
    ("separate_downsampling", dict(downsampling="separate")),
    ("downsampling_norm", dict(downsampling="separate_norm")),
)
# Fields that differ between the two regimes; in the second one, the stage ratio comes with another width.
_REGIMES: dict[str, dict[str, dict[str, Any]]] = {
    "resnet50": {"stage_ratio": dict(stage_sizes=(3, 3, 9, 3)), "width": dict(width=96)},
    "resnet200": {
        "baseline": dict(stage_sizes=(3, 24, 36, 3)),
        "stage_ratio": dict(stage_sizes=(3, 3, 27, 3), width=84),
        "width": dict(width=128),
    },
}
ROADMAP: dict[str, dict[str, dict[str, Any]]] = {}  # regime -> step -> fields of `ConvNeXtRoadmap`
for _regime, _own in _REGIMES.items():
    _fields: dict[str, Any] = {}
    ROADMAP[_regime] = {}
    for _step, _changes in _STEPS:
        _fields = {**_fields, **_changes, **_own.get(_step, {})}
        ROADMAP[_regime][_step] = _fields
        register_model(f"convnext_from_{_regime}.{_step}", ConvNeXtRoadmap, **_fields)
