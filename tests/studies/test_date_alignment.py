"""What attention is asked for: alignment of dates, diversity of heads; and translations by length."""

import itertools

import numpy as np
import pytest

from attention_jax.data.text.pairs import open_pairs
from attention_jax.data.text.tokenizer import SentencePiece, Words
from attention_jax.errors import UserError
from experiments.studies import head_diversity
from experiments.studies.date_alignment import find_date_parts, find_token_spans, is_aligned, list_alignments
from experiments.studies.head_diversity import compute_head_diversity, compute_jensen_shannon
from experiments.studies.lengths import split_lengths

ENGLISH, KOREAN = "Mar 5, 2024", "2024년 3월 5일"


def words(text: str) -> Words:
    return Words.trained([text], None, "")


@pytest.fixture(scope="module")
def pieces() -> SentencePiece:
    lines = [text for pair in open_pairs("cldr", "train", {"kind": "date_long"}, "stop") for text in pair]
    return SentencePiece.trained(lines, 150, {"model_type": "bpe", "split_digits": True})


def test_spans_spell_the_text(pieces):
    for text in ("March 5, 2024", "2024년 3월 5일"):
        spans = find_token_spans(pieces, text)
        assert "".join(text[slice(*span)] for span in spans) == text.replace(" ", "")
        assert [a[1] <= b[0] for a, b in itertools.pairwise(spans)] == [True] * (len(spans) - 1)
        assert len(spans) == len(pieces.encode(text))
    assert find_token_spans(words("a bc"), " a  bc") == [(1, 2), (4, 6)]


def test_spans_of_a_text_that_is_not_kept():
    with pytest.raises(UserError, match="'<unk>' is not at character 2"):
        find_token_spans(words("a"), "a b")


# "Mar" "5," "2024" </s>, asked by "2024년" "3월" "5일" </s>
ALIGNED = np.array([[0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.1, 0.2], [0.0, 0.0, 0.0, 1.0]])


def is_date_aligned(weights: np.ndarray) -> bool:
    spans = [find_token_spans(words(text), text) for text in (ENGLISH, KOREAN)]
    return is_aligned(weights, *spans, find_date_parts(ENGLISH, KOREAN))


@pytest.mark.parametrize(("row", "where", "expected"), [(0, 0, False), (1, 2, False), (2, 3, False), (3, 0, True)])
def test_a_date_is_aligned_where_every_part_looks_at_itself(row, where, expected):
    assert is_date_aligned(ALIGNED)
    weights = ALIGNED.copy()
    weights[row, where] = 0.9  # of the year, the month and the day, and of the end symbol, which is not asked
    assert is_date_aligned(weights) == expected
    padded = np.pad(weights, ((0, 2), (0, 2)), constant_values=1.0)  # what stands at padding is not looked at
    assert is_date_aligned(padded) == expected


def test_every_token_of_a_part_counts(pieces):
    """Four digits of a year must all look at a digit of the year."""
    sides = [find_token_spans(pieces, text) for text in ("March 5, 2024", "2024년 3월 5일")]
    parts = find_date_parts("March 5, 2024", "2024년 3월 5일")
    source, target = sides
    weights = np.zeros((len(target) + 1, len(source) + 1))
    for here, there in parts.values():
        for t, span in enumerate(target):
            if max(span[0], there[0]) < min(span[1], there[1]):
                inside = [s for s, (first, last) in enumerate(source) if max(first, here[0]) < min(last, here[1])]
                weights[t, inside[0]] = 1
    assert is_aligned(weights, source, target, parts)
    last_digit = [t for t, span in enumerate(target) if span == (3, 4)]
    weights[last_digit] = 0
    weights[last_digit, 0] = 1  # March
    assert not is_aligned(weights, source, target, parts)


def test_weights_are_those_of_heads_and_their_mean():
    maps = {
        f"decoder_{i}/{kind}/weights": np.full((2, 2, 3, 4), i)
        for i in (0, 1)
        for kind in ("self_attention", "cross_attention")
    }
    maps["decoder_1/cross_attention/weights"] = np.stack([np.zeros((2, 3, 4)), np.ones((2, 3, 4))], 1)
    found = list_alignments(maps)
    assert list(found) == [f"decoder_{i}, {which}" for i in (1, 0) for which in ("mean of heads", "head 0", "head 1")]
    assert [float(found[f"decoder_1, {which}"].mean()) for which in ("mean of heads", "head 0", "head 1")] == [0.5, 0, 1]
    assert list(list_alignments({"cross_attention/weights": np.zeros((2, 1, 3, 4))})) == ["decoder, head 0"]


# Heads


def test_jensen_shannon_is_a_distance():
    p, q, r = np.random.default_rng(0).dirichlet(np.ones(5), (3, 100))
    distance = compute_jensen_shannon
    assert distance(p, p) == pytest.approx(0, abs=1e-7) and distance(p, q) == pytest.approx(distance(q, p))
    assert (distance(p, r) <= distance(p, q) + distance(q, r)).all() and (distance(p, q) <= 1).all()
    assert distance(np.array([1.0, 0, 0]), np.array([0, 0.5, 0.5])) == pytest.approx(1)


def test_diversity_of_equal_and_of_disjoint_heads():
    asked = np.array([[True, False], [True, True]])
    eye = np.eye(4)
    same, apart = np.tile(eye[0], (2, 2, 1)), np.tile(eye[1], (2, 2, 1))
    assert compute_head_diversity(np.stack([same, same], 1), asked) == 0
    assert compute_head_diversity(np.stack([same, apart], 1), asked) == 1
    assert compute_head_diversity(np.stack([same, same, apart], 1), asked) == pytest.approx(2 / 3)
    apart[0, 1] = eye[0]  # a query that is not asked
    assert compute_head_diversity(np.stack([same, apart], 1), asked) == 1
    assert np.isnan(compute_head_diversity(same[:, None], asked))


def test_one_head_has_no_column_of_diversity(monkeypatch: pytest.MonkeyPatch):
    one, two = np.full((1, 1, 2, 2), 0.5), np.full((1, 2, 2, 2), 0.5)
    found = [("encoder", [one], np.ones((1, 2), bool), None), ("cross", [two], np.ones((1, 2), bool), None)]
    monkeypatch.setattr(head_diversity, "collect_attention", lambda run, pairs: iter(found))
    assert head_diversity.measure_head_diversity(None, None) == {"head diversity, cross": 0.0}


# Lengths


def test_ranges_hold_every_length_once_and_about_equally_many():
    found = np.random.default_rng(0).integers(3, 40, 1000)
    ranges = split_lengths(found, 4)
    assert [sum(low <= n <= high for low, high in ranges) for n in found] == [1] * 1000
    assert all(200 < sum(low <= n <= high for n in found) < 300 for low, high in ranges)
    assert split_lengths(np.array([5, 5, 5]), 4) == [(5, 5)]
    assert split_lengths(np.array([5, 5, 6]), 4) == [(5, 6)]


def test_joined_pairs():
    one, many = (open_pairs("cldr", "dev", {"kind": "date_full", "join": n}, "stop") for n in (1, (1, 3)))
    assert len(one) == len(many) == 40
    known = dict(one)
    counts = set()
    for (english, korean), (first, _) in zip(many, one, strict=True):
        parts = english.split("; ")
        assert parts[0] == first and [known[part] for part in parts] == korean.split("; ")
        counts.add(len(parts))
    assert counts == {1, 2, 3}
    assert many == open_pairs("cldr", "dev", {"kind": "date_full", "join": (1, 3)}, "stop")
    both = open_pairs("cldr", "dev", {"kind": ("date_full", "quarter")}, "stop")
    assert len(both) == 50 and list(both)[:40] == list(one)
    with pytest.raises(UserError, match="join"):
        open_pairs("cldr", "dev", {"join": (3, 2)}, "stop")
