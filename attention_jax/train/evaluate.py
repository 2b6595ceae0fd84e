"""Evaluation over every example."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from attention_jax.distributed.mesh import find_batch_share, prefetch_batches
from attention_jax.kernels.switch import use_standard_numerics
from attention_jax.tasks.base import BatchLoader
from attention_jax.train.program import Program


class Interrupted(Exception):
    """Evaluation was stopped before its end."""


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

    Examples of weight 0 (padding of the last batch, an image that cannot be decoded) are dropped; an output "index" gives the
    order of the others.

    Args:
        stop: called before each batch; if it returns True, Interrupted is raised (one batch may still be running).
        watch: wraps the batches.
        loader: of `Task.evaluation_loader`, which matches classes with those of the network; None takes the split as it is.
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
    if "index" in outputs:
        order = np.argsort(outputs.pop("index"))
        outputs = {name: values[order] for name, values in outputs.items()}
    return program.task.metrics(config, outputs)


def read_arrays(path: Path, step: int | None, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
    """Reads arrays, by default all, that a file has of `step`, or of any; None where it has none, is missing or damaged."""
    try:
        with np.load(path) as saved:
            found = {name: saved[name] for name in names or saved.files if name != "step"}
            return found if step in (None, int(saved["step"])) else None
    except Exception:  # damaged archives raise errors of zipfile, zlib, struct and more
        return None
