"""Files of lines of text, read one by one, and written at once into a file that gets its name when it is complete."""

import contextlib
import functools
import itertools
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from attention_jax.errors import UserError, one_sentence


def read_lines(file: BinaryIO, name: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 file without their ends, one by one. Raises UserError with the number of a broken line."""
    for number, line in enumerate(file, 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            yield line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}:{number} is not UTF-8 (byte {error.start} is 0x{line[error.start]:02x}): convert the text, "
                "e.g. with iconv."
            ) from error


def take_parts(rows: Iterable[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Yields lists of rows, reading `sizes` at a time, the last size repeatedly."""
    rows = iter(rows)
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        if not (part := list(itertools.islice(rows, size))):
            return
        yield part


def take_available(rows: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Yields lists of the rows that have come by then, at most `most`; a thread waits for the next ones."""
    found: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(most)
    end = StopIteration()

    def read() -> None:
        try:
            for row in rows:
                found.put((row, None))
            found.put((None, end))
        except BaseException as error:
            found.put((None, error))

    threading.Thread(target=read, daemon=True).start()
    while True:
        part = [found.get()]
        while len(part) < most and not found.empty():
            part.append(found.get())
        if lines := [row for row, error in part if error is None]:
            yield lines
        if (error := part[-1][1]) is not None:
            if error is end:
                return
            raise error


def check_new_file(option: str, given: str | None) -> Path | None:
    """Returns the path of a new file. Raises UserError if it exists or has no folder."""
    if given is None:
        return None
    path = Path(given).expanduser()
    if path.exists():
        raise UserError(f"{option}={given} exists already: give another name, or remove it.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option}={given}: there is no folder {path.parent}.")
    return path


def open_lines(option: str, given: str | None) -> contextlib.AbstractContextManager[BinaryIO]:
    """Opens a file, or standard input for None. Raises UserError if it cannot be read."""
    if given is None:
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return Path(given).expanduser().open("rb")
    except OSError as error:
        raise UserError(f"{option}={given} cannot be read ({error.strerror}).") from error


@contextlib.contextmanager
def open_output(output: Path | None) -> Iterator[Callable[[str], None]]:
    """Yields a function that writes text at once: to standard output, or to a file that gets its name when it is complete."""
    if output is None:
        yield functools.partial(write_at_once, sys.stdout.buffer)
        return
    partial = output.with_name(f"{output.name}.partial")

    def write(text: str) -> None:
        with naming("--output", output):
            write_at_once(file, text)

    try:
        with naming("--output", output):
            file = partial.open("wb")
        with file:
            yield write
        partial.rename(output)
    finally:
        partial.unlink(missing_ok=True)


def write_at_once(file: BinaryIO, text: str) -> None:
    """Writes text and empties the buffer."""
    file.write(text.encode())
    file.flush()


@contextlib.contextmanager
def naming(option: str, path: Path) -> Iterator[None]:
    """Turns an OSError into a UserError about an option's file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option}={path} cannot be written ({error.strerror or one_sentence(error)}).") from error
