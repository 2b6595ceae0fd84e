"""timm's networks of each family, tiny, with our numbers in them, through the first steps of their recipes."""

from collections.abc import Callable

import numpy as np
import timm
import torch
from timm.layers import DropPath
from timm.models.convnext import ConvNeXt
from torch import nn

from attention_jax.models import convnext
from attention_jax.models.efficientnet import EfficientNet
from tests.helpers import parity
from tests.helpers.parity_recipes import SIDE, Family
from tests.helpers.parity_vit import ViTCase
from tests.peers import torch_efficientnet, torch_layouts, torch_nets, torch_training, torch_vit

OurArrays = Callable[[str, np.ndarray], dict[str, np.ndarray]]


def make_network(family: Family) -> tuple[nn.Module, OurArrays]:
    """timm's network with our numbers, in float64, and what names its arrays as ours."""
    fields = dict(family.fields)
    if family.config in ("deit", "swin"):
        case = ViTCase("vit" if family.config == "deit" else "swin", fields, (SIDE, SIDE))
        model = torch_vit.MAKE[case.kind](**case.network)
        net = torch_vit.fill(torch_vit.make_network(case), model, family.seed)
        for module in net.modules():
            if isinstance(module, DropPath):  # of Swin, 0.1 by default
                module.drop_prob = 0.0
        return net, torch_vit.make_our_arrays(net, model)
    if family.config == "resnet_rs":
        sizes = dict(layers=fields["stage_sizes"], channels=fields["widths"])
        net = timm.create_model("resnetrs50", num_classes=parity.CLASSES, **sizes)
        paths = torch_nets.our_paths(net)
    elif family.config == "efficientnet":
        tensorflow = dict(padding="tensorflow", norm_epsilon=1e-3, norm_momentum=0.99)
        net = torch_efficientnet.build({**fields, **tensorflow, "num_classes": parity.CLASSES})
        paths = torch_layouts.our_paths(EfficientNet(**fields, num_classes=parity.CLASSES))
    else:
        net = ConvNeXt(depths=fields["stage_sizes"], dims=fields["widths"], num_classes=parity.CLASSES)
        paths = torch_layouts.our_paths(convnext.ConvNeXt(**fields, num_classes=parity.CLASSES))
    torch_nets.fill(net.double(), family.seed, paths)
    return net, lambda name, value: {paths[name]: torch_nets.to_ours(paths[name], value)}


def follow(family: Family, dtype: torch.dtype = torch.float64) -> tuple[parity.Results, float]:
    """As `torch_training.follow`."""
    net, our_arrays = make_network(family)
    return torch_training.follow_network(family, net.to(dtype), our_arrays)
