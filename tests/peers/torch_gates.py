"""Gates in PyTorch, as their papers or official codes have them, and timm's own."""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# The layers of timm's gates -> ours; a third group is the number of a layer, after those of stage and block.
TIMM_LAYERS = {
    r"gather\.conv(\d)": r"gather_conv\3",
    r"gather\.norm(\d)": r"gather_norm\3",
    r"(?:mlp|mlp_add|mlp_scale)\.fc1": "reduce",
    r"(?:mlp|mlp_add|mlp_scale)\.fc2": "expand",
    r"(?:mlp_add|mlp_scale)\.norm": "norm",
    "conv_attn": "mask",
    "conv1": "reduce",
    "bn1": "norm",
    "conv_h": "rows",
    "conv_w": "columns",
    "fc": "expand",
    "t": "query",
    "p": "key",
    "g": "value",
    "z": "output",
    "norm": "norm",
}


class Squeeze(nn.Module):
    """x · sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, channels: int, reduction: int = 16, divisor: int = 1, use_bias: bool = True):
        super().__init__()
        hidden = channels // reduction
        if divisor > 1:  # the multiple of `divisor` nearest to it, at least one
            hidden = max(divisor, divisor * ((hidden + divisor // 2) // divisor))
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=use_bias)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=use_bias)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc2(self.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class SelfAttention(nn.Module):
    """x + gamma · output(softmax(QKᵀ) V), position by position."""

    def __init__(
        self,
        channels: int,
        reduction: int,
        value_reduction: int,
        project: bool = True,
        pool: int = 1,
        use_bias: bool = False,
    ):
        super().__init__()
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.query = nn.Conv2d(channels, channels // reduction, 1, bias=use_bias)
        self.key = nn.Conv2d(channels, channels // reduction, 1, bias=use_bias)
        self.value = nn.Conv2d(channels, channels // value_reduction, 1, bias=use_bias)
        if project:
            self.output = nn.Conv2d(channels // value_reduction, channels, 1, bias=use_bias)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.query(x).flatten(2), self.pool(self.key(x)).flatten(2), self.pool(self.value(x)).flatten(2)
        attended = []
        for j in range(query.shape[2]):  # beta_{j,i} of the paper
            beta = torch.softmax((query[:, :, j : j + 1] * key).sum(dim=1), dim=1)
            attended.append((beta[:, None] * value).sum(dim=2))
        y = torch.stack(attended, dim=2).unflatten(2, x.shape[2:])
        return x + self.gamma * (self.output(y) if hasattr(self, "output") else y)


class CBAM(nn.Module):
    """A channel gate of mean and maximum, then a spatial gate of mean and maximum."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.reduce, self.expand = nn.Linear(channels, channels // reduction), nn.Linear(channels // reduction, channels)
        self.relu = nn.ReLU()
        self.spatial_conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.spatial_norm = nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, most = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))
        gate = self.expand(self.relu(self.reduce(mean))) + self.expand(self.relu(self.reduce(most)))
        x = x * torch.sigmoid(gate)[:, :, None, None]
        maps = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.spatial_norm(self.spatial_conv(maps)))


class EfficientChannel(nn.Module):
    """x · sigmoid(conv over channels of the means)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.conv(x.mean(dim=(2, 3))[:, None]))[:, 0, :, None, None]


class GlobalContext(nn.Module):
    """x + W2 relu(LN(W1 Σ_j a_j x_j))."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.mask = nn.Linear(channels, 1)
        self.reduce, self.expand = nn.Linear(channels, channels // reduction), nn.Linear(channels // reduction, channels)
        self.norm, self.relu = nn.LayerNorm(channels // reduction), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = x.flatten(2).transpose(1, 2)
        context = (torch.softmax(self.mask(places), dim=1) * places).sum(dim=1)
        return x + self.expand(self.relu(self.norm(self.reduce(context))))[:, :, None, None]


def mended_timm() -> Any:
    """timm's GatherExcite, whose constructor in timm 1.0.31 passes the names of device and dtype as values and fails."""
    from timm.layers import gather_excite

    text = inspect.getsource(gather_excite).replace(", *dd", ", **dd")
    names: dict[str, Any] = {"__name__": gather_excite.__name__, "__package__": gather_excite.__package__}
    exec(text, names)
    return names["GatherExcite"]


def timm_gate(name: str, channels: int, **args: Any) -> nn.Module:
    """timm's module that computes what our gate `name` does with these arguments."""
    from timm.layers import create_attn

    hidden = dict(rd_channels=channels // args.get("reduction", 8))
    if name == "ge":
        conv, mlp = args.get("gather") == "conv", args.get("mlp", False)
        return mended_timm()(channels, extra_params=conv, extent=args.get("extent", 0), use_mlp=mlp, **hidden)
    if name == "nl":
        return create_attn(name, channels, use_scale=args.get("scaled", False), **hidden)
    if name == "coord" and "divisor" in args:  # timm's default is C / 24, two thirds of C / 16
        return create_attn(name, channels, rd_ratio=1.5 / args["reduction"], rd_divisor=args["divisor"])
    if name == "coord":
        return create_attn(name, channels, rd_channels=8, bias=True)
    return create_attn(name, channels, **hidden)
