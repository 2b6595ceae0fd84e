"""The command `translate`: lines of text to lines of translations, in order, a few hundred at a time.

A line of input gives a line of output, empty for an empty one; with the n best translations as many lines as were found.
"""

import contextlib
import functools
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attention_jax.analysis.plots import SUFFIXES, save_figure
from attention_jax.errors import UserError, one_sentence
from attention_jax.load import load_run
from attention_jax.tasks.translator import Translation, Translator
from attention_jax.train.report import show_progress

CHUNKS = (64, 256, 1024)  # lines translated together: few at first, so that output begins early


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


def translate_lines(
    translator: Translator, lines: Iterable[str], sizes: Iterable[int] = CHUNKS, **search: Any
) -> Iterator[Translation]:
    """Yields translations, reading `sizes` lines at a time, the last size repeatedly."""
    lines, sizes = iter(lines), list(sizes)
    for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
        part = list(itertools.islice(lines, size))
        if not part:
            return
        yield from translator.translate(part, **search)


def translate_file(
    workdir: str,
    weights: str | None,
    average: int,
    trust_code: bool,
    source: str | None,
    output: str | None,
    nbest: int | None,
    scores: bool,
    attention: str | None,
    attention_of: str,
    **search: Any,
) -> None:
    """Translates a file, or standard input, into a file, or onto standard output.

    Args:
        workdir, weights, average, trust_code: see `load_run`.
        source, output: paths; None for the standard streams.
        nbest: writes this many translations per sentence; None for only the best.
        scores: writes the log probability after the length penalty before the text.
        attention: path of a figure of the attention in the first sentence.
        attention_of: "cross", "encoder" or "decoder".
        **search: fields of the config's `search`, None for the config's own.

    Raises:
        UserError: no translation run, a file that is not readable or exists already, a line that is not UTF-8.
    """
    target, figure = _target("--output", output), _target("--attention", attention)
    if figure and figure.suffix not in SUFFIXES:
        raise UserError(f"--attention={attention}: give a name that ends in {', '.join(SUFFIXES)}.")
    with _open_input(source) as file:
        loaded = load_run(workdir, weights, average, trust_code)
        if loaded.config.task != "translation":
            raise UserError(f"{workdir} is a run of the task {loaded.config.task!r}: translate takes one of 'translation'.")
        if nbest:
            search |= {"n_best": nbest, "beam": search.get("beam") or max(loaded.config.search.beam, nbest)}
        terminal = sys.stderr.isatty() and (output is not None or not sys.stdout.isatty())
        sizes = (1,) if file.isatty() else CHUNKS
        total = None
        if terminal and source and file.seekable():
            total = sum(1 for _ in file)
            file.seek(0)
        first = None
        with _open_output(target) as write, show_progress(total, terminal, "translating", "line") as progress:
            found = translate_lines(loaded.predictor, read_lines(file, source or "standard input"), sizes, **search)
            for number, translation in enumerate(found, 1):
                for text, score in zip(translation.texts, translation.scores, strict=True):
                    cells = [str(number)] if nbest else []
                    cells += [f"{score:.4f}"] if nbest or scores else []
                    write("\t".join([*cells, re.sub(r"[\t\r\n]", " ", text)]) + "\n")
                first = first or (translation if translation.target_ids else None)
                progress(number)
    if figure:
        _plot_attention(loaded.predictor, first, attention_of, figure)


def _plot_attention(translator: Translator, translation: Translation | None, kind: str, path: Path) -> None:
    from attention_jax.analysis.translation_maps import compute_translation_maps, plot_attention_grid

    if translation is None:
        raise UserError("--attention: there is no sentence whose attention could be plotted.")
    with _naming("--attention", path):
        save_figure(plot_attention_grid(compute_translation_maps(translator, translation.source, translation), kind), path)


def _target(option: str, given: str | None) -> Path | None:
    """The path of a new file. Raises UserError if it exists or has no folder."""
    if given is None:
        return None
    path = Path(given).expanduser()
    if path.exists():
        raise UserError(f"{option}={given} is there already: give another name, or remove it.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option}={given}: there is no folder {path.parent}.")
    return path


def _open_input(source: str | None) -> contextlib.AbstractContextManager[BinaryIO]:
    if source is None:
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return Path(source).expanduser().open("rb")
    except OSError as error:
        raise UserError(f"--input={source} cannot be read ({error.strerror}).") from error


@contextlib.contextmanager
def _open_output(output: Path | None) -> Iterator[Callable[[str], None]]:
    """Yields a function that writes text at once: to standard output, or to a file that gets its name when it is complete."""
    if output is None:
        yield functools.partial(_write, sys.stdout.buffer)
        return
    partial = output.with_name(f"{output.name}.partial")

    def write(text: str) -> None:
        with _naming("--output", output):
            _write(file, text)

    try:
        with _naming("--output", output):
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
def _naming(option: str, path: Path) -> Iterator[None]:
    """Turns an OSError into a UserError about an option's file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option}={path} cannot be written ({error.strerror or one_sentence(error)}).") from error
