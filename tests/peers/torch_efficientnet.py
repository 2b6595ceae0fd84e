"""timm's EfficientNet, with fewer filters and blocks, and the table between its names and ours."""

import re
from collections.abc import Mapping
from typing import Any

from timm.models import efficientnet
from torch import nn

from tests.helpers import parity, parity_efficientnet
from tests.peers import torch_nets

# timm counts stages and blocks from 0; its first stage has no 1x1 before the depthwise convolution.
_BLOCK = r"^blocks\.(\d)\.(\d+)\."
_FIRST = r"^blocks\.(0)\.(\d+)\."
NAMES = (
    (r"^conv_(stem|head)$", r"\1_conv"),
    (r"^bn1$", "stem_norm"),
    (r"^bn2$", "head_norm"),
    (r"^classifier$", "head"),
    (_FIRST + "bn1$", r"stage\1_block\2/depthwise_norm"),
    (_FIRST + "conv_pw$", r"stage\1_block\2/project_conv"),
    (_FIRST + "bn2$", r"stage\1_block\2/project_norm"),
    (_BLOCK + "conv_pw$", r"stage\1_block\2/expand_conv"),
    (_BLOCK + "bn1$", r"stage\1_block\2/expand_norm"),
    (_BLOCK + "conv_dw$", r"stage\1_block\2/depthwise_conv"),
    (_BLOCK + "bn2$", r"stage\1_block\2/depthwise_norm"),
    (_BLOCK + r"se\.conv_(reduce|expand)$", r"stage\1_block\2/gate/\3"),
    (_BLOCK + "conv_pwl$", r"stage\1_block\2/project_conv"),
    (_BLOCK + "bn3$", r"stage\1_block\2/project_norm"),
)


def our_paths(net: nn.Module) -> dict[str, str]:
    """{state-dict name: our path}."""
    paths = {}
    for name, tensor in net.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked":
            pattern, replacement = next(pair for pair in NAMES if re.match(pair[0], module))
            path = re.sub(r"(stage|block)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}", re.sub(pattern, replacement, module))
            kind = "bias" if leaf == "bias" else "scale" if tensor.ndim == 1 else "kernel"
            paths[name] = f"{path}/{torch_nets.STATISTICS.get(leaf, kind)}"
    return paths


def build(fields: Mapping[str, Any]) -> nn.Module:
    """timm's network with our fields."""
    fields = dict(fields)
    make = efficientnet._gen_efficientnet_lite if fields.pop("lite", False) else efficientnet._gen_efficientnet
    more = {"pad_type": "same"} if fields.pop("padding", "") == "tensorflow" else {}
    momentum = 1 - fields.pop("norm_momentum", 0.9)
    return make(
        "efficientnet_b0",
        channel_multiplier=fields.pop("width"),
        depth_multiplier=fields.pop("depth"),
        bn_eps=fields.pop("norm_epsilon", 1e-5),
        bn_momentum=momentum,
        **more,
        **fields,
    )


def run(case: parity_efficientnet.Case) -> tuple[parity.Results, float]:
    """As `torch_nets.run`."""
    net = build(case.network)
    return torch_nets.run(case, net=net, paths=our_paths(net))
