"""Writes tests/fixtures/layout_names.txt: `python -m tests.peers.freeze_names` in the repository's root.

It has the names and shapes of small networks of timm, torchvision and efficientnet_pytorch, a section for each. Nothing of
attention_jax is imported, so that the file cannot be made to agree with it. The sections of the official repositories, which
no package has, were typed from their code and are kept as they are.
"""

from collections.abc import Callable

import torch
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite_pytorch.utils import BlockDecoder, GlobalParams
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from torchvision.models import convnext as torchvision_convnext
from torchvision.models import efficientnet as torchvision_efficientnet
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from tests.helpers.parity import CLASSES, FIXTURES
from tests.helpers.parity_vit import VITS
from tests.peers import torch_efficientnet, torch_vit

FILE = FIXTURES / "layout_names.txt"
DEPTHS, DIMS = (1, 1, 2, 1), (4, 8, 12, 16)


def _torchvision_convnext() -> nn.Module:
    settings = [
        torchvision_convnext.CNBlockConfig(width, after, depth)
        for width, after, depth in zip(DIMS, (*DIMS[1:], None), DEPTHS, strict=True)
    ]
    return torchvision_convnext.ConvNeXt(settings, num_classes=CLASSES)


def _torchvision_vit() -> nn.Module:
    return TorchvisionViT(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=64, num_classes=CLASSES
    )


def _torchvision_efficientnet() -> nn.Module:
    settings, last = torchvision_efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=0.3)
    return torchvision_efficientnet.EfficientNet(settings, 0.2, num_classes=CLASSES, last_channel=last)


def _efficientnet_pytorch(lite: bool) -> nn.Module:
    blocks = ["r1_k3_s11_e1_i32_o16", "r2_k3_s22_e6_i16_o24", "r2_k5_s22_e6_i24_o40", "r3_k3_s22_e6_i40_o80"]
    blocks += ["r3_k5_s11_e6_i80_o112", "r4_k5_s22_e6_i112_o192", "r1_k3_s11_e6_i192_o320"]
    width = 0.3 if lite else 0.25
    act = "relu6" if lite else "swish"
    params = GlobalParams(width, 0.3, 64, 0.2, CLASSES, 0.99, 1e-3, 0.2, 8, None, act, lite, False, not lite)
    return EfficientNet(BlockDecoder.decode([block + ("" if lite else "_se0.25") for block in blocks]), params)


def _torchvision_swin() -> nn.Module:
    sizes = dict(patch_size=[2, 2], window_size=[3, 3], embed_dim=8, depths=[2, 2], num_heads=[2, 4])
    return TorchvisionSwin(**sizes, num_classes=CLASSES)


def _swin() -> nn.Module:
    sizes = dict(img_size=(24, 12), patch_size=2, window_size=3, embed_dim=8, depths=(2, 2), num_heads=(2, 4))
    return SwinTransformer(**sizes, num_classes=CLASSES, always_partition=True)


MAKE: dict[str, Callable[[], nn.Module]] = {  # "layout case"
    "timm convnext": lambda: ConvNeXt(depths=DEPTHS, dims=DIMS, num_classes=CLASSES),
    "torchvision convnext": _torchvision_convnext,
    "timm vit": lambda: torch_vit.make_network(VITS["vit"]),
    "timm vit_mean": lambda: torch_vit.make_network(VITS["vit_mean"]),
    "timm deit_distilled": lambda: torch_vit.make_network(VITS["deit_distilled"]),
    "torchvision vit": _torchvision_vit,
    "timm swin": _swin,
    "torchvision swin": _torchvision_swin,
    "timm efficientnet": lambda: torch_efficientnet.build(dict(width=0.25, depth=0.3, num_classes=CLASSES)),
    "timm efficientnet_lite": lambda: torch_efficientnet.build(dict(width=0.3, depth=0.3, lite=True, num_classes=CLASSES)),
    "torchvision efficientnet": _torchvision_efficientnet,
    "efficientnet_pytorch efficientnet": lambda: _efficientnet_pytorch(lite=False),
    "efficientnet_pytorch efficientnet_lite": lambda: _efficientnet_pytorch(lite=True),
}


def freeze() -> str:
    """The sections of the packages, and those of the file for which there is none."""
    sections = {}
    for name, make in MAKE.items():
        with torch.device("meta"):
            state = make().state_dict()
        sections[name] = [" ".join([key, *map(str, tensor.shape)]) for key, tensor in state.items()]
    old = FILE.read_text("utf-8").split("[")[1:] if FILE.exists() else []
    typed = {title: body.split("\n")[:-1] for title, _, body in (part.partition("]\n") for part in old) if title not in MAKE}
    return "".join(
        f"[{name}]\n" + "".join(f"{line}\n" for line in lines if line) for name, lines in {**sections, **typed}.items()
    )


if __name__ == "__main__":
    FILE.write_text(freeze(), "utf-8")
