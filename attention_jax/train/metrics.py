"""The log: `metrics.jsonl`, from which tables, curves and TensorBoard are made; `timing.jsonl` for wall-clock figures."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a log; a last line that a crash cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def extract_curve(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one metric."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in points], [value for _, value in points]


class Log:
    """Appends lines in order of step; `cut` forgets what came after a checkpoint.

    Args:
        workdir: of the run.
        tensorboard: mirrors the lines as TensorBoard events, made anew from the log at each start.
        active: False makes a log that writes nothing (every process but the first).
    """

    def __init__(self, workdir: Path, tensorboard: bool, active: bool = True):
        self._workdir, self._active, self._writer = workdir, active, None
        self._file = self._timing = None
        self._tensorboard = tensorboard
        self._scores: dict[int, float] = {}

    def start(self, step: int) -> None:
        """Opens the log, cut to the lines of steps up to `step`."""
        path = self._workdir / METRICS
        kept = [line for line in read_log(path) if line["step"] <= step]
        self._scores = {line["step"]: line["headline"] for line in kept if "headline" in line}
        if not self._active:
            return
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if not path.exists() or path.read_text() != text:
            partial = path.with_suffix(".partial")
            partial.write_text(text)
            partial.replace(path)
        self._file = path.open("a")
        self._timing = (self._workdir / TIMING).open("a")
        if self._tensorboard:
            from tensorboardX import SummaryWriter

            events = self._workdir / "tensorboard"
            shutil.rmtree(events, ignore_errors=True)
            self._writer = SummaryWriter(str(events))
        for line in kept:
            self._mirror(line)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics."""
        line = {"step": step, **values}
        if "headline" in line:
            self._scores[step] = line["headline"]
        if self._active:
            self._file.write(json.dumps(line) + "\n")
        self._mirror(line)

    def time(self, values: Mapping[str, Any]) -> None:
        """One line of wall-clock figures, at once."""
        if self._active:
            self._timing.write(json.dumps(values) + "\n")
            self._timing.flush()

    def flush(self) -> None:
        """Returns when every line is on the disk."""
        if not self._active:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes all files."""
        if not self._active:
            return
        self.flush()
        self._file.close()
        self._timing.close()
        if self._writer:
            self._writer.close()

    def score(self, step: int) -> float | None:
        """The headline metric that was logged at a step, if any."""
        return self._scores.get(step)

    def _mirror(self, line: Mapping[str, Any]) -> None:
        if self._writer:
            for name, value in line.items():
                if name != "step" and not isinstance(value, str):
                    self._writer.add_scalar(name, value, line["step"])
