"""timm's EfficientNet, with fewer filters and blocks."""

from collections.abc import Mapping
from typing import Any

from timm.models import efficientnet
from torch import nn

from attention_jax.models.efficientnet import EfficientNet
from tests.helpers import parity, parity_efficientnet
from tests.peers import torch_layouts, torch_nets


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
    paths = torch_layouts.our_paths(EfficientNet(**case.network))
    return torch_nets.run(case, net=build(case.network), paths=paths)
