"""RandAugment against timm, live: its operations, its magnitudes, and whole chains of one operation."""

import random

import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")

from PIL import Image
from timm.data import auto_augment

from attention_jax.data.images.randaugment import SETS, convert_mean_to_fill, make_randaugment
from attention_jax.data.images.randaugment_ops import OPS
from tests.data.test_randaugment import PHOTOS

pytestmark = pytest.mark.peers

MEAN = (0.485, 0.456, 0.406)
# Ours -> timm's increasing name.
NAMES = {
    **{"auto_contrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate"},
    **{"posterize": "PosterizeIncreasing", "solarize": "SolarizeIncreasing", "solarize_add": "SolarizeAdd"},
    **{f"{kind}": f"{kind.capitalize()}Increasing" for kind in ("color", "contrast", "brightness", "sharpness")},
    **{"shear_x": "ShearX", "shear_y": "ShearY", "translate_x_rel": "TranslateXRel", "translate_y_rel": "TranslateYRel"},
}


def timm_values(name: str, m: float) -> set:
    """What timm's level function gives, over both signs."""
    level = auto_augment.LEVEL_TO_ARG[name]
    return {None} if level is None else {round(level(m, {})[0], 9) for _ in range(60)}


def test_magnitudes():
    levels = SETS["timm"].levels
    assert set(NAMES.values()) == set(auto_augment._RAND_INCREASING_TRANSFORMS) and levels.keys() == NAMES.keys()
    random.seed(0)
    for ours, name in NAMES.items():
        for m in (0, 0.7, 3, 5, 8.49, 9, 10):
            values = {levels[ours](m, sign) for sign in (1, -1)}
            assert {None if v is None else round(v, 9) for v in values} == timm_values(name, m), (ours, m)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("name", NAMES)
def test_operation(name, photo):
    picture, fill = Image.fromarray(PHOTOS[photo]), convert_mean_to_fill(MEAN)
    level = SETS["timm"].levels[name]
    for m in (1, 5, 9):
        for value in {level(m, 1), level(m, -1)}:
            for resample in (Image.BILINEAR, Image.BICUBIC):
                arguments = () if value is None else (value,)
                theirs = auto_augment.NAME_TO_OP[NAMES[name]](picture, *arguments, fillcolor=fill, resample=resample)
                np.testing.assert_array_equal(OPS[name](PHOTOS[photo], value, fill, resample), np.asarray(theirs))


@pytest.mark.parametrize("name", ["rotate", "shear_y", "translate_x_rel", "color", "sharpness", "solarize_add", "equalize"])
def test_results_of_both_transforms(name):
    """One operation in two layers of probability 1/2: the same handful of images comes out of both."""
    image, fill = PHOTOS["strong"], convert_mean_to_fill(MEAN)
    ours = make_randaugment(2, 9, "timm", names=[name], fill=fill, resample="bicubic")
    hparams = dict(img_mean=fill, interpolation=Image.BICUBIC)
    theirs = auto_augment.RandAugment(auto_augment.rand_augment_ops(9, hparams=hparams, transforms=[NAMES[name]]), num_layers=2)
    random.seed(1)
    rng, picture = np.random.default_rng(1), Image.fromarray(image)
    # At most 1 + 2 + 4 images, the rarest with probability 1/16.
    assert {ours(image, rng).tobytes() for _ in range(160)} == {theirs(picture).tobytes() for _ in range(160)}
