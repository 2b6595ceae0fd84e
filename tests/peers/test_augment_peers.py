"""RandAugment against timm, live: its operations, its magnitudes, and whole chains of one operation; other recipe pieces."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("timm", reason="the extra 'peers' is not installed")

import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy
from torchvision.transforms import functional

from attention_jax.data.images.randaugment import SETS, convert_mean_to_fill, make_randaugment
from attention_jax.data.images.randaugment_ops import OPS
from attention_jax.data.images.transforms import jitter_colours
from attention_jax.optim.losses import sigmoid_cross_entropy
from attention_jax.optim.mixing import erase_boxes
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


@pytest.mark.parametrize("seed", range(4))
def test_colour_jitter_is_torchvisions(seed):
    """The same order and factors in its functions on Pillow images, bit by bit."""
    pixels, draws = PHOTOS["strong"], np.random.default_rng(seed)
    expected = Image.fromarray(pixels)
    for i in draws.permutation(3):
        adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)[i]
        expected = adjust(expected, draws.uniform(0.6, 1.4))
    np.testing.assert_array_equal(jitter_colours(0.4)(pixels, np.random.default_rng(seed)), np.asarray(expected))


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_binary_cross_entropy_is_timms(threshold):
    logits, targets = (np.random.default_rng(i).random((8, 5)).astype(np.float32) for i in range(2))
    theirs = BinaryCrossEntropy(target_threshold=threshold or None)(torch.tensor(logits), torch.tensor(targets))
    assert float(sigmoid_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), threshold).mean()) == pytest.approx(
        float(theirs), rel=1e-5
    )


def test_erased_boxes_have_timms_sizes():
    """Quantiles of area and of the ratio of sides, on images that are narrow enough for boxes to be drawn again."""
    random.seed(0)
    n, h, w = 3000, 24, 60
    images = np.full((n, h, w, 1), 7, np.float32)
    ours = np.asarray(erase_boxes(jax.random.key(0), images, 1.0))[..., 0] != 7
    erase = RandomErasing(probability=1.0, max_area=1 / 3, mode="pixel", device="cpu")
    theirs = np.stack([erase(torch.full((1, h, w), 7.0)).numpy()[0] != 7 for _ in range(n)])
    quantiles = []
    for boxes in (ours, theirs):
        heights, widths = boxes.any(2).sum(1), boxes.any(1).sum(1)
        tops = boxes.any(2).argmax(1)
        parts = (heights * widths / (h * w), np.log(heights / widths), tops / (h - heights))
        quantiles.append([np.quantile(part, (0.1, 0.3, 0.5, 0.7, 0.9)) for part in parts])
    np.testing.assert_allclose(*quantiles, atol=0.06)
