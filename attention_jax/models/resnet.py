"""The ResNet family: one network whose parts are slots.

He et al. 2016 (arXiv 1512.03385) with its CIFAR variant and the plain networks without shortcuts; squeeze-and-excitation
and BAM as gates. Stage, shortcut and stride choices are named after the papers.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from attention_jax.errors import UserError
from attention_jax.models.registry import register
from attention_jax.nn.bam import BAM
from attention_jax.nn.conv import Conv, SqueezeExcite
from attention_jax.nn.norm import BatchNorm
from attention_jax.plugins import load_object

GATES = {"se": SqueezeExcite, "bam": BAM}


class Gate(nn.Module):
    """A gate by name, dotted path, `file.py:Name` or class: any module [B, H, W, C] -> [B, H, W, C].

    A gate with a field `norm` gets the network's normalisation; one whose `__call__` takes `train` gets that.
    """

    gate: str | Callable[..., nn.Module]
    args: Mapping[str, Any]
    norm: Callable[..., nn.Module]
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        make = load_object(self.gate, GATES, "gate")
        args = dict(self.args)
        if dataclasses.is_dataclass(make) and "norm" in {field.name for field in dataclasses.fields(make)}:
            args.setdefault("norm", self.norm)
        try:
            module = make(**args)
        except TypeError as error:
            raise UserError(f"model.gate_args: {self.gate!r} does not take these arguments ({error}).") from error
        nn.share_scope(self, module)  # the gate's parameters sit directly under the name of its place
        takes_train = "train" in inspect.signature(type(module).__call__).parameters
        y = module(x, train=self.train) if takes_train else module(x)
        if y.shape != x.shape:
            raise UserError(f"model.gate: {self.gate!r} turns {x.shape} into {y.shape}; a gate keeps the shape.")
        return y


class Block(nn.Module):
    """A residual block (He et al., Figure 5): basic (two 3x3) or bottleneck (1x1, 3x3, 1x1 with four times the width)."""

    kind: str
    width: int
    stride: int
    stride_at: str
    shortcut: str
    residual: bool
    gate: Callable[..., nn.Module] | None
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H/stride, W/stride, width or 4·width]."""
        if self.kind == "basic":
            layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
        else:
            first, second = (self.stride, 1) if self.stride_at == "1x1" else (1, self.stride)
            layers = [(self.width, 1, first), (self.width, 3, second), (4 * self.width, 1, 1)]

        y = x
        for i, (features, kernel, stride) in enumerate(layers, 1):
            y = Conv(features, (kernel, kernel), stride, name=f"conv{i}")(y)
            y = self.norm(name=f"norm{i}")(y)
            if i < len(layers):
                y = nn.relu(y)
        if self.gate:
            y = self.gate(name="gate")(y)
        if self.residual:
            y = y + self._shortcut(x, y.shape[-1])
        return nn.relu(y)

    def _shortcut(self, x: jax.Array, features: int) -> jax.Array:
        """Options A and B of Section 4.1: identity where shapes agree, else zero padding or a projection."""
        if x.shape[-1] == features and self.stride == 1:
            return x
        if self.shortcut == "A":
            x = x[:, :: self.stride, :: self.stride]
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))
        x = Conv(features, (1, 1), self.stride, name="shortcut_conv")(x)
        return self.norm(name="shortcut_norm")(x)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, linear classifier.

    Attributes:
        num_classes: K.
        stage_sizes: blocks in each stage.
        widths: filters of each stage (a bottleneck's output has four times as many).
        block: "basic" or "bottleneck".
        stem: "imagenet" (7x7 stride 2, 3x3 max-pool stride 2) or "cifar" (3x3 stride 1).
        stride_at: where a bottleneck strides: "1x1" is the paper's network (v1), "3x3" torchvision's (v1.5).
        shortcut: "A" pads with zeros, "B" projects where shapes change.
        residual: False gives the plain network without shortcuts.
        gate: attention to put in, by name (`GATES`), dotted path, `file.py:Name` or class.
        gate_at: "block" gates every residual branch before the addition, "stage" the output of each stage but the last.
        gate_args: keyword arguments of the gate.
        norm_group_size: examples that share batch statistics; None is the whole batch that the module sees.
        norm_running_var: "biased" or "unbiased", see `BatchNorm`.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: str = "bottleneck"
    stem: str = "imagenet"
    stride_at: str = "3x3"
    shortcut: str = "B"
    residual: bool = True
    gate: str | Callable[..., nn.Module] | None = None
    gate_at: str = "stage"
    gate_args: Mapping[str, Any] = FrozenDict()
    norm_group_size: int | None = None
    norm_running_var: str = "biased"

    def check(self) -> None:
        """Raises UserError for a field whose value is not one of those the class docstring lists."""
        choices = {
            "block": ("basic", "bottleneck"),
            "stem": ("imagenet", "cifar"),
            "stride_at": ("1x1", "3x3"),
            "shortcut": ("A", "B"),
            "gate_at": ("block", "stage"),
            "norm_running_var": ("biased", "unbiased"),
        }
        for field, accepted in choices.items():
            if getattr(self, field) not in accepted:
                raise UserError(f"model.{field}: {getattr(self, field)!r} is not one of {', '.join(map(repr, accepted))}.")
        if len(self.stage_sizes) != len(self.widths):
            raise UserError(f"model.widths: {self.widths} needs one width for each of the {len(self.stage_sizes)} stages.")

    @property
    def total_stride(self) -> int:
        """By how much the network reduces an image's side: 32 for the ImageNet networks, 4 for CIFAR's."""
        return (4 if self.stem == "imagenet" else 1) * 2 ** (len(self.stage_sizes) - 1)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, C] -> [B, K]. Raises UserError when the image has fewer pixels a side than the network's stride."""
        self.check()
        b, h, w, c = images.shape
        if min(h, w) < self.total_stride:
            raise UserError(
                f"images of {h}x{w} pixels are too small for this network, which reduces them {self.total_stride}-fold: "
                "use larger images, model.stem='cifar', or a network with fewer stages such as resnet20."
            )
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            group_size=self.norm_group_size,
            running_var=self.norm_running_var,
        )
        gate = self.gate and functools.partial(Gate, self.gate, self.gate_args, norm, train)

        if self.stem == "imagenet":
            x = Conv(64, (7, 7), 2, name="stem_conv")(images)
            x = nn.relu(norm(name="stem_norm")(x))
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        else:
            x = Conv(self.widths[0], (3, 3), name="stem_conv")(images)
            x = nn.relu(norm(name="stem_norm")(x))

        for stage, (blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True), 1):
            for i in range(blocks):
                x = Block(
                    kind=self.block,
                    width=width,
                    stride=2 if stage > 1 and i == 0 else 1,
                    stride_at=self.stride_at,
                    shortcut=self.shortcut,
                    residual=self.residual,
                    gate=gate if self.gate_at == "block" else None,
                    norm=norm,
                    name=f"stage{stage}_block{i + 1}",
                )(x)
            if gate and self.gate_at == "stage" and stage < len(self.stage_sizes):
                x = gate(name=f"stage{stage}_gate")(x)

        x = x.mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head")(x)


_IMAGENET = {
    18: dict(block="basic", stage_sizes=(2, 2, 2, 2)),
    34: dict(block="basic", stage_sizes=(3, 4, 6, 3)),
    50: dict(block="bottleneck", stage_sizes=(3, 4, 6, 3)),
    101: dict(block="bottleneck", stage_sizes=(3, 4, 23, 3)),
    152: dict(block="bottleneck", stage_sizes=(3, 8, 36, 3)),
}
_CODE_BAM = FrozenDict(combine="product", batch_norm="code")
_TIMM_SE = FrozenDict(divisor=8)

for _depth, _net in _IMAGENET.items():
    register(f"resnet{_depth}", ResNet, **_net)
    register(f"seresnet{_depth}", ResNet, **_net, gate="se", gate_at="block", gate_args=_TIMM_SE)
    register(f"bam_resnet{_depth}", ResNet, **_net, gate="bam", gate_at="stage")
    register(f"bam_resnet{_depth}.code", ResNet, **_net, gate="bam", gate_at="stage", gate_args=_CODE_BAM)

# CIFAR networks of 6n+2 layers, shortcut A only (Section 4.2).
for _depth in (20, 32, 44, 56, 110):
    _n = (_depth - 2) // 6
    _net = dict(block="basic", stem="cifar", stage_sizes=(_n,) * 3, widths=(16, 32, 64), shortcut="A", num_classes=10)
    register(f"resnet{_depth}", ResNet, **_net)
    register(f"resnet{_depth}.plain", ResNet, **_net, residual=False)
    register(f"seresnet{_depth}", ResNet, **_net, gate="se", gate_at="block")
    register(f"bam_resnet{_depth}", ResNet, **_net, gate="bam", gate_at="stage")
