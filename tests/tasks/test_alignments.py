"""Words of tokens, and hard alignments from attention."""

import numpy as np
import pytest

from attention_jax.data.text.tokenizer import train_tokenizer
from attention_jax.tasks.alignments import align_words, number_words

TEXTS = ["the unbelievable student 2024", "ab abc  abcd"]


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_pieces_of_a_word_have_its_number(byte_fallback):
    options = {"model_type": "bpe", "byte_fallback": byte_fallback}
    pieces = train_tokenizer("sentencepiece", [*TEXTS, "student stud"] * 4, 300 if byte_fallback else 35, "", options)
    for text in [*TEXTS, *(["학 생"] if byte_fallback else [])]:
        tokens = pieces.encode(text)
        numbers = number_words(pieces, tokens)
        together = [pieces.decode([t for t, number in zip(tokens, numbers) if number == word]) for word in sorted({*numbers})]
        assert [word.strip() for word in together] == text.split() and len(tokens) > len(together)
        blanks = [place for place, piece in enumerate(pieces.pieces(tokens)) if piece == "▁"]
        assert all(numbers[place] == numbers[place + 1] for place in blanks) and (blanks or not byte_fallback or text in TEXTS)


def test_joined_words_are_one():
    words = train_tokenizer("words", ["a@@ b c@@ d@@ e f"], None, "@@", {})
    assert number_words(words, words.encode("a@@ b c@@ d@@ e f")) == [0, 0, 1, 1, 1, 2]


def test_a_word_looks_where_most_of_its_attention_is():
    """Two target words of 1 and 2 tokens, two source words of 2 and 1; the last column is the end symbol, which has no word."""
    weights = np.array([[0.3, 0.3, 0.35, 0.05], [0.0, 0.1, 0.2, 0.7], [0.2, 0.2, 0.5, 0.1], [1, 0, 0, 0]])
    assert align_words(weights, [0, 0, 1], [0, 1, 1]) == [(0, 0), (1, 1)]
    assert align_words(weights, [], [0]) == align_words(weights, [0], []) == []
