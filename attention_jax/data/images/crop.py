"""Crops: the part of an image that the network sees, and its size."""

import functools
import importlib
import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from attention_jax.data.images.decoding import check_pixels, convert_channels, image_to_array, open_image, raise_broken_image

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_SIMD = {"bilinear": "bilinear", "bicubic": "catmull_rom"}  # the same kernels: Pillow's bicubic has a = -1/2


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: float
    left: float
    height: float
    width: float


Part = tuple[np.ndarray, Box]
Choose = Callable[[int, int], Box]
Range = tuple[float, float]


def draw_box(height: int, width: int, rng: np.random.Generator, scale: Range = (0.08, 1), ratio: Range = (3 / 4, 4 / 3)) -> Box:
    """Draws a box whose share of the area is uniform in `scale` and whose log(width / height) is uniform in log(`ratio`).

    After ten tries it returns the largest centred box of the nearest allowed ratio. Szegedy et al. 2014 (arXiv 1409.4842,
    Section 6) as torchvision and fb.resnet.torch spell it out.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    h, w = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def draw_scaled_box(
    height: int, width: int, rng: np.random.Generator, size: tuple[int, int], shorter: tuple[int, int] = (256, 480)
) -> Box:
    """Draws the box that becomes `size` if the image's shorter side is resized to a whole number within `shorter`.

    Simonyan & Zisserman 2015 (arXiv 1409.1556, Section 3.1), as in He et al. 2015, Section 3.4.
    """
    scale = min(height, width) / int(rng.integers(shorter[0], shorter[1] + 1))
    h, w = min(height, scale * size[0]), min(width, scale * size[1])
    return Box(rng.uniform(0, height - h), rng.uniform(0, width - w), h, w)


def crop_and_resize(
    data: bytes | np.ndarray, choose: Choose, size: tuple[int, int], channels: int = 3, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resizes the box `choose(height, width)` of an image, encoded or uint8 [H, W, C], to uint8 [*size, channels].

    A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 at which the box is no smaller than `size`, where libjpeg
    averages in the frequency domain, and no farther down than the box reaches. The rest is antialiased convolution over the
    box alone, as in torchvision's `resized_crop`, within two grey levels of Pillow's. The fast resizer makes the vertical
    pass first: where bicubic overshoots 0 or 255 (at hard edges) a dozen levels have been seen. Raises BrokenImage.
    """
    choose = functools.cache(choose)  # drawn once, though a JPEG may be opened twice
    with raise_broken_image():
        part = _fast_part(data, choose, size, channels) or _part(data, choose, size, channels)
        return _resize(*part, size, interpolation)


def _scale(box: Box, size: tuple[int, int]) -> int:
    """Returns the largest of 1, 2, 4, 8 by which `box` can be divided without becoming smaller than `size`."""
    return max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(box.height / size[0], box.width / size[1]) >= scale)


def _inside(box: Box, scale: float) -> tuple[slice, slice, Box]:
    """Returns the rows and columns that a box touches in an image divided by `scale`, and the box relative to their corner."""
    top, left, height, width = (side / scale for side in box)
    rows = slice(math.floor(top), math.ceil(top + height))
    columns = slice(math.floor(left), math.ceil(left + width))
    return rows, columns, Box(top - rows.start, left - columns.start, height, width)


def _part(data: bytes | np.ndarray, choose: Choose, size: tuple[int, int], channels: int) -> Part:
    """Returns the pixels that a box touches, decoded by Pillow, which reads every format."""
    image = open_image(data)
    width, height = image.size
    box = choose(height, width)
    scale = _scale(box, size)
    drafted = image.draft(None, (max(1, width // scale), max(1, height // scale))) if scale > 1 else None
    rows, columns, box = _inside(box, width / drafted[1][2] if drafted else 1)
    return image_to_array(convert_channels(image.crop((columns.start, rows.start, columns.stop, rows.stop)), channels)), box


def _fast_part(data: bytes | np.ndarray, choose: Choose, size: tuple[int, int], channels: int) -> Part | None:
    """Does the same, to the bit, for a sound JPEG in the usual colours; returns None for anything else.

    It decodes directly into an array, and stops below the box; `experiments/benchmarks/input.py` times it.
    """
    jpeg = _module("simplejpeg")
    if jpeg is None or isinstance(data, np.ndarray) or not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = jpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if channels != (1 if colours == "Gray" else 3) or colours not in ("Gray", "YCbCr"):
        return None
    check_pixels(width, height)
    box = choose(height, width)
    scale = _scale(box, size)
    rows, columns, box = _inside(box, scale)
    lines = min(scale * (rows.stop + _SEEN_BELOW), height)
    short = _shortened(data, lines) if lines < height else None
    pixels = np.empty((-(-(lines if short else height) // scale), -(-width // scale), channels), np.uint8)
    least = {"min_height": len(pixels), "min_width": pixels.shape[1]} if scale > 1 else {}
    try:
        jpeg.decode_jpeg(short or data, "GRAY" if channels == 1 else "RGB", buffer=pixels, **least)
    except ValueError as error:  # damaged, perhaps so little that Pillow can read it
        if not str(error).endswith(_ONLY_MORE):
            return None
    return pixels[rows, columns], box


# Rows of pixels below a row that smoothing of colours in half resolution may reach, rounded up.
_SEEN_BELOW = 4
# libjpeg's first warning, raised by simplejpeg, about bytes skipped before the end marker: here the omitted lines.
_ONLY_MORE = "extraneous bytes before marker 0xd9"


def _shortened(data: bytes, lines: int) -> bytearray | None:
    """Returns the JPEG with `lines` lines in its header, or None if all of it is needed: each progressive scan has every line.

    The lines above a crop cannot be left out: the start of a line's code is known only after the lines before it.
    """
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind in (0xC0, 0xC1):  # the frame of an image in one pass: length, precision, lines, …
            short = bytearray(data)
            short[place + 5 : place + 7] = lines.to_bytes(2, "big")
            return short
        if kind == 0xDA:  # the image data, in a frame of another kind
            break
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _resize(pixels: np.ndarray, box: Box, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes a box of uint8 [H, W, C], C 1 or 3, to uint8 [*size, C]."""
    simd = _module("cykooz_resizer")
    if simd is None:
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        return image_to_array(open_image(pixels).resize((size[1], size[0]), _PILLOW[interpolation], box=corners))
    h, w, channels = pixels.shape
    pixel_type = simd.PixelType.U8 if channels == 1 else simd.PixelType.U8x3
    target = simd.ImageData(size[1], size[0], pixel_type)
    options = simd.ResizeOptions(
        resize_alg=simd.ResizeAlg.convolution(simd.FilterType[_SIMD[interpolation]]),
        crop_box=simd.CropBox(box.left, box.top, box.width, box.height),
        use_alpha=False,
    )
    simd.Resizer().resize(simd.ImageData(w, h, pixel_type, pixels.tobytes()), target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, channels)


@functools.cache
def _module(name: str) -> ModuleType | None:
    """Returns a package for speed, or None on platforms without it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def resize_and_centre_crop(
    data: bytes | np.ndarray, shorter: int, size: tuple[int, int], channels: int = 3, interpolation: str = "bilinear"
) -> np.ndarray:
    """Resizes the shorter side of an image to `shorter` pixels and returns its centre [*size, channels]. Raises BrokenImage.

    It equals torchvision's Resize(shorter) and CenterCrop(size) on a Pillow image to one grey level, although it computes only
    the centre. It decodes the full image, as the published accuracies did.
    """
    with raise_broken_image():
        image = convert_channels(open_image(data), channels)
        w, h = image.size
        new_h, new_w = (shorter, int(shorter * w / h)) if h <= w else (int(shorter * h / w), shorter)
        top, left = round((new_h - size[0]) / 2), round((new_w - size[1]) / 2)
        right, bottom = (left + size[1]) * w / new_w, (top + size[0]) * h / new_h
        box = (left * w / new_w, top * h / new_h, min(right, w), min(bottom, h))
        return image_to_array(image.resize((size[1], size[0]), _PILLOW[interpolation], box=box))
