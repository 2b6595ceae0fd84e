"""Measures that a table takes from its finished runs besides accuracy; workdirs keep them, so that none is repeated."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax.config import override
from attention_jax.config.code import hash_function
from attention_jax.config.plugins import load_object
from attention_jax.distributed.mesh import find_batch_share, is_main_process
from attention_jax.errors import UserError
from attention_jax.load import Run, load_run
from attention_jax.tasks.classification import CHOICES
from attention_jax.tasks.text_scores import name_bleu
from attention_jax.train.evaluate import evaluate_model, read_arrays
from attention_jax.train.program import Program, build_program

_Measure = str | Callable[..., Any]


def _path(workdir: Path, name: str) -> Path:
    return workdir / f"measure_{name}.npz"


def read_measure(workdir: Path, step: int, name: str, measure: _Measure) -> dict[str, np.ndarray] | None:
    """Returns {name: number or array} of one measure after `step`; None if it is missing or was taken by other code."""
    found = read_arrays(_path(workdir, name), step)
    code = found.pop("code", None) if found else None  # measures from before code was kept have none
    return found if code is None or str(code) == hash_function(measure) else None


def measure_errors(program: Program, run: Run) -> dict[str, float]:
    """Measures the error on the training split, without augmentation, and on the evaluation split, in percent."""
    data, share = run.config.data, find_batch_share(program.mesh)
    loader = program.task.loader(run.config, data.train_split, share, training=False)
    scores, _ = evaluate_model(program, run.variables, run.config, loader=loader)
    last = next(line["headline"] for line in reversed(run.metrics) if "headline" in line)
    return {"training error %": 100 - 100 * scores["accuracy"], "test error %": 100 - 100 * last}


def _logged(program: Program, run: Run, name: str) -> float:
    """Returns a metric of the last evaluation, for the weights that count."""
    prefix = "eval" if program.weights[-1] == "params" else f"eval_{program.weights[-1]}"
    return run.curve(f"{prefix}/{name}")[1][-1]


def measure_top5(program: Program, run: Run) -> dict[str, float]:
    """Reads the error of the first five choices, in percent; nothing where ten or fewer classes make it too easy."""
    if run.config.model.num_classes <= 2 * CHOICES:
        return {}
    return {"top-5 error %": 100 - 100 * _logged(program, run, "top5_accuracy")}


def measure_bleu(program: Program, run: Run) -> dict[str, float]:
    """Reads BLEU, 0 to 100, in the tokenization `evaluation.bleu`; translates for it where training did not."""
    tokenize, name = run.config.evaluation.bleu, name_bleu(run.config.evaluation.bleu)
    if run.config.evaluation.translate:
        is_old = all(not key.endswith(f"/{name}") for line in run.metrics for key in line)  # when all had one name
        score = _logged(program, run, "bleu" if is_old else name)
    else:
        config = override(run.config, {"evaluation.translate": True})
        program.task.adopt(config, run.assets)
        translating = build_program(config)  # its outputs are different
        score = evaluate_model(translating, run.variables, translating.config)[0][name]
    return {{"none": "tokenised BLEU", "char": "character BLEU"}.get(tokenize, "BLEU"): score}


def measure_chrf(program: Program, run: Run) -> dict[str, float]:
    """Reads chrF, 0 to 100. Raises UserError if nothing was translated."""
    return {"chrF": _logged(program, run, "chrf")}


def measure_perplexity(program: Program, run: Run) -> dict[str, float]:
    """Returns e to the loss in nats per target token, including EOS; do not compare it between tokenizations."""
    return {"perplexity": _logged(program, run, "perplexity")}


def measure_run(
    workdir: Path, step: int, measures: Mapping[str, _Measure], program: Program, trust_code: bool = False
) -> list[str]:
    """Calls the measures that a finished run lacks; returns the names of the files it wrote.

    Collective: a measure may evaluate the network on the devices of all processes. Process 0 alone writes.

    Raises UserError if a measure returns something that cannot be kept.
    """
    lacking = {name: measure for name, measure in measures.items() if read_measure(workdir, step, name, measure) is None}
    if not lacking:
        return []
    run = load_run(workdir, trust_code=trust_code)
    for name, measure in lacking.items():
        values = load_object(measure, {}, "measure")(program, run)
        is_right = isinstance(values, Mapping)  # it may be empty if there is nothing to measure
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in values.items()} if is_right else {}
        if not is_right or any(array.dtype == object for array in arrays.values()) or {"step", "code"} & arrays.keys():
            raise UserError(f"measure {name!r} gave {values!r}: a measure returns {{name: number or array}}.")
        if is_main_process():
            partial = _path(workdir, name).with_suffix(".partial")
            with partial.open("wb") as file:
                np.savez_compressed(file, step=step, code=hash_function(measure), **arrays)
            partial.replace(_path(workdir, name))
    return [_path(workdir, name).name for name in lacking if is_main_process()]
