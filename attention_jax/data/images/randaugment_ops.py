"""RandAugment's operations on uint8 images [H, W, C], C = 3 or 1, with Pillow's results to the bit.

`OPS` has them by name: (pixels, value, fill, resample) -> pixels of the same size. `fill` is the grey value, or one value
per channel, of pixels that come into view; `resample` is one of `Image.Resampling`. Without a change, the array itself returns.
Translation, sharpness and maps of single values are written in numpy and bytes, which is faster: Pillow computes each pixel
as if it had nothing in common with its neighbours, and rounds each table it is given.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from attention_jax.data.images.decoding import image_to_array, open_image
from attention_jax.errors import UserError

Value = float | tuple[int, float, float] | None
Fill = int | Sequence[int]

# Both TensorFlow's code and timm (without a data set's mean) fill with this; the paper does not say.
GREY = 128


def _map_values(pixels: np.ndarray, table: bytes) -> np.ndarray:
    """Replaces every value by its entry in a table of 256."""
    return np.frombuffer(pixels.tobytes().translate(table), np.uint8).reshape(pixels.shape)


def _fill_channels(pixels: np.ndarray, fill: Fill) -> tuple[int, ...]:
    """Returns one value per channel."""
    channels = pixels.shape[2]
    colour = (fill,) * channels if isinstance(fill, int) else tuple(fill)
    if len(colour) != channels:
        raise UserError(f"fill = {colour} has {len(colour)} values where the image has {channels} channels.")
    return colour


def _affine(pixels: np.ndarray, matrix: tuple[float, ...], fill: Fill, resample: Image.Resampling) -> np.ndarray:
    """Maps input (ax + by + c, dx + ey + f) to output (x, y)."""
    image, colour = open_image(pixels), _fill_channels(pixels, fill)
    return image_to_array(image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=colour))


def _rotate(pixels: np.ndarray, degrees: float, fill: Fill, resample: Image.Resampling) -> np.ndarray:
    """Rotates counter-clockwise about the centre."""
    return image_to_array(open_image(pixels).rotate(degrees, resample=resample, fillcolor=_fill_channels(pixels, fill)))


@functools.lru_cache(1024)
def _stretch(low: int, high: int) -> tuple[int, ...]:
    scale = 255.0 / (high - low)
    return tuple(min(max(int(v * scale - low * scale), 0), 255) for v in range(256))


def _auto_contrast(pixels: np.ndarray) -> np.ndarray:
    """Stretches each channel to 0…255, as `ImageOps.autocontrast` does; a channel of one value stays as it is."""
    ranges = [(int(p.min()), int(p.max())) for p in np.moveaxis(pixels, -1, 0)]
    ranges = [(low, high) if low < high else (0, 255) for low, high in ranges]
    if all(r == (0, 255) for r in ranges):
        return pixels
    return image_to_array(open_image(pixels).point(sum((_stretch(*r) for r in ranges), ())))


@functools.lru_cache
def _posterized(bits: int) -> bytes:
    return bytes(v & (256 - (1 << (8 - bits))) for v in range(256))


@functools.lru_cache(512)
def _solarized(threshold: float) -> bytes:
    return bytes(v if v < threshold else 255 - v for v in range(256))


@functools.lru_cache(512)
def _dark_brightened(addition: int) -> bytes:
    return bytes(min(v + addition, 255) if v < 128 else v for v in range(256))


@functools.lru_cache(2048)
def _blended(grey: int, factor: float) -> bytes:
    # Pillow's own blend of the 256 values, so that the rounding is Pillow's on every machine.
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    return Image.blend(Image.new("L", (256, 1), grey), ramp, factor).tobytes()


def _contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Computes mean grey + factor · (image − mean grey), as `ImageEnhance.Contrast` does."""
    mean = np.asarray(open_image(pixels).convert("L")).mean()
    return _map_values(pixels, _blended(int(mean + 0.5), factor))


def _contrast_area(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Changes contrast about TensorFlow's grey (the histogram's sum over 256, i.e. H·W/256) in place of the mean."""
    height, width, _ = pixels.shape
    return _map_values(pixels, _blended(min(width * height // 256, 255), factor))


def _sharpness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Computes smooth image + factor · (image − smooth image), as `ImageEnhance.Sharpness` does.

    The smooth image is the rounded mean by [1 1 1; 1 5 1; 1 1 1] / 13; the border stays as it is.
    """
    height, width, channels = pixels.shape
    if min(height, width) < 3:
        return pixels
    numbers = pixels.reshape(height, width * channels).astype(np.uint16)
    inner = numbers[1:-1, channels:-channels]
    three = numbers[:-2] + numbers[1:-1]
    three += numbers[2:]
    smooth = three[:, : -2 * channels] + three[:, channels:-channels]
    smooth += three[:, 2 * channels :]
    smooth += inner << 2
    smooth += 6  # half of 13: no thirteenth lies in the middle between two whole numbers
    smooth //= 13
    sharp = np.subtract(inner.view(np.int16), smooth.view(np.int16), dtype=np.float32)
    sharp *= np.float32(factor)
    sharp += smooth
    np.clip(sharp, 0, 255, out=sharp)
    sharpened = pixels.copy()
    sharpened.reshape(height, width * channels)[1:-1, channels:-channels] = sharp
    return sharpened


def _shift(pixels: np.ndarray, distance: float, fill: Sequence[int]) -> np.ndarray | None:
    """Moves column x + `distance` to x, with the bilinear mean between two columns, and `fill` outside of the image.

    It repeats Pillow's affine transform operation by operation in float64 (Geometry.c). It returns None in the rare case that
    rounding leaves a column out.
    """
    height, width, channels = pixels.shape
    place = np.arange(width) + 0.5 + distance
    inside = np.flatnonzero((place >= 0) & (place < width))
    shifted = np.empty_like(pixels)
    if not inside.size:
        shifted[:] = fill
        return shifted
    start, stop = int(inside[0]), int(inside[-1]) + 1
    place = place[start:stop] - 0.5
    left = np.floor(place)
    first = int(left[0]) + 1  # counted from the repeated column before the first
    if left[-1] - left[0] != stop - start - 1:
        return None
    shifted[:, :start] = fill
    shifted[:, stop:] = fill
    wider = np.empty((height, width + 2, channels), np.uint8)
    wider[:, 1:-1], wider[:, 0], wider[:, -1] = pixels, pixels[:, 0], pixels[:, -1]
    # Rows of numbers: an inner loop over only the channels would take several times as long.
    rows, length = wider.reshape(height, -1), (stop - start) * channels
    here = rows[:, first * channels :][:, :length]
    mixed = np.subtract(rows[:, (first + 1) * channels :][:, :length], here, dtype=np.int16).astype(np.float64)
    mixed *= np.repeat(place - left, channels)
    mixed += here
    shifted.reshape(height, -1)[:, start * channels : stop * channels] = mixed  # rounds down, as Pillow does
    return shifted


def _translate(pixels: np.ndarray, distance: float, axis: int, fill: Fill, resample: Image.Resampling) -> np.ndarray:
    """Moves input (x + distance, y) to output (x, y) along axis 1, and (x, y + distance) along axis 0, in pixels."""
    if resample == Image.Resampling.BILINEAR:
        rows, colour = pixels, _fill_channels(pixels, fill)
        if axis == 0:  # each row becomes one pixel of a single row
            rows, colour = pixels.reshape(1, pixels.shape[0], -1), colour * pixels.shape[1]
        shifted = _shift(rows, distance, colour)
        if shifted is not None:
            return shifted.reshape(pixels.shape)
    return _affine(pixels, (1, 0, distance * (axis == 1), 0, 1, distance * (axis == 0)), fill, resample)


def _cutout(pixels: np.ndarray, value: tuple[int, float, float], fill: Fill, resample: Image.Resampling) -> np.ndarray:
    """Fills a square of side 2 · half about a pixel, cut off at the border; value: (half, down, right), position in [0, 1)."""
    height, width, _ = pixels.shape
    half, y, x = value[0], int(value[1] * height), int(value[2] * width)
    pixels = pixels.copy()
    pixels[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = _fill_channels(pixels, fill)
    return pixels


def _enhance(operate: Callable[[np.ndarray, float], np.ndarray]) -> Callable[..., np.ndarray]:
    """Returns an operation that changes nothing with factor 1."""
    return lambda pixels, factor, *_: pixels if factor == 1 else operate(pixels, factor)


def _warp(operate: Callable[[np.ndarray, float, Fill, Image.Resampling], np.ndarray]) -> Callable[..., np.ndarray]:
    """Returns an operation that changes nothing with value 0."""
    return lambda pixels, value, fill, resample: operate(pixels, value, fill, resample) if value else pixels


OPS: dict[str, Callable[..., np.ndarray]] = {
    "identity": lambda pixels, *_: pixels,
    "auto_contrast": lambda pixels, *_: _auto_contrast(pixels),
    "equalize": lambda pixels, *_: image_to_array(ImageOps.equalize(open_image(pixels))),
    "invert": lambda pixels, *_: ~pixels,
    "rotate": _warp(_rotate),
    # Keeps the top bits; 0 bits make a black image, which `ImageOps.posterize` refuses.
    "posterize": lambda pixels, bits, *_: _map_values(pixels, _posterized(bits)) if bits < 8 else pixels,
    "solarize": lambda pixels, threshold, *_: _map_values(pixels, _solarized(threshold)) if threshold < 256 else pixels,
    "solarize_add": lambda pixels, addition, *_: _map_values(pixels, _dark_brightened(addition)) if addition else pixels,
    "color": _enhance(lambda pixels, factor: image_to_array(ImageEnhance.Color(open_image(pixels)).enhance(factor))),
    "contrast": _enhance(_contrast),
    "contrast_area": _enhance(_contrast_area),
    "brightness": _enhance(lambda pixels, factor: _map_values(pixels, _blended(0, factor))),
    "sharpness": _enhance(_sharpness),
    # Output (x, y) comes from input (x + value · y, y), and (x, y + value · x).
    "shear_x": _warp(lambda pixels, value, *rest: _affine(pixels, (1, value, 0, 0, 1, 0), *rest)),
    "shear_y": _warp(lambda pixels, value, *rest: _affine(pixels, (1, 0, 0, value, 1, 0), *rest)),
    "translate_x": _warp(lambda pixels, value, *rest: _translate(pixels, value, 1, *rest)),
    "translate_y": _warp(lambda pixels, value, *rest: _translate(pixels, value, 0, *rest)),
    "translate_x_rel": _warp(lambda pixels, share, *rest: _translate(pixels, share * pixels.shape[1], 1, *rest)),
    "translate_y_rel": _warp(lambda pixels, share, *rest: _translate(pixels, share * pixels.shape[0], 0, *rest)),
    "cutout": _cutout,
}
