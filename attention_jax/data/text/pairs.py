"""Where sentence pairs come from: two files aligned by line, tab-separated files, data sets of TensorFlow Datasets.

A source of pairs has `len(source)` and `source[i] -> (source sentence, target sentence)`. One of your own is a function
`make(split, **args)` that returns one, named `path/to/file.py:make`; a list of pairs of strings will do.
"""

import contextlib
import gzip
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from attention_jax import storage
from attention_jax.config.plugins import load_object
from attention_jax.data import embedded
from attention_jax.errors import UserError, one_sentence

logger = logging.getLogger(__name__)


class Pairs(Protocol):
    """Random access to sentence pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, str]: ...


class _Unusable(Exception):
    """A line that cannot be used: where, and why."""


def _lines(path: Path | str) -> list[bytes]:
    """The lines of a file, of which "\\r" may be left; `.gz` is unpacked. A byte order mark at the beginning is left out.

    Args:
        path: of a file, or the address of one.
    """
    try:
        content = storage.read_remote_file(path) if isinstance(path, str) else path.read_bytes()
        content = gzip.decompress(content) if str(path).endswith(".gz") else content
    except FileNotFoundError as error:
        near = sorted(p.name for p in Path(path).parent.iterdir())[:8] if Path(path).parent.is_dir() else []
        raise UserError(f"{path}: there is no such file; its folder has {', '.join(near) or 'nothing'}.") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({one_sentence(error)}).") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _text(line: bytes, where: str) -> str:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError as error:
        raise _Unusable(f"{where} is not UTF-8 (byte {error.start} is 0x{line[error.start]:02x})") from error
    if not text:
        raise _Unusable(f"{where} is empty")
    return text


@contextlib.contextmanager
def _judged(on_broken: str, left_out: list[str]) -> Iterator[None]:
    """Notes a line that cannot be used, or with "stop" raises UserError about it."""
    try:
        yield
    except _Unusable as reason:
        if on_broken == "stop":
            raise UserError(f"{reason}: mend it, or set data.on_broken='skip' to leave such pairs out.") from reason
        left_out.append(str(reason))


def _report(left_out: list[str], total: int, what: str) -> None:
    if left_out:
        logger.warning("data: %d of %d pairs of %s are left out; the first: %s.", len(left_out), total, what, left_out[0])


def _paths(paths: str | Sequence[str], split: str) -> list[Path | str]:
    paths = [paths] if isinstance(paths, str) else list(paths)
    paths = [path.replace("{split}", split) for path in paths]
    return [path if storage.is_remote(path) else Path(path).expanduser() for path in paths]


def read_aligned_files(split: str, source: str | Sequence[str], target: str | Sequence[str], on_broken: str = "stop") -> Pairs:
    """Two files, line i of one being the translation of line i of the other.

    Args:
        split: stands for "{split}" in the paths: "data/{split}.en" is data/train.en for the split "train".
        source, target: paths or addresses (gs://…), `.gz` too, or tuples of them that are read one after another.
        on_broken: "stop" raises UserError at an empty line or one that is not UTF-8, "skip" leaves its pair out.

    Raises:
        UserError: a file is missing, or the two have different numbers of lines.
    """
    sources, targets = _paths(source, split), _paths(target, split)
    if len(sources) != len(targets):
        raise UserError(
            f"data.args: {len(sources)} source files and {len(targets)} target files: give as many of one as of the other."
        )
    pairs: list[tuple[str, str]] = []
    left_out: list[str] = []
    for one, other in zip(sources, targets, strict=True):
        left, right = _lines(one), _lines(other)
        if len(left) != len(right):
            raise UserError(f"{one} has {len(left)} lines and {other} has {len(right)}: aligned files have equally many.")
        for number, (a, b) in enumerate(zip(left, right, strict=True), 1):
            with _judged(on_broken, left_out):
                pairs.append((_text(a, f"{one}:{number}"), _text(b, f"{other}:{number}")))
    _report(left_out, len(pairs) + len(left_out), f"split {split!r}")
    return pairs


def read_tsv(split: str, path: str | Sequence[str], columns: Sequence[int] = (0, 1), on_broken: str = "stop") -> Pairs:
    """Tab-separated files with a pair a line.

    Args:
        split: stands for "{split}" in the path.
        path: of a file or its address (gs://…), `.gz` too, or a tuple of them that are read one after another.
        columns: those of source and target, from 0; others are ignored.
        on_broken: as in `read_aligned_files`; a line with too few columns is one that cannot be used, too.
    """
    first, second = columns
    pairs: list[tuple[str, str]] = []
    left_out: list[str] = []
    for file in _paths(path, split):
        for number, line in enumerate(_lines(file), 1):
            with _judged(on_broken, left_out):
                cells = line.split(b"\t")
                if len(cells) <= max(first, second):
                    raise _Unusable(f"{file}:{number} has {len(cells)} columns, not {max(first, second) + 1}")
                pairs.append((_text(cells[first], f"{file}:{number}"), _text(cells[second], f"{file}:{number}")))
    _report(left_out, len(pairs) + len(left_out), f"split {split!r}")
    return pairs


def read_tfds_pairs(
    split: str, name: str, source: str, target: str, data_dir: str | None = None, on_broken: str = "stop"
) -> Pairs:
    """A translation set of TensorFlow Datasets that was prepared as ArrayRecord; read without TensorFlow.

    Args:
        split: as TFDS spells it, e.g. "train[:1%]".
        name: e.g. "wmt14_translate/de-en".
        source, target: languages, e.g. "en" and "de".
        data_dir: the folder that holds it; `gs://` addresses need the extra `gcs`.
    """
    import tensorflow_datasets

    if storage.is_remote(data_dir):
        storage.RemoteFolder(str(data_dir))  # says so when it does not answer, where the readers beneath would wait in silence
    with contextlib.suppress(ImportError):  # its builders register themselves when they are imported, and only then
        __import__(f"tensorflow_datasets.translate.{name.split('_')[0]}")
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
        languages = [language for feature in _translations(builder.info) for language in feature]
        if not {source, target} <= set(languages):
            raise UserError(
                f"data.source=tfds: {name!r} has the languages {', '.join(languages) or 'none'}; data.args asks for "
                f"source={source!r} and target={target!r}."
            )
        return _TfdsPairs(builder.as_data_source(split=split), source, target)
    except (KeyError, ImportError, ValueError, OSError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"data.source=tfds: {name!r} split {split!r} cannot be read from {data_dir or '~/tensorflow_datasets'} "
            f"({one_sentence(error)}): prepare it there with python -m attention_jax prepare {name}, or point "
            "data.args.data_dir to the folder that has it."
        ) from error


def _translations(info: Any) -> list[Any]:
    """A data set's translation features: itself, or those among its features."""
    from tensorflow_datasets import features

    nested = [info.features, *(info.features.values() if hasattr(info.features, "values") else ())]
    return [feature for feature in nested if isinstance(feature, features.Translation)]


class _TfdsPairs:
    def __init__(self, records: Sequence[Mapping[str, Any]], source: str, target: str):
        self._records, self._languages = records, (source, target)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[str, str]:
        record = self._records[index]
        source, target = (record[language] for language in self._languages)
        return tuple(text.decode() if isinstance(text, bytes) else str(text) for text in (source, target))


def read_cldr_pairs(
    split: str,
    kind: str | Sequence[str] | None = None,
    join: int | tuple[int, int] = 1,
    everyday: int = 5,
    on_broken: str = "stop",
) -> Pairs:
    """The embedded English-Korean pairs, or longer ones made of them; see `embedded.cldr`.

    Args:
        split: "train", "dev" or "test".
        kind: of the pairs, or several; None for all.
        join: pair i and so many others less one, drawn once and for all, make up pair i, a semicolon between them; of two
            numbers any from the first to the second, drawn likewise.
        everyday: how often each everyday sentence is there, which only repetition teaches; dates have thousands of relatives.
    """
    kinds = [kind] if kind is None or isinstance(kind, str) else kind
    rows = [row for each in kinds for row in zip(*embedded.cldr(split, each), strict=True)]
    pairs = [row[:2] for row in rows for _ in range(everyday if row[2] == "everyday" else 1)]
    least, most = (join, join) if isinstance(join, int) else join
    if not 1 <= least <= most:
        raise UserError(f"data.args.join={join} is not right: give a number from 1, or two, the smaller one first.")
    rng = np.random.default_rng([*split.encode(), least, most])
    numbers = rng.integers(least, most + 1, len(pairs)) if most > 1 else np.ones(len(pairs), int)
    rows = [[pairs[i], *(pairs[other] for other in rng.integers(len(pairs), size=n - 1))] for i, n in enumerate(numbers)]
    return [tuple("; ".join(texts) for texts in zip(*row, strict=True)) for row in rows]


SOURCES = {"files": read_aligned_files, "tsv": read_tsv, "tfds": read_tfds_pairs, "cldr": read_cldr_pairs}


def open_pairs(source: str, split: str, args: Mapping[str, Any], on_broken: str) -> Pairs:
    """The pairs that `data.source` names, of one split. Raises UserError when they cannot be read or are none."""
    make = load_object(source, SOURCES, "data source")
    if make in SOURCES.values():
        args = {**args, "on_broken": on_broken}
    try:
        pairs = make(split, **args)
        first = pairs[0] if len(pairs) else None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data.source={source}: split {split!r} cannot be read ({type(error).__name__}: {error}).") from error
    if first is None:
        raise UserError(f"data.source={source}: split {split!r} is empty.")
    if len(first) != 2 or not all(isinstance(text, str) for text in first):
        raise UserError(f"data.source={source}: pair 0 is {first!r}; give (source sentence, target sentence).")
    return pairs
