"""Weights of ConvNeXt, ViT, Swin and EfficientNet from timm and torchvision in our networks, live, and ours in theirs.

Files are written by the libraries themselves. In every file each tensor is moved off its initial value, so that no scale is 1
and no bias 0.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")

import safetensors.torch
import timm
import torch
import torchvision
from timm.models import convnext as timm_convnext
from timm.models import swin_transformer as timm_swin
from torchvision.models.vision_transformer import VisionTransformer

import attention_jax as aj
from attention_jax import tree
from attention_jax.interop import export
from attention_jax.interop.layout import list_shapes, match_names, name_tensors
from attention_jax.interop.recognise import list_layouts
from tests.helpers import drawn_runs, parity
from tests.helpers.blocks import quick
from tests.peers.torch_nets import nchw

pytestmark = pytest.mark.peers
FAMILIES = [
    name
    for pattern in ("convnext_[tsblx]*", "vit_*", "deit_*", "swin_*", "efficientnet_*", "tf_efficientnet_*")
    for name in aj.list_models(pattern)
]
ACCEPTED = 1e-4  # of the largest logit; the worst seen is 4e-6


def disturb(net: torch.nn.Module) -> torch.nn.Module:
    """Adds noise to every parameter and statistic."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.1 * torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise.abs() if name.endswith("running_var") else noise if tensor.ndim < 2 else 0.2 * noise)
    return net.eval()


def run_theirs(net: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return net.eval()(nchw(images).float()).numpy()


def compare(net: torch.nn.Module, name: str, file: Path, images: np.ndarray, **fields: Any) -> None:
    model, variables = aj.load_pretrained(name, file, **fields)
    ours = np.asarray(quick(model.apply)(variables, images))
    assert parity.difference(ours, run_theirs(net, images)) < ACCEPTED


def count_theirs(layout_name: str, name: str, net: torch.nn.Module) -> None:
    """Asserts that the layout has exactly the tensors of `net`, in their shapes."""
    layout = next(layout for layout in list_layouts(name) if layout.name == layout_name)
    model = aj.create_model(name, **layout.fields)
    shapes = list_shapes(model)
    places = match_names(layout, model, list(shapes))
    ours = {place.name: place.transform.shape_of(shapes[path]) for path, place in places.items() if place}
    theirs = {
        key: tuple(tensor.shape)
        for key, tensor in net.state_dict().items()
        if not key.endswith(("num_batches_tracked", "relative_position_index"))
    }
    assert None not in places.values() and ours == theirs


@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_has_timms_tensors(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name)
    count_theirs("timm", name, net)


_TORCHVISION = [(ours, export.express_name("torchvision", ours)) for ours in FAMILIES]


@pytest.mark.parametrize(("name", "theirs"), [(ours, theirs) for ours, theirs in _TORCHVISION if theirs])
def test_every_name_has_torchvisions_tensors(name: str, theirs: str) -> None:
    size = {"image_size": 384} if name.endswith("384") else {}
    with torch.device("meta"):
        net = torchvision.models.get_model(theirs, weights=None, **size)
    count_theirs("torchvision", name, net)


def test_export_knows_which_names_the_libraries_have() -> None:
    for library, names in (("timm", set(timm.list_models())), ("torchvision", set(torchvision.models.list_models()))):
        called = {name: export.express_name(library, name) for name in aj.list_models()}
        assert {theirs for theirs in called.values() if theirs} <= names
        assert {name for name, theirs in called.items() if theirs is None} & names == set()


IMPORTED: dict[str, tuple[Any, tuple[int, int], dict[str, Any]]] = {  # name: makes the network, image, fields
    "convnext_tiny": (lambda: timm.create_model("convnext_tiny"), (64, 75), {}),
    "vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224"), (224, 224), {}),
    "deit_tiny_distilled_patch16_224": (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), (224, 224), {}),
    "vit_base_patch16_gap_224": (lambda: timm.create_model("vit_base_patch16_gap_224", depth=2), (224, 224), dict(layers=2)),
    "swin_tiny_patch4_window7_224": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), (224, 224), {}),
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), (64, 75), {}),
    "efficientnet_lite0": (lambda: timm.create_model("efficientnet_lite0"), (64, 75), {}),
    "tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0"), (64, 75), {}),
    "convnext_tiny of torchvision": (lambda: torchvision.models.convnext_tiny(), (64, 75), {}),
    "swin_tiny_patch4_window7_224 of torchvision": (lambda: torchvision.models.swin_t(), (132, 92), {}),
    "efficientnet_b0 of torchvision": (lambda: torchvision.models.efficientnet_b0(), (64, 75), {}),
    "efficientnet_b5 of torchvision": (lambda: torchvision.models.efficientnet_b5(), (64, 64), {}),
    "vit_base_patch16_224 of torchvision": (
        lambda: VisionTransformer(224, 16, num_layers=2, num_heads=12, hidden_dim=768, mlp_dim=3072),
        (224, 224),
        dict(layers=2),
    ),
}


@pytest.mark.parametrize("case", IMPORTED)
def test_their_weights_give_their_logits(case: str, tmp_path: Path) -> None:
    """A file of safetensors or of PyTorch, read by one call that is told nothing but the network's name."""
    make, image, fields = IMPORTED[case]
    net = disturb(make())
    if "of torchvision" in case:
        torch.save({"model": net.state_dict(), "epoch": 3}, file := tmp_path / "net.pth")
    else:
        safetensors.torch.save_file(net.state_dict(), file := tmp_path / "net.safetensors")
    compare(net, case.split()[0], file, parity.images(0, *image, batch=2), **fields)


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_tiny_patch4_window7_224"])
def test_official_names_are_those_that_timm_converts(name: str) -> None:
    """timm reads the official repositories' files: ours in those names, through its filter, gives our logits."""
    fields: dict[str, Any] = dict(widths=(8, 16, 24, 32)) if "convnext" in name else dict(width=16, heads=(1, 2, 4, 8))
    run = drawn_runs.draw_run(name, (224, 224, 3), stage_sizes=(1, 1, 2, 1), **fields)
    layout = next(layout for layout in list_layouts(name) if layout.name == "official")
    tensors = {key: torch.from_numpy(array) for key, array in name_tensors(layout, run.model, run.variables).items()}
    depth = dict(depths=(1, 1, 2, 1), num_classes=parity.CLASSES)
    if "convnext" in name:
        net: torch.nn.Module = timm_convnext.ConvNeXt(dims=fields["widths"], **depth)
        converted = timm_convnext.checkpoint_filter_fn(tensors, net)
    else:
        net = timm_swin.SwinTransformer(embed_dim=16, num_heads=fields["heads"], **depth)
        converted = timm_swin.checkpoint_filter_fn(tensors, net)
    net.load_state_dict(converted)
    images = parity.images(0, 224, 224, batch=1)
    assert parity.difference(drawn_runs.apply(run, images), run_theirs(net, images)) < ACCEPTED


def test_older_names_of_torchvisions_vit_are_those_that_it_converts() -> None:
    """The published files have them; torchvision reads ours in those names, and gives our logits."""
    run = drawn_runs.draw_run("vit_base_patch16_224", (224, 224, 3), layers=1)
    (layout,) = (layout for layout in list_layouts("vit_base_patch16_224") if layout.name == "torchvision.0.12")
    tensors = {key: torch.from_numpy(array) for key, array in name_tensors(layout, run.model, run.variables).items()}
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in tensors
    net = VisionTransformer(224, 16, 1, 12, 768, 3072, num_classes=parity.CLASSES)
    net.load_state_dict(tensors)
    images = parity.images(0, 224, 224, batch=1)
    assert parity.difference(drawn_runs.apply(run, images), run_theirs(net, images)) < ACCEPTED


def test_positions_are_interpolated_as_timm_does(tmp_path: Path) -> None:
    net = disturb(timm.create_model("vit_tiny_patch16_224", depth=1))
    safetensors.torch.save_file(net.state_dict(), file := tmp_path / "net.safetensors")
    larger = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=288)
    larger.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(net.state_dict(), larger))
    compare(larger, "vit_tiny_patch16_224", file, parity.images(0, 288, 288, batch=1), image_size=288, layers=1)


EXPORTED: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {  # case: format, images, fields
    "convnext_tiny": ("timm", (64, 75, 3), dict(stage_sizes=(1, 1, 2, 1), widths=(8, 16, 24, 32))),
    "convnext_tiny to torchvision": ("torchvision", (64, 75, 3), {}),
    "vit_tiny_patch16_224": ("timm", (224, 224, 1), dict(layers=2)),
    "vit_small_patch16_224": ("timm", (50, 70, 3), dict(layers=1, image_size=64)),
    "deit_tiny_distilled_patch16_224": ("timm", (224, 224, 3), {}),
    "swin_tiny_patch4_window7_224": ("timm", (96, 192, 3), dict(window_size=3, width=16, heads=(1, 2, 4, 8))),
    "swin_tiny_patch4_window7_224 to torchvision": ("torchvision", (132, 92, 3), {}),
    "efficientnet_b0": ("timm", (64, 75, 3), dict(norm_epsilon=1e-4)),
    "tf_efficientnet_lite0": ("timm", (64, 75, 1), {}),
    "efficientnet_b0 to torchvision": ("torchvision", (64, 75, 3), {}),
    "resnet18": ("timm", (64, 75, 1), dict(stage_sizes=(1, 1, 1, 1), widths=(8, 16, 24, 32))),
    "resnet18 to torchvision": ("torchvision", (64, 75, 3), {}),
    "seresnet18": ("timm", (64, 75, 3), {}),
    "ecaresnet50d": ("timm", (64, 75, 3), {}),
}


@contextlib.contextmanager
def loading(run: Any) -> Iterator[None]:
    """In place of the run that `load_run` would open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "load_run", lambda *_: run)
        yield


@pytest.mark.parametrize("case", EXPORTED)
def test_exports_give_our_logits_there_and_come_back_bitwise(case: str, tmp_path: Path) -> None:
    format, shape, fields = EXPORTED[case]
    name = case.split()[0]
    run = drawn_runs.draw_run(name, shape, **fields)
    folder = tmp_path / "out"
    with loading(run):
        export.export_run("somewhere", folder, format)
    if format == "timm":
        net = timm.create_model(f"local-dir:{folder}", pretrained=True)
        data = timm.data.resolve_model_data_config(net)
        given = run.config.data
        assert tuple(data["mean"]) == given.mean and tuple(data["std"]) == given.std
        assert data["interpolation"] == given.interpolation
        assert net.pretrained_cfg["label_names"] == list("abcde")
        assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).num_classes == 3
    else:
        net = torchvision.models.get_model(export.express_name(format, name), num_classes=parity.CLASSES)
        net.load_state_dict(safetensors.torch.load_file(folder / export.WEIGHTS))
    images = parity.images(0, *shape[:2], batch=2)[..., : shape[2]]
    theirs = run_theirs(net, images)
    assert parity.difference(drawn_runs.apply(run, images), theirs) < ACCEPTED

    model, variables = aj.load_pretrained(name, folder / export.WEIGHTS, in_channels=shape[2], **fields)
    back, ours = tree.flatten_by_path(variables), tree.flatten_by_path(run.variables)
    assert back.keys() == ours.keys() and all(np.array_equal(back[path], ours[path]) for path in ours)
