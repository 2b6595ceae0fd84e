"""Cluttered digits of some classes, so that a network can learn some of them and be fine-tuned on others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_jax.data.images.cued import ClutteredDigits


class SomeClasses(ClutteredDigits):
    """Cluttered digits of the named classes alone, pieces included, numbered in their order."""

    def __init__(self, split: str, classes: Sequence[int] = (6, 7, 8, 9), **arguments: Any):
        super().__init__(split, **arguments)
        kept = np.isin(self.digit_labels, classes)
        self.digits, self.numbers = self.digits[kept], self.numbers[kept]
        self.digit_labels = np.searchsorted(np.sort(classes), self.digit_labels[kept])
        self.num_classes, self.label_names = len(classes), tuple(map(str, sorted(classes)))
        self.arguments["classes"] = tuple(classes)
