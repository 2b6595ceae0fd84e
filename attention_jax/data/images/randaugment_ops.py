"""RandAugment's operations on uint8 images [H, W, C], C = 3 or 1: what Pillow makes of them, to the bit.

Each is (pixels, value, fill, resample) -> pixels of the same size: `fill` is the grey value or one value a channel of what
comes into view, `resample` one of `Image.Resampling`. What is unchanged is returned as it is. Translation, sharpness and maps
of single values are written in numpy and bytes, which is faster: Pillow computes each pixel as if it had nothing in common
with its neighbours, and rounds each table it is given.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from attention_jax.errors import UserError

Value = float | tuple[int, float, float] | None
Fill = int | Sequence[int]
Op = Callable[..., np.ndarray]

# Both TensorFlow's code and timm (without a data set's mean) fill with this; the paper does not say.
GREY = 128

NO_COLOR = "RandAugment's 'color' needs an image of three channels: leave it out of names= for one channel."


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)


def _map(pixels: np.ndarray, table: bytes) -> np.ndarray:
    """Every value replaced by its entry in a table of 256."""
    return np.frombuffer(pixels.tobytes().translate(table), np.uint8).reshape(pixels.shape)


def _fill(pixels: np.ndarray, fill: Fill) -> tuple[int, ...]:
    """One value a channel."""
    channels = pixels.shape[2]
    colour = (fill,) * channels if isinstance(fill, int) else tuple(fill)
    if len(colour) != channels:
        raise UserError(f"fill = {colour} has {len(colour)} values where the image has {channels} channels.")
    return colour


def _colour(pixels: np.ndarray, fill: Fill) -> int | tuple[int, ...]:
    """The fill as Pillow wants it for this image; a plain number would mean red."""
    colour = _fill(pixels, fill)
    return colour if len(colour) > 1 else colour[0]


def _affine(pixels: np.ndarray, matrix: tuple[float, ...], fill: Fill, resample: int) -> np.ndarray:
    """Output (x, y) comes from input (ax + by + c, dx + ey + f)."""
    image, colour = _image(pixels), _colour(pixels, fill)
    return _pixels(image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=colour))


# --- Operations ---


def identity(pixels: np.ndarray, value: Value = None, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """The image itself."""
    return pixels


@functools.lru_cache(1024)
def _stretch(low: int, high: int) -> tuple[int, ...]:
    scale = 255.0 / (high - low)
    return tuple(min(max(int(v * scale - low * scale), 0), 255) for v in range(256))


def auto_contrast(pixels: np.ndarray, value: Value = None, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Stretches each channel to 0…255, as `ImageOps.autocontrast` does."""
    image = _image(pixels)
    extrema = image.getextrema()
    extrema = extrema if isinstance(extrema[0], tuple) else (extrema,)
    # A channel of one value stays as it is.
    ranges = [(low, high) if low < high else (0, 255) for low, high in extrema]
    if all(r == (0, 255) for r in ranges):
        return pixels
    return _pixels(image.point(sum((_stretch(*r) for r in ranges), ())))


def equalize(pixels: np.ndarray, value: Value = None, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Flattens each channel's histogram (`ImageOps.equalize`)."""
    return _pixels(ImageOps.equalize(_image(pixels)))


def invert(pixels: np.ndarray, value: Value = None, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """255 − x."""
    return ~pixels


def rotate(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Counter-clockwise by `value` degrees about the centre."""
    if not value:
        return pixels
    return _pixels(_image(pixels).rotate(value, resample=resample, fillcolor=_colour(pixels, fill)))


@functools.lru_cache
def _keep(bits: int) -> bytes:
    return bytes(v & (256 - (1 << (8 - bits))) for v in range(256))


def posterize(pixels: np.ndarray, value: int, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Keeps the top `value` bits; 0 bits make a black image, which `ImageOps.posterize` refuses to do."""
    return _map(pixels, _keep(value)) if value < 8 else pixels


@functools.lru_cache(512)
def _solarize(threshold: float) -> bytes:
    return bytes(v if v < threshold else 255 - v for v in range(256))


def solarize(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Inverts what is at or above the threshold `value`."""
    return _map(pixels, _solarize(value)) if value < 256 else pixels


@functools.lru_cache(512)
def _brighten_dark(addition: int) -> bytes:
    return bytes(min(v + addition, 255) if v < 128 else v for v in range(256))


def solarize_add(pixels: np.ndarray, value: int, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Adds `value` to what is below 128."""
    return _map(pixels, _brighten_dark(value)) if value else pixels


def color(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """grey image + value · (image − grey image)."""
    if pixels.shape[2] == 1:
        raise UserError(NO_COLOR)
    return _pixels(ImageEnhance.Color(_image(pixels)).enhance(value)) if value != 1 else pixels


_RAMP = bytes(range(256))


@functools.lru_cache(2048)
def _blend(grey: int, factor: float) -> bytes:
    # Pillow's own blend of the 256 values, so that the rounding is Pillow's on every machine.
    ramp = Image.frombytes("L", (256, 1), _RAMP)
    return Image.blend(Image.new("L", (256, 1), grey), ramp, factor).tobytes()


def contrast(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """mean grey + value · (image − mean grey), as `ImageEnhance.Contrast` does."""
    if value == 1:
        return pixels
    mean = np.asarray(_image(pixels).convert("L")).mean()
    return _map(pixels, _blend(int(mean + 0.5), value))


def contrast_area(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """`contrast` with the grey of TensorFlow's code: the histogram's sum over 256, i.e. H·W/256, for the mean."""
    height, width, _ = pixels.shape
    return _map(pixels, _blend(min(width * height // 256, 255), value)) if value != 1 else pixels


def brightness(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """value · image, as `ImageEnhance.Brightness` does."""
    return _map(pixels, _blend(0, value)) if value != 1 else pixels


def sharpness(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """smooth image + value · (image − smooth image), as `ImageEnhance.Sharpness` does.

    Smooth is the rounded mean by [1 1 1; 1 5 1; 1 1 1] / 13; the border stays as it is.
    """
    height, width, channels = pixels.shape
    if value == 1 or min(height, width) < 3:
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
    sharp *= np.float32(value)
    sharp += smooth
    np.clip(sharp, 0, 255, out=sharp)
    sharpened = pixels.copy()
    sharpened.reshape(height, width * channels)[1:-1, channels:-channels] = sharp
    return sharpened


def shear_x(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Output (x, y) comes from input (x + value · y, y)."""
    return _affine(pixels, (1, value, 0, 0, 1, 0), fill, resample) if value else pixels


def shear_y(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Output (x, y) comes from input (x, y + value · x)."""
    return _affine(pixels, (1, 0, 0, value, 1, 0), fill, resample) if value else pixels


def _shift(pixels: np.ndarray, distance: float, fill: Sequence[int]) -> np.ndarray | None:
    """Column x comes from x + `distance`, between two columns by their bilinear mean; from outside it is `fill`.

    Pillow's affine transform operation by operation in float64 (Geometry.c). None in the rare case that rounding of a place
    leaves a column out.
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
    # Rows of numbers: an inner loop over the channels alone would take several times as long.
    rows, length = wider.reshape(height, -1), (stop - start) * channels
    here = rows[:, first * channels :][:, :length]
    mixed = np.subtract(rows[:, (first + 1) * channels :][:, :length], here, dtype=np.int16).astype(np.float64)
    mixed *= np.repeat(place - left, channels)
    mixed += here
    shifted.reshape(height, -1)[:, start * channels : stop * channels] = mixed  # rounds down, as Pillow does
    return shifted


def translate_x(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Output (x, y) comes from input (x + value, y), in pixels."""
    if not value:
        return pixels
    fast = _shift(pixels, value, _fill(pixels, fill)) if resample == Image.Resampling.BILINEAR else None
    return _affine(pixels, (1, 0, value, 0, 1, 0), fill, resample) if fast is None else fast


def translate_y(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Output (x, y) comes from input (x, y + value), in pixels."""
    if not value:
        return pixels
    fast = None
    if resample == Image.Resampling.BILINEAR:
        height, width, channels = pixels.shape
        rows = pixels.reshape(1, height, width * channels)  # as the pixels of one row, of which each is a row
        fast = _shift(rows, value, _fill(pixels, fill) * width)
    return _affine(pixels, (1, 0, 0, 0, 1, value), fill, resample) if fast is None else fast.reshape(pixels.shape)


def translate_x_rel(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """`translate_x` by `value` of the width."""
    return translate_x(pixels, value * pixels.shape[1], fill, resample)


def translate_y_rel(pixels: np.ndarray, value: float, fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """`translate_y` by `value` of the height."""
    return translate_y(pixels, value * pixels.shape[0], fill, resample)


def cutout(pixels: np.ndarray, value: tuple[int, float, float], fill: Fill = GREY, resample: int = 0) -> np.ndarray:
    """Fills a square of side 2 · half about a pixel, cut off at the border; value: (half, down, right), the place in [0, 1)."""
    height, width, _ = pixels.shape
    half, y, x = value[0], int(value[1] * height), int(value[2] * width)
    pixels = pixels.copy()
    pixels[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = _fill(pixels, fill)
    return pixels


OPS: dict[str, Op] = {
    op.__name__: op
    for op in (
        *(identity, auto_contrast, equalize, invert, rotate, posterize, solarize, solarize_add, color),
        *(contrast, contrast_area, brightness, sharpness, shear_x, shear_y),
        *(translate_x, translate_y, translate_x_rel, translate_y_rel, cutout),
    )
}
