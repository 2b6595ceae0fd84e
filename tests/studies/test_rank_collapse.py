"""How far apart the words of a sentence are."""

import numpy as np
import pytest

from experiments.studies.rank_collapse import compute_spread


def test_spread_is_what_is_left_without_the_mean():
    same = np.tile([3.0, 4.0], (5, 1))
    opposite = np.array([[1.0, 2], [-1, -2], [1, 2], [-1, -2], [100, 100]])
    half = np.array([[1.0, 1], [1, -1], [0, 0], [0, 0], [0, 0]])  # mean (1, 0) and as much beside it
    words = np.array([[True] * 5, [True] * 4 + [False], [True] * 2 + [False] * 3])
    for x, mask, expected in zip((same, opposite, half), words, (0, 1, 0.5**0.5)):
        assert compute_spread(x[None], mask[None]) == pytest.approx(expected)
    assert compute_spread(np.stack([same, opposite, half]), words) == pytest.approx((1 + 0.5**0.5) / 3)
