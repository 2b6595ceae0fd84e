"""What a command may do with a damaged workdir."""

import csv
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax import tree
from attention_jax.errors import UserError
from attention_jax.train import restore
from experiments.reliability.calls import Ended, Problem

# Written anew with times in them, or without worth.
_VOLATILE = (".lock", "timing.jsonl", "evaluation.npz", "failure.txt")


def list_hashes(folder: Path) -> dict[str, str]:
    """Returns {path in a folder: hash} of the files of a run that hold something."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.name not in _VOLATILE}


def _read_state(path: Path) -> tuple[int, dict[str, bytes]]:
    try:
        state, about, _ = restore.read_newest(path)
    except UserError as error:
        raise Problem(f"no checkpoint is left: {error}") from error
    return about["step"], {name: np.asarray(array).tobytes() for name, array in tree.flatten_by_path(state).items()}


def _read_accuracy(runs: Path) -> str:
    """The cell of the table's first row."""
    file = next(path for path in runs.glob("*.csv"))
    row = next(csv.DictReader(file.open()))
    return next(value for name, value in row.items() if "accuracy" in name)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the undamaged run has: its log and last state, and scores and opened runs by step."""

    log: bytes
    state: dict[str, bytes]
    scores: dict[int, dict[str, Any]]
    opened: dict[int, dict[str, Any]]
    accuracy: str


def read_truth(runs: Path, scores: dict[int, dict[str, Any]], opened: dict[int, dict[str, Any]]) -> Truth:
    """Returns the truth of a table's workdir."""
    run = runs / "a" / "0"
    return Truth((run / "metrics.jsonl").read_bytes(), _read_state(run)[1], scores, opened, _read_accuracy(runs))


def judge_workdir(entry: str, truth: Truth, run: Path, name: str, before: dict[str, str], log: bytes, ended: Ended) -> None:
    """Raises Problem for a lost file, or exit code 0 with a wrong result.

    Args:
        name: the damaged file.
        before: of `list_hashes` after the damage.
        log: the damaged log.
    """
    after = {*list_hashes(run).values()}
    for path, digest in before.items():
        damaged = path.startswith(name) or (name.startswith("newest") and path.startswith("checkpoints"))
        trains = entry == "table" or entry.startswith("train")  # and restores the log from a checkpoint
        if digest not in after and not damaged and not (path == "metrics.jsonl" and trains):
            raise Problem(f"{path} is lost")
    if name == "metrics.jsonl":
        _judge_log(truth, run, log)
    if ended.code:
        return
    if entry.startswith("train"):
        step, state = _read_state(run)
        if step != 4 or state != truth.state:
            raise Problem(f"ended at step {step}, {'with another state' if state != truth.state else 'with its state'}")
        if (run / "metrics.jsonl").read_bytes() != truth.log:
            raise Problem("ended with another log")
    elif entry in ("evaluate", "load_run"):
        given = json.loads(ended.out.splitlines()[-1])
        right = (truth.scores if entry == "evaluate" else truth.opened)[given["step"]]
        for key in right.keys() - {"workdir"}:
            same = given[key] == right[key]
            if key == "metrics" and not same:  # what is damaged is left out, and said
                same = all(line in right[key] for line in given[key]) and "damaged" in ended.err
            if not same:
                raise Problem(f"exit code 0 with another {key}")
    elif entry == "table":
        cell = _read_accuracy(run.parents[1])
        if cell != truth.accuracy and any(c.isdigit() for c in cell):
            raise Problem(f"the table has {cell}, not {truth.accuracy}")
    elif entry == "plot" and not (run.parents[1] / "new.png").exists():
        raise Problem("exit code 0 without a picture")


def _judge_log(truth: Truth, run: Path, damaged: bytes) -> None:
    """Good lines of a damaged log stay, in it or aside."""
    kept = b"".join(path.read_bytes() for path in run.glob("metrics.jsonl*") if path.is_file())
    lost = [line for line in damaged.splitlines() if line in truth.log.splitlines() and line not in kept]
    if lost:
        raise Problem(f"good lines of the log are lost: {lost[0][:60]!r}")
