"""ConvNeXt and its roadmap against PyTorch, live: timm's networks, and the steps written twice."""

import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")

import timm

from attention_jax import create_model
from tests.helpers import parity, parity_convnext
from tests.models.test_convnext import build
from tests.models.test_parity import ours
from tests.peers import torch_convnext, torch_layouts, torch_nets

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", parity_convnext.CASES)
def test_network(name: str) -> None:
    """Ours ≡ PyTorch, and PyTorch ≡ the fixture."""
    case = parity_convnext.CASES[name]
    theirs, _ = torch_convnext.run(case)
    parity.check(theirs, parity.load(name), tighter=20)
    parity.check(ours(case, build(case)), theirs)


@pytest.mark.parametrize("image", parity_convnext.IMAGENET_IMAGES)
def test_published_network(image: tuple[int, int]) -> None:
    """Logits and every gradient of timm's ConvNeXt-T with random weights."""
    case = parity_convnext.Case({}, image=image)
    net = timm.create_model("convnext_tiny", pretrained=False)
    model = create_model("convnext_tiny")
    theirs, _ = torch_nets.run(case, net=net, paths=torch_layouts.our_paths(model))
    parity.check(ours(case, model), theirs)
