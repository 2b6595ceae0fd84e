"""EfficientNet against timm, live: tiny networks, and whole ones with random weights and statistics."""

from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")

import timm
import torch

from attention_jax import create_model
from attention_jax.models import efficientnet
from attention_jax.models.efficientnet import EfficientNet
from tests.helpers import parity, parity_efficientnet
from tests.helpers.blocks import quick
from tests.models.test_parity import drawn, ours
from tests.peers import torch_efficientnet, torch_layouts, torch_nets

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", parity_efficientnet.CASES)
def test_network(name: str) -> None:
    """Ours ≡ timm's, and timm's ≡ the fixture."""
    case = parity_efficientnet.CASES[name]
    theirs, _ = torch_efficientnet.run(case)
    parity.check(theirs, parity.load(name), tighter=20)
    parity.check(ours(case, EfficientNet(**case.network, norm_running_var="unbiased")), theirs)


def build(name: str) -> tuple[Any, Any]:
    """timm's network and ours."""
    # TensorFlow's momentum, which timm leaves at PyTorch's.
    theirs_also = dict(bn_momentum=0.01) if name.startswith("tf_") else {}
    theirs = timm.create_model(name, pretrained=False, num_classes=parity.CLASSES, **theirs_also)
    return theirs, create_model(name, num_classes=parity.CLASSES, norm_running_var="unbiased")


@pytest.mark.parametrize("image", parity_efficientnet.IMAGENET_IMAGES)
@pytest.mark.parametrize("name", parity_efficientnet.IMAGENET)
def test_published_network(name: str, image: tuple[int, int]) -> None:
    """Logits with random weights and statistics."""
    net, model = build(name)
    images = parity.images(0, *image)
    torch_nets.fill(net.double(), 0, torch_layouts.our_paths(model))
    with torch.no_grad():
        theirs = net.eval()(torch_nets.nchw(images)).numpy()
    assert parity.difference(quick(model.apply)(drawn(model, images, 0), images), theirs) < parity.LOGITS


def test_every_gradient_of_a_published_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the statistics, in float64: in float32 the gradients of so deep a network say little. It compiles for minutes."""
    case = parity_efficientnet.Case({}, image=(64, 64))
    net, model = build("efficientnet_b0")
    theirs, _ = torch_nets.run(case, net=net, paths=torch_layouts.our_paths(model))
    monkeypatch.setitem(efficientnet._CHOICES, "dtype", ("float64",))
    with jax.enable_x64(True):
        double = ours(case, model.clone(dtype="float64"), np.float64)
    parity.check(double, theirs, tighter=100)
