"""The sizes, crops and colours with which published weights of a network were trained and tested.

`preprocessing.tsv` has them by name: timm's for its default weights, torchvision's for its default weights, and
"torchvision_v1" for the older weights of networks with two; "official" is the released code of ConvNeXt, DeiT, Swin
Transformers and BAM, "akamaster" that of the CIFAR ResNets, and "attention_jax" the configs of this repository, for networks
without published ones. torchvision does not publish the training size of its weights: the table repeats the test size.
"""

import dataclasses
import functools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

from attention_jax.errors import UserError, suggest_name

_COLOURS = {  # mean and deviation of each channel, in units of the full range
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that turns an image into a network's input.

    Attributes:
        source: name of the publisher, as `preprocessing` takes it.
        train_size, test_size: pixels a side; published accuracies are measured at `test_size`.
        train_crop_share, test_crop_share: side of the centre crop, as a share of the image's shorter side after it is
            resized, in an evaluation at each of the two sizes.
        interpolation: "bilinear" or "bicubic".
        mean, std: mean and deviation of each channel, in units of the full range.
    """

    source: str
    train_size: int
    test_size: int
    train_crop_share: Fraction
    test_crop_share: Fraction
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_fields(self, test: bool = False) -> dict[str, Any]:
        """Returns the fields of a config's section `data`: `config.data.update(**preprocessing(name).to_fields())`.

        Args:
            test: True takes the test's size in place of the training's.
        """
        size, share = (self.test_size, self.test_crop_share) if test else (self.train_size, self.train_crop_share)
        return {
            "image_shape": (size, size, len(self.mean)),
            "eval_resize": math.floor(size / share),
            "interpolation": self.interpolation,
            "mean": self.mean,
            "std": self.std,
        }


@functools.cache
def _read_table() -> dict[str, dict[str, Preprocessing]]:
    """Returns {name: {source: its preprocessing}}, with the sources in order of preference."""
    _, *lines = Path(__file__).with_suffix(".tsv").read_text("utf-8").splitlines()
    found: dict[str, dict[str, Preprocessing]] = {}
    for source, names, train, train_crop, test, test_crop, interpolation, colours in (line.split("\t") for line in lines):
        shares = Fraction(train_crop), Fraction(test_crop)  # 224 / (224 / 354) in floating point is below 354
        row = Preprocessing(source, int(train), int(test), *shares, interpolation, *_COLOURS[colours])
        for name in names.split(","):
            found.setdefault(name, {})[source] = row
    return found


def list_preprocessing(name: str) -> tuple[str, ...]:
    """Returns the sources that have the network called `name`. Raises UserError for an unknown name, with the nearest one."""
    table = _read_table()
    if name not in table:
        raise UserError(f"preprocessing({name!r}): there is none of that name{suggest_name(name, table)}.")
    return tuple(table[name])


def preprocessing(name: str, source: str | None = None) -> Preprocessing:
    """Returns the preprocessing of the image network called `name`.

    Args:
        source: publisher of weights: "timm", "torchvision", "torchvision_v1", "official", "akamaster", "attention_jax"; None is
            the first of these that has the network.

    Raises:
        UserError: an unknown name (with the nearest one), or a source without it (with the sources that have it).
    """
    sources = list_preprocessing(name)
    if source is not None and source not in sources:
        raise UserError(f"preprocessing({name!r}, source={source!r}): give {' or '.join(map(repr, sources))}.")
    return _read_table()[name][source or sources[0]]
