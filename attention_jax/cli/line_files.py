"""Files of lines of text, read one by one, and written at once into a file that gets its name when it is complete."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

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
        yield functools.partial(_write, sys.stdout.buffer)
        return
    partial = output.with_name(f"{output.name}.partial")

    def write(text: str) -> None:
        with naming("--output", output):
            _write(file, text)

    try:
        with naming("--output", output):
            file = partial.open("wb")
        with file:
            yield write
        partial.rename(output)
    finally:
        partial.unlink(missing_ok=True)


def _write(file: BinaryIO, text: str) -> None:
    file.write(text.encode())
    file.flush()


@contextlib.contextmanager
def naming(option: str, path: Path) -> Iterator[None]:
    """Turns an OSError into a UserError about an option's file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option}={path} cannot be written ({error.strerror or one_sentence(error)}).") from error
