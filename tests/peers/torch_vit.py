"""timm's and torchvision's Vision and Swin Transformers with our numbers in them, and the table between the names."""

import re
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from tests.helpers import parity
from tests.helpers.parity_vit import ViTCase
from tests.peers.torch_nets import nchw, to_ours

# Name in timm or torchvision -> path in our tree; stages and blocks count from 0 there and from 1 here.
NAMES = (
    (r"^(cls_token|dist_token|pos_embed)$", r"\1"),
    (r"^patch_embed\.proj\.|^features\.0\.0\.", "patches."),
    (r"^patch_embed\.norm\.|^features\.0\.2\.", "patches_norm."),
    (r"^head_dist\.", "head_distillation."),
    (r"^head\.fc\.", "head."),
    (r"^blocks\.(\d+)\.", lambda m: f"block{int(m[1]) + 1}/"),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.", lambda m: f"stage{int(m[1]) + 1}_block{int(m[2]) + 1}/"),
    (r"^layers\.(\d+)\.downsample\.(norm|reduction)\.", lambda m: _merge(int(m[1]) + 1, m[2])),
    (r"^features\.(\d*[13579])\.(\d+)\.", lambda m: f"stage{(int(m[1]) + 1) // 2}_block{int(m[2]) + 1}/"),
    (r"^features\.(\d*[2468])\.(norm|reduction)\.", lambda m: _merge(int(m[1]) // 2 + 1, m[2])),
    (r"(?<=/)attn\.relative_position_bias_table$", "relative_bias"),
    (r"(?<=/)attn\.", "attention/"),
    (r"(?<=/)mlp\.(fc1|0)\.", "mlp/hidden."),
    (r"(?<=/)mlp\.(fc2|3)\.", "mlp/output."),
    (r"(?<=/)proj\.", "output."),
)
LEAVES = {"cls_token": "class_token", "dist_token": "distillation_token", "pos_embed": "positions"}


def _merge(stage: int, part: str) -> str:
    return f"stage{stage}_merge{'_norm' if part == 'norm' else ''}."


def our_arrays(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """{our path: our array} of one of their parameters, or of its gradient: queries, keys and values are one array there."""
    path = name
    for pattern, replacement in NAMES:
        path = re.sub(pattern, replacement, path)
    module, _, leaf = path.replace(".", "/").rpartition("/")
    if leaf == "weight":
        leaf = "scale" if array.ndim == 1 else "kernel"
    if name in LEAVES:
        return {LEAVES[name]: array[0] if name == "pos_embed" else array[0, 0]}
    if module.endswith("qkv"):
        kinds = zip(("query", "key", "value"), np.split(array, 3), strict=True)
        return {f"{module.removesuffix('qkv')}{kind}/{leaf}": to_ours(leaf, part) for kind, part in kinds}
    return {f"{module}/{leaf}".lstrip("/"): array if leaf == "relative_bias" else to_ours(leaf, array)}


def fill(net: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Gives every parameter the value that `parity.draw` has for its path."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            # Where each of our entries lies in their array: numbers it, and carries the numbers across.
            places = our_arrays(name, np.arange(parameter.numel()).reshape(parameter.shape))
            flat = np.empty(parameter.numel())
            for path, place in places.items():
                flat[place.ravel()] = parity.draw(seed, path, place.shape).ravel()
            parameter.copy_(torch.from_numpy(flat.reshape(parameter.shape)))
    return net.double().eval()


def make_network(case: ViTCase) -> torch.nn.Module:
    """The same network in timm or torchvision."""
    f = case.network
    shared: dict[str, Any] = dict(num_classes=f["num_classes"])
    if case.kind == "vit":
        make = VisionTransformerDistilled if f.get("distilled") else VisionTransformer
        more = dict(class_token=False, global_pool="avg", fc_norm=False) if f.get("pool") == "mean" else {}
        sizes = dict(img_size=f["image_size"], patch_size=f["patch_size"], embed_dim=f["width"], depth=f["layers"])
        return make(**shared, **more, **sizes, num_heads=f["heads"], dynamic_img_size=True, dynamic_img_pad=True)
    if any(side % (f["patch_size"] * f["window_size"]) for side in case.image):
        sizes = dict(patch_size=[f["patch_size"]] * 2, window_size=[f["window_size"]] * 2, stochastic_depth_prob=0.0)
        net = TorchvisionSwin(**shared, **sizes, embed_dim=f["width"], depths=[*f["stage_sizes"]], num_heads=[*f["heads"]])
        return net
    sizes = dict(img_size=case.image, patch_size=f["patch_size"], window_size=f["window_size"], always_partition=False)
    return SwinTransformer(**shared, **sizes, embed_dim=f["width"], depths=f["stage_sizes"], num_heads=f["heads"])


def pad(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Zeros below and on the right, as the Swin authors' code for detection pads an image to complete patches."""
    h, w = images.shape[2:]
    return F.pad(images, (0, -w % patch, 0, -h % patch))


def run(case: ViTCase) -> parity.Results:
    """What `parity.check` compares, in float64."""
    net = fill(make_network(case), case.seed)
    return differentiate(net, parity.images(case.seed, *case.image), parity.labels(case.seed), case.network["patch_size"])


def published(name: str, fields: dict[str, Any], image: tuple[int, int]) -> torch.nn.Module:
    """timm's network for images of this size, or torchvision's Swin-T where its windows are padded, with our numbers."""
    if name.startswith("swin"):
        if any(side % (32 * fields.get("window_size", 7)) for side in image):
            return fill(torchvision.models.swin_t(weights=None), 0)
        return fill(timm.create_model(name, img_size=image, window_size=fields.get("window_size", 7)), 0)
    depth = dict(depth=fields["layers"]) if fields else {}
    return fill(timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True, **depth), 0)


def differentiate(net: torch.nn.Module, images: np.ndarray, labels: np.ndarray, patch: int) -> parity.Results:
    """Logits and the gradients of the summed cross entropy, in float64."""
    logits = net(pad(nchw(images), patch))
    F.cross_entropy(logits, torch.from_numpy(labels).long(), reduction="sum").backward()
    gradients: dict[str, np.ndarray] = {}
    for name, parameter in net.named_parameters():
        gradients |= our_arrays(name, parameter.grad.numpy())
    compressed = {path: parity.compress(path, value) for path, value in sorted(gradients.items())}
    return {"logits": {"": logits.detach().numpy()}, "gradients": compressed}
