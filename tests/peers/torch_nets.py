"""The same equations in PyTorch, written from the papers, and the table that carries weights across.

Layers are named as torchvision names them, so that one table also reads torchvision's and timm's own networks.
"""

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import parity
from tests.peers.torch_gates import CBAM, TIMM_LAYERS, EfficientChannel, GlobalContext, SelfAttention, Squeeze, timm_gate

# PyTorch module name -> path in our tree.
NAMES = (
    (r"^conv1$", "stem_conv"),
    (r"^bn1$", "stem_norm"),
    (r"^fc$", "head"),
    (r"^layer(\d)\.(\d+)\.conv(\d)$", r"stage\1_block\2/conv\3"),
    (r"^layer(\d)\.(\d+)\.bn(\d)$", r"stage\1_block\2/norm\3"),
    (r"^layer(\d)\.(\d+)\.se\.fc1$", r"stage\1_block\2/gate/reduce"),
    (r"^layer(\d)\.(\d+)\.se\.fc2$", r"stage\1_block\2/gate/expand"),
    (r"^layer(\d)\.(\d+)\.se\.conv$", r"stage\1_block\2/gate/conv"),
    (r"^layer(\d)\.(\d+)\.gate\.(\w+)$", r"stage\1_block\2/gate/\3"),
    *((rf"^layer(\d)\.(\d+)\.timm\.{theirs}$", rf"stage\1_block\2/gate/{ours}") for theirs, ours in TIMM_LAYERS.items()),
    (r"^bam(\d)\.channel\.(reduce|expand)$", r"stage\1_gate/channel_\2"),
    (r"^bam(\d)\.channel\.reduce_bn$", r"stage\1_gate/channel_reduce_norm"),
    (r"^bam(\d)\.channel\.bn$", r"stage\1_gate/channel_norm"),
    (r"^bam(\d)\.spatial\.(reduce|conv1|conv2|map)$", r"stage\1_gate/spatial_\2"),
    (r"^bam(\d)\.spatial\.(reduce|conv1|conv2)_bn$", r"stage\1_gate/spatial_\2_norm"),
    (r"^bam(\d)\.spatial\.bn$", r"stage\1_gate/spatial_norm"),
    (r"^attention(\d)\.(\w+)$", r"stage\1_gate/\2"),
    (r"^attention(\d)$", r"stage\1_gate"),
)
# The stem of three 3x3, whose last normalisation timm calls bn1, and the fourth 3x3, which it calls maxpool.
DEEP = {
    "conv1.0": "stem_conv1",
    "conv1.1": "stem_norm1",
    "conv1.3": "stem_conv2",
    "conv1.4": "stem_norm2",
    "conv1.6": "stem_conv3",
    "bn1": "stem_norm3",
    "maxpool.0": "stem_conv4",
    "maxpool.1": "stem_norm4",
}
STATISTICS = {"running_mean": "mean", "running_var": "var"}


def our_paths(net: nn.Module) -> dict[str, str]:
    """{state-dict name: our path} without the batch counters; blocks count from 0 there and from 1 here."""
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    deep = any(name.startswith("conv1.0.") for name in state)
    return {name: _our_path(name, state, deep) for name in state}


def _our_path(name: str, state: Mapping[str, torch.Tensor], deep: bool) -> str:
    module, _, leaf = name.rpartition(".")
    projection = re.match(r"^layer(\d)\.(\d+)\.downsample\.\d$", module)
    if deep and module in DEEP:
        path = DEEP[module]
    elif projection:  # pooling may come before it, which moves the numbers
        weight = state.get(f"{module}.weight")
        kind = "conv" if weight is not None and weight.ndim == 4 else "norm"
        path = f"stage{projection[1]}_block{projection[2]}/shortcut_{kind}"
    else:
        for pattern, replacement in NAMES:
            if re.match(pattern, module):
                path = re.sub(pattern, replacement, module)
                break
        else:
            raise KeyError(f"nothing of ours is called {name}")
    path = re.sub(r"_block(\d+)", lambda match: f"_block{int(match[1]) + 1}", path)
    if leaf == "weight":
        leaf = "scale" if state[name].ndim == 1 else "kernel"
    return f"{path}/{STATISTICS.get(leaf, leaf)}"


_TO_OURS = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}
_FROM_OURS = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}


def to_ours(path: str, array: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, OIW -> WIO, [out, in] -> [in, out]; a 1x1 convolution on pooled features is a matrix here."""
    if array.ndim == 4 and re.search(r"gate/(reduce|expand|mask|rows|columns)/kernel$", path):
        array = array[:, :, 0, 0]
    return array.transpose(_TO_OURS.get(array.ndim, range(array.ndim)))


def from_ours(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `to_ours` for a tensor of `shape`."""
    return array.transpose(_FROM_OURS.get(array.ndim, range(array.ndim))).reshape(shape)


def fill(net: nn.Module, seed: int, paths: Mapping[str, str] | None = None) -> nn.Module:
    """Gives every weight and running statistic of `net` the value that `parity.draw` has for its path, as in `our_paths`."""
    state, tensors = {}, net.state_dict()
    for name, path in (paths or our_paths(net)).items():
        tensor = tensors[name]
        value = np.asarray(parity.draw(seed, path, to_ours(path, np.empty(tensor.shape)).shape))
        state[name] = torch.from_numpy(np.ascontiguousarray(from_ours(value, tensor.shape))).to(tensor.dtype)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    return net


class Bottleneck(nn.Module):
    """F + F · sigmoid(A), where A combines a channel and a spatial branch."""

    def __init__(
        self,
        channels: int,
        dilation: int,
        reduction: int,
        combine: str = "sum",
        batch_norm: str = "paper",
        channel: bool = True,
        spatial: bool = True,
    ):
        super().__init__()
        self.combine = combine
        self.margin = float("inf")  # of the maximum, between its two candidates
        hidden = channels // reduction
        code = batch_norm == "code"

        if channel:
            layers = [("reduce", nn.Linear(channels, hidden))]
            layers += [("reduce_bn", nn.BatchNorm1d(hidden))] if code else []
            layers += [("relu", nn.ReLU()), ("expand", nn.Linear(hidden, channels))]
            layers += [] if code else [("bn", nn.BatchNorm1d(channels))]
            self.channel = nn.Sequential(OrderedDict(layers))
        if spatial:
            layers = [("reduce", nn.Conv2d(channels, hidden, 1))]
            layers += [("reduce_bn", nn.BatchNorm2d(hidden))] if code else []
            layers += [("reduce_relu", nn.ReLU())]
            for name in ("conv1", "conv2"):
                layers += [(name, nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation))]
                layers += [(f"{name}_bn", nn.BatchNorm2d(hidden))] if code else []
                layers += [(f"{name}_relu", nn.ReLU())]
            layers += [("map", nn.Conv2d(hidden, 1, 1))]
            layers += [] if code else [("bn", nn.BatchNorm2d(1))]
            self.spatial = nn.Sequential(OrderedDict(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        of_channels = of_places = None
        if hasattr(self, "channel"):
            of_channels = self.channel(x.mean(dim=(2, 3)))[:, :, None, None].expand_as(x)
        if hasattr(self, "spatial"):
            of_places = self.spatial(x).expand_as(x)
        if of_channels is None or of_places is None:
            both = of_places if of_channels is None else of_channels
        elif self.combine == "sum":
            both = of_channels + of_places
        elif self.combine == "product":
            both = of_channels * of_places
        else:
            both = torch.where(of_channels > of_places, of_channels, of_places)
            self.margin = min(self.margin, (of_channels - of_places).abs().min().item())
        return x + x * torch.sigmoid(both)


class Shift(nn.Module):
    """The bias of a convolution without normalisation."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias[:, None, None]


def normalisation(fields: Mapping[str, Any], channels: int) -> nn.Module:
    """The layer after a convolution; tiny networks have groups of two channels."""
    kind = fields.get("norm", "batch")
    if kind == "group":
        return nn.GroupNorm(channels // 2, channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else Shift(channels)


class Residual(nn.Module):
    """relu(gate(body(x)) + shortcut(x)), or without the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, stage: int, fields: Mapping[str, Any]):
        super().__init__()
        if fields["block"] == "basic":
            self.outputs = width
            body = [(width, 3, stride), (width, 3, 1)]
            groups = 1
        else:
            self.outputs = 4 * width
            early = fields.get("stride_at", "3x3") == "1x1"
            groups = fields.get("cardinality", 1)
            inner = int(width * (fields.get("width_per_group", 64) / 64.0)) * groups
            narrow = inner // fields.get("first_divisor", 1)
            body = [(narrow, 1, stride if early else 1), (inner, 3, 1 if early else stride), (4 * width, 1, 1)]
        self.depth = len(body)
        previous = inputs
        for i, (features, kernel, step) in enumerate(body, 1):
            shared = groups if kernel == 3 else 1
            setattr(self, f"conv{i}", nn.Conv2d(previous, features, kernel, step, kernel // 2, groups=shared, bias=False))
            setattr(self, f"bn{i}", normalisation(fields, features))
            setattr(self, f"relu{i}", nn.ReLU())
            previous = features
        if fields.get("gate") == "se":
            self.se = Squeeze(self.outputs, **fields["gate_args"])
        elif fields.get("gate") in ("ese", "ge", "coord", "gca", "nl") or fields.get("gate_args", {}).get("fuse"):
            if stage in fields.get("gate_stages", (1, 2)):
                self.timm = timm_gate(fields["gate"], self.outputs, **fields.get("gate_args", {}))
        elif fields.get("gate") in BLOCK_GATES and stage in fields.get("gate_stages", (1, 2)):
            self.gate = BLOCK_GATES[fields["gate"]](self.outputs, **fields.get("gate_args", {}))
        self.stride = stride
        self.residual = fields.get("residual", True)
        self.changes = stride != 1 or inputs != self.outputs
        self.pads = fields.get("shortcut", "B").startswith("A")
        self.centred = fields.get("shortcut") == "A-centred"
        if self.residual and self.changes and not self.pads:
            side = 3 if fields.get("shortcut") == "B-3x3" and stride == 2 else 1
            project = nn.Conv2d(inputs, self.outputs, side, stride, side // 2, bias=False)
            layers = [project, normalisation(fields, self.outputs)]
            if fields.get("shortcut", "B") == "D":
                pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
                layers = [pool, nn.Conv2d(inputs, self.outputs, 1, bias=False), normalisation(fields, self.outputs)]
            self.downsample = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for i in range(1, self.depth):
            y = getattr(self, f"relu{i}")(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y)))
        y = getattr(self, f"bn{self.depth}")(getattr(self, f"conv{self.depth}")(y))
        for gate in ("se", "gate", "timm"):
            y = getattr(self, gate)(y) if hasattr(self, gate) else y
        if self.residual:
            if not self.changes:
                y = y + x
            elif self.pads:
                kept = x[:, :, :: self.stride, :: self.stride]
                missing = self.outputs - x.shape[1]
                before = missing // 2 if self.centred else 0
                y = y + F.pad(kept, (0, 0, 0, 0, before, missing - before))
            else:
                y = y + self.downsample(x)
        return getattr(self, f"relu{self.depth}")(y)


# Where the derivatives of activations jump.
KINKS = {nn.ReLU: (0.0,), nn.ReLU6: (0.0, 6.0), nn.Hardswish: (-3.0, 3.0), nn.Hardsigmoid: (-3.0, 3.0)}
BLOCK_GATES = {"cbam": CBAM, "eca": EfficientChannel, "gc": GlobalContext}


class Network(nn.Module):
    """Stem, stages with a BAM between them, global average, classifier."""

    def __init__(self, fields: Mapping[str, Any], dilations: tuple[int, ...]):
        super().__init__()
        widths, blocks = fields["widths"], fields["stage_sizes"]
        if fields["stem"] == "imagenet":
            channels = 64
            self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        elif fields["stem"] in ("deep", "wide_deep", "rs"):
            channels = 128 if fields["stem"] == "wide_deep" else 64
            layers, half = [], channels // 2
            for inputs, outputs, step in ((3, half, 2), (half, half, 1), (half, channels, 1)):
                layers += [nn.Conv2d(inputs, outputs, 3, step, 1, bias=False), normalisation(fields, outputs), nn.ReLU()]
            self.conv1 = nn.Sequential(*layers[:-2])
            last = [nn.Conv2d(64, 64, 3, 2, 1, bias=False), normalisation(fields, 64), nn.ReLU()]
            self.maxpool = nn.MaxPool2d(3, 2, 1) if fields["stem"] != "rs" else nn.Sequential(*last)
        else:
            channels = widths[0]
            self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1, self.relu = normalisation(fields, channels), nn.ReLU()
        self.stages = len(widths)
        for stage in range(1, self.stages + 1):
            made = []
            for i in range(blocks[stage - 1]):
                made.append(Residual(channels, widths[stage - 1], 2 if stage > 1 and i == 0 else 1, stage, fields))
                channels = made[-1].outputs
            setattr(self, f"layer{stage}", nn.Sequential(*made))
            if fields.get("gate") == "bam" and stage < self.stages:
                args = dict(fields["gate_args"])
                args.pop("fit_dilation", None)
                args["dilation"] = dilations[stage - 1] if dilations else 1
                setattr(self, f"bam{stage}", Bottleneck(channels, **args))
            if fields.get("gate") == "self_attention" and stage in fields["gate_stages"]:
                setattr(self, f"attention{stage}", SelfAttention(channels, **fields["gate_args"]))
        self.fc = nn.Linear(channels, fields["num_classes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
            for gate in ("bam", "attention"):
                if hasattr(self, f"{gate}{stage}"):
                    x = getattr(self, f"{gate}{stage}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def nchw(images: np.ndarray) -> torch.Tensor:
    """[B, H, W, C] -> float64 [B, C, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).double()


@contextlib.contextmanager
def _watched(net: nn.Module, kinds: tuple[type, ...]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Collects the inputs of every module of `kinds`."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        # Before the call, and a copy: timm's activations write into their input.
        module.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0].detach().clone()))
        for name, module in net.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def run(
    case: parity.Case, biased: bool = False, net: nn.Module | None = None, paths: Mapping[str, str] | None = None
) -> tuple[parity.Results, float]:
    """What `parity.check` compares, in float64, and how near any ReLU or maximum came to its kink.

    With `biased` the result has also the running variances kept by n rather than n - 1, from the inputs of each layer.
    """
    net = net or Network(case.network, case.dilations)
    paths = paths or our_paths(net)
    fill(net.double(), case.seed, paths)
    images = nchw(parity.images(case.seed, *case.image))
    labels = torch.from_numpy(parity.labels(case.seed)).long()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    results: parity.Results = {}
    nearest = float("inf")
    for prefix in ("", "train_"):
        net.train(prefix == "train_")
        net.zero_grad()
        with _watched(net, tuple(KINKS)) as into_relu, _watched(net, (nn.BatchNorm1d, nn.BatchNorm2d)) as into_norm:
            logits = net(images)
        for name, inputs in into_relu.items():
            kinks = KINKS[type(net.get_submodule(name))]
            nearest = min([nearest, *((x - kink).abs().min().item() for x in inputs for kink in kinks)])
        F.cross_entropy(logits, labels, reduction="sum", label_smoothing=case.label_smoothing).backward()
        results[f"{prefix}logits"] = {"": logits.detach().numpy()}
        gradients = {}
        for name, parameter in net.named_parameters():
            path = paths[name]
            gradients[path] = parity.compress(path, to_ours(path, parameter.grad.numpy()))
        results[f"{prefix}gradients"] = gradients
    nearest = min([nearest, *(module.margin for module in net.modules() if isinstance(module, Bottleneck))])
    results["statistics"] = {paths[name]: tensor.numpy() for name, tensor in net.state_dict().items() if "running" in name}
    if biased:
        results["biased_statistics"] = {}
        for name, (x,) in into_norm.items():
            old = before[f"{name}.running_var"]
            new = x.transpose(0, 1).reshape(x.shape[1], -1).var(dim=1, correction=0)
            results["biased_statistics"][paths[f"{name}.running_var"]] = (0.9 * old + 0.1 * new).numpy()
    return results, nearest


def imagenet(name: str) -> nn.Module:
    """torchvision's network of that name, or timm's where torchvision has none, in evaluation mode."""
    import timm
    import torchvision

    make = getattr(torchvision.models, name, None)
    net = make(weights=None) if make else timm.create_model(name, pretrained=False)
    return net.eval()


def imagenet_logits(name: str) -> np.ndarray:
    """[2, 1000] of a published network filled by `parity.draw`, in float64."""
    net = fill(imagenet(name).double(), 0)
    with torch.no_grad():
        return net(nchw(parity.images(0, *parity.IMAGENET_IMAGE, batch=2))).numpy()
