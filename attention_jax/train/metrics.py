"""The log: `metrics.jsonl`, the source of tables, curves and TensorBoard; `timing.jsonl` for wall-clock times."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the complete lines of a log, without a last line that a crash cut short."""
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class Log:
    """Appends lines in order of step.

    Args:
        tensorboard: copies the lines to TensorBoard events, written anew from the log at each start.
        active: False in every process but the first; nothing is written then.
    """

    def __init__(self, workdir: Path, tensorboard: bool, active: bool = True):
        self._workdir, self._active, self._tensorboard = workdir, active, tensorboard
        self._file: TextIO | None = None
        self._timing: TextIO | None = None
        self._writer: Any = None
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
        self._file, self._timing = path.open("a"), (self._workdir / TIMING).open("a")
        if self._tensorboard:
            from tensorboardX import SummaryWriter

            events = self._workdir / "tensorboard"
            shutil.rmtree(events, ignore_errors=True)
            self._writer = SummaryWriter(str(events))
        for line in kept:
            self._copy(line)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line of metrics."""
        line = {"step": step, **values}
        if "headline" in line:
            self._scores[step] = line["headline"]
        if self._file:
            self._file.write(json.dumps(line) + "\n")
        self._copy(line)

    def time(self, values: Mapping[str, Any]) -> None:
        """Appends one line of wall-clock times, at once."""
        if self._timing:
            self._timing.write(json.dumps(values) + "\n")
            self._timing.flush()

    def flush(self) -> None:
        """Returns when every line is on the disk."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes all files."""
        self.flush()
        for file in (self._file, self._timing, self._writer):
            if file:
                file.close()

    def score(self, step: int) -> float | None:
        """Returns the headline metric that was logged at a step, if any."""
        return self._scores.get(step)

    def _copy(self, line: Mapping[str, Any]) -> None:
        if self._writer:
            for name, value in line.items():
                if name != "step" and not isinstance(value, str):
                    self._writer.add_scalar(name, value, line["step"])
