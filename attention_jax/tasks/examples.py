"""Reads examples of a run's evaluation split, in the form that its `predict` takes."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from attention_jax.data.images.decoding import BrokenImage, decode_image, turn_upright
from attention_jax.errors import UserError
from attention_jax.tasks import classification, translation

log = logging.getLogger(__name__)


def read_examples(config: ConfigDict, assets: Mapping[str, bytes], number: int | None = None) -> tuple[Any, Any]:
    """Returns `number` inputs at equal distances, all for None, and the right answer for each.

    Inputs are uint8 images [N, H, W, C] with classes [N] as the network numbers them, or sentences with their translations;
    images
    come as a list if their sizes may differ (`data.eval_resize`). Images that cannot be decoded are left out, with a warning.
    Raises UserError for a user's task, since only its predictor knows its inputs.
    """
    if config.task == "translation":
        pairs = translation.source(config, config.data.eval_split)
        sources, targets = zip(*(pairs[i] for i in _spread(len(pairs), number)), strict=True)
        return list(sources), list(targets)
    if config.task != "classification":
        raise UserError(f"read_examples reads images and sentences, and task {config.task!r} may have other inputs.")
    loader, data, images, classes = classification.evaluation_loader(config, (0, 1), assets), config.data, [], []
    for i in _spread(len(loader.source), number):
        image = loader.source[i]["image"]
        try:
            made = loader.transform(loader.source[i], None)
        except BrokenImage as error:
            log.warning("data: example %d cannot be decoded (%s) and is left out.", i, error)
            continue
        if data.eval_resize:  # `predict` resizes them
            channels = data.image_shape[2]
            made["image"] = decode_image(turn_upright(image, channels) if data.exif_rotation else image, channels)
        images.append(made["image"])
        classes.append(made["label"])
    return images if data.eval_resize else np.stack(images), np.array(classes)


def _spread(length: int, number: int | None) -> list[int]:
    return [int(i) for i in np.unique(np.linspace(0, length - 1, number or length).round())]
