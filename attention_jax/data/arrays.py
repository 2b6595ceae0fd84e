"""Images that are in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_jax.errors import UserError


class ArraySource:
    """Images and labels that are in memory.

    Args:
        images: uint8 [N, H, W, C].
        labels: integers [N] from 0.
        num_classes: K; by default the largest label + 1.
        label_names: a name for each class.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int | None = None, label_names: Sequence[str] = ()):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(f"ArraySource: images are {images.dtype} {images.shape}; give uint8 of shape [N, H, W, C].")
        if len(images) != len(labels):
            raise UserError(f"ArraySource: {len(images)} images but {len(labels)} labels; give one label an image.")
        self.images, self.labels = images, np.asarray(labels, np.int32)
        self.num_classes = num_classes or (int(self.labels.max()) + 1 if len(labels) else 0)
        self.label_names = tuple(label_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}
