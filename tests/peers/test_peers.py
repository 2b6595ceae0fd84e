"""Our networks against PyTorch, live: the same equations written twice, and torchvision's and timm's own networks."""

import pytest

pytest.importorskip("torch", reason="the extra 'peers' is not installed")

from tests.helpers import parity
from tests.models.test_parity import our_imagenet_logits, our_recipe, our_training, ours
from tests.peers import torch_nets, torch_training

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", parity.CASES)
def test_network(name: str) -> None:
    """Ours ≡ PyTorch, and PyTorch ≡ the fixture."""
    theirs, _ = torch_nets.run(parity.CASES[name], biased=name == parity.BIASED)
    parity.check(theirs, parity.load(name), tighter=20)
    theirs.pop("biased_statistics", None)
    parity.check(ours(parity.CASES[name]), theirs)


@pytest.mark.parametrize("name", parity.TRAININGS)
def test_optimizer_and_average(name: str) -> None:
    """Ours ≡ PyTorch's optimizer, and that ≡ the fixture."""
    theirs = torch_training.train(parity.TRAININGS[name])
    parity.check(theirs, parity.load(name), tighter=20)
    parity.check(our_training(parity.TRAININGS[name]), theirs)


@pytest.mark.parametrize("name", parity.RECIPES)
def test_whole_recipe(name: str) -> None:
    """Our train step ≡ PyTorch's, and that ≡ the fixture."""
    theirs, _ = torch_training.follow(parity.RECIPES[name])
    parity.check(theirs, parity.load(name), tighter=20)
    parity.check(our_recipe(parity.RECIPES[name]), theirs)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "seresnet18", "seresnet50", "resnext50_32x4d", "resnet18d", "resnet50d", "resnetrs50"]
)
def test_published_network(name: str) -> None:
    """The logits of torchvision's and timm's networks with random weights and statistics."""
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    theirs = torch_nets.imagenet_logits(name)
    if name in parity.IMAGENET:
        assert parity.difference(theirs, parity.load("imagenet")["logits"][name]) < parity.LOGITS / 20
    assert parity.difference(our_imagenet_logits(name), theirs) < parity.LOGITS
