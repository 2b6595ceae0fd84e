"""What RandAugment draws, and the transform."""

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from attention_jax.data.images.randaugment import SETS, make_randaugment
from attention_jax.data.images.randaugment_ops import OPS
from attention_jax.errors import UserError
from tests.data.test_randaugment import FILL, PHOTOS, SIGNED

# The drawing


class Recorder:
    """In place of the operations: which were applied, with which value, fill and filter."""

    def __init__(self, monkeypatch):
        self.calls: list[tuple] = []
        for name in OPS:
            monkeypatch.setitem(OPS, name, self.recording(name))

    def recording(self, name):
        def op(image, value, fill, resample):
            self.calls.append((name, value, fill, resample))
            return image

        return op

    def run(self, transform, times, seed=0) -> list[list[tuple]]:
        rng = np.random.default_rng(seed)
        runs = []
        for _ in range(times):
            self.calls = []
            transform(np.zeros((2, 2, 3), np.uint8), rng)
            runs.append(self.calls)
        return runs


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    return Recorder(monkeypatch)


def flat(runs: list[list[tuple]]) -> list[tuple]:
    return [call for run in runs for call in run]


def close(count: float, times: int, share: float) -> bool:
    """Within 4.5 standard deviations of a binomial."""
    return abs(count - times * share) < 4.5 * math.sqrt(times * share * (1 - share))


@pytest.mark.parametrize("ops", ["paper", "tf1"])
def test_n_operations_drawn_uniformly_with_replacement(recorder, ops):
    names = list(SETS[ops].levels)
    runs = recorder.run(make_randaugment(2, 9, ops), 4000)
    assert {len(run) for run in runs} == {2}
    for layer in range(2):
        drawn = [run[layer][0] for run in runs]
        assert set(drawn) == set(names)
        assert all(close(drawn.count(name), 4000, 1 / len(names)) for name in names)
    assert close(sum(run[0][0] == run[1][0] for run in runs), 4000, 1 / len(names))


@pytest.mark.parametrize("n", [1, 3, 5])
def test_number_of_operations(recorder, n):
    assert all(len(run) == n for run in recorder.run(make_randaugment(n, 5), 20))


def test_signs_are_fair_and_values_the_magnitudes(recorder):
    levels = SETS["paper"].levels
    calls = flat(recorder.run(make_randaugment(3, 7), 2000))
    signed = [(name, value) for name, value, _, _ in calls if name in SIGNED]
    assert close(sum(value > 0 for _, value in signed), len(signed), 0.5)
    assert all(value in (levels[name](7), levels[name](7, -1)) for name, value, _, _ in calls)
    assert {(fill, resample) for _, _, fill, resample in calls} == {(128, 0)}


def test_timm_draws(recorder):
    runs = recorder.run(make_randaugment(2, 9, "timm", magnitude_std=0.5, fill=(124, 116, 104)), 4000)
    calls = flat(runs)
    assert close(len(calls), 8000, 0.5)
    assert close(sum(len(run) == 2 for run in runs), 4000, 0.25)  # each for itself
    assert {fill for _, _, fill, _ in calls} == {(124, 116, 104)}
    assert close(sum(resample == 2 for *_, resample in calls), len(calls), 0.5)
    assert {resample for *_, resample in calls} == {2, 3}
    m = np.array([abs(value) / 3 for name, value, _, _ in calls if name == "rotate"])
    assert abs(m.mean() - 9) < 0.15 and 0.4 < m.std() < 0.6 and m.max() <= 10


def test_magnitude_std(recorder):
    def drawn(**options):
        runs = recorder.run(make_randaugment(1, 9, "timm", names=["rotate"], **options), 4000)
        return np.array([abs(run[0][1]) / 3 for run in runs if run])

    assert set(drawn()) == {9.0}
    wide = drawn(magnitude_std=3.0)
    assert 0.3 < (wide == 10).mean() < 0.44  # the normal's mass above 10, a third of a deviation off, is 0.37
    uniform = drawn(magnitude_std=math.inf)
    assert uniform.max() < 9 and abs(uniform.mean() - 4.5) < 0.3 and uniform.min() < 0.1


def test_names_restrict_and_add_the_identity(recorder):
    transform = make_randaugment(2, 10, "tf1", names=[*SETS["tf1"].levels, "identity"])
    drawn = {name for run in recorder.run(transform, 400) for name, *_ in run}
    assert len(drawn) == 17  # TensorFlow 2's set
    assert {name for run in recorder.run(make_randaugment(2, 10, names=["rotate"]), 9) for name, *_ in run} == {"rotate"}


def test_cutout_lies_anywhere(recorder):
    calls = flat(recorder.run(make_randaugment(1, 10, "tf1", names=["cutout"]), 1000))
    half, down, right = np.array([value for _, value, _, _ in calls]).T
    assert set(half) == {40}
    for place in (down, right):
        assert place.min() < 0.02 and place.max() > 0.98 and abs(place.mean() - 0.5) < 0.05
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.15


# The transform


@pytest.mark.parametrize("ops", SETS)
@pytest.mark.parametrize("channels", [3, 1])
def test_shape_and_dtype_are_kept_and_the_generator_decides(ops, channels):
    image = PHOTOS["strong"][:40, :56, :channels]
    before = image.copy()
    transform = make_randaugment(2, 9, ops, names=[name for name in SETS[ops].levels if channels == 3 or name != "color"])
    first = [transform(image, np.random.default_rng([5, number])) for number in range(40)]
    again = [transform(image, np.random.default_rng([5, number])) for number in range(40)]
    for one, two in zip(first, again):
        assert one.shape == image.shape and one.dtype == np.uint8
        np.testing.assert_array_equal(one, two)
    assert len({one.tobytes() for one in first}) > 12
    np.testing.assert_array_equal(image, before)
    # One generator goes on, so that a chain of transforms never draws the same twice.
    rng = np.random.default_rng(3)
    assert len({transform(image, rng).tobytes() for _ in range(40)}) > 12


def test_operations_follow_one_another():
    """The complete chain for one image, from the numbers drawn."""
    image, names = PHOTOS["pale"], ("solarize", "rotate", "sharpness")
    transform = make_randaugment(3, 7, names=names, fill=FILL)
    for seed in range(5):
        pillow = Image.fromarray(image)
        for which, _, sign, *_ in np.random.default_rng(seed).random((3, 6)):
            name = names[int(which * 3)]
            if name == "solarize":
                pillow = ImageOps.solarize(pillow, 179)
            elif name == "rotate":
                pillow = pillow.rotate(21 if sign < 0.5 else -21, fillcolor=FILL)
            else:
                pillow = Image.blend(pillow.filter(ImageFilter.SMOOTH), pillow, 1.36)
        np.testing.assert_array_equal(transform(image, np.random.default_rng(seed)), np.asarray(pillow))


def test_a_flipped_view_and_a_writable_result():
    image = PHOTOS["strong"]
    transform = make_randaugment(1, 5, names=["invert"], ops="tf1")
    result = transform(image[:, ::-1], np.random.default_rng(0))
    np.testing.assert_array_equal(result, 255 - image[:, ::-1])
    assert result.flags.writeable


def test_without_an_operation_the_image_comes_back():
    image = PHOTOS["strong"]
    assert make_randaugment(2, 5, names=["identity"])(image, np.random.default_rng(0)) is image


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((2, 9, "papre"), {}, r"no set 'papre' \(did you mean 'paper'\?\): use one of paper, tf1, timm"),
        ((0, 9), {}, "num_layers .* not 0"),
        ((2.0, 9), {}, "num_layers .* not 2.0"),
        ((True, 9), {}, "num_layers .* not True"),
        ((2, -1), {}, r"magnitude .* 'paper' is 0 to 30, not -1"),
        ((2, 31), {}, r"0 to 30, not 31"),
        ((2, math.nan), {}, "not nan"),
        ((2, "9"), {}, "not '9'"),
        ((2, 15, "timm"), {}, r"0 to 10 \(timm clips there\), not 15"),
        ((2, 9), {"names": ["rotat"]}, r"set 'paper' has no operation 'rotat' \(did you mean 'rotate'\?\): it has identity, "),
        ((2, 9), {"names": ["cutout"]}, "set 'paper' has no operation 'cutout'"),
        ((2, 9), {"names": []}, r"nothing to draw from in names=\(\)"),
        ((2, 9), {"magnitude_std": -0.5}, "magnitude_std is 0 or more, not -0.5"),
        ((2, 9), {"resample": "cubic"}, "resample is one of nearest, bilinear, bicubic, random, not 'cubic'"),
        ((2, 9), {"fill": (0.485, 0.456, 0.406)}, "fill is a value of 0 to 255"),
        ((2, 9), {"fill": 256}, "fill is a value of 0 to 255 .* not 256"),
    ],
)
def test_mistakes(arguments, options, message):
    with pytest.raises(UserError, match=message):
        make_randaugment(*arguments, **options)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"uint8 image .* not float32 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"not uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"not uint8 \[4, 4, 4\]"),
        (np.zeros((4, 4, 1), np.uint8), "'color' needs an image of three channels: leave it out of names="),
    ],
)
def test_wrong_images(image, message):
    with pytest.raises(UserError, match=message):
        make_randaugment(1, 9)(image, np.random.default_rng(0))


def test_fill_must_fit_the_channels():
    with pytest.raises(UserError, match=r"fill = \(1, 2, 3\) has 3 values where the image has 1 channels"):
        make_randaugment(1, 9, names=["rotate"], fill=(1, 2, 3))(np.zeros((4, 4, 1), np.uint8), np.random.default_rng(0))
