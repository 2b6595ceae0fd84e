"""Networks of other repositories in PyTorch, written from their papers under the names that those repositories have.

`write` makes tests/fixtures/weights: `python -m tests.peers.freeze weights`.
"""

import argparse
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import parity
from tests.helpers.weights import FOLDER, KINDS
from tests.peers import torch_nets


class CifarBlock(nn.Module):
    """A basic block or bottleneck as in akamaster's and kuangliu's CIFAR repositories."""

    def __init__(self, inputs: int, width: int, stride: int, option: str, expansion: int = 1):
        super().__init__()
        outputs = width * expansion
        sizes = [(width, 3, stride), (width, 3, 1)] if expansion == 1 else [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)]
        self.depth, before = len(sizes), inputs
        for i, (features, side, step) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(before, features, side, step, side // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(features))
            before = features
        self.stride, self.missing, self.shortcut = stride, outputs - inputs, nn.Sequential()
        if option == "B" and (stride > 1 or self.missing):
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.depth else y
        if len(self.shortcut) or not self.missing:
            return F.relu(y + self.shortcut(x))
        half = self.missing // 2  # option A with zeros on both sides of the channels
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half)))


class CifarNetwork(nn.Module):
    """akamaster's network, with option B too, and kuangliu's, whose four stages are ImageNet's."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], option: str = "A", expansion: int = 1, classes: int = 10):
        super().__init__()
        channels = widths[0]
        self.conv1, self.bn1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.stages = len(widths)
        for stage, (width, number) in enumerate(zip(widths, blocks), 1):
            made = []
            for i in range(number):
                made.append(CifarBlock(channels, width, 2 if stage > 1 and i == 0 else 1, option, expansion))
                channels = width * expansion
            setattr(self, f"layer{stage}", nn.Sequential(*made))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean(dim=(2, 3)))


def _sequence(prefix: str, **layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict({prefix + name: layer for name, layer in layers.items()}))


class ReleasedBAM(nn.Module):
    """The product of a channel and a spatial branch, with the names of the authors' code."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = channels // 16

        def conv(outputs: int, side: int) -> nn.Module:
            far = 4 if side == 3 else 1
            return nn.Conv2d(hidden, outputs, side, padding=far * (side // 2), dilation=far)

        self.channel_att, self.spatial_att = nn.Module(), nn.Module()
        self.channel_att.gate_c = _sequence(
            "gate_c_",
            fc_0=nn.Linear(channels, hidden),
            bn_1=nn.BatchNorm1d(hidden),
            relu_1=nn.ReLU(),
            fc_final=nn.Linear(hidden, channels),
        )
        self.spatial_att.gate_s = _sequence(
            "gate_s_",
            conv_reduce0=nn.Conv2d(channels, hidden, 1),
            bn_reduce0=nn.BatchNorm2d(hidden),
            relu_reduce0=nn.ReLU(),
            conv_di_0=conv(hidden, 3),
            bn_di_0=nn.BatchNorm2d(hidden),
            relu_di_0=nn.ReLU(),
            conv_di_1=conv(hidden, 3),
            bn_di_1=nn.BatchNorm2d(hidden),
            relu_di_1=nn.ReLU(),
            conv_final=conv(1, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channel = self.channel_att.gate_c(x.mean(dim=(2, 3)))[:, :, None, None]
        return x * (1 + torch.sigmoid(channel * self.spatial_att.gate_s(x)))


class ReleasedCBAM(nn.Module):
    """A channel gate, then a spatial gate, with the names of the authors' code."""

    def __init__(self, channels: int):
        super().__init__()
        self.ChannelGate, self.SpatialGate = nn.Module(), nn.Module()
        hidden = channels // 16
        layers = nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        self.ChannelGate.mlp = nn.Sequential(*layers)
        self.SpatialGate.spatial = nn.Module()
        self.SpatialGate.spatial.conv, self.SpatialGate.spatial.bn = (
            nn.Conv2d(2, 1, 7, padding=3, bias=False),
            nn.BatchNorm2d(1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.sigmoid(sum(self.ChannelGate.mlp(y) for y in (x.mean((2, 3)), x.amax((2, 3)))))[:, :, None, None]
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.SpatialGate.spatial.bn(self.SpatialGate.spatial.conv(pooled)))


def make_released(attention: str, widths: Sequence[int]) -> nn.Module:
    """The backbone with one basic block a stage, and "bam" after all stages but the last, or "cbam" in every block."""
    net = torch_nets.Network(
        dict(stem="imagenet", block="basic", widths=widths, stage_sizes=(1,) * len(widths), num_classes=7), ()
    )
    for stage, width in enumerate(widths, 1):
        if attention == "cbam":
            block = getattr(net, f"layer{stage}")[0]
            block.cbam = ReleasedCBAM(width)
            block.bn2.register_forward_hook(lambda _, __, y, gate=block.cbam: gate(y))
        elif stage < len(widths):
            gate = ReleasedBAM(width)
            setattr(net, f"bam{stage}", gate)
    return net


def fill_at_random(net: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and statistic a value that hides no mistake."""
    random = np.random.RandomState(seed)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            positive = name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight"))
            scale = 1 / np.sqrt(max(1, tensor[:1].numel())) if tensor.ndim > 1 else 0.3
            value = random.uniform(0.5, 2, tensor.shape) if positive else scale * random.standard_normal(tensor.shape)
            tensor.copy_(torch.from_numpy(np.asarray(value)))
    return net.eval()


def make_timm(name: str) -> nn.Module:
    """timm's network with one block a stage and the fields of `KINDS`."""
    return timm.create_model(name, layers=(1, 1, 1, 1), **KINDS[name]["theirs"])


def compute_logits(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """[B, K] float32 of a network in evaluation."""
    with torch.no_grad():
        return net.double()(torch_nets.nchw(images)).float().numpy()


def write() -> None:
    """Writes tests/fixtures/weights: files as training code leaves them, logits, and names and shapes of timm's networks."""
    FOLDER.mkdir(exist_ok=True)
    images = parity.images(0, 16, 16, batch=2)
    cifar = fill_at_random(CifarNetwork((4, 8, 16), (1, 1, 1)))
    state = OrderedDict((f"module.{name}", tensor) for name, tensor in cifar.state_dict().items())
    torch.save({"state_dict": state, "best_prec1": 91.7}, FOLDER / "akamaster.th", _use_new_zipfile_serialization=False)

    fields = dict(stem="imagenet", block="basic", widths=(4, 8), stage_sizes=(1, 1), num_classes=5)
    half = fill_at_random(torch_nets.Network(fields, ())).half()
    ema = {name: torch.zeros_like(tensor) for name, tensor in half.state_dict().items()}
    args = argparse.Namespace(lr=0.1, seed=np.int64(3))
    shared = {
        "epoch": 90,
        "args": args,
        "scheduler": {1, 2},
        "model": half.state_dict(),
        "model_ema": {"fc.bias": ema["fc.bias"]},
    }
    torch.save(shared, FOLDER / "training.pth")

    logits = {"akamaster": compute_logits(cifar, images), "training": compute_logits(half, images)}
    np.savez(FOLDER / "logits.npz", **logits)
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "base": base,
        "view": base[:, 1:].transpose(0, 2),
        "bfloat16": torch.tensor([1.5, -2.0]).bfloat16(),
        "int64": torch.tensor(3),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "expanded": torch.ones(1).expand(5),
        "parameter": nn.Parameter(torch.ones(2, 2).double()),
    }
    torch.save(tensors, FOLDER / "tensors.pt")
    torch.save(tensors, FOLDER / "tensors_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 3), FOLDER / "object.pt")

    lines = []
    for name in KINDS:
        state = make_timm(name).state_dict()
        kept = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
        lines += [name, *(" ".join([f"  {key}", *map(str, tensor.shape)]) for key, tensor in sorted(kept.items()))]
    (FOLDER / "timm_names.txt").write_text("\n".join([*lines, ""]))
