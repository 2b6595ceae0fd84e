"""Crops out of an image whose shorter side is drawn, as VGG and He et al. 2015 train."""

import numpy as np
import pytest

from attention_jax.data.images.crop import crop_and_resize, draw_scaled_box
from attention_jax.errors import UserError
from attention_jax.preflight.measure import make_photo
from attention_jax.tasks.classification import make_training_transform
from attention_jax.tasks.resolve import resolve_config
from tests.helpers.small import small_config


def test_scaled_crop_is_a_crop_of_the_resized_image():
    """Of 500x375 pixels with the shorter side at s, 64x96 are 64·375/s by 96·375/s of the original, anywhere in it."""
    boxes = np.array([draw_scaled_box(375, 500, np.random.default_rng(i), (64, 96), (96, 120)) for i in range(400)])
    shorter = 64 * 375 / boxes[:, 2]
    np.testing.assert_allclose(shorter, np.rint(shorter), atol=1e-9)
    assert {*np.rint(shorter).astype(int)} == {*range(96, 121)}
    np.testing.assert_allclose(boxes[:, 3], 1.5 * boxes[:, 2])
    for start, side, whole in ((0, 2, 375), (1, 3, 500)):
        room = boxes[:, start] / (whole - boxes[:, side])
        assert room.min() > -1e-9 and room.max() < 1 + 1e-9 and 0.45 < room.mean() < 0.55
    assert draw_scaled_box(100, 100, np.random.default_rng(0), (64, 64), (64, 64)) == (0, 0, 100, 100)


def test_a_config_crops_at_a_drawn_scale():
    fields = {
        "data__crop": "random_scaled",
        "data__image_shape": (64, 96, 3),
        "data__mean": (0.5,) * 3,
        "data__std": (0.5,) * 3,
    }
    config = resolve_config(small_config(**fields, data__crop_shorter=(96, 96), data__num_examples=640, data__crop_padding=0))
    data = make_photo(640, 427)
    found = make_training_transform(config.config)(data, np.random.default_rng(3))
    box = draw_scaled_box(427, 640, np.random.default_rng(3), (64, 96), (96, 96))
    assert (found == crop_and_resize(data, lambda height, width: box, (64, 96))).all()
    with pytest.raises(UserError, match=r"data.crop_shorter=\(64, 96\) is less than a side"):
        resolve_config(small_config(**fields, data__crop_shorter=(64, 96), data__num_examples=640))
