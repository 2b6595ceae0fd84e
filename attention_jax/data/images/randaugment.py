"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) on uint8 images, in three published forms.

`randaugment_ops.py` has the operations, `SETS` has the effect of each at magnitude M, and `make_randaugment` draws N of
them for an image. The three sets differ in more than their names:

- `"paper"`: the 14 operations of Section 3 with AutoAugment's ranges (Cubuk et al. 2018, Table 6) as M from 0 to 10, and on
  above. In these, more magnitude is not always more change (the authors: tensorflow/tpu, issue 614): posterize keeps
  4 + 0.4·M bits, solarize starts at 25.6·M, and the enhance operations have no effect at M = 5. The filling is ours, and
  translation by timm's 0.045·M of the side: AutoAugment's pixels empty a small image.
- `"tf1"`: tensorflow/tpu's EfficientNet code, which ResNet-RS trained with: 16 operations, with its quirks. Not copied:
  TensorFlow's grey and smoothed images differ from Pillow's by a rounding step, and its shear, which counts from the first
  pixel's centre instead of its corner, by half of `value` in position.
- `"timm"`: timm's `rand-m9-mstd0.5-inc1` (ConvNeXt, Swin, DeiT) is `make_randaugment(2, 9, "timm", magnitude_std=0.5)`:
  15 operations, each drawn one applied with probability 1/2, M clipped at 10, bilinear or bicubic at random.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from attention_jax.data.images.randaugment_ops import GREY, OPS, Fill, Value
from attention_jax.data.images.transforms import Transform
from attention_jax.errors import UserError, suggest_name

Level = Callable[..., Value]  # (M, sign ±1) -> value; the sign matters for geometry and timm's enhance operations

RESAMPLE = {
    "nearest": (Image.Resampling.NEAREST,),
    "bilinear": (Image.Resampling.BILINEAR,),
    "bicubic": (Image.Resampling.BICUBIC,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


def _none(m: float, sign: float = 1) -> None:
    return None


def _signed(full: float) -> Level:
    return lambda m, sign=1: sign * (m / 10 * full)


def _integer(full: int, start: int = 0, step: int = 1, lowest: int = 0) -> Level:
    """Rounds down before adding to `start` or subtracting from it, as the published codes do."""
    return lambda m, sign=1: max(start + step * int(m / 10 * full), lowest)


def _enhance(m: float, sign: float = 1) -> float:
    return m / 10 * 1.8 + 0.1


def _enhance_increasing(m: float, sign: float = 1) -> float:
    return max(0.1, 1 + sign * (m / 10 * 0.9))


class RandAugmentSet(NamedTuple):
    """A published set: the level of each operation, and how drawn operations are applied."""

    levels: dict[str, Level]
    probability: float = 1.0
    magnitude_max: float = 30.0  # the largest magnitude that the paper tries
    resample: str = "nearest"


_PLAIN: dict[str, Level] = {"auto_contrast": _none, "equalize": _none}
_GEOMETRY = {"rotate": _signed(30.0), "shear_x": _signed(0.3), "shear_y": _signed(0.3)}
_TRANSLATION = {"translate_x_rel": _signed(0.45), "translate_y_rel": _signed(0.45)}
_PAPER: dict[str, Level] = {
    "identity": _none,
    **_PLAIN,
    "posterize": _integer(4, 4),
    "solarize": _integer(256),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), _enhance),
    **_GEOMETRY,
    **_TRANSLATION,
}
_TF1: dict[str, Level] = {
    **_PLAIN,
    "invert": _none,
    # 0.4·M bits, and 1 instead of 0: the kernel shifts a byte by at most 7. Above M = 20 TensorFlow's shift is negative, which
    # is undefined; here nothing changes from 8 bits on.
    "posterize": _integer(4, lowest=1),
    "solarize": lambda m, sign=1: int(m / 10 * 256) % 256,  # so that M = 10 and 20 invert the complete image
    "solarize_add": _integer(110),
    **dict.fromkeys(("color", "contrast_area", "brightness", "sharpness"), _enhance),  # contrast with H·W/256 as mean grey
    **_GEOMETRY,
    "translate_x": _signed(100.0),  # pixels, whatever the image's size
    "translate_y": _signed(100.0),
    "cutout": _integer(40),
}
_TIMM: dict[str, Level] = {
    **_PLAIN,
    "posterize": _integer(4, 4, -1),
    "solarize": _integer(256, 256, -1),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), _enhance_increasing),
    **_GEOMETRY,
    **_TRANSLATION,
    "invert": _none,
    "solarize_add": _integer(110),
}
SETS = {
    "paper": RandAugmentSet(_PAPER),
    "tf1": RandAugmentSet(_TF1),
    "timm": RandAugmentSet(_TIMM, probability=0.5, magnitude_max=10.0, resample="random"),
}


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
    magnitude_std: float = 0.0,
    resample: str | None = None,
) -> Transform:
    """Returns a transform of uint8 [H, W, C], C = 3 or 1, by N operations of magnitude M, drawn with replacement (Section 3).

    Args:
        num_layers: N.
        magnitude: M, up to 10 for timm's set and 30 for the others.
        ops: a key of `SETS`.
        names: operations to draw from, instead of the entire set; "identity" may be one. One channel has no "color".
        fill: the grey value, or one value per channel, for pixels that come into view: `convert_mean_to_fill(mean)` is timm's.
        magnitude_std: each operation's magnitude is drawn from N(M, `magnitude_std`), clipped to the range of M; an infinite
            deviation draws uniformly from [0, M].
        resample: nearest, bilinear, bicubic, or random (one of the last two). None takes the set's.
    """
    if ops not in SETS:
        raise UserError(f"RandAugment has no set {ops!r}{suggest_name(str(ops), SETS)}: use one of {', '.join(SETS)}.")
    levels, probability, highest, its_resample = SETS[ops]
    resample = its_resample if resample is None else resample
    fill = fill if isinstance(fill, int) else tuple(fill)
    drawn = tuple(levels if names is None else names)
    levels = {**levels, "identity": _none}
    limit = f"0 to {highest:g}" + (" (timm clips there)" if ops == "timm" else "")
    is_count = isinstance(num_layers, int) and not isinstance(num_layers, bool) and num_layers >= 1
    is_magnitude = isinstance(magnitude, int | float) and 0 <= magnitude <= highest
    is_fill = all(isinstance(v, int) and 0 <= v <= 255 for v in ((fill,) if isinstance(fill, int) else fill))
    for right, accepts, given in (
        (is_count, "num_layers (N) is a whole number of operations from 1 up", num_layers),
        (is_magnitude, f"magnitude (M) for the set {ops!r} is {limit}", magnitude),
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
        # All layers draw the same number of values, whatever they use: operation, probability, sign, filter, place.
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
