"""Digits in words, and a linear probe that reads them out of vectors with known content."""

import numpy as np
import pytest

from attention_jax.errors import UserError
from experiments.studies.context_probe import draw_digits, open_digit_words, plot_context, read_words
from tests.analysis.test_plots import nothing_is_cut_off


def test_digits_are_translated_word_by_word_and_evenly_long():
    pairs = open_digit_words("test", (2, 4), size=5)
    assert [len(english.split()) for english, _ in pairs] == [2] * 5 + [3] * 5 + [4] * 5
    words = {pair for english, korean in open_digit_words("train", (4, 5), 50) for pair in zip(english.split(), korean.split())}
    assert len(words) == 10 and {("zero", "영"), ("nine", "구")} < words
    assert pairs == open_digit_words("test", (2, 4), size=5) and len(open_digit_words("test", (4, 16))) == 1300


def test_a_sequence_is_in_one_split():
    drawn = {split: {row.tobytes() for row in draw_digits(split, 2, 2000)} for split in ("train", "validation", "test")}
    assert sum(map(len, drawn.values())) == len(set.union(*drawn.values())) == 100
    with pytest.raises(UserError, match="'dev'"):
        draw_digits("dev", 2, 1)


def test_a_probe_reads_what_is_linearly_there_and_no_more():
    rng = np.random.default_rng(0)
    words = rng.integers(4, size=(2000, 3))
    hidden = np.eye(4)[words[:, 0]] @ rng.normal(size=(4, 6)) + 10  # the first word, mixed over six numbers
    parity = ((words[:, 1] + words[:, 2]) % 2)[:, None]  # a function of the others that tells neither
    vectors = np.c_[hidden, parity, np.full(2000, 7.0)]
    read = read_words(vectors[:1500], words[:1500], vectors[1500:])
    right = (read == words[1500:]).mean(0)
    assert right[0] == 1 and right[1:] == pytest.approx(0.25, abs=0.06)


def test_the_picture_has_a_line_for_each_length():
    shares = np.full((2, 3), np.nan)
    shares[0, :2], shares[1] = (90, 80), (70, 60, 50)
    seed = {"trained": shares, "untrained": shares / 2, "most frequent word": shares * 0 + 10, "lengths": np.array([2, 3])}
    figure = plot_context({"a": [seed, {**seed, "trained": shares - 10}], "b": [seed]})
    lines = figure.axes[0].lines
    np.testing.assert_array_equal(lines[0].get_ydata(), [85, 75, np.nan])
    np.testing.assert_array_equal(lines[3].get_ydata(), [35, 30, 25])
    assert nothing_is_cut_off(figure)
