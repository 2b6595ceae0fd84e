"""An output that a command writes line by line, and continues after it was stopped.

OUT.partial has the written lines, and OUT.partial.json the settings behind them; OUT gets its name at the end.
"""

import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from attention_jax.cli.line_files import naming
from attention_jax.errors import UserError

_READ = 1 << 20  # bytes of an input that identify it, with its size


def identify_input(file: BinaryIO) -> list[Any]:
    """Returns [bytes, SHA-256 of the first of them] of a file, which is then at its start again."""
    begin = hashlib.sha256(file.read(_READ)).hexdigest()
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return [size, begin]


class ResumableOutput:
    """The two partial files of an output."""

    def __init__(self, output: Path):
        self.output = output
        self.partial = output.with_name(f"{output.name}.partial")
        self.about = output.with_name(f"{output.name}.partial.json")

    def read_settings(self, resume: bool) -> dict[str, Any] | None:
        """Returns the settings behind the lines; None to begin. Raises UserError for partial files without --resume."""
        if not self.partial.exists():
            if resume:
                raise UserError(f"--resume: there is no {self.partial} to go on from: leave it out to begin.")
            return None
        if not resume:
            raise UserError(f"{self.partial} is there from a command that was stopped: go on with --resume, or remove it.")
        try:
            return dict(json.loads(self.about.read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"--resume: {self.about} cannot be read, so begin anew: remove {self.partial}.") from error

    @contextlib.contextmanager
    def open(
        self, settings: Mapping[str, Any], saved: Mapping[str, Any] | None, sizes: Sequence[int], first: int | None
    ) -> Iterator[tuple[Callable[[str], None], int]]:
        """Yields a function that writes text at once, and the number of finished sentences.

        Finished sentences are complete parts of `sizes` sentences, so the others come in the same batches as in one go.

        Args:
            settings: the settings from which the lines are made.
            saved: the result of `read_settings`.
            first: number of the first sentence, with which its lines begin; None where each sentence has one line.

        Raises:
            UserError: the settings have changed, or the disk is full.
        """
        now = json.loads(json.dumps(settings))
        if saved is not None and (changed := [name for name in now if now[name] != saved.get(name)]):
            name = changed[0]
            raise UserError(
                f"--resume: {self.partial} was begun with {name}={saved.get(name)}, and this is {now[name]}: give the same."
            )
        done, offset = self._find_end(sizes, first) if saved is not None else (0, 0)
        with naming("--output", self.output):
            self.about.write_text(json.dumps(now), "utf-8")
            file = self.partial.open("r+b" if saved is not None else "wb")
            file.truncate(offset)
            file.seek(offset)

        def write(text: str) -> None:
            with naming("--output", self.output):
                file.write(text.encode())
                file.flush()

        try:
            with file:
                yield write, done
        except BaseException:
            if self.partial.stat().st_size:
                print(f"{self.partial} keeps what is done: the same command with --resume goes on.", file=sys.stderr)
            else:
                self._remove()
            raise
        self.partial.rename(self.output)
        self.about.unlink()

    def _remove(self) -> None:
        for path in (self.partial, self.about):
            path.unlink(missing_ok=True)

    def _find_end(self, sizes: Sequence[int], first: int | None) -> tuple[int, int]:
        """(sentences in complete parts, bytes of them) in the partial file."""
        ends, offset, current = [0], 0, first
        with self.partial.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if first is not None and int(line.split(b"\t")[0]) != current:
                    ends.append(offset)
                    current = int(line.split(b"\t")[0])
                offset += len(line)
                if first is None:
                    ends.append(offset)
        bounds = itertools.accumulate(itertools.chain(sizes, itertools.repeat(sizes[-1])), initial=0)
        done = max(itertools.takewhile(lambda bound: bound < len(ends), bounds))
        return done, ends[done]
