"""Sources of sentence pairs: two files aligned by line, tab-separated files, data sets of TensorFlow Datasets, CLDR.

A source of pairs has `len(source)` and `source[i] -> (source sentence, target sentence)`, like a list of pairs, and may have
`fingerprint()`, see `data/fingerprint.py`. For a source of your own, write a function `make(split, **args)` and name it
`path/to/file.py:make`.
"""

import contextlib
import gzip
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax import storage
from attention_jax.config.plugins import load_object
from attention_jax.data import embedded
from attention_jax.data.prepared import open_builder
from attention_jax.errors import UserError, one_sentence

logger = logging.getLogger(__name__)
Pair = tuple[str, str]
Pairs = Sequence[Pair]


def _read_lines(path: Path | str) -> list[bytes]:
    """Returns the lines of a local or remote file without line ends and byte order mark; unpacks `.gz`."""
    try:
        content = storage.read_remote_file(path) if isinstance(path, str) else path.read_bytes()
        content = gzip.decompress(content) if str(path).endswith(".gz") else content
    except FileNotFoundError as error:
        names = sorted(p.name for p in Path(path).parent.iterdir())[:8] if Path(path).parent.is_dir() else []
        raise UserError(f"{path}: there is no such file; its folder has {', '.join(names) or 'nothing'}.") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({one_sentence(error)}).") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or 4 * content.count(b"\0", 0, 1000) > len(content[:1000]):
        raise UserError(f"{path} is UTF-16: convert it to UTF-8, as with iconv -f UTF-16 -t UTF-8.")
    if b"\n" not in content and b"\r" in content.rstrip(b"\r"):
        raise UserError(f"{path} ends its lines in CR alone, as old Macs did: convert it, as with tr '\\r' '\\n'.")
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _decode(line: bytes, where: str) -> str:
    """Returns the text of a line. Raises ValueError with the reason if it is not UTF-8, or empty."""
    try:
        text = line.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 (byte {error.start} is 0x{line[error.start]:02x})") from error
    if not text:
        raise ValueError(f"{where} is empty")
    return text


def _parse(rows: Iterable[tuple], parse: Callable[..., Pair], split: str, on_broken: str) -> list[Pair]:
    """Applies `parse(*row)` to each row; if it raises ValueError, the row is left out, or "stop" raises UserError."""
    pairs, left_out = [], []
    for row in rows:
        try:
            pairs.append(parse(*row))
        except ValueError as reason:
            if on_broken == "stop":
                raise UserError(f"{reason}: fix it, or set data.on_broken='skip' to leave such pairs out.") from reason
            left_out.append(reason)
    if left_out:
        text = "data: %d of %d pairs of split %r are left out; the first: %s."
        logger.warning(text, len(left_out), len(pairs) + len(left_out), split, left_out[0])
    return pairs


def _paths(paths: str | Sequence[str], split: str) -> list[Path | str]:
    paths = [path.replace("{split}", split) for path in ([paths] if isinstance(paths, str) else paths)]
    return [path if storage.is_remote(path) else Path(path).expanduser() for path in paths]


def read_files(split: str, source: str | Sequence[str], target: str | Sequence[str], on_broken: str = "stop") -> list[Pair]:
    """Reads two files whose lines are aligned: line i of one is the translation of line i of the other.

    Args:
        split: replaces "{split}" in the paths: "data/{split}.en" is data/train.en for the split "train".
        source, target: paths or URIs (gs://…), `.gz` too, or tuples of them that are read one after another.
        on_broken: "stop" raises UserError at an empty line or one that is not UTF-8; "skip" leaves out its pair.

    Raises UserError if a file is missing, or the two have different numbers of lines.
    """
    sources, targets = _paths(source, split), _paths(target, split)
    if len(sources) != len(targets):
        raise UserError(
            f"data.args: {len(sources)} source files and {len(targets)} target files: give as many of one as of the other."
        )

    rows: list[tuple[bytes, bytes, Path | str, Path | str, int]] = []
    for file, other in zip(sources, targets):
        left, right = _read_lines(file), _read_lines(other)
        if len(left) != len(right):
            raise UserError(f"{file} has {len(left)} lines and {other} has {len(right)}: aligned files have the same number.")
        rows += ((a, b, file, other, number) for number, (a, b) in enumerate(zip(left, right), 1))
    return _parse(rows, lambda a, b, file, other, i: (_decode(a, f"{file}:{i}"), _decode(b, f"{other}:{i}")), split, on_broken)


def read_tsv(split: str, path: str | Sequence[str], columns: Sequence[int] = (0, 1), on_broken: str = "stop") -> list[Pair]:
    """Reads tab-separated files with a pair per line.

    Args:
        split, path, on_broken: as in `read_files`; a line with too few columns is broken, too.
        columns: numbers of the columns of source and target, from 0; others are ignored.
    """
    first, second = columns

    def parse(line: bytes, where: str) -> Pair:
        cells = line.split(b"\t")
        if len(cells) <= max(columns):
            raise ValueError(f"{where} has {len(cells)} columns, not {max(columns) + 1}")
        return _decode(cells[first], where), _decode(cells[second], where)

    lines = ((line, f"{file}:{i}") for file in _paths(path, split) for i, line in enumerate(_read_lines(file), 1))
    return _parse(lines, parse, split, on_broken)


def open_tfds_pairs(split: str, name: str, source: str, target: str, data_dir: str | None = None) -> Pairs:
    """Opens a translation set of TensorFlow Datasets that was prepared as ArrayRecord, e.g. "wmt14_translate/de-en".

    Source and target are languages, e.g. "en" and "de"; `split` and `data_dir` are those of `images.sources.open_tfds`.
    """
    with contextlib.suppress(ImportError):  # builders register themselves on import
        __import__(f"tensorflow_datasets.translate.{name.split('_')[0]}")
    try:
        builder = open_builder(name, data_dir)
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
    """Returns a data set's translation features: itself, or those among its features."""
    from tensorflow_datasets import features

    nested = [info.features, *(info.features.values() if hasattr(info.features, "values") else ())]
    return [feature for feature in nested if isinstance(feature, features.Translation)]


class _TfdsPairs(Pairs):
    def __init__(self, records: Sequence[Mapping[str, Any]], source: str, target: str):
        self._records, self._source, self._target = records, source, target

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        record = self._records[index]
        return _as_text(record[self._source]), _as_text(record[self._target])


def _as_text(text: Any) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)


class _CldrPairs(list[Pair]):
    def fingerprint(self) -> str:
        return embedded.CLDR_VERSION


def open_cldr(
    split: str, kind: str | Sequence[str] | None = None, join: int | tuple[int, int] = 1, everyday: int = 5
) -> list[Pair]:
    """Returns the embedded English-Korean pairs, or longer ones made of them; see `embedded.read_cldr`.

    Args:
        kind: kind of the pairs, or several kinds; None for all.
        join: number of pairs to join into one example, separated by "; "; for two numbers, any from the first to the second.
            The draw is fixed by the split.
        everyday: repetitions of each everyday sentence, since no similar sentences help to learn them, unlike dates.
    """
    kinds = [kind] if kind is None or isinstance(kind, str) else kind
    rows = [row for each in kinds for row in zip(*embedded.read_cldr(split, each), strict=True)]
    pairs = [(english, korean) for english, korean, kind in rows for _ in range(everyday if kind == "everyday" else 1)]
    least, most = (join, join) if isinstance(join, int) else join
    if not 1 <= least <= most:
        raise UserError(f"data.args.join={join} is not right: give a number from 1, or two, the smaller one first.")
    rng = np.random.default_rng([*split.encode(), least, most])
    numbers = rng.integers(least, most + 1, len(pairs)) if most > 1 else np.ones(len(pairs), int)
    joined = ([pairs[i], *(pairs[other] for other in rng.integers(len(pairs), size=n - 1))] for i, n in enumerate(numbers))
    return _CldrPairs(("; ".join(english for english, _ in row), "; ".join(korean for _, korean in row)) for row in joined)


SOURCES: dict[str, Callable[..., Pairs]] = {"files": read_files, "tsv": read_tsv, "tfds": open_tfds_pairs, "cldr": open_cldr}


def open_pairs(source: str, split: str, args: Mapping[str, Any], on_broken: str) -> Pairs:
    """Returns the pairs of one split that `data.source` names. Raises UserError if there are none or they cannot be read."""
    make = load_object(source, SOURCES, "data source")
    if make in (read_files, read_tsv):
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
