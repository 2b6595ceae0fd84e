"""The command `compare-runs`: translations of runs, or files of them, compared by sacrebleu's own paired tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax.errors import UserError
from attention_jax.tables.cells import align_cells
from attention_jax.tasks.text_scores import TEXT_METRICS, check_bleu, make_text_metrics
from attention_jax.train.evaluate import read_arrays
from attention_jax.train.workdir import EVALUATION, read_config


def compare_runs(
    systems: Sequence[str], reference: str | None, metrics: str, tokenize: str | None, paired_ar: bool, as_json: bool
) -> None:
    """Prints scores of translations, and p-values of the difference to the first.

    Args:
        systems: workdirs of translation runs, whose last evaluation is read, files of
            `evaluate --predictions`, or text files.
        reference: a text file; None for the references that the runs have kept.
        metrics: names in `TEXT_METRICS`, separated by commas.
        tokenize: tokenization of BLEU; None takes that of the first run's config, or 13a.
        paired_ar: True uses approximate randomisation instead of the bootstrap.
        as_json: True prints in the form of `sacrebleu --format=json`.

    Raises:
        UserError: fewer than two systems, one that cannot be read or has no translations, numbers of lines that differ.
    """
    if len(systems) < 2:
        raise UserError(f"compare-runs: {systems[0]} alone: give two or more runs, or files of translations.")
    known = {name.lower(): name for name in TEXT_METRICS}
    names = [known.get(name.strip().lower(), "") for name in metrics.split(",")]
    if not all(names):
        raise UserError(f"--metrics={metrics}: give some of {', '.join(known)}, with commas between.")
    found = [_read_system(place) for place in systems]
    wanted = _read_text(Path(reference)) if reference else next((kept for _, kept, _ in found if kept), None)
    if wanted is None:
        raise UserError("compare-runs: there are no references: give --reference=FILE.")
    for place, (texts, kept, _) in zip(systems, found):
        if len(texts) != len(wanted):
            raise UserError(f"{place} has {len(texts)} translations, and there are {len(wanted)} references: they go together.")
        if kept and kept != wanted:
            raise UserError(f"{place} was evaluated on other references: give runs of the same split, or --reference=FILE.")
    tokenize = tokenize or next((kept for *_, kept in found if kept), "13a")
    check_bleu(tokenize)
    from sacrebleu.significance import PairedTest

    named: list[tuple[str, Sequence[str]]] = [(place, texts) for place, (texts, *_) in zip(systems, found)]
    named[0] = f"Baseline: {systems[0]}", named[0][1]
    test: Any = PairedTest(named, make_text_metrics(tokenize, names), [wanted], "ar" if paired_ar else "bs")
    signatures, scores = test()
    if as_json:
        rows = [
            {"system": system, **{name: _as_numbers(scores[name][i]) for name in scores if name != "System"}}
            for i, system in enumerate(scores["System"])
        ]
        print(json.dumps(rows, indent=4))
        return
    columns = [name for name in scores if name != "System"]
    cells = [["system", *(cell for name in columns for cell in (name, *([] if paired_ar else ["mean ± 95 %"]), "p"))]]
    for i, system in enumerate(scores["System"]):
        results = [scores[name][i] for name in columns]
        cells.append([system, *(cell for result in results for cell in _cells(result, paired_ar))])
    print(align_cells(cells))
    kind = f"approximate randomisation, {test.n_samples:,} trials" if paired_ar else f"bootstrap, {test.n_samples:,} resamples"
    print(
        f"\np: p-value of the difference to {systems[0]}, by sacrebleu's paired {kind}; not corrected for multiple comparisons."
    )
    for name, signature in signatures.items():
        print(f"{name}: {signature.format()}")


def _as_numbers(result: object) -> dict[str, float | None]:
    return {name: None if value is None else float(value) for name, value in vars(result).items()}


def _cells(result: object, paired_ar: bool) -> list[str]:
    score, mean, ci, p = (getattr(result, name) for name in ("score", "mean", "ci", "p_value"))
    return [f"{score:.2f}", *([] if paired_ar else [f"{mean:.2f} ± {ci:.2f}"]), "–" if p is None else f"{p:.4f}"]


def _read_system(place: str) -> tuple[list[str], list[str], str]:
    """Returns (translations, references or none, tokenization or "") of a run or a file."""
    path = Path(place).expanduser()
    if path.suffix == ".jsonl":  # written by evaluate --predictions
        rows = [json.loads(line) for line in _read_text(path)]
        if all("hypothesis" in row for row in rows):
            return [row["hypothesis"] for row in rows], [row["reference"] for row in rows], ""
        raise UserError(f"{place} has no translations: evaluate with --config.evaluation.translate=True.")
    if not path.is_dir() and path.suffix != ".npz":
        return _read_text(path), [], ""
    file = path / EVALUATION if path.is_dir() else path
    arrays = read_arrays(file, None, ["translation", "reference"])
    if arrays is None:
        raise UserError(
            f"{file} has no translations: give a run that was trained with evaluation.translate=True to its end, a file of "
            "translations, or translate its test set with ./launch.sh translate."
        )
    config = read_config(file.parent)
    texts, wanted = (np.asarray(arrays[name]).tolist() for name in ("translation", "reference"))
    return texts, wanted, config.evaluation.bleu if config is not None and config.task == "translation" else ""


def _read_text(path: Path) -> list[str]:
    """Returns the lines as sacrebleu reads them."""
    try:
        text = path.expanduser().read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8, {error.reason}"
        raise UserError(f"{path} cannot be read ({reason}).") from error
    lines = text.split("\n")
    return [line.rstrip() for line in (lines if lines[-1] else lines[:-1])]
