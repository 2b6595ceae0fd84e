"""The command `translate`: lines of text to lines of translations, in order, a few hundred at a time.

A line of input gives a line of output, empty for an empty one; with the n best translations as many lines as were found.
"""

import contextlib
import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax

from attention_jax.analysis.plots import SUFFIXES, save_figure
from attention_jax.cli.line_files import (
    check_new_file,
    naming,
    open_lines,
    read_lines,
    take_available,
    take_parts,
    write_at_once,
)
from attention_jax.cli.resumable import ResumableOutput, identify_input
from attention_jax.config.config import override, parse_value
from attention_jax.errors import UserError
from attention_jax.interop.pretrained import load_pretrained
from attention_jax.load import Run, load_run
from attention_jax.tasks.batch_limits import BatchLimits
from attention_jax.tasks.translator import Translation, Translator
from attention_jax.train.report import show_progress

FIELDS = ("search.", "evaluation.batch_size")  # fields of a config that translating reads besides the network's
CHUNKS = (64, 256, 1024)  # lines translated together: few at first, so that output begins early


def open_translator(
    command: str,
    workdir: str,
    weights: str | None,
    average: int,
    trust_code: bool,
    overrides: Mapping[str, str],
    limits: BatchLimits,
) -> tuple[Run, Translator]:
    """Returns a run, and its translator with fields of its config changed. Raises UserError for a run of another task.

    Args:
        workdir: also "marian:FOLDER", see `load_pretrained`.
    """
    if others := [name for name in overrides if not name.startswith(FIELDS)]:
        raise UserError(f"--config.{others[0]}: {command} reads the fields {', '.join(FIELDS)} alone: leave it out.")
    if workdir.startswith("marian:"):
        if weights or average > 1:
            raise UserError(f"{workdir} has one set of weights: leave --weights and --average out.")
        loaded = load_pretrained(workdir)
    else:
        loaded = load_run(workdir, weights, average, trust_code)
    if loaded.config.task != "translation":
        raise UserError(f"{workdir} is a run of the task {loaded.config.task!r}: {command} takes one of 'translation'.")
    changes = {name: parse_value(loaded.config, name, text) for name, text in overrides.items()}
    return loaded, dataclasses.replace(loaded.predictor, config=override(loaded.config, changes), limits=limits)


def translate_parts(
    translator: Translator,
    parts: Iterable[list[str]],
    prefixes: str | Iterator[str] = "",
    alignments: tuple[int | None, int | None] | None = None,
    **search: Any,
) -> Iterator[Translation]:
    """Yields the translations of lists of lines, in order; a list is read when those before it are translated.

    Args:
        prefixes: the beginning of all translations, or of each line's.
        alignments: layer and head of the attention by which words are aligned; None aligns none.
    """
    for part in parts:
        begun = prefixes if isinstance(prefixes, str) else list(itertools.islice(prefixes, len(part)))
        if not isinstance(begun, str) and len(begun) < len(part):
            raise UserError("--target-prefix-file has fewer lines than the input: give a line, or an empty one, for each.")
        found = translator.translate(part, prefix=begun, **search)
        yield from found if alignments is None else translator.add_alignments(list(found), *alignments)
    if not isinstance(prefixes, str) and next(prefixes, None) is not None:
        raise UserError("--target-prefix-file has more lines than the input: give a line, or an empty one, for each.")


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """The lines that `translate_file` writes for a sentence.

    Attributes:
        nbest: number of translations to write; None for only the best.
        scores: True writes the log probability after the length penalty before the text.
        alignments: True writes the pairs of aligned words after the text.
    """

    nbest: int | None = None
    scores: bool = False
    alignments: bool = False

    def format(self, number: int, found: Translation) -> str:
        """Returns the lines of a sentence."""
        lines = []
        for i, (text, score) in enumerate(zip(found.texts, found.scores, strict=True)):
            cells = [str(number)] if self.nbest else []
            cells += [f"{score:.4f}"] if self.nbest or self.scores else []
            cells += [re.sub(r"[\t\r\n]", " ", text)]
            cells += [" ".join(f"{a}-{b}" for a, b in found.alignments[i])] if self.alignments else []
            lines.append("\t".join(cells) + "\n")
        return "".join(lines)


def translate_file(
    workdir: str,
    weights: str | None,
    average: int,
    trust_code: bool,
    source: str | None,
    output: str | None,
    nbest: int | None,
    scores: bool,
    target_prefix: str | None,
    target_prefix_file: str | None,
    alignments: tuple[int | None, int | None] | None,
    attention: str | None,
    attention_lines: tuple[int, ...] | None,
    attention_of: str,
    limits: BatchLimits,
    shard: tuple[int, int] | None,
    resume: bool,
    overrides: Mapping[str, str],
    **search: Any,
) -> None:
    """Translates a file, or standard input, into a file, or onto standard output.

    Args:
        workdir, weights, average, trust_code: see `load_run`.
        source, output: paths; None for the standard streams.
        nbest, scores: see `OutputOptions`.
        target_prefix, target_prefix_file: text with which every translation begins, or path of a file with one for each line.
        alignments: layer and head, from 1 or None for all, of the attention that aligns words; None writes no alignments.
        attention, attention_of: path of a figure of the attention in the first sentence; "cross", "encoder" or "decoder".
        attention_lines: numbers of the lines that have a figure each, instead of the first sentence.
        limits: largest batch.
        shard: (i, n) translates the i-th of n parts of the file alone, counted from 1.
        resume: goes on from the partial file of a command that was stopped; what it writes is the same.
        overrides: {field of the config: value} as the command line has them.
        **search: fields of the config's `search`, None for the config's own.

    Raises:
        UserError: no translation run, a file that is not readable or exists already, a line that is not UTF-8.
    """
    target, figure = _check_files(source, output, attention, attention_lines, resume)
    resumable = ResumableOutput(target) if target else None
    saved = resumable.read_settings(resume) if resumable else None
    limits = (dataclasses.replace(limits, memory=limits.memory or saved["memory"]) if saved else limits).resolve()
    with open_lines("--input", source) as file, _open_prefixes(target_prefix, target_prefix_file) as (prefix, take_prefixes):
        loaded, translator = open_translator("translate", workdir, weights, average, trust_code, overrides, limits)
        if nbest:
            search |= {"n_best": nbest, "beam": search.get("beam") or max(translator.config.search.beam, nbest)}
        name, is_file = source or "standard input", file.seekable()
        tokens = limits.tokens or translator.config.evaluation.batch_size
        settings = {
            "workdir": str(Path(workdir).expanduser().absolute()),
            "checkpoint": [loaded.step, loaded.weights, average],
            "search": {**translator.config.search.to_dict(), **{k: v for k, v in search.items() if v is not None}},
            "batch": [tokens, limits.sentences, jax.local_device_count()],
            "memory": limits.memory,
            "format": [nbest, scores, *([alignments] if alignments else [])],
            "prefix": prefix,
            "shard": shard,
            "input": identify_input(file) if is_file and source else None,
        }
        sizes = (*CHUNKS[:-1], max(CHUNKS[-1], tokens // 16))
        terminal = sys.stderr.isatty() and (output is not None or not sys.stdout.isatty())
        begin, end = _choose_lines(file if is_file and source else None, shard, terminal)
        written = OutputOptions(nbest, scores, alignments is not None)
        chosen: dict[int, Translation] = {}
        opened: Any = contextlib.nullcontext((functools.partial(write_at_once, sys.stdout.buffer), 0))
        if resumable:
            opened = resumable.open(settings, saved, sizes, begin + 1 if nbest else None)
        with opened as (write, done), show_progress(end and end - begin, terminal, "translating", "line") as progress:
            lines = itertools.islice(read_lines(file, name), begin, end)
            parts = _skip_parts(take_parts(lines, sizes) if is_file else take_available(lines, sizes[-1]), done)
            translations = translate_parts(translator, parts, take_prefixes(begin + done, end), alignments, **search)
            for number, translation in enumerate(translations, begin + done + 1):
                write(written.format(number, translation))
                if translation.target_ids and (number in attention_lines if attention_lines else not chosen):
                    chosen[number] = translation
                progress(number - begin)
    if figure:
        _plot_attention(translator, chosen, attention_lines, attention_of, figure)


def _check_files(
    source: str | None, output: str | None, attention: str | None, lines: Sequence[int] | None, resume: bool
) -> tuple[Path | None, Path | None]:
    """Returns the paths of output and figure. Raises UserError for paths that cannot be made, or contradict one another."""
    target, figure = check_new_file("--output", output), check_new_file("--attention", attention)
    if lines and not figure:
        raise UserError("--attention-lines says whose attention is plotted: give --attention=OUT.png, too.")
    if figure and figure.suffix not in SUFFIXES:
        raise UserError(f"--attention={attention}: give a name that ends in {', '.join(SUFFIXES)}.")
    for number in lines or ():
        check_new_file("--attention", str(_name_figure(Path(str(attention)), number)))
    if resume and figure:
        raise UserError("--attention with --resume: what was done before is not translated again: plot it by itself.")
    if resume and not (target and source):
        raise UserError("--resume goes on with a file: give --input and --output as before.")
    return target, figure


@contextlib.contextmanager
def _open_prefixes(text: str | None, path: str | None) -> Iterator[tuple[Any, Callable[[int, int | None], Any]]]:
    """Yields what identifies the forced beginnings, and a function that returns those of the lines [begin, end)."""
    if path is None:
        yield text, lambda begin, end: text or ""
        return
    if text:
        raise UserError("translate: --target-prefix is for all lines, and --target-prefix-file for each: leave one out.")
    with open_lines("--target-prefix-file", path) as file:
        yield identify_input(file), lambda begin, end: itertools.islice(read_lines(file, path), begin, end)


def _choose_lines(file: BinaryIO | None, shard: tuple[int, int] | None, count: bool) -> tuple[int, int | None]:
    """Returns the lines [begin, end) to translate; the end is None if they need not be counted, or come from a pipe."""
    if shard and not file:
        raise UserError(f"--shard={shard[0]}/{shard[1]}: a shard is of a file, not of a pipe: give --input=FILE.")
    return find_shard(file, shard or (1, 1)) if file and (count or shard) else (0, None)


def find_shard(file: BinaryIO, shard: tuple[int, int]) -> tuple[int, int]:
    """Returns the lines [begin, end) of the i-th of n parts of a file, which is then at its start again."""
    total = sum(1 for _ in file)
    file.seek(0)
    return (shard[0] - 1) * total // shard[1], shard[0] * total // shard[1]


def _skip_parts(parts: Iterable[list[str]], done: int) -> Iterator[list[str]]:
    """Leaves out the parts with the first `done` lines."""
    for part in parts:
        if done <= 0:
            yield part
        done -= len(part)


def _name_figure(path: Path, line: int) -> Path:
    return path.with_name(f"{path.stem}-{line}{path.suffix}")


def _plot_attention(
    translator: Translator, found: Mapping[int, Translation], lines: Sequence[int] | None, kind: str, path: Path
) -> None:
    from attention_jax.analysis.translation_maps import compute_translation_maps, plot_attention_grid

    if not found:
        raise UserError("--attention: there is no sentence whose attention could be plotted.")
    if missing := [number for number in lines or () if number not in found]:
        raise UserError(f"--attention-lines: line {missing[0]} is empty, or not there: give lines that were translated.")
    for number, translation in found.items():
        place = _name_figure(path, number) if lines else path
        with naming("--attention", place):
            save_figure(plot_attention_grid(compute_translation_maps(translator, translation.source, translation), kind), place)
