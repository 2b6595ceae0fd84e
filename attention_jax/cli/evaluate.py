"""The command `evaluate`."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attention_jax.errors import UserError


def evaluate_run(
    open_run: Callable[..., tuple[Any, Any, Any]],
    workdir: str,
    predictions: str | None,
    on: list[str] | None,
    overrides: Mapping[str, str],
    **how: Any,
) -> None:
    """Prints the scores of a run; with `predictions`, writes the outputs of each example to that file.

    Args:
        open_run: function that opens (run, task, program) from a workdir, its options and overrides.
        on: other sets, each as `list_other_sets` takes it, or a file of real labels; None is the run's own evaluation split.
    """
    from attention_jax.distributed.mesh import find_batch_share, is_main_process
    from attention_jax.tasks.other_sets import list_other_sets, open_other_set, score_real_labels
    from attention_jax.train.evaluate import evaluate_model, save_predictions

    _check_output(predictions)
    sets = {place: [place] if place.endswith(".json") else list_other_sets(place) for place in on or ()}
    if predictions and sum(map(len, sets.values())) > 1:
        raise UserError(
            f"--predictions={predictions} takes one set: --on has {sum(map(len, sets.values()))}: give one of them."
        )
    run, task, program = open_run(workdir, overrides=overrides, **how)
    config, share = program.config, find_batch_share(program.mesh)
    if on and config.task != "classification":
        raise UserError(f"--on={on[0]}: it is for runs of classification, and this is one of {config.task!r}.")
    about = {"workdir": workdir, "step": run.step, "weights": run.weights}

    def score(loader: Any) -> tuple[dict[str, float], Any]:
        scores, outputs = evaluate_model(program, run.variables, config, loader=loader)
        if predictions and is_main_process():
            save_predictions(Path(predictions).expanduser(), run.step, config, run.assets, outputs)
        return scores, outputs

    if not on or any(place.endswith(".json") for place in on):
        loader = task.evaluation_loader(config, share, run.assets)
        for line in _compare_with_training(run, task, config, overrides) if is_main_process() else ():
            print(line, file=sys.stderr)
        scores, outputs = score(loader)
        if not on:
            print(json.dumps({**about, **scores}))
    for place, folders in sets.items():
        if place.endswith(".json"):
            print(json.dumps({**about, "set": place, **score_real_labels(place, run.assets, outputs, len(loader.source))}))
            continue
        found = []
        for folder in folders:
            loader_of_set, counts = open_other_set(config, run.assets, folder, share)
            found.append(score(loader_of_set)[0])
            print(json.dumps({**about, "set": folder, **counts, **found[-1]}), flush=True)
        if len(found) > 1:
            means = {name: sum(scores[name] for scores in found) / len(found) for name in found[0]}
            print(json.dumps({**about, "set": place, "mean_of_sets": len(found), **means}))


def _check_output(predictions: str | None) -> None:
    """Raises UserError before the hours of an evaluation, and not at their end."""
    if predictions is None:
        return
    path = Path(predictions).expanduser()
    if path.suffix not in (".jsonl", ".npz"):
        raise UserError(f"--predictions={predictions}: give a name that ends in .jsonl (a line an example) or .npz (arrays).")
    if path.exists() or not path.absolute().parent.is_dir():
        what = "exists already: give another name, or remove it" if path.exists() else "has no folder to be in: make it first"
        raise UserError(f"--predictions={predictions} {what}.")


def _compare_with_training(run: Any, task: Any, config: Any, overrides: Mapping[str, str]) -> list[str]:
    """Returns remarks on the data: they are not the run's, or the run was trained on them."""
    from attention_jax.config.config import override
    from attention_jax.data.fingerprint import DATA, compare_data
    from attention_jax.data.splits import VALIDATION, Subset
    from attention_jax.tasks.base import pack_fingerprints

    lines = []
    now = pack_fingerprints(task, config, config.data.eval_split)
    if change := compare_data(run.assets.get(DATA), now):
        wanted = any(f"{name}.".startswith(("data.source.", "data.args.", "data.eval_split.")) for name in overrides)
        text = "another set than the run's, as you asked" if wanted else "not the data that this run was trained with"
        lines.append(f"data: this is {text}: {change}.")
    before, train = run.config.data.eval_split, config.data.train_split
    if config.data.eval_split == VALIDATION != before and isinstance(task.source(config, VALIDATION), Subset):
        complete = pack_fingerprints(task, override(config, {"data.eval_split": before}), train)
        if not compare_data(run.assets.get(DATA), complete):
            lines.append(
                f"data: this run was trained on these examples: they are carved out of split {train!r}, and its "
                f"data.eval_split={before!r} left none out."
            )
    return lines
