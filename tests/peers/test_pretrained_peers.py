"""Random weights of other libraries' ResNets, saved by PyTorch and loaded by name, give their logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'peers' is not installed")
pytest.importorskip("timm")

import torch

import attention_jax as aj
from attention_jax.interop import layouts_resnet
from attention_jax.interop.layout import KERNEL, fold_channels, list_shapes, match_names
from attention_jax.interop.recognise import list_layouts
from tests.helpers import parity
from tests.helpers.blocks import quick
from tests.helpers.weights import KINDS
from tests.peers import torch_nets, torch_weights

pytestmark = pytest.mark.peers


def check(net: Any, path: Path, name: str, image: tuple[int, int] = (64, 64), **fields: Any) -> None:
    """Saves a network with random weights and statistics, loads it as `name`, and compares logits."""
    torch_weights.fill_at_random(net)
    torch.save(net.state_dict(), path / "net.pth")
    images = parity.images(0, *image, batch=2)
    model, variables = aj.load_pretrained(name, path / "net.pth", **fields)
    ours = np.asarray(quick(model.apply)(variables, images))
    assert parity.difference(ours, torch_weights.compute_logits(net, images)) < parity.LOGITS


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("image", [(64, 64), (75, 97)])
def test_timm(name: str, image: tuple[int, int], tmp_path: Path) -> None:
    check(torch_weights.make_timm(name), tmp_path, name, image, stage_sizes=(1, 1, 1, 1), **KINDS[name]["ours"])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    check(torch_nets.imagenet(name), tmp_path, name)


@pytest.mark.parametrize(("option", "shortcut"), [("A", "A-centred"), ("B", "B")])
def test_akamaster(option: str, shortcut: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    net = torch_weights.CifarNetwork((16, 32, 64), (3, 3, 3), option)
    check(net, tmp_path, "resnet20", (32, 32))
    assert f"; shortcut={shortcut!r} as this layout has it." in capsys.readouterr().err


def test_chenyaofo(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fields = dict(stem="cifar", block="basic", widths=(16, 32, 64), stage_sizes=(3, 3, 3), num_classes=10)
    check(torch_nets.Network(fields, ()), tmp_path, "resnet20", (32, 32))
    assert "layout chenyaofo; shortcut='B' as this layout has it." in capsys.readouterr().err


@pytest.mark.parametrize(("name", "expansion"), [("resnet18", 1), ("resnet50", 4)])
def test_kuangliu(name: str, expansion: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    net = torch_weights.CifarNetwork(widths := (8, 8, 16, 16), (1, 1, 1, 1), "B", expansion)
    check(net, tmp_path, name, (32, 32), widths=widths, stage_sizes=(1, 1, 1, 1))
    assert "layout kuangliu; stem='cifar' as this layout has it." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bam_resnet18.code", "bam_resnet18", "cbam_resnet18"])
def test_released_code_of_bam_and_cbam(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """On square images: the released code of BAM pools over as many columns as there are rows."""
    net = torch_weights.make_released(name.partition("_")[0], widths := (16, 32, 64))
    check(net, tmp_path, name, widths=widths, stage_sizes=(1, 1, 1))
    assert ("gate_args=" in capsys.readouterr().err) == (name == "bam_resnet18")


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_channels_of_the_image(channels: int) -> None:
    from timm.models import adapt_input_conv

    kernel = parity.images(0, 7, 7, batch=5)
    theirs = adapt_input_conv(channels, torch.from_numpy(kernel.transpose(0, 3, 1, 2)))
    ours = fold_channels(KERNEL.into(kernel.transpose(0, 3, 1, 2)), (7, 7, channels, 5))
    np.testing.assert_allclose(ours, KERNEL.into(theirs.numpy()), rtol=1e-6)


def test_every_name_of_the_references() -> None:
    """Names and shapes of all tensors, for every ResNet that timm or torchvision has under our name."""
    import timm
    import torchvision

    seen = 0
    for name in aj.list_models("*resne*") + aj.list_models("senet*"):
        for layout in (layouts_resnet.TIMM, layouts_resnet.TORCHVISION):
            known = timm.list_models() if layout is layouts_resnet.TIMM else torchvision.models.list_models()
            if layout not in list_layouts(name) or name not in known:
                continue
            with torch.device("meta"):
                make = timm.create_model if layout is layouts_resnet.TIMM else torchvision.models.get_model
                state = make(name).state_dict()
            theirs = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
            shapes = list_shapes(model := aj.create_model(name))
            places = match_names(layout, model, list(shapes))
            assert {place.name: place.transform.shape_of(shapes[path]) for path, place in places.items() if place} == theirs
            seen += 1
    assert seen == 63
