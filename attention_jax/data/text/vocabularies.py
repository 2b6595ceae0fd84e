"""Reads the vocabularies of other programs: sentencepiece's, fairseq's, Marian's, and lists of words.

Whatever numbers a file has, its tokens get ours: padding, start, end and unknown first, then the others in the file's order.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attention_jax import storage
from attention_jax.data.text.tokenizer import SYMBOLS, TOKENIZERS, ListedPieces, SentencePiece, Tokenizer, Words, parse_words
from attention_jax.errors import UserError

_OVERWRITE = "#fairseq:overwrite"


def read_tokenizer(path: str, side: str = "target", joiner: str = "", field: str = "data.tokenizer") -> Tokenizer:
    """Reads a vocabulary from a local or remote file.

    Args:
        path: a sentencepiece `.model` or `.spm` with any numbers; `words.json` as a checkpoint holds it; a `vocab.json`
            {piece: number} beside `source.spm` and `target.spm`, or one `.spm`; fairseq's `dict.txt`; or a word a line.
        side: "source" or "target", for the `.spm`.
        joiner: see `Words`; for words alone.
        field: the config's field, for messages.

    Raises:
        UserError: a file that is missing, of another kind, or contradicts itself.
    """
    where = f"{field}={path}"
    content = _read(path, where)
    if path.endswith((".model", ".spm")) or (b"\0" in content and not path.endswith(".json")):
        return SentencePiece(content)
    if not path.endswith(".json"):
        return Words((*SYMBOLS, *_read_list(content, where)), joiner)
    try:
        saved = json.loads(content)
    except ValueError as error:
        raise UserError(f"{where}: it is no JSON ({error}).") from error
    if isinstance(saved, dict) and "words" not in saved:
        pieces, _ = order_pieces(saved, where)
        return ListedPieces(_read(find_splitter(path, side, where), where), pieces)
    return parse_words(content)


def order_pieces(vocabulary: Mapping[str, Any], where: str, size: int = 0) -> tuple[list[str], list[int]]:
    """Returns the pieces in our order, and each one's number in the file, -1 for the start symbol, which a file need not have.

    Args:
        vocabulary: {piece: number}.
        where: the file, for messages.
        size: number of rows of a network's table; rows without a piece are named "".
    """
    wrong = [piece for piece, number in vocabulary.items() if type(number) is not int or number < 0]
    if wrong or len(set(vocabulary.values())) < len(vocabulary):
        what = f"{wrong[0]!r} has the number {vocabulary[wrong[0]]!r}" if wrong else "two pieces have the same number"
        raise UserError(f"{where}: {what}: give {{piece: number}} with numbers from 0 that differ.")
    if missing := [name for name in SYMBOLS if name != "<s>" and name not in vocabulary]:
        raise UserError(f"{where}: it has no {' and no '.join(missing)}: give a vocab.json with <pad>, </s> and <unk>.")
    names = dict.fromkeys(range(size), "") | {number: piece for piece, number in vocabulary.items()}
    first = [vocabulary[name] if name != "<s>" else -1 for name in SYMBOLS]
    others = sorted(names.keys() - set(first))
    return [*SYMBOLS, *(names[number] for number in others)], [*first, *others]


def find_splitter(path: str, side: str, where: str) -> str:
    """Returns the path of the sentencepiece model of one side beside a `vocab.json`."""
    folder, _, _ = path.rpartition("/")
    if storage.is_remote(path):
        return f"{folder}/{side}.spm"
    found = sorted(Path(folder or ".").expanduser().glob("*.spm"))
    own = [file for file in found if file.name == f"{side}.spm"]
    if not own and len(found) != 1:
        has = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{where}: beside it should lie source.spm and target.spm, or one .spm for both sides; there is {has}.")
    return str((own or found)[0])


def list_vocabulary_files(path: str) -> list[str]:
    """Returns the files from which `read_tokenizer` reads a vocabulary."""
    if not path.endswith(".json") or storage.is_remote(path):
        return [path]
    return [path, *map(str, sorted(Path(path).expanduser().parent.glob("*.spm")))]


def _read(path: str, where: str) -> bytes:
    try:
        return storage.read_remote_file(path, where) if storage.is_remote(path) else Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}: give a file, or one of {', '.join(TOKENIZERS)}.") from error


def _read_list(content: bytes, where: str) -> list[str]:
    """Returns the words of fairseq's `dict.txt`, a word and its count a line, or of a list, a word a line.

    Our symbols are left out, unless fairseq's flag says that a line is a word which only looks like one.
    """
    try:
        lines = content.decode("utf-8-sig").split("\n")  # splitlines would split at signs that are words
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start} is not UTF-8: give a list of words in UTF-8.") from error
    rows = [(number, re.split("[ \t]+", line.strip(" \t\r"))) for number, line in enumerate(lines, 1) if line.strip()]
    counted = bool(rows) and len(rows[0][1]) > 1
    words: dict[str, int] = {}
    for number, cells in rows:
        overwrites = counted and cells[-1] == _OVERWRITE
        cells = cells[:-1] if overwrites else cells
        if len(cells) != 1 + counted or (counted and not cells[1].isdecimal()):
            wanted = "'word count' as in fairseq's dict.txt" if counted else "one word"
            raise UserError(f"{where}:{number} is {lines[number - 1]!r:.60}: give {wanted} a line, as in the lines before it.")
        word = cells[0]
        if word in words:
            raise UserError(f"{where}:{number}: {word!r} is in line {words[word]} too: give each word once.")
        if overwrites or word not in (*SYMBOLS, "<blank>"):
            words[word] = number
    if not words:
        raise UserError(f"{where}: there is no word in it: give a word a line.")
    return list(words)
