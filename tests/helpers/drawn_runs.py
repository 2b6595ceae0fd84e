"""Runs that nobody trained: a config, a network with drawn weights, and the assets that a checkpoint would have."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax import tree
from attention_jax.config import defaults, override
from attention_jax.interop.layout import list_shapes
from attention_jax.load import Run
from attention_jax.tasks import get_task
from tests.helpers import parity

METRICS = [{"step": 2, "eval/accuracy": 0.5}, {"step": 4, "eval/accuracy": 0.75, "eval/loss": 1.5}, {"step": 4, "epoch": 1.0}]


def draw_run(name: str, image_shape: tuple[int, int, int] = (32, 32, 3), **fields: Any) -> Run:
    """A run of the network `name`, with `fields`, for images of that shape and five classes."""
    base = defaults.classification()
    base.model.name = name
    base.update(batch_size=4, total_steps=4)
    base.data.update(source="digits", train_split="train", eval_split="test")
    base.schedule.learning_rate = 0.1
    changes = {
        "model.num_classes": parity.CLASSES,
        "data.image_shape": image_shape,
        "data.eval_resize": 40,
        "data.mean": (0.4, 0.5, 0.6)[: image_shape[2]],
        "data.std": (0.2, 0.3, 0.25)[: image_shape[2]],
        "data.num_examples": 8,
        **{f"model.{key}": value for key, value in fields.items()},
    }
    config = override(base, changes)
    model = get_task("classification").model(config)
    shapes = list_shapes(model, image_shape[2])
    variables = tree.nest_by_path({path: parity.draw(0, path, shape) for path, shape in shapes.items()})
    assets = {"labels.json": json.dumps(list("abcde")).encode(), "data.json": b'{"train": {"length": 8, "contents": "c0ffee"}}'}
    return Run(Path("somewhere"), 4, config, model, {"batch_stats": {}, **variables}, "params", assets, METRICS)


def apply(run: Run, images: np.ndarray) -> np.ndarray:
    """[B, K]: the logits of normalised images."""
    from tests.helpers.blocks import quick

    return np.asarray(quick(run.model.apply)(run.variables, images))
