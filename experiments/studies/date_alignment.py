"""Alignment of cross-attention with the year, month and day of the dates in `data.embedded.read_cldr`.

The alignments of Bahdanau et al. 2014 (arXiv 1409.0473, Figure 3), on data where the right one is known. Letters in names:
N dates, H heads, T target and S source tokens, end symbols included.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.data.embedded import read_cldr
from attention_jax.data.text.batches import pad_rows
from attention_jax.data.text.tokenizer import EOS, Tokenizer, load_tokenizer
from attention_jax.errors import UserError
from attention_jax.load import Run
from attention_jax.tasks.translation import shift_right
from attention_jax.train.program import Program

Span = tuple[int, int]  # first character, one past the last
Parts = Mapping[str, tuple[Span, Span]]
_KINDS = ("date_", "month_day", "year_month")  # prefixes of the kinds of pairs that are dates
_BLANK = "▁"  # how sentencepiece writes a blank

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_WEEKDAYS = dict(
    zip("월화수목금토일", ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"), strict=True)
)
_MONTH = "|".join(f"{name}|{name[:3]}" for name in _MONTHS)
_ENGLISH_DAY = f"(?:(?P<weekday>{'|'.join(f'{name}|{name[:3]}' for name in _WEEKDAYS.values())}), )?"
# Months and days have one or two digits, years four or, in the short style, two: 3/2024 is a month, 3/24 is a day.
_ENGLISH = (
    rf"{_ENGLISH_DAY}(?P<month>{_MONTH}) (?P<day>\d\d?)(?:, (?P<year>\d{{4}}))?",
    rf"(?P<month>{_MONTH}) (?P<year>\d{{4}})",
    rf"{_ENGLISH_DAY}(?P<month>\d\d?)/(?P<day>\d\d?)(?:/(?P<year>\d\d|\d{{4}}))?",
    r"(?P<month>\d\d?)/(?P<year>\d{4})",
)
_KOREAN_DAY = r"(?: \(?(?P<weekday>[월화수목금토일])(?:요일|\)))?"  # 화요일 or (화)
_KOREAN = (
    rf"(?:(?P<year>\d{{4}})년 )?(?P<month>\d\d?)월 (?P<day>\d\d?)일{_KOREAN_DAY}",
    r"(?P<year>\d{4})년 (?P<month>\d\d?)월",
    rf"(?:(?P<year>\d\d|\d{{4}})\. )?(?P<month>\d\d?)\. (?P<day>\d\d?)\.{_KOREAN_DAY}",
    r"(?P<year>\d{4})\. (?P<month>\d\d?)\.",
)


def _match_parts(text: str, patterns: tuple[str, ...]) -> dict[str, Span]:
    for pattern in patterns:
        if match := re.fullmatch(pattern, text):
            return {part: match.span(part) for part, found in match.groupdict().items() if found is not None}
    return {}


def _value(part: str, text: str) -> str:
    """Returns a value that both languages share: digits, or the first three letters of an English name."""
    if part == "weekday":
        return _WEEKDAYS.get(text, text)[:3]
    if part == "month" and text.isdigit():
        return _MONTHS[int(text) - 1][:3] if 1 <= int(text) <= 12 else ""
    return text[:3] if part == "month" else text


def find_date_parts(english: str, korean: str) -> dict[str, tuple[Span, Span]]:
    """Finds the parts of a date and of its translation: {"year": ((start, end), (start, end)), "month": …}.

    The spans are characters of the English and of the Korean text: "2024" of "2024년", without what follows the number.
    The parts are those of "year", "month", "day" and "weekday" that the date has, in the order of the English text. Raises
    UserError for what is not a date in a style of CLDR, or when the two sides do not say the same.
    """
    here, there = _match_parts(english, _ENGLISH), _match_parts(korean, _KOREAN)
    if not here or here.keys() != there.keys():
        raise UserError(f"{english!r} and {korean!r} are not a date and its translation, as data.embedded.read_cldr has them.")
    for part, span in here.items():
        one, other = english[slice(*span)], korean[slice(*there[part])]
        if _value(part, one) != _value(part, other):
            raise UserError(f"{english!r} and {korean!r} are not the same date: {part} {one!r} and {other!r}.")
    return {part: (span, there[part]) for part, span in sorted(here.items(), key=lambda item: item[1])}


def find_token_spans(tokenizer: Tokenizer, text: str) -> list[Span]:
    """Finds the characters of `text` that each of its tokens stands for, blanks left out: (first, one past the last).

    A token that is nothing but a blank has an empty span. Raises UserError when the tokens do not spell the text, because
    the tokenizer changes or does not know a character of it.
    """
    found, at = [], 0
    for piece in tokenizer.pieces(tokenizer.encode(text)):
        word = piece.removesuffix(getattr(tokenizer, "joiner", "")).replace(_BLANK, "")
        while text[at : at + 1].isspace():
            at += 1
        if not text.startswith(word, at):
            raise UserError(f"{text!r}: the token {piece!r} is not at character {at}: give a text that the tokenizer keeps.")
        found.append((at, at + len(word)))
        at += len(word)
    return found


def _overlap(one: Span, other: Span) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def is_aligned(weights_TS: np.ndarray, source: Sequence[Span], target: Sequence[Span], parts: Parts) -> bool:
    """True if each target token in a year, month or day gives its largest weight to a source token in the same part.

    Args:
        weights_TS: row t is the attention when target token t is predicted; columns beyond the source's end are padding.
        source, target: see `find_token_spans`; the end symbols have no span, but the source's takes part in the arg-max.
        parts: see `find_date_parts`; weekdays do not count.
    """
    most = weights_TS[:, : len(source) + 1].argmax(-1)
    for part in ("year", "month", "day"):
        if part in parts:
            here, there = parts[part]
            for t, span in enumerate(target):
                if _overlap(span, there) and not (most[t] < len(source) and _overlap(source[most[t]], here)):
                    return False
    return True


def list_alignments(maps: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Lists the cross-attention [N, T, S] of `attention_maps`: for each layer, last first, the mean of heads and each head."""
    found = {}
    for path in sorted((path for path in maps if "cross_attention/" in path), reverse=True):
        layer = path.partition("/cross_attention")[0] if "/cross_attention" in path else "decoder"
        weights_NHTS = np.asarray(maps[path], np.float32)
        heads = weights_NHTS.shape[1]
        if heads > 1:
            found[f"{layer}, mean of heads"] = weights_NHTS.mean(1)
        for head in range(heads):
            found[f"{layer}, head {head}"] = weights_NHTS[:, head]
    return found


def _aligned_shares(run: Run, split: str) -> dict[str, float]:
    """Returns {name in `list_alignments`: share of a split's dates that these weights align}.

    The target's tokens are those of the right translation. Empty for a network without cross-attention.
    """
    tokenizer = load_tokenizer(run.assets)
    chosen = run.config.data.args.get("kind") or _KINDS  # the tokenizer may lack the characters of other kinds
    pairs = zip(*read_cldr(split), strict=True)
    rows = [(here, there) for here, there, kind in pairs if kind.startswith(_KINDS) and kind.startswith(chosen)]
    sources, targets = ([[*tokenizer.encode(text), EOS] for text in side] for side in zip(*rows, strict=True))
    source, target = (pad_rows(side, len(side), max(map(len, side))) for side in (sources, targets))
    maps = attention_maps(run.model, run.variables, source, shift_right(jnp.asarray(target)))
    texts = [
        (find_token_spans(tokenizer, english), find_token_spans(tokenizer, korean), find_date_parts(english, korean))
        for english, korean in rows
    ]
    return {
        name: float(np.mean([is_aligned(*each) for each in zip(weights_NTS, *zip(*texts, strict=True), strict=True)]))
        for name, weights_NTS in list_alignments(maps).items()
    }


def measure_date_alignment(program: Program, run: Run) -> dict[str, Any]:
    """Measures, for a table, the share of the test split's dates that the arg-max of cross-attention aligns, in percent.

    Layer and head are chosen on the split "dev", the first of the best. No column without cross-attention.
    """
    on_dev = _aligned_shares(run, "dev")
    if not on_dev:
        return {"aligned by": np.array([], str)}
    best = max(on_dev, key=on_dev.__getitem__)
    return {"dates aligned %": 100 * _aligned_shares(run, "test")[best], "aligned by": np.array([best])}
