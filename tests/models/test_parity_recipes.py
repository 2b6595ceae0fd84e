"""The first steps of the published recipes, from their config files, against what PyTorch and timm made of the same numbers.

Here those that compile in seconds; `tests/peers` has every family, live.
"""

import pytest

from tests.helpers import parity
from tests.helpers.follow_recipes import follow_family
from tests.helpers.parity_recipes import FAMILIES, check_family


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recipe_convnext", "recipe_deit"])
def test_steps_of_a_recipe_equal_frozen_pytorch(name: str) -> None:
    """AdamW with its decay, the warm-up, smoothed loss, and the average of the weights."""
    check_family(FAMILIES[name], follow_family(FAMILIES[name]), parity.load(name))
