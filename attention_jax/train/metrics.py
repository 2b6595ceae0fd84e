"""The log: `metrics.jsonl`, the source of tables, curves and TensorBoard; `timing.jsonl` for wall-clock times.

Each checkpoint keeps the log up to its step, and restores lines that a lost or damaged file lacks.
"""

import bisect
import functools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from attention_jax.train import restore

log = logging.getLogger(__name__)
METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
warn_once = functools.cache(log.warning)  # a table reads the same files many times


def _is_metrics(line: Mapping[str, Any]) -> bool:
    plain = all(isinstance(value, (int, float, str)) for value in line.values())
    return plain and type(line.get("step")) is int and not isinstance(line.get("headline"), str)


def _is_timing(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("event"), str) and isinstance(line.get("seconds", 0.0), (int, float))


def _parse(content: bytes, is_right: Callable[[Mapping[str, Any]], bool]) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Lists (line, its values or None for a damaged line), without a last line that a crash cut short."""
    for line in content.split(b"\n")[:-1]:
        try:
            values = json.loads(line.decode())
        except (ValueError, RecursionError):
            values = None
        yield line, values if isinstance(values, dict) and is_right(values) else None


def _find_ascending(numbers: Sequence[int]) -> set[int]:
    """Returns the indices of a longest subsequence that does not descend."""
    ends: list[int] = []  # ends[n]: the least last number of such a subsequence of length n + 1; its index is lasts[n]
    lasts: list[int] = []
    before = []
    for i, number in enumerate(numbers):
        place = bisect.bisect_right(ends, number)
        before.append(lasts[place - 1] if place else -1)
        ends[place : place + 1], lasts[place : place + 1] = [number], [i]
    found, i = set(), lasts[-1] if lasts else -1
    while i >= 0:
        found.add(i)
        i = before[i]
    return found


def repair_log(content: bytes, about: Mapping[str, Any] | None, last: float = math.inf) -> tuple[bytes, list[bytes]]:
    """Returns the right lines of a log for steps up to `last`, and the damaged lines.

    Args:
        about: record of the newest checkpoint, whose log counts if the two differ; None without a checkpoint.
    """
    saved, step = (about["log"], about["step"]) if about and about["log"] is not None else (b"", -1)
    intact = content.startswith(saved)
    lines = list(_parse(content[len(saved) :] if intact else content, _is_metrics))
    good = [(line, values["step"]) for line, values in lines if values is not None]
    ordered = _find_ascending([number for _, number in good])
    right = {line: number for i, (line, number) in enumerate(good) if i in ordered and number >= step + (not intact)}
    known = right.keys() | set(saved.split(b"\n"))
    kept = saved + b"".join(line + b"\n" for line, number in right.items() if number <= last)
    return kept, [line for line, _ in lines if line not in known]


def read_log(workdir: Path, about: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Returns the lines of a run's log; a warning counts damaged lines, which the newest checkpoint replaces if it can.

    Args:
        about: record of the checkpoint up to which the log is read; by default all lines are read.
    """
    last = about["step"] if about else math.inf
    about = about or restore.read_description(workdir)
    text, damaged = repair_log(restore.read_content(workdir, METRICS) or b"", about, last)
    if damaged:
        warn_once("%s/%s: %d damaged lines are left out%s.", workdir, METRICS, len(damaged), _name_source(about))
    return [json.loads(line) for line in text.splitlines()]


def _name_source(about: Mapping[str, Any] | None) -> str:
    return f"; the log of checkpoint {about['step']} replaces them" if about and about["log"] is not None else ""


def read_timing(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a file of wall-clock times; damaged lines are left out, and a warning counts them."""
    lines = [values for _, values in _parse(restore.read_content(path.parent, path.name) or b"", _is_timing)]
    if damaged := lines.count(None):
        warn_once("%s: %d damaged lines are left out.", path, damaged)
    return [values for values in lines if values is not None]


class Log:
    """Appends lines in order of step.

    Args:
        tensorboard: True copies the lines to TensorBoard events, written anew from the log at each start.
        active: False writes nothing, in every process but the first.
        mirrors: functions to call with each new line of the log, and of the times.
    """

    def __init__(
        self,
        workdir: Path,
        tensorboard: bool,
        active: bool = True,
        mirrors: Sequence[Callable[[Mapping[str, Any]], None]] = (),
    ):
        self._mirrors = mirrors if active else ()
        self._workdir, self._active, self._tensorboard = workdir, active, tensorboard
        self._text = bytearray()
        self._file: TextIO | None = None
        self._timing: TextIO | None = None
        self._writer: Any = None
        self.scores: dict[int, float] = {}  # headline metric of each evaluated step

    @property
    def content(self) -> bytes:
        """Returns the complete log so far."""
        return bytes(self._text)

    def start(self, step: int, about: Mapping[str, Any] | None = None) -> None:
        """Opens the log, cut to the lines of steps up to `step`.

        Damaged lines are moved to `metrics.jsonl.damaged` with a warning, and restored from the checkpoint of `about`.
        """
        path = self._workdir / METRICS
        content = restore.read_content(self._workdir, METRICS) or b""
        text, damaged = repair_log(content, about, step)
        self._text = bytearray(text)
        kept = [json.loads(line) for line in text.splitlines()]
        self.scores = {line["step"]: line["headline"] for line in kept if "headline" in line}
        if not self._active:
            return
        if damaged:
            with path.with_name(f"{METRICS}.damaged").open("ab") as file:
                file.writelines(line + b"\n" for line in damaged)
            log.warning("%s: %d damaged lines are moved to %s%s.", path, len(damaged), file.name, _name_source(about))
        elif about and not content.startswith(about["log"] or b""):
            log.warning("%s was cut short or is missing: it is restored from checkpoint %d.", path, step)
        if text != content or not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_bytes(text)
            partial.replace(path)
        self._file, self._timing = path.open("a"), (self._workdir / TIMING).open("a")
        if self._tensorboard:
            from tensorboardX import SummaryWriter

            events = self._workdir / "tensorboard"
            shutil.rmtree(events, ignore_errors=True)
            self._writer = SummaryWriter(str(events))
        for line in kept:
            self._copy(line)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line of metrics."""
        line = {"step": step, **values}
        if "headline" in line:
            self.scores[step] = line["headline"]
        text = json.dumps(line) + "\n"
        self._text += text.encode()
        if self._file:
            self._file.write(text)
        self._copy(line)
        for mirror in self._mirrors:
            mirror(line)

    def time(self, values: Mapping[str, Any]) -> None:
        """Appends one line of wall-clock times, and flushes it."""
        if self._timing:
            self._timing.write(json.dumps(values) + "\n")
            self._timing.flush()
        for mirror in self._mirrors:
            mirror(values)

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
        return self.scores.get(step)

    def _copy(self, line: Mapping[str, Any]) -> None:
        if self._writer:
            for name, value in line.items():
                if name != "step" and not isinstance(value, str):
                    self._writer.add_scalar(name, value, line["step"])


def get_compiler_flags() -> str:
    """Returns the flags of XLA and libtpu that the environment sets; "" without any."""
    return " ".join(filter(None, map(os.environ.get, ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))))
