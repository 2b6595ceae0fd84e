"""The command `translate`: lines of text to lines of translations, in order, a few hundred at a time.

A line of input gives a line of output, empty for an empty one; with the n best translations as many lines as were found.
"""

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attention_jax.analysis.plots import SUFFIXES, save_figure
from attention_jax.cli.line_files import check_new_file, naming, open_lines, open_output, read_lines
from attention_jax.config.config import override, parse_value
from attention_jax.errors import UserError
from attention_jax.load import load_run
from attention_jax.tasks.translator import Translation, Translator
from attention_jax.train.report import show_progress

FIELDS = ("search.", "evaluation.batch_size")  # fields of a config that translating reads besides the network's
CHUNKS = (64, 256, 1024)  # lines translated together: few at first, so that output begins early


def open_translator(
    command: str, workdir: str, weights: str | None, average: int, trust_code: bool, overrides: Mapping[str, str]
) -> Translator:
    """Returns the translator of a run, with fields of its config changed. Raises UserError for a run of another task."""
    if others := [name for name in overrides if not name.startswith(FIELDS)]:
        raise UserError(f"--config.{others[0]}: {command} reads the fields {', '.join(FIELDS)} alone: leave it out.")
    loaded = load_run(workdir, weights, average, trust_code)
    if loaded.config.task != "translation":
        raise UserError(f"{workdir} is a run of the task {loaded.config.task!r}: {command} takes one of 'translation'.")
    changes = {name: parse_value(loaded.config, name, text) for name, text in overrides.items()}
    return dataclasses.replace(loaded.predictor, config=override(loaded.config, changes))


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
    overrides: Mapping[str, str],
    **search: Any,
) -> None:
    """Translates a file, or standard input, into a file, or onto standard output.

    Args:
        workdir, weights, average, trust_code: see `load_run`.
        source, output: paths; None for the standard streams.
        nbest: number of translations to write per sentence; None for only the best.
        scores: True writes the log probability after the length penalty before the text.
        attention: path of a figure of the attention in the first sentence.
        attention_of: "cross", "encoder" or "decoder".
        overrides: {field of the config: value} as the command line has them.
        **search: fields of the config's `search`, None for the config's own.

    Raises:
        UserError: no translation run, a file that is not readable or exists already, a line that is not UTF-8.
    """
    target, figure = check_new_file("--output", output), check_new_file("--attention", attention)
    if figure and figure.suffix not in SUFFIXES:
        raise UserError(f"--attention={attention}: give a name that ends in {', '.join(SUFFIXES)}.")
    with open_lines("--input", source) as file:
        translator = open_translator("translate", workdir, weights, average, trust_code, overrides)
        if nbest:
            search |= {"n_best": nbest, "beam": search.get("beam") or max(translator.config.search.beam, nbest)}
        terminal = sys.stderr.isatty() and (output is not None or not sys.stdout.isatty())
        sizes = (1,) if file.isatty() else CHUNKS
        total = None
        if terminal and source and file.seekable():
            total = sum(1 for _ in file)
            file.seek(0)
        first = None
        with open_output(target) as write, show_progress(total, terminal, "translating", "line") as progress:
            found = translate_lines(translator, read_lines(file, source or "standard input"), sizes, **search)
            for number, translation in enumerate(found, 1):
                for text, score in zip(translation.texts, translation.scores, strict=True):
                    cells = [str(number)] if nbest else []
                    cells += [f"{score:.4f}"] if nbest or scores else []
                    write("\t".join([*cells, re.sub(r"[\t\r\n]", " ", text)]) + "\n")
                first = first or (translation if translation.target_ids else None)
                progress(number)
    if figure:
        _plot_attention(translator, first, attention_of, figure)


def _plot_attention(translator: Translator, translation: Translation | None, kind: str, path: Path) -> None:
    from attention_jax.analysis.translation_maps import compute_translation_maps, plot_attention_grid

    if translation is None:
        raise UserError("--attention: there is no sentence whose attention could be plotted.")
    with naming("--attention", path):
        save_figure(plot_attention_grid(compute_translation_maps(translator, translation.source, translation), kind), path)
