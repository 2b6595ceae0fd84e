"""Rate at which one core of this machine prepares a config's training images."""

import io
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from attention_jax.data.images.decoding import MODES
from attention_jax.tasks import classification


def measure_input_rate(config: ConfigDict, seconds: float = 1.5) -> float | None:
    """Returns images per second of processor time through the config's own training transform; None for another task.

    A config that crops or resizes gets a JPEG of 500 x 375 pixels, as ImageNet's are on average; any other an array.
    """
    if config.task != "classification":
        return None
    pixels, example = classification.make_training_transform(config), _example(config)
    rng = np.random.default_rng(0)
    pixels(example, rng)
    count, begin = 0, time.process_time()
    while time.process_time() - begin < seconds:
        for _ in range(8):
            pixels(example, rng)
        count += 8
    return count / (time.process_time() - begin)


def _example(config: ConfigDict) -> Any:
    if not (config.data.crop == "random_resized" or config.data.eval_resize):
        return np.random.default_rng(0).integers(0, 256, config.data.image_shape, np.uint8)
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image("china.jpg")).resize((500, 375), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    photo.convert(MODES[config.data.image_shape[-1]]).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
