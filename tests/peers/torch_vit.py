"""timm's and torchvision's Vision and Swin Transformers with our numbers in them."""

from collections.abc import Callable
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

from attention_jax import create_model
from attention_jax.models import swin
from attention_jax.models import vit as models
from tests.helpers import parity
from tests.helpers.parity_vit import ViTCase
from tests.peers import torch_layouts
from tests.peers.torch_nets import nchw

MAKE: dict[str, Any] = {"vit": models.VisionTransformer, "swin": swin.SwinTransformer}


def make_our_arrays(net: torch.nn.Module, model: Any) -> Callable[[str, np.ndarray], dict[str, np.ndarray]]:
    """As `torch_layouts.make_our_arrays`, for our `model` of the same form."""
    return torch_layouts.make_our_arrays(model, "torchvision" if isinstance(net, TorchvisionSwin) else "timm")


def fill(net: torch.nn.Module, model: Any, seed: int) -> torch.nn.Module:
    """Gives every parameter the value that `parity.draw` has for its path in our `model`."""
    our_arrays = make_our_arrays(net, model)
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
    model = MAKE[case.kind](**case.network)
    net = fill(make_network(case), model, case.seed)
    images, labels = parity.images(case.seed, *case.image), parity.labels(case.seed)
    return differentiate(net, model, images, labels, case.network["patch_size"])


def published(name: str, fields: dict[str, Any], image: tuple[int, int]) -> torch.nn.Module:
    """timm's network for images of this size, or torchvision's Swin-T where its windows are padded, with our numbers."""
    model = create_model(name, **fields)
    if name.startswith("swin"):
        if any(side % (32 * fields.get("window_size", 7)) for side in image):
            return fill(torchvision.models.swin_t(weights=None), model, 0)
        return fill(timm.create_model(name, img_size=image, window_size=fields.get("window_size", 7)), model, 0)
    depth = dict(depth=fields["layers"]) if fields else {}
    return fill(timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True, **depth), model, 0)


def differentiate(net: torch.nn.Module, model: Any, images: np.ndarray, labels: np.ndarray, patch: int) -> parity.Results:
    """Logits and the gradients of the summed cross entropy, in float64."""
    logits = net(pad(nchw(images), patch))
    F.cross_entropy(logits, torch.from_numpy(labels).long(), reduction="sum").backward()
    our_arrays, gradients = make_our_arrays(net, model), dict[str, np.ndarray]()
    for name, parameter in net.named_parameters():
        gradients |= our_arrays(name, parameter.grad.numpy())
    compressed = {path: parity.compress(path, value) for path, value in sorted(gradients.items())}
    return {"logits": {"": logits.detach().numpy()}, "gradients": compressed}
