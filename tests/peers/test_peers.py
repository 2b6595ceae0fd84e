"""Our networks against PyTorch, live: the same equations written twice, and torchvision's and timm's own networks."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'peers' is not installed")

from tests.helpers import parity
from tests.models.test_parity import drawn, our_imagenet_logits, our_recipe, our_training, ours
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


@pytest.mark.parametrize("image", [(64, 64), (75, 97)])
@pytest.mark.parametrize(
    "name", ["resnet50c", "resnet50_gn", "resnext50d_32x4d", "seresnet152d", "ecaresnet50d", "senet154", "resnext101_32x16d"]
)
def test_one_block_a_stage_of_timm(name: str, image: tuple[int, int]) -> None:
    """The logits of timm's networks with one block in each stage, at two sizes."""
    pytest.importorskip("timm")
    theirs = torch_nets.imagenet_logits(name, image, layers=(1, 1, 1, 1))
    assert parity.difference(our_imagenet_logits(name, image, stage_sizes=(1, 1, 1, 1)), theirs) < parity.LOGITS


def test_every_weight_is_carried_across() -> None:
    """The table between the names is one to one, and covers a whole network of each kind."""
    from attention_jax import create_model, tree

    for name in ("resnet50", "seresnet50", "resnext50_32x4d", "resnetrs50"):
        pytest.importorskip("timm")
        net = torch_nets.imagenet(name)
        state = net.state_dict()
        theirs = {path: torch_nets.to_ours(path, state[key].numpy()).shape for key, path in torch_nets.our_paths(net).items()}
        variables = drawn(create_model(name), np.zeros((1, *parity.IMAGENET_IMAGE, 3), np.float32), 0)
        shapes = {path: leaf.shape for part in variables.values() for path, leaf in tree.flatten_by_path(part).items()}
        assert theirs == shapes
