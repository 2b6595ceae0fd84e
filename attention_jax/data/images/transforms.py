"""Image transforms on numpy arrays."""

from collections.abc import Callable, Sequence

import numpy as np

from attention_jax.data.images.randaugment_ops import OPS

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def pad_and_crop(padding: int) -> Transform:
    """Returns a transform that zero-pads each side and crops the old size at random (He et al. 2016, Section 4.2)."""

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


def flip_at_random(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[H, W, C] -> [H, W, C], mirrored left and right with probability 1/2."""
    if rng.random() >= 0.5:
        return image
    mirrored = np.empty_like(image)
    for channel in range(image.shape[-1]):  # four times as fast as copying image[:, ::-1]
        mirrored[..., channel] = image[:, ::-1, channel]
    return mirrored


def jitter_colours(strength: float) -> Transform:
    """Returns a transform of brightness, contrast and saturation, in random order, each by a factor uniform in 1 ± strength.

    Factors are at least 0, as in torchvision's ColorJitter on Pillow images. Images of one channel have no saturation.
    """
    low = max(0.0, 1 - strength)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        names = ("brightness", "contrast", "color")[: 2 if image.shape[2] == 1 else 3]
        for i in rng.permutation(len(names)):
            image = OPS[names[i]](image, rng.uniform(low, 1 + strength), 0, None)
        return image

    return apply


# Principal components of ImageNet's colours, in units of the full range: deviations, and a column for each (fb.resnet.torch).
_COMPONENTS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045])


def shift_lighting(deviation: float) -> Transform:
    """Returns a transform of RGB images that adds the same random multiple of each principal component to every pixel.

    Krizhevsky et al. 2012, Section 4.1 (0.1 there). Pixels are rounded and kept between 0 and 255.
    """

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shift = 255 * _COMPONENTS @ (_DEVIATIONS * rng.normal(0, deviation, 3))
        return np.clip(np.rint(image + shift), 0, 255).astype(np.uint8)

    return apply


def chain_transforms(transforms: Sequence[Transform]) -> Transform:
    """Returns a transform that applies several one after another, with draws from one generator."""

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for transform in transforms:
            image = transform(image, rng)
        return image

    return apply


def normalise_images(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """[..., W, C] uint8 -> [..., W, C] float32: (x / 255 - mean) / std, with mean and std in units of the full range."""
    *outer, w, c = images.shape
    mean_C, std_C = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    # A row at a time: broadcasting over only the three channels takes four times as long.
    normal = np.multiply(images.reshape(*outer, w * c), np.tile(1 / (255 * std_C), w), dtype=np.float32)
    normal -= np.tile(mean_C / std_C, w)
    return normal.reshape(images.shape)
