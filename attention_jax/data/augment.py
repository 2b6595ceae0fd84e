"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) on uint8 images, in three published forms.

`OPS` holds the operations on Pillow images, `magnitudes` says what each of them does at magnitude M, and `rand_augment` draws
N of them for an image. The three sets differ in more than their names:

- `"paper"`: the 14 operations of Section 3 with AutoAugment's ranges (Cubuk et al. 2018, Table 6) as M from 0 to 10, and on
  above. In these, more magnitude is not always more change (the authors: tensorflow/tpu, issue 614): posterize keeps
  4 + 0.4·M bits, solarize starts at 25.6·M, and the enhance operations have no effect at M = 5; `increasing=True` turns
  those round. Ours are the filling, and translation by timm's 0.045·M of the side: AutoAugment's pixels empty a small image.
- `"tf1"`: tensorflow/tpu's EfficientNet code, which ResNet-RS trained with: 16 operations, `TF1_QUIRKS`.
- `"timm"`: timm's `rand-m9-mstd0.5-inc1` (ConvNeXt, Swin, DeiT) is `rand_augment(2, 9, "timm", magnitude_std=0.5)`:
  15 operations, each drawn one applied with probability 1/2, M clipped at 10, bilinear or bicubic at random.
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from attention_jax.data.image import Transform
from attention_jax.errors import UserError, suggestion

Value = float | tuple[float, float, float] | None
Fill = int | Sequence[int]
Op = Callable[..., Image.Image]
Level = Callable[..., Value]

# Both TensorFlow's code and timm (without a data set's mean) fill with this; the paper does not say.
GREY = 128

RESAMPLE = {
    "nearest": (Image.Resampling.NEAREST,),
    "bilinear": (Image.Resampling.BILINEAR,),
    "bicubic": (Image.Resampling.BICUBIC,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}

_NO_COLOR = "RandAugment's 'color' needs an image of three channels: leave it out of names= for one channel."

# Not copied: TensorFlow's grey and smoothed images differ from Pillow's by a rounding step, and its shear, which counts from
# the first pixel's centre instead of its corner, by half of `value` in position.
TF1_QUIRKS = {
    "solarize_wraps": "the threshold is taken modulo 256, so that M = 10 and 20 invert the whole image",
    "shift_clamped": "keeping 0 bits keeps the top one: the kernel shifts a byte by at most 7",
    "contrast_area": "contrast blends with the grey H·W/256 instead of the mean grey",
    "pixel_translation": "translation by 10·M pixels whatever the image's size, instead of 0.045·M of the side",
}

# --- Operations: (image, value, fill, resample) -> image of the same size and mode ("RGB" or "L") ---


def _lookup(image: Image.Image, *tables: tuple[int, ...]) -> Image.Image:
    """Maps every value by its band's table, or all bands by the only one."""
    return image.point(sum(tables, ()) if len(tables) > 1 else tables[0] * len(image.getbands()))


def _fill(image: Image.Image, fill: Fill) -> int | tuple[int, ...]:
    """The colour as Pillow wants it for this image; a plain number would mean red."""
    bands = len(image.getbands())
    colour = (fill,) * bands if isinstance(fill, int) else tuple(fill)
    if len(colour) != bands:
        raise UserError(f"fill = {colour} has {len(colour)} values where the image has {bands} channels.")
    return colour if bands > 1 else colour[0]


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill, resample: int) -> Image.Image:
    """Output (x, y) comes from input (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=_fill(image, fill))


def identity(image: Image.Image, value: Value = None, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """The image itself."""
    return image


@functools.lru_cache(1024)
def _stretch(low: int, high: int) -> tuple[int, ...]:
    scale = 255.0 / (high - low)
    return tuple(min(max(int(v * scale - low * scale), 0), 255) for v in range(256))


def auto_contrast(image: Image.Image, value: Value = None, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Stretches each channel to 0…255, as `ImageOps.autocontrast` does."""
    extrema = image.getextrema()
    extrema = extrema if isinstance(extrema[0], tuple) else (extrema,)
    # A channel of one value stays as it is.
    ranges = [(low, high) if low < high else (0, 255) for low, high in extrema]
    return image if all(r == (0, 255) for r in ranges) else _lookup(image, *(_stretch(*r) for r in ranges))


def equalize(image: Image.Image, value: Value = None, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Flattens each channel's histogram (`ImageOps.equalize`)."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, value: Value = None, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """255 − x."""
    return ImageChops.invert(image)


def rotate(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Counter-clockwise by `value` degrees about the centre."""
    return image.rotate(value, resample=resample, fillcolor=_fill(image, fill)) if value else image


@functools.lru_cache
def _keep(bits: int) -> tuple[int, ...]:
    return tuple(v & (256 - (1 << (8 - bits))) for v in range(256))


def posterize(image: Image.Image, value: int, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Keeps the top `value` bits; 0 bits make a black image, which `ImageOps.posterize` refuses to do."""
    return _lookup(image, _keep(value)) if value < 8 else image


@functools.lru_cache(512)
def _solarize(threshold: float) -> tuple[int, ...]:
    return tuple(v if v < threshold else 255 - v for v in range(256))


def solarize(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Inverts what is at or above the threshold `value`."""
    return _lookup(image, _solarize(value)) if value < 256 else image


@functools.lru_cache(512)
def _brighten_dark(addition: int) -> tuple[int, ...]:
    return tuple(min(v + addition, 255) if v < 128 else v for v in range(256))


def solarize_add(image: Image.Image, value: int, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Adds `value` to what is below 128."""
    return _lookup(image, _brighten_dark(value)) if value else image


def color(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """grey image + value · (image − grey image)."""
    if image.mode == "L":
        raise UserError(_NO_COLOR)
    return ImageEnhance.Color(image).enhance(value) if value != 1 else image


_RAMP = bytes(range(256))


@functools.lru_cache(2048)
def _blend(grey: int, factor: float) -> tuple[int, ...]:
    # Pillow's own blend of the 256 values, so that the rounding is Pillow's on every machine.
    ramp = Image.frombytes("L", (256, 1), _RAMP)
    return tuple(Image.blend(Image.new("L", (256, 1), grey), ramp, factor).tobytes())


def contrast(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """mean grey + value · (image − mean grey), as `ImageEnhance.Contrast` does."""
    if value == 1:
        return image
    mean = np.asarray(image.convert("L")).mean()
    return _lookup(image, _blend(int(mean + 0.5), value))


def contrast_area(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """`contrast` with the grey of TensorFlow's code: the histogram's sum over 256, i.e. H·W/256, for the mean."""
    return _lookup(image, _blend(min(image.width * image.height // 256, 255), value)) if value != 1 else image


def brightness(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """value · image, as `ImageEnhance.Brightness` does."""
    return _lookup(image, _blend(0, value)) if value != 1 else image


def sharpness(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """smooth image + value · (image − smooth image), smooth by the kernel [1 1 1; 1 5 1; 1 1 1] / 13 within the border."""
    return ImageEnhance.Sharpness(image).enhance(value) if value != 1 else image


def shear_x(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Output (x, y) comes from input (x + value · y, y)."""
    return _affine(image, (1, value, 0, 0, 1, 0), fill, resample) if value else image


def shear_y(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Output (x, y) comes from input (x, y + value · x)."""
    return _affine(image, (1, 0, 0, value, 1, 0), fill, resample) if value else image


def translate_x(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Output (x, y) comes from input (x + value, y), in pixels."""
    return _affine(image, (1, 0, value, 0, 1, 0), fill, resample) if value else image


def translate_y(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Output (x, y) comes from input (x, y + value), in pixels."""
    return _affine(image, (1, 0, 0, 0, 1, value), fill, resample) if value else image


def translate_x_rel(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """`translate_x` by `value` of the width."""
    return translate_x(image, value * image.width, fill, resample)


def translate_y_rel(image: Image.Image, value: float, fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """`translate_y` by `value` of the height."""
    return translate_y(image, value * image.height, fill, resample)


def cutout(image: Image.Image, value: tuple[float, float, float], fill: Fill = GREY, resample: int = 0) -> Image.Image:
    """Fills a square of side 2 · half about a pixel, cut off at the border; value: (half, down, right), the place in [0, 1)."""
    half, y, x = value[0], int(value[1] * image.height), int(value[2] * image.width)
    box = (max(x - half, 0), max(y - half, 0), min(x + half, image.width), min(y + half, image.height))
    image = image.copy()
    image.paste(_fill(image, fill), tuple(map(int, box)))
    return image


OPS: dict[str, Op] = {
    op.__name__: op
    for op in (
        *(identity, auto_contrast, equalize, invert, rotate, posterize, solarize, solarize_add, color),
        *(contrast, contrast_area, brightness, sharpness, shear_x, shear_y),
        *(translate_x, translate_y, translate_x_rel, translate_y_rel, cutout),
    )
}

# --- Magnitudes: (M, sign) -> value ---


def _none(m: float, sign: float = 1) -> None:
    return None


def _signed(full: float) -> Level:
    return lambda m, sign=1: sign * (m / 10 * full)


def _whole(full: int, start: int = 0, step: int = 1, lowest: int = 0) -> Level:
    """Rounded down, as the published codes do, before it is added to or taken from `start`."""
    return lambda m, sign=1: max(start + step * int(m / 10 * full), lowest)


def _enhance(m: float, sign: float = 1) -> float:
    return m / 10 * 1.8 + 0.1


def _enhance_increasing(m: float, sign: float = 1) -> float:
    return max(0.1, 1 + sign * (m / 10 * 0.9))


_PLAIN = {"auto_contrast": _none, "equalize": _none}
_GEOMETRY = {"rotate": _signed(30.0), "shear_x": _signed(0.3), "shear_y": _signed(0.3)}
_RELATIVE = {"translate_x_rel": _signed(0.45), "translate_y_rel": _signed(0.45)}


def _shared(increasing: bool, fewest_bits: int) -> dict[str, Level]:
    """What the paper's and timm's sets have in common; posterize keeps `fewest_bits` to 4 more."""
    enhance = _enhance_increasing if increasing else _enhance
    return {
        **_PLAIN,
        "posterize": _whole(4, fewest_bits + 4, -1) if increasing else _whole(4, fewest_bits),
        "solarize": _whole(256, 256, -1) if increasing else _whole(256),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), enhance),
        **_GEOMETRY,
        **_RELATIVE,
    }


def _tf1(quirks: Collection[str]) -> dict[str, Level]:
    contrast_name = "contrast_area" if "contrast_area" in quirks else "contrast"
    return {
        **_PLAIN,
        "invert": _none,
        # 0.4·M bits: above M = 20 TensorFlow's shift is negative, which is undefined; here nothing changes from 8 bits on.
        "posterize": _whole(4, lowest=int("shift_clamped" in quirks)),
        "solarize": (lambda m, sign=1: int(m / 10 * 256) % 256) if "solarize_wraps" in quirks else _whole(256),
        "solarize_add": _whole(110),
        **dict.fromkeys(("color", contrast_name, "brightness", "sharpness"), _enhance),
        **_GEOMETRY,
        **({"translate_x": _signed(100.0), "translate_y": _signed(100.0)} if "pixel_translation" in quirks else _RELATIVE),
        "cutout": _whole(40),
    }


class _Set(NamedTuple):
    increasing: bool | None
    quirks: Mapping[str, str]
    probability: float
    magnitude_max: float
    resample: str


# 30 is the largest magnitude that the paper tries.
SETS = {
    "paper": _Set(False, {}, 1.0, 30.0, "nearest"),
    "tf1": _Set(None, TF1_QUIRKS, 1.0, 30.0, "nearest"),
    "timm": _Set(True, {}, 0.5, 10.0, "random"),
}


def magnitudes(ops: str = "paper", increasing: bool | None = None, quirks: Collection[str] | None = None) -> dict[str, Level]:
    """{operation of the set: (M, sign ±1) -> value}; the sign matters for geometry and the increasing enhance operations.

    `increasing` (default: no for "paper", yes for "timm") lets posterize, solarize and the enhance operations grow stronger
    with M. `quirks` are those of `TF1_QUIRKS` to keep (default: all).
    """
    if ops not in SETS:
        raise UserError(f"RandAugment has no set {ops!r}{suggestion(str(ops), SETS)}: use one of {', '.join(SETS)}.")
    known = SETS[ops]
    unknown = [quirk for quirk in quirks or () if quirk not in known.quirks]
    if unknown:
        near, has = suggestion(unknown[0], known.quirks), ", ".join(known.quirks) or "none"
        raise UserError(f"RandAugment's set {ops!r} has no quirk {unknown[0]!r}{near}: it has {has}.")
    if ops == "tf1":
        if increasing is not None:
            raise UserError("RandAugment's set 'tf1' has no increasing= form: use the set 'paper' or 'timm'.")
        return _tf1(known.quirks if quirks is None else quirks)
    increasing = known.increasing if increasing is None else increasing
    if ops == "paper":
        return {"identity": _none, **_shared(increasing, 4)}
    return {**_shared(increasing, 0), "invert": _none, "solarize_add": _whole(110)}


def mean_fill(mean: Sequence[float]) -> tuple[int, ...]:
    """The colour of a data set's mean (in units of the full range), with which timm fills."""
    return tuple(min(255, round(255 * m)) for m in mean)


def rand_augment(
    num_layers: int,
    magnitude: float,
    ops: str = "paper",
    *,
    names: Sequence[str] | None = None,
    fill: Fill = GREY,
    increasing: bool | None = None,
    quirks: Collection[str] | None = None,
    probability: float | None = None,
    magnitude_std: float = 0.0,
    magnitude_max: float | None = None,
    resample: str | None = None,
) -> Transform:
    """uint8 [H, W, C] -> uint8 [H, W, C], C = 3 or 1: N operations drawn with replacement, each with magnitude M (Section 3).

    `names` draws from these instead of the whole set ("identity" may always be among them; one channel has no "color").
    `fill` is the grey value, or one value per channel, of what comes into view: `mean_fill(mean)` is timm's.
    `increasing` and `quirks` are those of `magnitudes`. Each drawn operation is applied with `probability`, at a magnitude
    drawn from N(M, `magnitude_std`) and clipped to [0, `magnitude_max`] (timm: 10, else 30); an infinite deviation draws
    uniformly from [0, M]. `resample` is nearest, bilinear, bicubic, or random: one of the last two.
    """
    levels = magnitudes(ops, increasing, quirks)
    known = SETS[ops]
    probability = known.probability if probability is None else probability
    highest = known.magnitude_max if magnitude_max is None else magnitude_max
    resample = known.resample if resample is None else resample
    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
        raise UserError(f"RandAugment's num_layers (N) is a whole number of operations from 1 up, not {num_layers!r}.")
    if not isinstance(magnitude, int | float) or not 0 <= magnitude <= highest:
        limit = f"0 to {highest:g}" + (" (timm clips there unless magnitude_max= is larger)" if ops == "timm" else "")
        raise UserError(f"RandAugment's magnitude (M) for the set {ops!r} is {limit}, not {magnitude!r}.")
    if not 0 < probability <= 1:
        raise UserError(f"RandAugment's probability (of each drawn operation) is above 0 and at most 1, not {probability!r}.")
    if not magnitude_std >= 0:
        raise UserError(f"RandAugment's magnitude_std is 0 or more, not {magnitude_std!r}.")
    if resample not in RESAMPLE:
        raise UserError(f"RandAugment's resample is one of {', '.join(RESAMPLE)}, not {resample!r}.")
    fill = fill if isinstance(fill, int) else tuple(fill)
    if not all(isinstance(v, int) and 0 <= v <= 255 for v in ((fill,) if isinstance(fill, int) else fill)):
        raise UserError(f"RandAugment's fill is a value of 0 to 255 or one for each channel, not {fill!r}.")
    drawn = tuple(levels if names is None else names)
    levels = {**levels, "identity": _none}
    unknown = [name for name in drawn if name not in levels]
    if unknown or not drawn:
        what = f"no operation {unknown[0]!r}{suggestion(unknown[0], levels)}" if unknown else "nothing to draw from in names=()"
        raise UserError(f"RandAugment's set {ops!r} has {what}: it has {', '.join(levels)}.")
    filters = RESAMPLE[resample]

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise UserError(f"RandAugment needs a uint8 image [H, W, 3] or [H, W, 1], not {image.dtype} {list(image.shape)}.")
        grey = image.shape[2] == 1
        if grey and "color" in drawn:
            raise UserError(_NO_COLOR)
        picture = start = None
        # One draw of the same size for every layer, whatever it draws: operation, probability, sign, filter, place.
        for which, chance, sign, kind, down, right in rng.random((num_layers, 6)).tolist():
            if chance >= probability:
                continue
            m = magnitude
            if magnitude_std:
                m = rng.uniform(0, m) if math.isinf(magnitude_std) else rng.normal(m, magnitude_std)
                m = min(max(m, 0.0), highest)
            name = drawn[int(which * len(drawn))]
            value = levels[name](m, 1 if sign < 0.5 else -1)
            if name == "cutout":
                value = (value, down, right)
            if picture is None:
                picture = start = Image.fromarray(image[:, :, 0] if grey else image)
            picture = OPS[name](picture, value, fill, filters[int(kind * len(filters))])
        if picture is start:
            return image
        return np.array(picture).reshape(image.shape)

    return apply
