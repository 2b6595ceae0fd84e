"""Whether cross-attention looks at what it translates: year, month and day of the dates in `data.embedded.cldr`.

The question of Bahdanau et al. 2014 (arXiv 1409.0473, Figure 3), asked where the answer is known. Letters in names: N dates,
H heads, T target and S source tokens, end symbols included.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from attention_jax.analysis.attention_maps import attention_maps
from attention_jax.data.embedded import cldr
from attention_jax.data.text import tokenizer as tokenizers
from attention_jax.data.text.batches import pad_rows
from attention_jax.data.text.tokenizer import EOS, Tokenizer
from attention_jax.errors import UserError
from attention_jax.load import Run
from attention_jax.tasks.translation import shifted
from attention_jax.train.program import Program
from experiments.studies.date_parts import Span, date_parts

KINDS = ("date_", "month_day", "year_month")  # what the kinds of pairs that are dates begin with
PARTS = ("year", "month", "day")
BLANK = "▁"  # how sentencepiece writes a blank
Parts = Mapping[str, tuple[Span, Span]]


def spans(tokenizer: Tokenizer, text: str) -> list[Span]:
    """The characters of `text` that each of its tokens stands for, blanks left out: (first, one past the last).

    A token that is nothing but a blank has an empty span.

    Raises:
        UserError: the tokens do not spell the text, because the tokenizer changes or does not know a character of it.
    """
    found, at = [], 0
    for piece in tokenizer.pieces(tokenizer.encode(text)):
        word = piece.removesuffix(getattr(tokenizer, "joiner", "")).replace(BLANK, "")
        while text[at : at + 1].isspace():
            at += 1
        if not text.startswith(word, at):
            raise UserError(f"{text!r}: the token {piece!r} is not at character {at}: give a text that the tokenizer keeps.")
        found.append((at, at + len(word)))
        at += len(word)
    return found


def _meet(one: Span, other: Span) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def is_aligned(weights_TS: np.ndarray, source: Sequence[Span], target: Sequence[Span], parts: Parts) -> bool:
    """Whether each target token in a year, month or day gives its largest weight to a source token in the same part.

    Args:
        weights_TS: row t is the attention when target token t is predicted; columns beyond the source's end are padding.
        source, target: see `spans`; the end symbols have no span, but the source's takes part in the arg-max.
        parts: see `date_parts`; weekdays are not asked for.
    """
    most = weights_TS[:, : len(source) + 1].argmax(-1)
    for part in PARTS:
        if part in parts:
            here, there = parts[part]
            for t, span in enumerate(target):
                if _meet(span, there) and not (most[t] < len(source) and _meet(source[most[t]], here)):
                    return False
    return True


def cross_attention(maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights [N, T, S] that may be asked: of each layer, last first, the mean over its heads and each head.

    Args:
        maps: of `attention_maps`; those under "cross_attention" count, [N, H, T, S].
    """
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


def shares(run: Run, split: str) -> dict[str, float]:
    """{weights, as `cross_attention` names them: share of a split's dates that are aligned by them}.

    The target's tokens are those of the right translation. Empty for a network without cross-attention.
    """
    words = tokenizers.from_assets(run.assets)
    rows = [(english, korean) for english, korean, kind in zip(*cldr(split), strict=True) if kind.startswith(KINDS)]
    sources, targets = ([[*words.encode(text), EOS] for text in side] for side in zip(*rows, strict=True))
    source, target = (pad_rows(side, len(side), max(map(len, side))) for side in (sources, targets))
    maps = attention_maps(run.model, run.variables, source, shifted(jnp.asarray(target)))
    texts = [(spans(words, english), spans(words, korean), date_parts(english, korean)) for english, korean in rows]
    return {
        name: float(np.mean([is_aligned(*each) for each in zip(weights_NTS, *zip(*texts, strict=True), strict=True)]))
        for name, weights_NTS in cross_attention(maps).items()
    }


def date_alignment(program: Program, run: Run) -> dict[str, Any]:
    """A measure of tables: the share of the test split's dates that the arg-max of cross-attention aligns, in percent.

    Which layer and head is asked is chosen on the split "dev", the first of the best. No column without
    cross-attention.
    """
    on_dev = shares(run, "dev")
    if not on_dev:
        return {"aligned by": np.array([], str)}
    best = max(on_dev, key=on_dev.__getitem__)
    return {"dates aligned %": 100 * shares(run, "test")[best], "aligned by": np.array([best])}
