"""Which part of an image the network sees, and at what size."""

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from attention_jax.data.decode import broken_if_it_fails, open_image, to_array, to_channels

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SIMD = {"bilinear": "bilinear", "bicubic": "catmull_rom"}  # the same kernels: Pillow's bicubic has a = -1/2


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: float
    left: float
    height: float
    width: float


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Box:
    """A box whose share of the area is uniform in `scale` and whose log(width / height) is uniform in log(`ratio`).

    Ten tries; then the largest centred box of the nearest allowed ratio. Szegedy et al. 2014 (arXiv 1409.4842,
    Section 6) as torchvision and fb.resnet.torch spell it out.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    if width / height < ratio[0]:
        h, w = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        h, w = height, round(height * ratio[1])
    else:
        h, w = height, width
    return Box((height - h) // 2, (width - w) // 2, h, w)


def crop_and_resize(
    data: bytes | np.ndarray,
    choose: Callable[[int, int], Box],
    size: tuple[int, int],
    channels: int = 3,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """The box `choose(height, width)` of an image, encoded or uint8 [H, W, C], resized to uint8 [*size, channels].

    A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 at which the box is no smaller than `size`: libjpeg
    then averages in the frequency domain. The rest is antialiased convolution over the box alone, as in torchvision's
    `resized_crop`; where the fast resizer is installed, equal to it within one grey level (bilinear) or four (bicubic).
    Raises BrokenImage.
    """
    with broken_if_it_fails():
        image = open_image(data)
        width = image.width
        box = choose(image.height, width)
        wanted = max(1, int(min(box.height / size[0], box.width / size[1])))
        drafted = image.draft(None, (max(1, width // wanted), max(1, image.height // wanted))) if wanted > 1 else None
        scale = width / drafted[1][2] if drafted else 1
        top, left, height, width = (side / scale for side in box)
        # The pixels that the box touches; at scale 1 these are the box.
        outer = math.floor(left), math.floor(top), math.ceil(left + width), math.ceil(top + height)
        part = to_channels(image.crop(outer), channels)
        return _resize(part, Box(top - outer[1], left - outer[0], height, width), size, interpolation)


def _resize(image: Image.Image, box: Box, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """A box of a grey or RGB image as uint8 [*size, C]."""
    simd = _simd()
    if simd is None:
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        return to_array(image.resize((size[1], size[0]), _PILLOW[interpolation], box=corners))
    pixel_type = {"L": simd.PixelType.U8, "RGB": simd.PixelType.U8x3}[image.mode]
    target = simd.ImageData(size[1], size[0], pixel_type)
    options = simd.ResizeOptions(
        resize_alg=simd.ResizeAlg.convolution(simd.FilterType[_SIMD[interpolation]]),
        crop_box=simd.CropBox(box.left, box.top, box.width, box.height),
        use_alpha=False,
    )
    simd.Resizer().resize(simd.ImageData(*image.size, pixel_type, image.tobytes()), target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, -1)


@functools.cache
def _simd() -> ModuleType | None:
    """The fast resizer, or None on platforms it is not built for."""
    try:
        return importlib.import_module("cykooz_resizer")
    except ImportError:
        return None


def random_resized_crop(
    data: bytes | np.ndarray,
    rng: np.random.Generator,
    size: tuple[int, int],
    channels: int = 3,
    scale: Sequence[float] = (0.08, 1),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> np.ndarray:
    """`random_box` of an image, encoded or uint8 [H, W, C], resized to uint8 [*size, channels]. Raises BrokenImage."""
    choose = functools.partial(random_box, rng=rng, scale=scale, ratio=ratio)
    return crop_and_resize(data, choose, size, channels, interpolation)


def resize_and_centre_crop(
    data: bytes | np.ndarray, shorter: int, size: tuple[int, int], channels: int = 3, interpolation: str = "bilinear"
) -> np.ndarray:
    """The middle [*size, channels] of an image whose shorter side is resized to `shorter` pixels. Raises BrokenImage.

    torchvision's Resize(shorter) and CenterCrop(size) on a Pillow image to one grey level, though only the middle is
    computed; decoded in full, since published accuracies are measured so.
    """
    with broken_if_it_fails():
        image = to_channels(open_image(data), channels)
        w, h = image.size
        new_h, new_w = (shorter, int(shorter * w / h)) if h <= w else (int(shorter * h / w), shorter)
        top, left = round((new_h - size[0]) / 2), round((new_w - size[1]) / 2)
        right, bottom = (left + size[1]) * w / new_w, (top + size[0]) * h / new_h
        box = (left * w / new_w, top * h / new_h, min(right, w), min(bottom, h))
        return to_array(image.resize((size[1], size[0]), _PILLOW[interpolation], box=box))
