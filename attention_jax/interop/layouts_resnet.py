"""The names of the ResNet family in torchvision, timm, the official code of BAM and CBAM, and common CIFAR repositories."""

import dataclasses
import re

import flax.linen as nn
from flax.core import FrozenDict

from attention_jax.interop.layout import POINTWISE, Layout, Name, name_module

_BLOCK = r"stage(\d)_block(\d+)"
_IMAGENET = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
_CIFAR = tuple(f"resnet{depth}" for depth in (20, 32, 44, 56, 110))


def _name_shortcut(part: int) -> Name:
    """Returns the name of a projection's convolution (0) or normalisation (1); in ResNet-D something precedes them."""

    def name(match: re.Match, model: nn.Module) -> str:
        after = getattr(model, "shortcut", "B") == "D"
        return f"layer{match[1]}.{int(match[2]) - 1}.downsample.{part + after}"

    return name


_BACKBONE = (
    *name_module("stem_conv", "conv1"),
    *name_module("stem_norm", "bn1"),
    # The stem of three 3x3; timm calls its last normalisation bn1. ResNet-RS has a fourth convolution in place of the pooling.
    *(
        rule
        for i, (conv, norm) in enumerate((("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")), 1)
        for rule in (*name_module(f"stem_conv{i}", conv), *name_module(f"stem_norm{i}", norm))
    ),
    *name_module("stem_conv4", "maxpool.0"),
    *name_module("stem_norm4", "maxpool.1"),
    *name_module(rf"{_BLOCK}/conv(\d)", "layer{1}.{2-1}.conv{3}"),
    *name_module(rf"{_BLOCK}/norm(\d)", "layer{1}.{2-1}.bn{3}"),
)
_PROJECTIONS = (
    *name_module(f"{_BLOCK}/shortcut_conv", _name_shortcut(0)),
    *name_module(f"{_BLOCK}/shortcut_norm", _name_shortcut(1)),
)
_HEAD = name_module("head", "fc")
_PLAIN = (*_BACKBONE, *_PROJECTIONS, *_HEAD)

TORCHVISION = Layout(
    "torchvision",
    (*_IMAGENET, "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet*"),
    _PLAIN,
)
TIMM = Layout(
    "timm",
    ("resnet*", "resnext*", "wide_resnet*", "seresne*", "ecaresnet*", "senet154"),
    (
        *_PLAIN,
        *name_module(f"{_BLOCK}/gate/reduce", "layer{1}.{2-1}.se.fc1", POINTWISE),
        *name_module(f"{_BLOCK}/gate/expand", "layer{1}.{2-1}.se.fc2", POINTWISE),
        *name_module(f"{_BLOCK}/gate/conv", "layer{1}.{2-1}.se.conv"),
    ),
)

# github.com/Jongchan/attention-module, by the authors of BAM and CBAM.
_BAM, _CHANNEL, _SPATIAL = r"stage(\d)_gate", "bam{1}.channel_att.gate_c.gate_c_", "bam{1}.spatial_att.gate_s.gate_s_"
BAM = Layout(
    "bam",
    ("bam_resn*",),
    (
        *_PLAIN,
        *name_module(f"{_BAM}/channel_reduce", f"{_CHANNEL}fc_0"),
        *name_module(f"{_BAM}/channel_reduce_norm", f"{_CHANNEL}bn_1"),
        *name_module(f"{_BAM}/channel_expand", f"{_CHANNEL}fc_final"),
        *name_module(f"{_BAM}/spatial_reduce", f"{_SPATIAL}conv_reduce0"),
        *name_module(f"{_BAM}/spatial_reduce_norm", f"{_SPATIAL}bn_reduce0"),
        *name_module(rf"{_BAM}/spatial_conv(\d)", f"{_SPATIAL}conv_di_{{2-1}}"),
        *name_module(rf"{_BAM}/spatial_conv(\d)_norm", f"{_SPATIAL}bn_di_{{2-1}}"),
        *name_module(f"{_BAM}/spatial_map", f"{_SPATIAL}conv_final"),
    ),
    # The released code multiplies the branches and normalises inside of them.
    fields=dict(gate_args=FrozenDict(combine="product", batch_norm="code", fit_dilation=False)),
)
_CBAM = "layer{1}.{2-1}.cbam."
CBAM = Layout(
    "cbam",
    ("cbam_resn*",),
    (
        *_PLAIN,
        *name_module(f"{_BLOCK}/gate/reduce", f"{_CBAM}ChannelGate.mlp.1"),
        *name_module(f"{_BLOCK}/gate/expand", f"{_CBAM}ChannelGate.mlp.3"),
        *name_module(f"{_BLOCK}/gate/spatial_conv", f"{_CBAM}SpatialGate.spatial.conv"),
        *name_module(f"{_BLOCK}/gate/spatial_norm", f"{_CBAM}SpatialGate.spatial.bn"),
    ),
)

# github.com/akamaster/pytorch_resnet_cifar10: its option A pads with zeros on both sides, which a file does not show.
AKAMASTER = Layout(
    "akamaster",
    _CIFAR,
    (
        *_BACKBONE,
        *name_module("head", "linear"),
        *name_module(f"{_BLOCK}/shortcut_conv", "layer{1}.{2-1}.shortcut.0"),
        *name_module(f"{_BLOCK}/shortcut_norm", "layer{1}.{2-1}.shortcut.1"),
    ),
    fields=dict(shortcut="A-centred"),
)
AKAMASTER_B = dataclasses.replace(AKAMASTER, name="akamaster.B", fields=dict(shortcut="B"))
# github.com/kuangliu/pytorch-cifar: the networks for ImageNet behind a 3x3.
KUANGLIU = dataclasses.replace(AKAMASTER, name="kuangliu", models=_IMAGENET, fields=dict(stem="cifar"))
# github.com/chenyaofo/pytorch-cifar-models: torchvision's names, with projections.
CHENYAOFO = Layout("chenyaofo", _CIFAR, _PLAIN, fields=dict(shortcut="B"))

LAYOUTS = (TORCHVISION, TIMM, BAM, CBAM, AKAMASTER, AKAMASTER_B, KUANGLIU, CHENYAOFO)
