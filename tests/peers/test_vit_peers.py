"""Vision Transformers and Swin Transformers against timm's and torchvision's, live."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")

from attention_jax import create_model
from tests.helpers import parity
from tests.helpers.parity_vit import PUBLISHED, VITS
from tests.models.test_vit import differentiate, ours
from tests.peers import torch_vit

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", VITS)
def test_network(name: str) -> None:
    """Ours ≡ PyTorch, and PyTorch ≡ the fixture."""
    theirs = torch_vit.run(VITS[name])
    parity.check(theirs, parity.load(name), tighter=20)
    parity.check(ours(VITS[name]), theirs)


@pytest.mark.parametrize(("name", "fields", "image"), PUBLISHED)
def test_published_network(name: str, fields: dict[str, Any], image: tuple[int, int]) -> None:
    """Logits and all gradients of complete networks with random weights: ours in float32, theirs in float64."""
    images, labels = parity.images(0, *image, batch=1), np.array([3], np.int32)
    model = create_model(name, **fields)
    theirs = torch_vit.differentiate(torch_vit.published(name, fields, image), model, images, labels, patch=4)
    results = differentiate(model, images, labels, 0)
    parity.check(results, theirs)
