"""RandAugment: every operation against another expression of it, the published magnitudes, and the drawing."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from attention_jax.data.images.randaugment import SETS, convert_mean_to_fill
from attention_jax.data.images.randaugment_ops import OPS
from attention_jax.data.images.transforms import jitter_colours, shift_lighting
from attention_jax.errors import UserError
from attention_jax.preflight.measure import make_photo
from attention_jax.tasks.classification import make_training_transform
from attention_jax.tasks.resolve import resolve_config
from tests.helpers.small import small_config

AFFINE = Image.Transform.AFFINE
FILL = (10, 200, 60)
# Not square, and no channel uses its whole range in both.
PHOTOS = {"strong": make_photo(640, 427)[120:240, 400:560], "pale": make_photo(160, 120, 1) // 2 + 40}


@pytest.fixture(params=PHOTOS)
def photo(request) -> Image.Image:
    return Image.fromarray(PHOTOS[request.param])


def same(ours: Image.Image, theirs: Image.Image) -> None:
    assert ours.mode == theirs.mode and ours.size == theirs.size
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def run(name: str, image: Image.Image, value=None, fill=128, resample: int = 0) -> Image.Image:
    """Applies an operation to a Pillow image."""
    pixels = np.asarray(image)
    done = OPS[name](pixels.reshape(*pixels.shape[:2], -1), value, fill, resample)
    return Image.fromarray(done.reshape(pixels.shape))


# The operations


def enhanced(kind: str):
    return lambda image, value, **_: getattr(ImageEnhance, kind)(image).enhance(value)


def moved(matrix):
    return lambda image, value, fillcolor, resample: image.transform(
        image.size, AFFINE, matrix(value, *image.size), resample=resample, fillcolor=fillcolor
    )


# operation -> (Pillow's expression of it, values)
BY_PILLOW = {
    "identity": (lambda image, value, **_: image, [None]),
    "auto_contrast": (lambda image, value, **_: ImageOps.autocontrast(image), [None]),
    "equalize": (lambda image, value, **_: ImageOps.equalize(image), [None]),
    "invert": (lambda image, value, **_: ImageOps.invert(image), [None]),
    "rotate": (lambda image, value, **kwargs: image.rotate(value, **kwargs), [-30.0, -3.0, 0.0, 13.5, 27.0, 90.0]),
    "posterize": (lambda image, value, **_: ImageOps.posterize(image, value), [1, 2, 4, 7, 8]),
    "solarize": (lambda image, value, **_: ImageOps.solarize(image, value), [0, 25, 128, 230, 255, 256]),
    "solarize_add": (
        lambda image, value, **_: image.point(
            [min(255, v + value) if v < 128 else v for v in range(256)] * len(image.getbands())
        ),
        [0, 11, 110, 165, 330],
    ),
    "color": (enhanced("Color"), [0.1, 0.46, 1.0, 1.72, 1.9, 5.5]),
    "contrast": (enhanced("Contrast"), [0.1, 0.46, 1.0, 1.72, 1.9, 5.5]),
    "brightness": (enhanced("Brightness"), [0.1, 0.46, 1.0, 1.72, 1.9, 5.5]),
    "sharpness": (enhanced("Sharpness"), [0.1, 0.46, 1.0, 1.72, 1.9, 5.5]),
    "shear_x": (moved(lambda v, w, h: (1, v, 0, 0, 1, 0)), [-0.3, -0.03, 0.0, 0.15, 0.3]),
    "shear_y": (moved(lambda v, w, h: (1, 0, 0, v, 1, 0)), [-0.3, -0.03, 0.0, 0.15, 0.3]),
    "translate_x": (moved(lambda v, w, h: (1, 0, v, 0, 1, 0)), [-100.0, -10.0, 0.0, 12.5, 300.0]),
    "translate_y": (moved(lambda v, w, h: (1, 0, 0, 0, 1, v)), [-100.0, -10.0, 0.0, 12.5, 300.0]),
    "translate_x_rel": (moved(lambda v, w, h: (1, 0, v * w, 0, 1, 0)), [-0.45, -0.045, 0.0, 0.225]),
    "translate_y_rel": (moved(lambda v, w, h: (1, 0, 0, 0, 1, v * h)), [-0.45, -0.045, 0.0, 0.225]),
}
NOT_PILLOW = {"contrast_area", "cutout"}  # TensorFlow's, below
GEOMETRY = [
    "rotate",
    *(f"{kind}_{axis}" for kind in ("shear", "translate") for axis in "xy"),
    "translate_x_rel",
    "translate_y_rel",
]


def test_every_operation_is_compared():
    assert BY_PILLOW.keys() | NOT_PILLOW == OPS.keys()


@pytest.mark.parametrize("name", BY_PILLOW)
def test_operation_is_pillows(name, photo):
    expression, values = BY_PILLOW[name]
    for resample in (0, 2, 3) if name in GEOMETRY else (0,):
        for value in values:
            theirs = expression(photo, value, fillcolor=FILL, resample=resample)
            same(run(name, photo, value, fill=FILL, resample=resample), theirs)


@pytest.mark.parametrize("name", sorted(BY_PILLOW.keys() - {"color"}))
def test_operation_on_one_channel(name, photo):
    grey = photo.convert("L")
    expression, values = BY_PILLOW[name]
    for resample in (0, 2) if name in GEOMETRY else (0,):
        for value in values:
            same(run(name, grey, value, fill=77, resample=resample), expression(grey, value, fillcolor=77, resample=resample))


@pytest.mark.parametrize("name", ["translate_x", "translate_y", "sharpness"])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 2), (3, 3), (31, 17), (224, 224)])
def test_operations_in_numpy_are_pillows_at_every_size_and_value(name, size):
    expression, _ = BY_PILLOW[name]
    rng = np.random.default_rng(0)
    for mode, shape in (("RGB", (*size[::-1], 3)), ("L", size[::-1])):
        image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        fill = FILL if mode == "RGB" else 77
        longest = max(size) + 1
        places = [-longest, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, *rng.uniform(-longest, longest, 20)]
        for value in places if name != "sharpness" else rng.uniform(-1, 6, 20):
            ours = run(name, image, value, fill=fill, resample=2)
            same(ours, expression(image, value, fillcolor=fill, resample=2))


# What an operation leaves alone; every other operation changes both photographs.
IDENTITY = {
    **dict.fromkeys(GEOMETRY, 0.0),
    **dict.fromkeys(("color", "contrast", "contrast_area", "brightness", "sharpness"), 1.0),
    **{"identity": None, "posterize": 8, "solarize": 256, "solarize_add": 0, "cutout": (0, 0.5, 0.5)},
}


@pytest.mark.parametrize("name", OPS)
def test_identity_values(name, photo):
    if name in IDENTITY:
        same(run(name, photo, IDENTITY[name], resample=3), photo)
    before = photo.copy()
    strong = {"cutout": (8, 0.5, 0.5), "contrast_area": 0.5, "posterize": 1, "solarize": 25, "solarize_add": 110}
    if name != "identity":
        value = strong[name] if name in strong else BY_PILLOW[name][1][0]
        assert (np.asarray(run(name, photo, value)) != np.asarray(photo)).any()
    same(photo, before)  # no operation writes into its argument


def test_geometry_by_hand():
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    pillow = Image.fromarray(image)
    left = np.full_like(image, 9)
    left[:, :-2] = image[:, 2:]
    np.testing.assert_array_equal(run("translate_x", pillow, 2.0, fill=9), left)
    down = np.full_like(image, 9)
    down[2:] = image[:-2]
    np.testing.assert_array_equal(run("translate_y_rel", pillow, -0.5, fill=9), down)
    sheared = np.full_like(image, 9)
    for row in range(4):
        sheared[row, : 6 - row] = image[row, row:]
    np.testing.assert_array_equal(run("shear_x", pillow, 0.9, fill=9), sheared)
    square = Image.fromarray(image[:, :4])
    np.testing.assert_array_equal(run("rotate", square, 90.0), np.rot90(image[:, :4]))


def test_posterize_without_bits_is_black(photo):
    assert not np.asarray(run("posterize", photo, 0)).any()


def test_auto_contrast_leaves_a_flat_channel(photo):
    flat = Image.merge("RGB", [photo.getchannel(0), Image.new("L", photo.size, 90), photo.getchannel(2)])
    same(run("auto_contrast", flat), ImageOps.autocontrast(flat))


# TensorFlow's forms, in numpy


@pytest.mark.parametrize("factor", [0.1, 0.46, 1.36, 1.9, 5.5])
@pytest.mark.parametrize(("size", "target"), [((160, 160), 100), ((192, 192), 144), ((224, 224), 196), ((256, 256), 255)])
def test_contrast_blends_with_the_area(size, target, factor):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    blend = target + np.float32(factor) * (image.astype(np.float32) - target)
    ours = run("contrast_area", Image.fromarray(image), factor)
    # A compiler that fuses the product and the sum may land on the other side of a whole number; a target that is off by one
    # changes more than half of the values.
    difference = np.abs(np.asarray(ours).astype(int) - np.clip(blend, 0, 255).astype(np.uint8))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.2


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [((4, 0.5, 0.5), (56, 64), (76, 84)), ((40, 0.0, 0.999), (0, 40), (119, 160)), ((200, 0.3, 0.3), (0, 120), (0, 160))],
)
def test_cutout(photo, place, rows, columns):
    expected = np.array(photo)
    expected[slice(*rows), slice(*columns)] = FILL
    np.testing.assert_array_equal(run("cutout", photo, place, fill=FILL), expected)


@pytest.mark.parametrize("factor", [0.1, 0.46, 1.9])
def test_greys_and_smoothing_round_as_tensorflow_within_one(photo, factor):
    """TensorFlow's grey is 0.2989 R + 0.587 G + 0.114 B, and its smoothing drops the fraction that Pillow rounds."""
    image = np.asarray(photo).astype(np.float64)
    grey = np.repeat((image @ [0.2989, 0.587, 0.114] + 0.5).astype(np.uint8)[..., None], 3, axis=2)
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = image.copy()
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(0, 1))
    smooth[1:-1, 1:-1] = np.floor(np.einsum("hwcij,ij->hwc", windows, kernel) + 1e-9)
    for name, degenerate in (("color", grey), ("sharpness", smooth)):
        blend = np.clip(degenerate + factor * (image - degenerate), 0, 255)
        assert np.abs(np.asarray(run(name, photo, factor)) - blend).max() < 1 + abs(1 - factor) + 1e-6


# Magnitudes: the tables that the official codes give

ENHANCE = ("color", "contrast", "brightness", "sharpness")
TF1 = {  # M -> rotate°, posterize bits, solarize threshold, solarize_add, enhance factor, shear, translate px, cutout half
    0: (0.0, 0, 0, 0, 0.1, 0.0, 0.0, 0),
    1: (3.0, 0, 25, 11, 0.28, 0.03, 10.0, 4),
    2: (6.0, 0, 51, 22, 0.46, 0.06, 20.0, 8),
    5: (15.0, 2, 128, 55, 1.0, 0.15, 50.0, 20),
    7: (21.0, 2, 179, 77, 1.36, 0.21, 70.0, 28),
    9: (27.0, 3, 230, 99, 1.72, 0.27, 90.0, 36),
    10: (30.0, 4, 256, 110, 1.9, 0.3, 100.0, 40),
    15: (45.0, 6, 384, 165, 2.8, 0.45, 150.0, 60),
    20: (60.0, 8, 512, 220, 3.7, 0.6, 200.0, 80),
    30: (90.0, 12, 768, 330, 5.5, 0.9, 300.0, 120),
}
TIMM_INCREASING = {  # M -> rotate°, posterize bits, solarize threshold, solarize_add, enhance change, shear, translate share
    0: (0.0, 4, 256, 0, 0.0, 0.0, 0.0),
    1: (3.0, 4, 231, 11, 0.09, 0.03, 0.045),
    5: (15.0, 2, 128, 55, 0.45, 0.15, 0.225),
    8: (24.0, 1, 52, 88, 0.72, 0.24, 0.36),
    9: (27.0, 1, 26, 99, 0.81, 0.27, 0.405),
    10: (30.0, 0, 0, 110, 0.90, 0.3, 0.45),
}
SIGNED = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y", "translate_x_rel", "translate_y_rel"}
PLAIN = {"identity", "auto_contrast", "equalize", "invert"}


def check(levels, m, expected, changing=()):
    for name, level in levels.items():
        value = expected[name]
        assert level(m) == (None if value is None else pytest.approx(value, abs=1e-9)), name
        if name in SIGNED:
            assert level(m, -1) == pytest.approx(-value, abs=1e-9), name
        elif name not in changing:
            assert level(m, -1) == level(m), name


@pytest.mark.parametrize("m", TF1)
def test_magnitudes_of_tensorflow(m):
    degrees, bits, threshold, addition, factor, shear, pixels, half = TF1[m]
    expected = dict.fromkeys(PLAIN) | dict.fromkeys((*ENHANCE, "contrast_area"), factor)
    expected |= {"rotate": degrees, "posterize": bits, "solarize": threshold, "solarize_add": addition, "cutout": half}
    expected |= {"shear_x": shear, "shear_y": shear, "translate_x": pixels, "translate_y": pixels}
    levels = SETS["tf1"].levels
    assert len(levels) == 16 and {"contrast_area", "translate_x", "cutout", "solarize_add", "invert"} <= levels.keys()
    assert {"identity", "contrast"}.isdisjoint(levels)
    # The threshold wraps (M = 10 inverts, M = 15 is ordinary), and 0 bits keep the top one.
    check(levels, m, expected | {"solarize": threshold % 256, "posterize": max(bits, 1)})


def test_solarize_at_ten_inverts_in_tensorflow(photo):
    same(run("solarize", photo, SETS["tf1"].levels["solarize"](10)), ImageOps.invert(photo))


@pytest.mark.parametrize("m", TIMM_INCREASING)
def test_magnitudes_of_timm(m):
    degrees, bits, threshold, addition, change, shear, share = TIMM_INCREASING[m]
    expected = dict.fromkeys(PLAIN) | dict.fromkeys(ENHANCE, 1 + change)
    expected |= {"rotate": degrees, "posterize": bits, "solarize": threshold, "solarize_add": addition}
    expected |= {"shear_x": shear, "shear_y": shear, "translate_x_rel": share, "translate_y_rel": share}
    levels = SETS["timm"].levels
    assert len(levels) == 15 and {"identity", "cutout"}.isdisjoint(levels)
    check(levels, m, expected, ENHANCE)
    for name in ENHANCE:
        assert levels[name](m, -1) == pytest.approx(max(0.1, 1 - change))


@pytest.mark.parametrize("m", [0, 2, 5, 10, 15, 30])
def test_magnitudes_of_the_paper(m):
    """AutoAugment's ranges (Table 6): 30°, 0.3, [4, 8] bits, [0, 256], [0.1, 1.9]; continued linearly above 10."""
    expected = dict.fromkeys(PLAIN) | dict.fromkeys(ENHANCE, 0.1 + 0.18 * m)
    expected |= {"rotate": 3.0 * m, "posterize": 4 + int(0.4 * m), "solarize": int(25.6 * m)}
    expected |= {"shear_x": 0.03 * m, "shear_y": 0.03 * m, "translate_x_rel": 0.045 * m, "translate_y_rel": 0.045 * m}
    levels = SETS["paper"].levels
    assert len(levels) == 14 and "identity" in levels and {"invert", "cutout", "solarize_add"}.isdisjoint(levels)
    check(levels, m, expected)


def test_fill_of_a_mean():
    assert convert_mean_to_fill((0.485, 0.456, 0.406)) == (124, 116, 104)  # ImageNet's, as timm rounds it


def test_colour_jitter_is_pillows_three_in_some_order():
    """Each once, by a factor from 1 - s to 1 + s of its own; nothing at strength 0; no saturation in one channel."""
    pixels, orders, factors = PHOTOS["strong"], set(), []
    for seed in range(40):
        draws = np.random.default_rng(seed)
        expected, order = Image.fromarray(pixels), draws.permutation(3)
        for i in order:
            factors.append(draws.uniform(0.6, 1.4))
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[i]
            expected = enhance(expected).enhance(factors[-1])
        orders.add(tuple(order))
        np.testing.assert_array_equal(jitter_colours(0.4)(pixels, np.random.default_rng(seed)), np.asarray(expected))
    assert len(orders) == 6 and min(factors) < 0.65 and max(factors) > 1.35
    assert (jitter_colours(0.0)(pixels, np.random.default_rng(0)) == pixels).all()
    grey = jitter_colours(0.4)(pixels[..., :1], np.random.default_rng(0))
    assert grey.shape == (*pixels.shape[:2], 1) and (grey != pixels[..., :1]).any()
    assert jitter_colours(2.0)(pixels, np.random.default_rng(1)).dtype == np.uint8  # factors stop at 0


def test_lighting_shifts_every_pixel_along_the_components_of_colour():
    """Of ImageNet's covariance the components have deviations 0.2175, 0.0188 and 0.0045; nothing at deviation 0."""
    image, components = np.full((4, 5, 3), 128, np.uint8), []
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    for seed in range(500):
        shifted = shift_lighting(0.5)(image, np.random.default_rng(seed))
        assert shifted.dtype == np.uint8 and (shifted == shifted[0, 0]).all()
        components.append((shifted[0, 0] - 128.0) / 255 @ vectors)
    deviations = np.std(components, axis=0)  # rounding adds 0.29 of a level
    np.testing.assert_allclose(deviations, np.hypot(0.5 * np.array([0.2175, 0.0188, 0.0045]), 0.29 / 255), rtol=0.1)
    assert (shift_lighting(0.0)(image, np.random.default_rng(0)) == image).all()
    with pytest.raises(UserError, match="data.lighting=0.1 shifts colours, and images have 1 channels"):
        resolve_config(small_config(**{"data.lighting": 0.1}))


def test_a_config_jitters_colours_and_gives_the_same_image_for_one_seed():
    transform = make_training_transform(
        small_config(**{"data.colour_jitter": 0.4, "data.crop": "none", "data.image_shape": (8, 8, 1)})
    )
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    first, again, other = (transform(image, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
