"""Evaluation over every example."""

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from attention_jax import parallel
from attention_jax.train.program import Program


class Interrupted(Exception):
    """Evaluation was asked to stop before its end."""


def evaluate(
    program: Program, variables: dict[str, Any], config: ConfigDict, stop: Callable[[], bool] = lambda: False
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics over the whole evaluation split, and the per-example outputs [N, ...] they were made from.

    Padding of the last batch has weight 0 and is cut off. `stop` is asked before each batch; Interrupted when it says so.
    """
    loader = program.task.loader(config, config.data.eval_split, parallel.process(), training=False)
    collected: list[dict[str, Any]] = []
    for batch in parallel.prefetch(loader.evaluation(), program.mesh):
        if stop():
            raise Interrupted
        collected.append(program.outputs(variables, batch))
    count = len(loader.source)
    outputs = {name: np.concatenate([np.asarray(part[name]) for part in collected])[:count] for name in collected[0]}
    return program.task.metrics(config, outputs), outputs
