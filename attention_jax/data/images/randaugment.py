"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) on uint8 images, in three published forms.

`randaugment_ops.py` has the operations, `get_magnitudes` says what each of them does at magnitude M, and `make_randaugment`
draws N of them for an image. The three sets differ in more than their names:

- `"paper"`: the 14 operations of Section 3 with AutoAugment's ranges (Cubuk et al. 2018, Table 6) as M from 0 to 10, and on
  above. In these, more magnitude is not always more change (the authors: tensorflow/tpu, issue 614): posterize keeps
  4 + 0.4·M bits, solarize starts at 25.6·M, and the enhance operations have no effect at M = 5; `increasing=True` reverses
  those. The filling is ours, and translation by timm's 0.045·M of the side: AutoAugment's pixels empty a small image.
- `"tf1"`: tensorflow/tpu's EfficientNet code, which ResNet-RS trained with: 16 operations, `TF1_QUIRKS`.
- `"timm"`: timm's `rand-m9-mstd0.5-inc1` (ConvNeXt, Swin, DeiT) is `make_randaugment(2, 9, "timm", magnitude_std=0.5)`:
  15 operations, each drawn one applied with probability 1/2, M clipped at 10, bilinear or bicubic at random.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from attention_jax.data.images.randaugment_ops import GREY, OPS, Fill, Value
from attention_jax.data.images.transforms import Transform
from attention_jax.errors import UserError, suggest_name

Level = Callable[..., Value]

RESAMPLE = {
    "nearest": (Image.Resampling.NEAREST,),
    "bilinear": (Image.Resampling.BILINEAR,),
    "bicubic": (Image.Resampling.BICUBIC,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}

# Not copied: TensorFlow's grey and smoothed images differ from Pillow's by a rounding step, and its shear, which counts from
# the first pixel's centre instead of its corner, by half of `value` in position.
TF1_QUIRKS = {
    "solarize_wraps": "the threshold is taken modulo 256, so that M = 10 and 20 invert the whole image",
    "shift_clamped": "keeping 0 bits keeps the top one: the kernel shifts a byte by at most 7",
    "contrast_area": "contrast blends with the grey H·W/256 instead of the mean grey",
    "pixel_translation": "translation by 10·M pixels whatever the image's size, instead of 0.045·M of the side",
}

# --- Magnitudes: (M, sign) -> value ---


def _none(m: float, sign: float = 1) -> None:
    return None


def _signed(full: float) -> Level:
    return lambda m, sign=1: sign * (m / 10 * full)


def _integer(full: int, start: int = 0, step: int = 1, lowest: int = 0) -> Level:
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
    """The levels that the paper's and timm's sets share; posterize keeps `fewest_bits` to 4 more."""
    enhance = _enhance_increasing if increasing else _enhance
    return {
        **_PLAIN,
        "posterize": _integer(4, fewest_bits + 4, -1) if increasing else _integer(4, fewest_bits),
        "solarize": _integer(256, 256, -1) if increasing else _integer(256),
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
        "posterize": _integer(4, lowest=int("shift_clamped" in quirks)),
        "solarize": (lambda m, sign=1: int(m / 10 * 256) % 256) if "solarize_wraps" in quirks else _integer(256),
        "solarize_add": _integer(110),
        **dict.fromkeys(("color", contrast_name, "brightness", "sharpness"), _enhance),
        **_GEOMETRY,
        **({"translate_x": _signed(100.0), "translate_y": _signed(100.0)} if "pixel_translation" in quirks else _RELATIVE),
        "cutout": _integer(40),
    }


class _Set(NamedTuple):
    quirks: Mapping[str, str]
    probability: float
    magnitude_max: float
    resample: str


# 30 is the largest magnitude that the paper tries.
SETS = {
    "paper": _Set({}, 1.0, 30.0, "nearest"),
    "tf1": _Set(TF1_QUIRKS, 1.0, 30.0, "nearest"),
    "timm": _Set({}, 0.5, 10.0, "random"),
}


def get_magnitudes(
    ops: str = "paper", increasing: bool | None = None, quirks: Collection[str] | None = None
) -> dict[str, Level]:
    """{operation of the set: (M, sign ±1) -> value}; the sign matters for geometry and the increasing enhance operations.

    `increasing` (default: no for "paper", yes for "timm") lets posterize, solarize and the enhance operations grow stronger
    with M. `quirks` are those of `TF1_QUIRKS` to keep (default: all).
    """
    if ops not in SETS:
        raise UserError(f"RandAugment has no set {ops!r}{suggest_name(str(ops), SETS)}: use one of {', '.join(SETS)}.")
    known = SETS[ops].quirks
    unknown = [quirk for quirk in quirks or () if quirk not in known]
    if unknown:
        near, has = suggest_name(unknown[0], known), ", ".join(known) or "none"
        raise UserError(f"RandAugment's set {ops!r} has no quirk {unknown[0]!r}{near}: it has {has}.")
    if ops == "tf1":
        if increasing is not None:
            raise UserError("RandAugment's set 'tf1' has no increasing= form: use the set 'paper' or 'timm'.")
        return _tf1(known if quirks is None else quirks)
    if ops == "paper":
        return {"identity": _none, **_shared(bool(increasing), 4)}
    return {**_shared(increasing is not False, 0), "invert": _none, "solarize_add": _integer(110)}


def convert_mean_to_fill(mean: Sequence[float]) -> tuple[int, ...]:
    """Returns the colour of a data set's mean (in units of the full range), with which timm fills."""
    return tuple(min(255, round(255 * m)) for m in mean)


def make_randaugment(
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

    `names` draws from these instead of the entire set ("identity" may always be among them; one channel has no "color").
    `fill` is the grey value, or one value per channel, of what comes into view: `convert_mean_to_fill(mean)` is timm's.
    `increasing` and `quirks` are those of `get_magnitudes`. Each drawn operation is applied with `probability`, at a magnitude
    drawn from N(M, `magnitude_std`) and clipped to [0, `magnitude_max`] (timm: 10, else 30); an infinite deviation draws
    uniformly from [0, M]. `resample` is nearest, bilinear, bicubic, or random: one of the last two.
    """
    levels = get_magnitudes(ops, increasing, quirks)
    probability = SETS[ops].probability if probability is None else probability
    highest = SETS[ops].magnitude_max if magnitude_max is None else magnitude_max
    resample = SETS[ops].resample if resample is None else resample
    fill = fill if isinstance(fill, int) else tuple(fill)
    drawn = tuple(levels if names is None else names)
    levels = {**levels, "identity": _none}
    limit = f"0 to {highest:g}" + (" (timm clips there unless magnitude_max= is larger)" if ops == "timm" else "")
    is_count = isinstance(num_layers, int) and not isinstance(num_layers, bool) and num_layers >= 1
    is_magnitude = isinstance(magnitude, int | float) and 0 <= magnitude <= highest
    is_fill = all(isinstance(v, int) and 0 <= v <= 255 for v in ((fill,) if isinstance(fill, int) else fill))
    for right, accepts, given in (
        (is_count, "num_layers (N) is a whole number of operations from 1 up", num_layers),
        (is_magnitude, f"magnitude (M) for the set {ops!r} is {limit}", magnitude),
        (0 < probability <= 1, "probability (of each drawn operation) is above 0 and at most 1", probability),
        (magnitude_std >= 0, "magnitude_std is 0 or more", magnitude_std),
        (resample in RESAMPLE, f"resample is one of {', '.join(RESAMPLE)}", resample),
        (is_fill, "fill is a value of 0 to 255 or one for each channel", fill),
    ):
        if not right:
            raise UserError(f"RandAugment's {accepts}, not {given!r}.")
    unknown = [name for name in drawn if name not in levels]
    if unknown or not drawn:
        what = (
            f"no operation {unknown[0]!r}{suggest_name(unknown[0], levels)}" if unknown else "nothing to draw from in names=()"
        )
        raise UserError(f"RandAugment's set {ops!r} has {what}: it has {', '.join(levels)}.")
    filters = RESAMPLE[resample]

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise UserError(f"RandAugment needs a uint8 image [H, W, 3] or [H, W, 1], not {image.dtype} {list(image.shape)}.")
        if image.shape[2] == 1 and "color" in drawn:
            raise UserError("RandAugment's 'color' needs an image of three channels: leave it out of names= for one channel.")
        # One draw of the same size for every layer, whatever it draws: operation, probability, sign, filter, place.
        for which, chance, sign, kind, *place in rng.random((num_layers, 6)).tolist():
            if chance >= probability:
                continue
            m = magnitude
            if magnitude_std:
                m = rng.uniform(0, m) if math.isinf(magnitude_std) else rng.normal(m, magnitude_std)
                m = min(max(m, 0.0), highest)
            name = drawn[int(which * len(drawn))]
            value = levels[name](m, 1 if sign < 0.5 else -1)
            image = OPS[name](image, (value, *place) if name == "cutout" else value, fill, filters[int(kind * len(filters))])
        return image

    return apply
