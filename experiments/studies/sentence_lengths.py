"""Shares of sentences shorter than a model is wide, for which self-attention costs less (Vaswani et al. 2017, Section 4)."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attention_jax.config import load_config
from attention_jax.data.text.pairs import open_cldr
from attention_jax.data.text.tokenizer import Tokenizer
from attention_jax.tasks.translation import get_tokenizers

_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "translate_quickstart.py"


@functools.cache
def _get_tokenizer() -> Tokenizer:
    return get_tokenizers(load_config(str(_CONFIG))).source


def compute_short_shares(lengths: np.ndarray, widths: Sequence[int]) -> dict[str, float]:
    """[N] -> {"n < d = 32, %": share of lengths below it, in percent}, of every width."""
    return {f"n < d = {width}, %": 100 * float((lengths < width).mean()) for width in widths}


def measure_sentence_lengths(
    kinds: tuple[str, ...], widths: Sequence[int], join: int | tuple[int, int] = 1, **others: Any
) -> dict[str, Any]:
    """Computes a row of the table: tokens of the training split's texts of these kinds, both languages, end symbols included.

    Args:
        join: see `open_cldr`.
        others: arguments of the table's other rows.
    """
    tokenizer = _get_tokenizer()
    texts = [text for pair in open_cldr("train", kinds, join, everyday=1) for text in pair]
    lengths = np.array([len(tokenizer.encode(text)) + 1 for text in texts])
    found: dict[str, Any] = {"texts": f"{len(texts):,}", "mean n": float(lengths.mean()), "longest n": int(lengths.max())}
    return found | compute_short_shares(lengths, widths)
