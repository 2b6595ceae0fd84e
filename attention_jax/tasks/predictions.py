"""The lines of `evaluate --predictions=FILE.jsonl`, one for each example."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from attention_jax.tasks import translation


def describe_predictions(
    config: ConfigDict, assets: Mapping[str, bytes], outputs: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Yields a line for each example of an evaluation's outputs, in their order.

    Every line has its "index" in the split, "correct" and "loss" (nats), and "name" where the data have one, such as a path.
    Of an image: "label", the right class, and the first choices, "classes" and "probabilities", the surest first. Of a
    sentence: "source", "reference", where it was translated "hypothesis" and its "score" (the log probability after the length
    penalty), and "tokens", whose losses "loss" sums up. Of another task: its outputs as they are.
    """
    number = len(next(iter(outputs.values())))
    columns: dict[str, list[Any]] = {name: outputs[name].tolist() for name in ("index", "name") if name in outputs}
    if "name" in columns:
        columns["name"] = [os.fsdecode(name) for name in columns["name"]]
    scores: dict[str, list[Any]] = {name: outputs[name].tolist() for name in ("correct", "loss") if name in outputs}
    if config.task == "classification":
        labels = json.loads(assets["labels.json"])
        columns["label"] = [labels[i] for i in outputs["label"]]
        columns["classes"] = [[labels[i] for i in row] for row in outputs["top_classes"]]
        columns["probabilities"] = [[round(x, 6) for x in row] for row in outputs["top_probabilities"].tolist()]
    elif config.task == "translation":
        pairs = translation.source(config, config.data.eval_split)
        sides = [pairs[i] for i in columns.get("index", range(number))]
        columns["source"], columns["reference"] = ([pair[side] for pair in sides] for side in (0, 1))
        if "hypothesis" in outputs:
            columns["hypothesis"], columns["reference"] = translation.read_texts(config, outputs)
            columns["score"] = outputs["score"].tolist()
        columns["tokens"] = outputs["tokens"].astype(int).tolist()
    else:
        columns |= {name: values.tolist() for name, values in outputs.items() if name not in columns | scores}
    columns |= scores
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
