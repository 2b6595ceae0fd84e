"""The names of the ResNet family: those of timm and torchvision if they have the network."""

from typing import Any

from flax.core import FrozenDict

from attention_jax.models.registry import register_model
from attention_jax.models.resnet import ResNet

Fields = dict[str, Any]

_IMAGENET: dict[int, Fields] = {
    18: dict(block="basic", stage_sizes=(2, 2, 2, 2)),
    34: dict(block="basic", stage_sizes=(3, 4, 6, 3)),
    26: dict(block="bottleneck", stage_sizes=(2, 2, 2, 2)),
    50: dict(block="bottleneck", stage_sizes=(3, 4, 6, 3)),
    101: dict(block="bottleneck", stage_sizes=(3, 4, 23, 3)),
    152: dict(block="bottleneck", stage_sizes=(3, 8, 36, 3)),
    200: dict(block="bottleneck", stage_sizes=(3, 24, 36, 3)),
}
_BAM: Fields = dict(gate="bam", gate_at="stage")
_CBAM: Fields = dict(gate="cbam", gate_at="block")
_SE: Fields = dict(gate="se", gate_at="block")
_ECA: Fields = dict(gate="eca", gate_at="block")
_D: Fields = dict(stem="deep", shortcut="D")
_TIMM_SE: Fields = dict(_SE, gate_args=FrozenDict(divisor=8))
# After stage 2: maps of 28x28 at 224 pixels, the size nearest to the 32x32 of the paper's default.
_SAGAN: Fields = dict(gate="self_attention", gate_stages=(2,))
# The released code: keys and values pooled 2x2, values of C/2 channels.
_OFFICIAL_SAGAN: Fields = dict(_SAGAN, gate_args=FrozenDict(value_reduction=2, pool=2))
_CODE_BAM: Fields = dict(_BAM, gate_args=FrozenDict(combine="product", batch_norm="code", fit_dilation=False))

for _depth, _net in _IMAGENET.items():
    register_model(f"resnet{_depth}", ResNet, **_net)
    register_model(f"resnet{_depth}c", ResNet, **_net, stem="deep")
    register_model(f"resnet{_depth}d", ResNet, **_net, **_D)
    register_model(f"resnet{_depth}_gn", ResNet, **_net, norm="group")
    register_model(f"seresnet{_depth}d", ResNet, **_net, **_D, **_TIMM_SE)
    register_model(f"ecaresnet{_depth}d", ResNet, **_net, **_D, **_ECA)
    register_model(f"seresnet{_depth}", ResNet, **_net, **_TIMM_SE)
    register_model(f"bam_resnet{_depth}", ResNet, **_net, **_BAM)
    register_model(f"bam_resnet{_depth}.code", ResNet, **_net, **_CODE_BAM)
    register_model(f"cbam_resnet{_depth}", ResNet, **_net, **_CBAM)
    register_model(f"ecaresnet{_depth}", ResNet, **_net, **_ECA)
    register_model(f"gcresnet{_depth}", ResNet, **_net, gate="gc", gate_at="block", gate_stages=(2, 3, 4))
    register_model(f"sagan_resnet{_depth}", ResNet, **_net, **_SAGAN)
    register_model(f"sagan_resnet{_depth}.official", ResNet, **_net, **_OFFICIAL_SAGAN)

# Cardinality x width of a group: Xie et al., Tables 3 and 4, and torchvision's.
for _depth, _names in {
    50: ("2x40d", "4x24d", "8x14d", "32x4d"),
    101: ("2x40d", "4x24d", "8x14d", "32x4d", "2x64d", "64x4d", "32x8d", "32x16d", "32x32d"),
}.items():
    for _name in _names:
        _groups, _width = map(int, _name.removesuffix("d").split("x"))
        _net = dict(_IMAGENET[_depth], cardinality=_groups, width_per_group=_width)
        register_model(f"resnext{_depth}_{_name}", ResNet, **_net)
        register_model(f"seresnext{_depth}_{_name}", ResNet, **_net, **_TIMM_SE)
        register_model(f"bam_resnext{_depth}_{_name}", ResNet, **_net, **_BAM)
for _name, _gate in (("seresnet269d", _TIMM_SE), ("ecaresnet269d", _ECA)):
    register_model(_name, ResNet, block="bottleneck", stage_sizes=(3, 30, 48, 8), **_D, **_gate)
register_model("seresnext26d_32x4d", ResNet, **_IMAGENET[26], cardinality=32, width_per_group=4, **_D, **_TIMM_SE)
register_model("seresnext101d_32x8d", ResNet, **_IMAGENET[101], cardinality=32, width_per_group=8, **_D, **_TIMM_SE)
register_model("resnext50d_32x4d", ResNet, **_IMAGENET[50], cardinality=32, width_per_group=4, **_D)
# Hu et al. 2018 (1709.01507, version 4), the network of their challenge entry, as timm has it.
_net = dict(_IMAGENET[152], cardinality=64, width_per_group=4, first_divisor=2, stem="wide_deep", shortcut="B-3x3")
register_model("senet154", ResNet, **_net, **_TIMM_SE)
register_model("resnet101_1x100d", ResNet, **_IMAGENET[101], width_per_group=100)  # the wider baseline of Table 4
register_model("wide_resnet50_2", ResNet, **_IMAGENET[50], width_per_group=128)
register_model("wide_resnet101_2", ResNet, **_IMAGENET[101], width_per_group=128)

# Bello et al. 2021 as released (TensorFlow 1), Table 8; rates of dropout and stochastic depth are the recipe's.
for _depth, _sizes in {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}.items():
    _net = dict(block="bottleneck", stage_sizes=_sizes, stem="rs", shortcut="D", **_SE, gate_args=FrozenDict(reduction=4))
    register_model(f"resnetrs{_depth}", ResNet, **_net, zero_gamma=True, drop_path_by="stage", kernel_init="fan_in")

# CIFAR networks of 6n+2 layers, shortcut A only (He et al., Section 4.2).
for _depth in (20, 32, 44, 56, 110):
    _n = (_depth - 2) // 6
    _net = dict(block="basic", stem="cifar", stage_sizes=(_n,) * 3, widths=(16, 32, 64), shortcut="A", num_classes=10)
    register_model(f"resnet{_depth}", ResNet, **_net)
    register_model(f"resnet{_depth}.plain", ResNet, **_net, residual=False)
    register_model(f"seresnet{_depth}", ResNet, **_net, **_SE)
    register_model(f"bam_resnet{_depth}", ResNet, **_net, **_BAM)
    register_model(f"cbam_resnet{_depth}", ResNet, **_net, **_CBAM, gate_args=FrozenDict(reduction=4))
    register_model(f"sagan_resnet{_depth}", ResNet, **_net, **_SAGAN)

# CIFAR networks of ResNeXt, Section 5.3: three stages of three blocks.
for _name in ("1x64d", "2x64d", "4x64d", "8x64d", "16x64d", "1x128d", "1x256d", "32x4d"):
    _groups, _width = map(int, _name.removesuffix("d").split("x"))
    _net = dict(block="bottleneck", stem="cifar", stage_sizes=(3, 3, 3), widths=(64, 128, 256), num_classes=10)
    register_model(f"resnext29_{_name}", ResNet, **_net, cardinality=_groups, width_per_group=_width)
