"""timm's ConvNeXt, the isotropic one made of timm's blocks, and the steps of the roadmap written from the paper, in PyTorch."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import nn
from torch.nn import functional as F

from attention_jax.models import convnext as models
from tests.helpers import parity, parity_convnext
from tests.peers import torch_layouts, torch_nets

# Module of a `Roadmap` -> path in our tree; both count from 0.
NAMES = (
    (r"^stem\.0$", "stem_conv"),
    (r"^stem\.1$", "stem_norm"),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.(conv\d|norm\d|shortcut_conv|shortcut_norm)$", r"stage\1_block\2/\3"),
    (r"^stages\.(\d+)\.(conv|norm)$", r"downsample\1_\2"),
    (r"^head\.norm$", "head_norm"),
    (r"^head\.fc$", "head"),
)
_LEAVES = {"running_mean": "mean", "running_var": "var", "bias": "bias"}


def our_paths(net: nn.Module) -> dict[str, str]:
    """{state-dict name: our path} of a `Roadmap`."""
    paths = {}
    for name, tensor in net.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked":
            pattern, replacement = next(pair for pair in NAMES if re.match(pair[0], module))
            path = re.sub(r"(stage|block|downsample)(\d+)", _from_one, re.sub(pattern, replacement, module))
            paths[name] = f"{path}/{_LEAVES.get(leaf) or ('scale' if tensor.ndim == 1 else 'kernel')}"
    return paths


def _from_one(match: re.Match) -> str:
    return f"{match[1]}{int(match[2]) + 1}"


class Isotropic(nn.Module):
    """One stage behind patches, with timm's blocks."""

    def __init__(self, fields: Mapping[str, Any]):
        super().__init__()
        (width,), (blocks,), patch = fields["widths"], fields["stage_sizes"], fields["patch_size"]
        self.stem = nn.Sequential(nn.Conv2d(3, width, patch, patch))
        stage = nn.Module()
        stage.blocks = nn.Sequential(*(ConvNeXtBlock(width, ls_init_value=fields["layer_scale"]) for _ in range(blocks)))
        self.stages = nn.ModuleList([stage])
        self.head = nn.Module()
        self.head.norm, self.head.fc = nn.LayerNorm(width, 1e-6), nn.Linear(width, fields["num_classes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages[0].blocks(self.stem(x))
        return self.head.fc(self.head.norm(x.mean(dim=(2, 3))))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm(fields: Mapping[str, Any], channels: int) -> nn.Module:
    return ChannelNorm(channels, 1e-6) if fields.get("norm") == "layer" else nn.BatchNorm2d(channels)


class Step(nn.Module):
    """A block of the roadmap: Figure 3, with its own activation and normalisation places."""

    def __init__(self, inputs: int, width: int, stride: int, fields: Mapping[str, Any]):
        super().__init__()
        k, kind, bias = fields.get("kernel_size", 3), fields.get("block", "bottleneck"), fields.get("norm") == "layer"
        shapes = {  # of each layer: in, out, kernel, stride
            "bottleneck": ((inputs, width, 1, 1), (width, width, k, stride), (width, 4 * width, 1, 1)),
            "inverted": ((inputs, 4 * width, 1, 1), (4 * width, 4 * width, k, stride), (4 * width, width, 1, 1)),
            "depthwise_first": ((inputs, inputs, k, stride), (inputs, 4 * width, 1, 1), (4 * width, width, 1, 1)),
        }[kind]
        for i, (before, after, size, step) in enumerate(shapes, 1):
            groups = before if size > 1 and fields.get("depthwise") else 1
            setattr(self, f"conv{i}", nn.Conv2d(before, after, size, step, size // 2, groups=groups, bias=bias))
            setattr(self, f"norm{i}", _norm(fields, after) if i == 1 or not fields.get("fewer_norms") else nn.Identity())
        self.outputs = shapes[-1][1]
        activation = nn.GELU if fields.get("activation") == "gelu" else nn.ReLU
        few = fields.get("fewer_activations")
        self.act1, self.act2, self.act3 = nn.Identity() if few else activation(), activation(), nn.Identity()
        if not few:
            self.act3 = activation()
        if stride > 1 or inputs != self.outputs:
            self.shortcut_conv = nn.Conv2d(inputs, self.outputs, 1, stride, bias=False)
            self.shortcut_norm = _norm(fields, self.outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.act2(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return self.act3(y + (self.shortcut_norm(self.shortcut_conv(x)) if hasattr(self, "shortcut_conv") else x))


class Roadmap(nn.Module):
    """Stem, stages, pooling, classifier."""

    def __init__(self, fields: Mapping[str, Any]):
        super().__init__()
        channels, down = fields["width"], fields.get("downsampling", "block")
        if fields.get("stem") == "patchify":
            self.stem = nn.Sequential(nn.Conv2d(3, channels, 4, 4))
        else:
            first = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
            self.stem = nn.Sequential(first, _norm(fields, channels), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList()
        for i, blocks in enumerate(fields["stage_sizes"]):
            stage, width, made = nn.Module(), fields["width"] * 2**i, []
            stride = 2 if i and down == "block" else 1
            if i and down != "block":
                stage.conv = nn.Conv2d(channels, width, 2, 2)
                stage.norm = _norm(fields, width) if down == "separate_norm" else nn.Identity()
                channels = width
            for j in range(blocks):
                made.append(Step(channels, width, stride if j == 0 else 1, fields))
                channels = made[-1].outputs
            stage.blocks = nn.Sequential(*made)
            self.stages.append(stage)
        self.head = nn.Module()
        self.head.norm = nn.LayerNorm(channels, 1e-6) if fields.get("final_norm") else nn.Identity()
        self.head.fc = nn.Linear(channels, fields["num_classes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            if hasattr(stage, "conv"):
                x = stage.norm(stage.conv(x))
            x = stage.blocks(x)
        return self.head.fc(self.head.norm(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def build(case: parity_convnext.Case) -> nn.Module:
    """The network of a case."""
    fields = case.network
    if case.is_roadmap:
        return Roadmap(fields)
    if "patch_size" in fields:
        return Isotropic(fields)
    return ConvNeXt(depths=fields["stage_sizes"], dims=fields["widths"], num_classes=fields["num_classes"])


def run(case: parity_convnext.Case) -> tuple[parity.Results, float]:
    """As `torch_nets.run`."""
    net = build(case)
    paths = our_paths(net) if case.is_roadmap else torch_layouts.our_paths(models.ConvNeXt(**case.network))
    return torch_nets.run(case, net=net, paths=paths)
