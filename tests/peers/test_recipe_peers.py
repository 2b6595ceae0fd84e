"""The published recipes on tiny networks of each family, from our config files, against timm's networks, live."""

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")

from tests.helpers import parity
from tests.helpers.follow_recipes import compute_in_float64, follow_family
from tests.helpers.parity_recipes import FAMILIES, check_family, lengthen
from tests.peers import torch_recipes

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_of_a_recipe(name: str) -> None:
    """Ours ≡ PyTorch, and PyTorch ≡ the fixture."""
    theirs, _ = torch_recipes.follow(FAMILIES[name])
    check_family(FAMILIES[name], theirs, parity.load(name), tighter=20)
    check_family(FAMILIES[name], follow_family(FAMILIES[name]), theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_curve(name: str) -> None:
    """The loss of 20 steps, in float64; experiments/results/loss_curves.md has 200, and what rounding alone does."""
    family = lengthen(FAMILIES[name], steps=20)
    theirs = torch_recipes.follow(family)[0]["loss"][""]
    with compute_in_float64():
        ours = follow_family(family)["loss"][""]
    assert theirs[-3:].mean() < theirs[:3].mean()
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
