"""Evaluation over every example."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from attention_jax.distributed.mesh import find_batch_share, prefetch_batches
from attention_jax.kernels.switch import use_standard_numerics
from attention_jax.tasks.base import BatchLoader
from attention_jax.tasks.predictions import describe_predictions
from attention_jax.train.program import Program


class Interrupted(Exception):
    """The evaluation was stopped before its end."""


@use_standard_numerics()
def evaluate_model(
    program: Program,
    variables: dict[str, Any],
    config: ConfigDict,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Iterator[Any]], Iterator[Any]] = iter,
    loader: BatchLoader | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns metrics over the evaluation split, and the per-example outputs [N, ...] they were computed from.

    Examples of weight 0 (padding of the last batch, an image that cannot be decoded) are dropped; an output "index", the
    place in the split, gives the order of the others and is returned as well, with the "name" that the data have for each.

    Args:
        stop: function to call before each batch; if it returns True, Interrupted is raised (one batch may still be running).
        watch: function that wraps the batches.
        loader: from `Task.evaluation_loader`, which matches classes with the network's; None takes the split unchanged.
    """
    loader = loader or program.task.loader(config, config.data.eval_split, find_batch_share(program.mesh), training=False)
    collected: list[dict[str, Any]] = []
    for batch in watch(prefetch_batches(loader.evaluation(), program.mesh)):
        if stop():
            raise Interrupted
        collected.append(program.outputs(variables, batch))
        if len(collected) > 1:
            collected[-2] = jax.device_get(collected[-2])
    outputs = {name: np.concatenate([np.asarray(part[name]) for part in collected]) for name in collected[0]}
    counts = outputs.pop("weight") > 0
    outputs = {name: values[counts] for name, values in outputs.items()}
    about: dict[str, np.ndarray] = {}
    if "index" in outputs:
        order = np.argsort(index := outputs.pop("index"))
        outputs = {name: values[order] for name, values in outputs.items()}
        about["index"] = index[order]
        if callable(find_name := getattr(getattr(loader, "source", None), "name", None)):
            about["name"] = np.array([os.fsencode(find_name(int(i))) for i in about["index"]])
    scores, kept = program.task.metrics(config, outputs)
    return scores, {**about, **kept}


def save_outputs(path: Path, step: int, outputs: Mapping[str, np.ndarray]) -> None:
    """Replaces the per-example outputs of the newest evaluation; a reader sees all of them or nothing."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        arrays: dict[str, Any] = {"step": step, **outputs}
        np.savez_compressed(file, **arrays)
    partial.replace(path)


def save_predictions(
    path: Path, step: int, config: ConfigDict, assets: Mapping[str, bytes], outputs: Mapping[str, np.ndarray]
) -> None:
    """Writes outputs to an `.npz` as `save_outputs` does, or to any other file as lines of JSON."""
    if path.suffix == ".npz":
        return save_outputs(path, step, outputs)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for line in describe_predictions(config, assets, outputs):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    partial.replace(path)


def read_arrays(path: Path, step: int | None, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
    """Reads arrays, by default all, of `step` (or of any step) from a file; None if they or the file are missing or damaged."""
    try:
        with np.load(path) as saved:
            found = {name: saved[name] for name in names or saved.files if name != "step"}
            return found if step in (None, int(saved["step"])) else None
    except Exception:  # damaged archives raise errors of zipfile, zlib, struct and more
        return None
