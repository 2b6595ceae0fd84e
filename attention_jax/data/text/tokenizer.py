"""Converts text to tokens and back: sentencepiece, or words between blanks with their own vocabulary.

Every tokenizer has 0 for padding, 1 and 2 for start and end, 3 for unknown words; checkpoints carry its files. The files of
other programs, read by `vocabularies.py`, get these numbers here.
"""

import dataclasses
import functools
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from attention_jax.errors import UserError, one_sentence, require_package

logger = logging.getLogger(__name__)
PAD, BOS, EOS, UNKNOWN = 0, 1, 2, 3
TOKENIZERS = ("sentencepiece", "words")
SYMBOLS = ("<pad>", "<s>", "</s>", "<unk>")
_SENTENCEPIECE, _WORDS, _PIECES = "sentencepiece.model", "words.json", "pieces.json"
_SIDES = ("source", "target")
_BLANK = "\u2581"  # sentencepiece's sign for a blank


@dataclasses.dataclass(frozen=True)
class Words:
    """Makes each word between blanks a token, for texts that are tokenised already."""

    words: tuple[str, ...]  # the vocabulary; the four symbols come first
    joiner: str = ""  # end of a word that continues in the next one ("@@" in byte-pair files), "\u2581" for pieces; "" for none

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        # A text that spells out a symbol means its unknown word, not ours.
        return {word: i for i, word in enumerate(self.words) if i >= len(SYMBOLS)}

    @property
    def vocab_size(self) -> int:
        """The number of tokens, symbols included."""
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a line, without start and end."""
        return [self._index.get(word, UNKNOWN) for word in text.split()]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens; padding, start and end are left out."""
        return self.join(" ".join(self.words[i] for i in tokens if i not in (PAD, BOS, EOS)))

    def join(self, text: str) -> str:
        """Joins the parts of words in a text of the data, as `decode` does in a translation."""
        if self.joiner == _BLANK:  # at the start of a word, in text that sentencepiece has split
            return text.replace(" ", "").replace(_BLANK, " ").strip()
        return text.replace(f"{self.joiner} ", "").removesuffix(self.joiner) if self.joiner else text

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Returns each token as a person reads it, symbols included."""
        return [self.words[i] for i in tokens]

    def assets(self) -> dict[str, bytes]:
        """Returns {file name: content} for `load_tokenizer`."""
        return {_WORDS: json.dumps({"joiner": self.joiner, "words": self.words}, ensure_ascii=False).encode()}

    @classmethod
    def trained(cls, lines: Iterable[str], vocab_size: int | None, joiner: str) -> "Words":
        """Takes the most frequent words, equally frequent ones in alphabetical order; None takes all words."""
        counts = Counter(word for line in lines for word in line.split())
        for symbol in SYMBOLS:  # a file that spells out a symbol means its unknown, not ours
            counts.pop(symbol, None)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls((*SYMBOLS, *ranked[: None if vocab_size is None else vocab_size - len(SYMBOLS)]), joiner)


class SentencePiece:
    """A sentencepiece model (Kudo & Richardson 2018) for raw text, with the methods of `Words`."""

    def __init__(self, model: bytes):
        require_package("sentencepiece", "text", "a tokenizer of sentencepiece")
        import sentencepiece

        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # the parser's own classes
            raise UserError(f"this is no sentencepiece model ({one_sentence(error)}).") from error
        theirs = [getattr(self._processor, name)() for name in ("pad_id", "bos_id", "eos_id", "unk_id")]  # -1 for none
        others = set(range(self._processor.vocab_size())).difference(theirs)
        self._theirs: list[int] = [*theirs, *sorted(others)]
        self._ours = {number: i for i, number in enumerate(self._theirs) if number >= 0}
        self.vocab_size: int = len(self._theirs)

    def encode(self, text: str) -> list[int]:
        """See `Words`."""
        return [self._ours[i] for i in self._processor.encode(text)]

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Words`."""
        return self._processor.decode([self._theirs[i] for i in tokens if i not in (PAD, BOS, EOS)])

    def join(self, text: str) -> str:
        """See `Words`."""
        return text

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """See `Words`."""
        names = ((i, self._theirs[i]) for i in tokens)
        return [self._processor.id_to_piece(number) if number >= 0 else SYMBOLS[i] for i, number in names]

    def assets(self) -> dict[str, bytes]:
        """See `Words`."""
        return {_SENTENCEPIECE: self._model}

    @classmethod
    def trained(cls, lines: Iterable[str], vocab_size: int | None, options: Mapping[str, Any]) -> "SentencePiece":
        """Trains a model with one vocabulary for all lines, in one thread, so that the same lines give the same model.

        `options` are further arguments of sentencepiece's trainer, e.g. `model_type="bpe"`, `split_digits=True`. Raises
        UserError if there is no vocabulary size, or the trainer refuses it, e.g. because it is too large for the text.
        """
        require_package("sentencepiece", "text", "data.tokenizer=sentencepiece")
        import sentencepiece

        if vocab_size is None:
            raise UserError("data.vocab_size=None: sentencepiece needs a number of tokens, e.g. 8000.")
        model = io.BytesIO()
        symbols: dict[str, Any] = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS, "unk_id": UNKNOWN}
        settings = {"character_coverage": 1.0, "normalization_rule_name": "nmt_nfkc", "minloglevel": 1, **options}
        longest, long = settings.get("max_sentence_length", 4192), 0  # bytes; sentencepiece's default, beyond which it skips
        kept = (line for line in lines if len(line.encode()) <= longest or (long := long + 1) == 0)  # counts the others
        settings.update(sentence_iterator=kept, model_writer=model, vocab_size=vocab_size, num_threads=1)
        try:
            sentencepiece.SentencePieceTrainer.train(**symbols, **settings)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(
                f"data.tokenizer=sentencepiece with data.vocab_size={vocab_size} cannot be trained ({one_sentence(error)})."
            ) from error
        if long:
            option = "data.tokenizer_options.max_sentence_length"
            logger.warning("data: the tokenizer is trained without %d lines of more than %d bytes (%s).", long, longest, option)
        return cls(model.getvalue())


class ListedPieces(SentencePiece):
    """A sentencepiece model that splits text into pieces, which are numbered by a list, as in Marian's `vocab.json`.

    The list is that of source and target together, and each side has its own model. A language code (`>>de<<`) at the start of
    a text is a piece.
    """

    def __init__(self, model: bytes, listed: Sequence[str]):
        super().__init__(model)
        self._listed = tuple(listed)  # symbols first; "" for a number without a piece
        self._index = {piece: i for i, piece in enumerate(listed) if i >= len(SYMBOLS)}
        self.vocab_size = len(listed)

    def encode(self, text: str) -> list[int]:
        """See `Words`."""
        end = text.find("<<") + 2 if text.startswith(">>") and "<<" in text else 0
        pieces = [*([text[:end]] if end else []), *self._processor.encode(text[end:], out_type=str)]
        return [self._index.get(piece, UNKNOWN) for piece in pieces]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens without any symbol, that of unknown pieces included."""
        known = [self._listed[i] for i in tokens if i >= len(SYMBOLS)]
        return self._processor.decode_pieces(known).replace(_BLANK, " ").strip()  # the other side's pieces keep their blank

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """See `Words`."""
        return [self._listed[i] for i in tokens]

    def assets(self) -> dict[str, bytes]:
        """See `Words`."""
        return {**super().assets(), _PIECES: json.dumps(self._listed, ensure_ascii=False).encode()}


Tokenizer = Words | SentencePiece


class Tokenizers(NamedTuple):
    """The tokenizers of source and target: one object if both sides have the same."""

    source: Tokenizer
    target: Tokenizer

    def assets(self) -> dict[str, bytes]:
        """Returns {file name: content} for `load_tokenizers`; "source." and "target." stand before the names of two."""
        if self.source is self.target:
            return self.target.assets()
        return {f"{side}.{name}": content for side, each in zip(_SIDES, self) for name, content in each.assets().items()}


def train_tokenizer(
    kind: str, lines: Iterable[str], vocab_size: int | None, joiner: str, options: Mapping[str, Any]
) -> Tokenizer:
    """Trains one of the `TOKENIZERS` on these lines; see the `trained` methods."""
    if kind == "words":
        return Words.trained(lines, vocab_size, joiner)
    return SentencePiece.trained(lines, vocab_size, options)


def load_tokenizers(assets: Mapping[str, bytes]) -> Tokenizers:
    """Returns the tokenizers that a checkpoint carries. Raises UserError if it carries none."""
    if any(name.startswith("target.") for name in assets):
        sides = [{name.removeprefix(f"{side}."): content for name, content in assets.items()} for side in _SIDES]
        return Tokenizers(*(load_tokenizer(its) for its in sides))
    both = load_tokenizer(assets)
    return Tokenizers(both, both)


def load_tokenizer(assets: Mapping[str, bytes]) -> Tokenizer:
    """Returns the one tokenizer that a checkpoint carries. Raises UserError if it carries none, or two."""
    if _SENTENCEPIECE in assets:
        model = assets[_SENTENCEPIECE]
        return ListedPieces(model, json.loads(assets[_PIECES])) if _PIECES in assets else SentencePiece(model)
    if _WORDS in assets:
        return parse_words(assets[_WORDS])
    raise UserError(f"there is no tokenizer of both sides here, only {', '.join(assets) or 'nothing'}.")


def parse_words(content: bytes) -> Words:
    """Reads a vocabulary that `Words.assets` wrote."""
    try:
        saved = json.loads(content)
        words, joiner = tuple(saved["words"]), saved["joiner"]
        if not (isinstance(joiner, str) and all(isinstance(word, str) for word in words)):
            raise TypeError("words and joiner are texts")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{_WORDS} cannot be read ({type(error).__name__}: {error}): give one as a checkpoint holds it."
        ) from error
    if words[:4] != SYMBOLS or len(set(words[4:])) < len(words) - 4:  # fairseq may overwrite a symbol
        raise UserError(
            f"{_WORDS}: give words that differ, the first four of them {', '.join(SYMBOLS)}; it begins with {words[:4]}."
        )
    return Words(words, joiner)
