"""The outcome of an evaluation, example by example: the network's errors, and its confidence.

Letters in shapes: N examples, K classes, M bins.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from attention_jax.errors import UserError
from attention_jax.tasks.predictions import describe_predictions
from attention_jax.train.evaluate import read_arrays
from attention_jax.train.workdir import EVALUATION


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Confidence beside accuracy, in bins of equal width that have examples.

    Attributes:
        confidence, accuracy: [M], means over a bin's examples.
        counts: [M], examples of a bin.
        edges: [M, 2], limits of a bin: confidences above the first, up to and including the second.
        error: the expected calibration error, from 0 to 1.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    edges: np.ndarray
    error: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation of a run.

    Attributes:
        step: step of the evaluated checkpoint.
        outputs: {name: [N, ...]}, the arrays of `evaluation.npz`, which docs/inspecting.md describes.
    """

    step: int
    config: ConfigDict = dataclasses.field(repr=False)
    assets: Mapping[str, bytes] = dataclasses.field(repr=False)
    outputs: Mapping[str, np.ndarray] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.outputs.values())))

    @functools.cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Returns a line for each example, as `evaluate --predictions=FILE.jsonl` writes it."""
        return list(describe_predictions(self.config, self.assets, self.outputs))

    @functools.cached_property
    def labels(self) -> list[str]:
        """The names of the K classes."""
        self._refuse_others()
        return json.loads(self.assets["labels.json"])

    @property
    def accuracy(self) -> float:
        """The share of examples that are right."""
        return float(self.outputs["correct"].mean())

    def name(self, place: int) -> str:
        """Returns the name of an example in the data, such as a path, or its index."""
        if "name" in self.outputs:
            return os.fsdecode(self.outputs["name"][place])
        return f"example {self.outputs['index'][place]}" if "index" in self.outputs else f"example {place}"

    def measure_top(self, choices: int = 5) -> float:
        """Returns the share of images whose right class is among the first `choices`, at most 5."""
        self._refuse_others()
        kept = self.outputs["top_classes"].shape[1]
        if not 1 <= choices <= kept:
            raise UserError(f"measure_top: choices={choices}, and this evaluation has kept {kept}.")
        return float((self.outputs["top_classes"][:, :choices] == self.outputs["label"][:, None]).any(1).mean())

    def count_confusions(self) -> np.ndarray:
        """Returns [K, K], how many images of the class of a row were taken for the class of a column."""
        counts = np.zeros((len(self.labels),) * 2, np.int64)
        np.add.at(counts, (self.outputs["label"], self.outputs["top_classes"][:, 0]), 1)
        return counts

    def measure_classes(self) -> np.ndarray:
        """Returns [K], the accuracy on the images of each class; NaN for a class without any."""
        counts = self.count_confusions()
        number = counts.sum(1)
        return np.where(number > 0, np.diag(counts) / np.maximum(number, 1), np.nan)

    def measure_calibration(self, bins: int = 15) -> Calibration:
        """Compares the probability of first choices with how often they are right.

        The expected calibration error is the mean over bins of |accuracy - confidence|, weighted by their examples (Guo et al.
        2017, arXiv 1706.04599, Equation 3; 15 bins in its Table 1).
        """
        self._refuse_others()
        confidence, right = self.outputs["top_probabilities"][:, 0].astype(np.float64), self.outputs["correct"].astype(float)
        numbers = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        counts = np.bincount(numbers, minlength=bins)
        used = np.flatnonzero(counts)
        sure, accuracy = (np.bincount(numbers, values, bins)[used] / counts[used] for values in (confidence, right))
        error = float((counts[used] / counts.sum() * np.abs(accuracy - sure)).sum())
        return Calibration(sure, accuracy, counts[used], np.stack([used, used + 1], 1) / bins, error)

    def find_surest_wrong(self, number: int = 16) -> np.ndarray:
        """Returns the places of wrong images, at most `number`, those with the most probable first choice first."""
        self._refuse_others()
        return _rank(self.outputs["top_probabilities"][:, 0], ~self.outputs["correct"].astype(bool), number)

    def find_surest_right(self, number: int = 16) -> np.ndarray:
        """Returns the places of right images likewise."""
        self._refuse_others()
        return _rank(self.outputs["top_probabilities"][:, 0], self.outputs["correct"].astype(bool), number)

    def _refuse_others(self) -> None:
        if self.config.task != "classification":
            raise UserError(
                f"this is an evaluation of task {self.config.task!r}, which has no classes: see .lines and .outputs."
            )
        if missing := {"label", "top_classes", "top_probabilities"} - self.outputs.keys():
            raise UserError(
                f"this evaluation has no {', '.join(sorted(missing))}, which were not kept when it was made: evaluate the run "
                "anew with ./launch.sh evaluate --predictions=FILE.npz, and open it with run.read_evaluation(FILE)."
            )


def _rank(confidence: np.ndarray, chosen: np.ndarray, number: int) -> np.ndarray:
    places = np.flatnonzero(chosen)
    return places[np.argsort(-confidence[places], kind="stable")][:number]


def read_evaluation(path: Path, step: int, config: ConfigDict, assets: Mapping[str, bytes]) -> Evaluation:
    """Opens the outputs of a run's checkpoint, of a workdir or of one file. Raises UserError if there are none."""
    file = path / EVALUATION if path.is_dir() else path
    outputs = read_arrays(file, step)
    if outputs is None:
        what = "is damaged, or of another step" if file.exists() else "is not there"
        raise UserError(
            f"{file} {what}: there is no evaluation of step {step}: make one with ./launch.sh evaluate "
            "--predictions=FILE.npz, and open it with run.read_evaluation(FILE)."
        )
    return Evaluation(step, config, assets, outputs)
