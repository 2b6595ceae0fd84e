"""The ResNet family: one network with a slot for each part.

He et al. 2016 (arXiv 1512.03385) with its CIFAR variant and the plain networks without shortcuts; ResNeXt (1611.05431),
wide networks, ResNet-D (1812.01187), ResNet-RS (2103.07579), and gates such as SE, BAM or self-attention. Stage, shortcut
and stride choices are named after the papers.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from attention_jax.errors import UserError
from attention_jax.kernels.max_pool import max_pool
from attention_jax.models.gate import Gate
from attention_jax.models.stages import (
    DTYPES,
    GATE_PLACES,
    Network,
    check_choices,
    check_image_size,
    check_rates,
    check_stages,
    grow_drop_rates,
    list_gated_stages,
)
from attention_jax.nn.conv import Conv, StochasticDepth, average_pool, fan_in, he_fan_out
from attention_jax.nn.norm import BatchNorm, GroupNorm, NoNorm

_INITS = {"he": he_fan_out, "fan_in": fan_in}
_CHOICES = {
    "block": ("basic", "bottleneck"),
    "stem": ("imagenet", "deep", "wide_deep", "rs", "cifar"),
    "stride_at": ("1x1", "3x3"),
    "shortcut": ("A", "A-centred", "B", "B-3x3", "D"),
    "gate_at": GATE_PLACES,
    "norm": ("batch", "group", "none"),
    "norm_running_var": ("biased", "unbiased"),
    "drop_path_by": ("block", "stage"),
    "kernel_init": tuple(_INITS),
    "dtype": DTYPES,
}


class Block(nn.Module):
    """A residual block (He et al., Figure 5): basic (two 3x3) or bottleneck (1x1, 3x3, 1x1 with four times the width).

    Attributes:
        kind: "basic" or "bottleneck".
        width: filters; a bottleneck's output has four times as many.
        stride, stride_at, shortcut, residual, zero_gamma: see `ResNet`.
        cardinality, width_per_group, first_divisor: for bottlenecks only, see `ResNet`.
        drop_rate: probability of dropping the residual branch.
        conv, norm, gate: make the layers; the gate may be None.
        train: True lets stochastic depth drop the branch.
    """

    kind: str
    width: int
    norm: Callable[..., nn.Module]
    stride: int = 1
    stride_at: str = "3x3"
    shortcut: str = "B"
    residual: bool = True
    cardinality: int = 1
    width_per_group: int = 64
    first_divisor: int = 1
    zero_gamma: bool = False
    drop_rate: float = 0.0
    gate: Callable[..., nn.Module] | None = None
    conv: Callable[..., nn.Module] = Conv
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H/stride, W/stride, width or 4·width]."""
        if self.kind == "basic":
            layers = [(self.width, 3, self.stride, 1), (self.width, 3, 1, 1)]
        else:
            # Xie et al.: D = floor(n · baseWidth / 64) filters in each of C groups.
            inner = self.width * self.width_per_group // 64 * self.cardinality
            first, second = (self.stride, 1) if self.stride_at == "1x1" else (1, self.stride)
            layers = [
                (inner // self.first_divisor, 1, first, 1),
                (inner, 3, second, self.cardinality),
                (4 * self.width, 1, 1, 1),
            ]

        y = x
        for i, (features, kernel, stride, groups) in enumerate(layers, 1):
            y = self.conv(features, (kernel, kernel), stride, feature_group_count=groups, name=f"conv{i}")(y)
            if i < len(layers):
                y = nn.relu(self.norm(name=f"norm{i}")(y))
            else:
                start = {"scale_init": nn.initializers.zeros} if self.zero_gamma else {}
                y = self.norm(**start, name=f"norm{i}")(y)
        if self.gate:
            y = self.gate(name="gate")(y)
        if self.residual:
            y = StochasticDepth(self.drop_rate, deterministic=not self.train)(y)
            y = y + self._shortcut(x, y.shape[-1])
        return nn.relu(y)

    def _shortcut(self, x: jax.Array, features: int) -> jax.Array:
        """Returns the shortcut: x itself if shapes agree, else option A or B (He et al., Section 4.1) or ResNet-D's."""
        if x.shape[-1] == features and self.stride == 1:
            return x
        stride = self.stride
        if self.shortcut in ("A", "A-centred"):
            missing = features - x.shape[-1]
            before = missing // 2 if self.shortcut == "A-centred" else 0
            return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (before, missing - before)))
        if self.shortcut == "D" and stride == 2:
            x, stride = average_pool(x), 1
        side = 3 if self.shortcut == "B-3x3" and stride > 1 else 1
        x = self.conv(features, (side, side), stride, name="shortcut_conv")(x)
        return self.norm(name="shortcut_norm")(x)


class ResNet(Network):
    """Stem, stages of residual blocks, global average pooling, linear classifier.

    Attributes:
        num_classes: number K of classes.
        stage_sizes: blocks in each stage.
        widths: filters of each stage (a bottleneck's output has four times as many).
        block: "basic" or "bottleneck".
        stem: "imagenet" (7x7 stride 2, 3x3 max-pool stride 2); "deep" (three 3x3 of 32, 32, 64 filters in place of the
            7x7: ResNet-C and -D); "wide_deep" (of 64, 64, 128: SENet-154); "rs" (deep, and a fourth 3x3 of stride 2 in
            place of the max-pool, as in the released ResNet-RS); "cifar" (3x3 stride 1).
        stride_at: the layer of a bottleneck that strides: "1x1" is the paper's network (v1), "3x3" torchvision's (v1.5).
        shortcut: "A" pads with zeros, "B" projects where shapes change, "D" pools 2x2 before the projection where the
            block strides. "A-centred" pads with half of the zeros before and half after the channels, as the common CIFAR
            code in PyTorch does; "A" has all of them after, as He et al.'s. "B-3x3" has a 3x3 projection where the block
            strides (SENet-154).
        residual: False gives the plain network without shortcuts.
        cardinality: number C of groups in a bottleneck's 3x3 (ResNeXt).
        width_per_group: filters of a group in the first stage, 64 / C of them leave the width as it is; "32x4d" is
            cardinality 32, width_per_group 4; with cardinality 1, 128 makes a network twice as wide inside.
        first_divisor: divides the filters of a bottleneck's first 1x1 (2 in SENet-154).
        gate: attention to add, by name (`gate.GATES`), dotted path, `file.py:Name` or class.
        gate_at: "block" gates every residual branch before the addition, "stage" the output of stages.
        gate_stages: numbers of the stages that have the gate, from 1; None is all of them for "block", all but the last for
            "stage".
        gate_args: keyword arguments of the gate.
        norm: "batch", "group" (see `GroupNorm`), or "none", where every convolution has a bias.
        zero_gamma: the last normalisation of each block starts with scale 0 (Goyal et al. 2017, Section 5.1).
        drop_path_rate: stochastic depth, the largest rate at which a residual branch is dropped.
        drop_path_by: growth of the rate: "block", linear from 0 at the first block (timm); "stage", rate·(stage + 1) / (stages
            + 1) for every block of a stage (the released ResNet-RS).
        dropout_rate: dropout before the classifier.
        kernel_init: initialiser of the convolutions: "he" (fan-out) or "fan_in" (the released ResNet-RS).
        norm_group_size: examples that share batch statistics; None is the entire batch that the module sees.
        norm_running_var: "biased" or "unbiased", see `BatchNorm`.
        dtype: dtype of activations and products, "float32" or "bfloat16"; parameters, statistics and logits are float32.
        features: True leaves the head out and returns the output of every stage, as dense tasks need them.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: str = "bottleneck"
    stem: str = "imagenet"
    stride_at: str = "3x3"
    shortcut: str = "B"
    residual: bool = True
    cardinality: int = 1
    width_per_group: int = 64
    first_divisor: int = 1
    gate: str | Callable[..., nn.Module] | None = None
    gate_at: str = "stage"
    gate_stages: tuple[int, ...] | None = None
    gate_args: Mapping[str, Any] = FrozenDict()
    norm: str = "batch"
    zero_gamma: bool = False
    drop_path_rate: float = 0.0
    drop_path_by: str = "block"
    dropout_rate: float = 0.0
    kernel_init: str = "he"
    norm_group_size: int | None = None
    norm_running_var: str = "biased"
    dtype: str = "float32"
    features: bool = False

    def check(self) -> None:
        """Raises UserError for a field whose value is not one of those the class docstring lists."""
        check_choices(self, _CHOICES)
        check_stages(self, "widths")
        check_rates(self, "drop_path_rate", "dropout_rate")
        groups = f"model.cardinality={self.cardinality}, width_per_group={self.width_per_group}"
        if self.first_divisor != 1:
            groups += f", first_divisor={self.first_divisor}"
        if min(self.cardinality, self.width_per_group, self.first_divisor) < 1:
            raise UserError(f"{groups}: give whole numbers from 1.")
        if self.block == "basic" and (self.cardinality, self.width_per_group, self.first_divisor) != (1, 64, 1):
            raise UserError(f"{groups} are for bottlenecks only: give model.block='bottleneck' with them.")
        if (narrowest := min(self.widths)) * self.width_per_group < 64 * self.first_divisor:
            raise UserError(f"{groups} leaves no filter in a stage of {narrowest}: give a larger model.width_per_group.")
        if self.zero_gamma and self.norm == "none":
            raise UserError("model.zero_gamma needs a normalisation: with model.norm='none' there is no scale to start at 0.")
        if self.drop_path_rate and not self.residual:
            raise UserError("model.drop_path_rate needs shortcuts: with model.residual=False nothing would be left of a block.")

    def drop_rates(self) -> list[list[float]]:
        """Returns the stochastic-depth rate of every block, stage by stage."""
        if self.drop_path_by == "stage":
            stages = len(self.stage_sizes)
            return [[self.drop_path_rate * (i + 2) / (stages + 1)] * size for i, size in enumerate(self.stage_sizes)]
        return grow_drop_rates(self.drop_path_rate, self.stage_sizes)

    def gated_stages(self) -> tuple[int, ...]:
        """Returns the numbers of the stages that have the gate, counted from 1."""
        return list_gated_stages(self)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array | tuple[jax.Array, ...]:
        """[B, H, W, C] -> [B, K] float32, or with `features` a tuple of maps [B, H/s, W/s, C] in `dtype`, by growing stride s.

        With `train` it updates the collection "batch_stats", and stochastic depth and dropout draw from the key "dropout".
        Raises UserError when the image has fewer pixels a side than the network's stride.
        """
        self.check()
        b, h, w, c = images.shape
        reduction = (1 if self.stem == "cifar" else 4) * 2 ** (len(self.stage_sizes) - 1)
        instead = "use larger images, model.stem='cifar', or a network with fewer stages such as resnet20"
        check_image_size(h, w, reduction, instead)
        dtype = jnp.dtype(self.dtype)
        conv = functools.partial(Conv, kernel_init=_INITS[self.kernel_init], dtype=dtype)
        batch_norm = functools.partial(BatchNorm, not train, self.norm_group_size, running_var=self.norm_running_var)
        norms: dict[str, Callable[..., nn.Module]] = {"batch": batch_norm, "group": GroupNorm, "none": NoNorm}
        norm = norms[self.norm]
        gate = None if self.gate is None else functools.partial(Gate, self.gate, self.gate_args, norm, dtype, train)
        gated = self.gated_stages()
        shared = ("stride_at", "shortcut", "residual", "cardinality", "width_per_group", "first_divisor", "zero_gamma")
        block = functools.partial(Block, kind=self.block, conv=conv, norm=norm, train=train)
        block = functools.partial(block, **{field: getattr(self, field) for field in shared})

        x = self._stem(images.astype(dtype), conv, norm)
        maps = []
        for stage, (rates, width) in enumerate(zip(self.drop_rates(), self.widths, strict=True), 1):
            for i, drop_rate in enumerate(rates):
                stride = 2 if stage > 1 and i == 0 else 1
                block_gate = gate if self.gate_at == "block" and stage in gated else None
                name = f"stage{stage}_block{i + 1}"
                x = block(width=width, stride=stride, drop_rate=drop_rate, gate=block_gate, name=name)(x)
            if gate and self.gate_at == "stage" and stage in gated:
                x = gate(name=f"stage{stage}_gate")(x)
            maps.append(x)
        if self.features:
            return tuple(maps)

        x = x.astype(jnp.float32).mean((1, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head")(x)

    def _stem(self, x: jax.Array, conv: Callable[..., nn.Module], norm: Callable[..., nn.Module]) -> jax.Array:
        """[B, H, W, 3] -> [B, H/4, W/4, 64], or [B, H, W, widths[0]] for CIFAR."""
        layers = {
            "imagenet": [(64, 7, 2)],
            "deep": [(32, 3, 2), (32, 3, 1), (64, 3, 1)],
            "wide_deep": [(64, 3, 2), (64, 3, 1), (128, 3, 1)],
            "rs": [(32, 3, 2), (32, 3, 1), (64, 3, 1), (64, 3, 2)],
            "cifar": [(self.widths[0], 3, 1)],
        }[self.stem]
        for i, (features, kernel, stride) in enumerate(layers, 1):
            number = "" if len(layers) == 1 else i
            x = conv(features, (kernel, kernel), stride, name=f"stem_conv{number}")(x)
            x = nn.relu(norm(name=f"stem_norm{number}")(x))
        if self.stem in ("imagenet", "deep", "wide_deep"):
            x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return x
