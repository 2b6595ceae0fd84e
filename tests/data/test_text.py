"""Invariants of text: files with everything that files have, tokenizers that lose nothing, batches that lose no pair."""

import gzip
import itertools
import logging

import numpy as np
import pytest

from attention_jax.data.text.batches import (
    DUPLICATE,
    LONG,
    UNEVEN,
    BucketPlan,
    TokenLoader,
    TokenPairs,
    choose_buckets,
    encode_pairs,
    pad_rows,
)
from attention_jax.data.text.pairs import open_pairs, read_files, read_tsv
from attention_jax.data.text.tokenizer import BOS, EOS, PAD, UNKNOWN, Tokenizer, Tokenizers, load_tokenizer, train_tokenizer
from attention_jax.data.text.vocabularies import read_tokenizer
from attention_jax.errors import UserError

ENGLISH = ["I am a student.", "I love you.", "The dates are 12 and 2024.", "a b c d e f g"]
KOREAN = ["나는 학생입니다.", "나는 당신을 사랑합니다.", "날짜는 12와 2024입니다.", "가 나 다 라 마 바 사"]


def write(path, lines: list[str], encoding: str = "utf-8", end: str = "\n"):
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return str(path)


# Files


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_aligned_files_and_tsv_give_the_same_pairs(tmp_path, end):
    write(tmp_path / "train.en", ENGLISH, "utf-8-sig", end)
    (tmp_path / "train.ko.gz").write_bytes(gzip.compress("\n".join(KOREAN).encode()))  # no newline at the end
    write(tmp_path / "train.tsv", [f"x\t{ko}\t{en}" for en, ko in zip(ENGLISH, KOREAN)], end=end)
    expected = list(zip(ENGLISH, KOREAN))
    assert read_files("train", f"{tmp_path}/{{split}}.en", f"{tmp_path}/{{split}}.ko.gz") == expected
    assert read_tsv("train", f"{tmp_path}/{{split}}.tsv", columns=(2, 1)) == expected
    twice = (f"{tmp_path}/train.tsv",) * 2
    assert open_pairs("tsv", "train", {"path": twice, "columns": (2, 1)}, "stop") == expected * 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"one\n\ntwo\n", "source.txt:2 is empty"),
        (b"one\n \t\ntwo\n", "source.txt:2 is empty"),
        (b"one\ntwo\nca\xff\n", "source.txt:3 is not UTF-8 (byte 2 is 0xff)"),
    ],
)
def test_a_line_that_cannot_be_used(tmp_path, content, said, caplog):
    (tmp_path / "source.txt").write_bytes(content)
    write(tmp_path / "target.txt", ["eins", "zwei", "drei"])
    paths = f"{tmp_path}/source.txt", f"{tmp_path}/target.txt"
    with pytest.raises(UserError) as raised:
        read_files("train", *paths)
    assert said in str(raised.value) and "skip" in str(raised.value)
    with caplog.at_level(logging.WARNING):
        assert len(read_files("train", *paths, on_broken="skip")) == 2
    assert "1 of 3 pairs" in caplog.text and said in caplog.text


def test_files_of_unequal_length_and_files_that_are_missing(tmp_path):
    write(tmp_path / "a", ["one", "two"])
    write(tmp_path / "b", ["eins"])
    with pytest.raises(UserError, match=r"a has 2 lines and .*b has 1"):
        read_files("train", f"{tmp_path}/a", f"{tmp_path}/b", on_broken="skip")
    with pytest.raises(UserError, match=r"c: there is no such file; its folder has a, b\."):
        read_files("train", f"{tmp_path}/a", f"{tmp_path}/c")
    with pytest.raises(UserError, match="2 source files and 1 target files"):
        read_files("train", (f"{tmp_path}/a", f"{tmp_path}/a"), f"{tmp_path}/a")
    write(tmp_path / "t.tsv", ["one\teins", "two"])
    with pytest.raises(UserError, match=r"t.tsv:2 has 1 columns, not 2"):
        read_tsv("train", f"{tmp_path}/t.tsv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("eins\nzwei\n".encode("utf-16"), "b is UTF-16: convert it to UTF-8"),
        ("하나\n둘셋\n".encode("utf-16"), "b is UTF-16: convert it to UTF-8"),
        ("eins\nzwei\n".encode("utf-16-le"), "b is UTF-16: convert it to UTF-8"),
        (b"eins\rzwei\r", "b ends its lines in CR alone"),
        (b"eins\rzwei", "b ends its lines in CR alone"),
    ],
)
def test_other_encodings_and_ends_of_lines_are_named(tmp_path, content, said):
    write(tmp_path / "a", ["one", "two"])
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_files("train", f"{tmp_path}/a", f"{tmp_path}/b", on_broken="skip")


@pytest.mark.parametrize(("made", "said"), [([], "is empty"), ([("a",)], "pair 0"), ([(1, "b")], "pair 0")])
def test_pairs_of_a_users_file_are_checked(tmp_path, made, said):
    (tmp_path / "mine.py").write_text(f"def make(split):\n    return {made!r}\n")
    with pytest.raises(UserError, match=said):
        open_pairs(f"{tmp_path}/mine.py:make", "train", {}, "stop")


# Tokenizers


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    return train_tokenizer("sentencepiece", ENGLISH + KOREAN, 70, "", {"model_type": "char"})


def test_tokenizers_give_back_what_they_took(sentencepiece):
    words = train_tokenizer("words", ENGLISH + KOREAN, None, "", {})
    for each in (sentencepiece, words):
        again = load_tokenizer(each.assets())
        for line in ENGLISH + KOREAN:
            tokens = again.encode(line)
            assert tokens == each.encode(line) and min(tokens) > UNKNOWN
            assert again.decode([BOS, *tokens, EOS, PAD, PAD]) == line
            assert len(again.pieces(tokens)) == len(tokens)
        assert max(max(again.encode(line)) for line in ENGLISH + KOREAN) < again.vocab_size


def test_training_a_tokenizer_again_gives_the_same(sentencepiece):
    assert train_tokenizer("sentencepiece", ENGLISH + KOREAN, 70, "", {"model_type": "char"}).assets() == sentencepiece.assets()


def test_lines_that_a_tokenizer_is_trained_without_are_counted(sentencepiece, caplog):
    long = ["q" * 5000, "가" * 2000]  # 5,000 and 6,000 bytes of the 4,192 that are the limit
    with caplog.at_level(logging.WARNING):
        trained = train_tokenizer("sentencepiece", [*ENGLISH, *long, *KOREAN], 70, "", {"model_type": "char"})
    assert caplog.messages == [
        "data: the tokenizer is trained without 2 lines of more than 4192 bytes (data.tokenizer_options.max_sentence_length)."
    ]
    assert trained.assets() == sentencepiece.assets() and trained.encode("q")[-1] == UNKNOWN
    longer = {"model_type": "char", "max_sentence_length": 7000}
    assert train_tokenizer("sentencepiece", [*ENGLISH, *long, *KOREAN], 70, "", longer).encode("q")[-1] != UNKNOWN


def test_byte_pairs_are_joined_and_rare_words_unknown():
    words = train_tokenizer("words", ["a@@ b c", "a@@ b", "a@@ d"], 6, "@@", {})
    assert words.pieces(range(6)) == ["<pad>", "<s>", "</s>", "<unk>", "a@@", "b"]
    assert words.encode("a@@ b c") == [4, 5, UNKNOWN]
    assert words.decode([4, 5, 4]) == "ab a"
    assert load_tokenizer(words.assets()).decode([4, 5, 4]) == "ab a"


def test_equally_frequent_words_are_in_the_order_of_the_alphabet_and_symbols_are_not_words():
    words = train_tokenizer("words", ["c b a <unk>", "<unk> b </s>"], None, "", {})
    assert words.pieces(range(7)) == ["<pad>", "<s>", "</s>", "<unk>", "b", "a", "c"] and words.vocab_size == 7
    assert words.encode("<unk> a") == [UNKNOWN, 5]


def test_mistakes_with_tokenizers(tmp_path):
    with pytest.raises(UserError, match="vocab_size=100000 cannot be trained"):
        train_tokenizer("sentencepiece", ENGLISH, 100_000, "", {})
    with pytest.raises(UserError, match="needs a number of tokens"):
        train_tokenizer("sentencepiece", ENGLISH, None, "", {})
    with pytest.raises(UserError, match="give a file, or one of sentencepiece, words"):
        read_tokenizer(f"{tmp_path}/none.model")
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="no sentencepiece model"):
        read_tokenizer(f"{tmp_path}/x.model")


# Batches


def random_pairs(number: int = 300, longest: int = 40) -> TokenPairs:
    rng = np.random.default_rng(0)
    sides = [tuple(list(rng.integers(4, 90, rng.integers(1, longest))) for _ in range(2)) for _ in range(number)]
    return TokenPairs.of(iter(sides), 100, "drop")[0]


@pytest.fixture(scope="module")
def pairs() -> TokenPairs:
    return random_pairs()


def plan_of(pairs: TokenPairs, multiple: int = 4, seed: int = 0, buckets: int = 4) -> BucketPlan:
    return BucketPlan(pairs.lengths, choose_buckets(pairs.lengths, buckets), 400, multiple, seed)


def test_an_epoch_has_no_pair_twice_and_few_left_out(pairs):
    plan = plan_of(pairs)
    orders = []
    for epoch in range(2):
        batches = [plan.batch(epoch * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)]
        seen = np.concatenate([indices for _, indices in batches])
        assert len(set(seen)) == len(seen) >= len(pairs) - sum(plan.rows(b) for b in range(len(plan.buckets)))
        for bucket, indices in batches:
            assert len(indices) == plan.rows(bucket) and plan.rows(bucket) % 4 == 0
            assert plan.rows(bucket) * plan.buckets[bucket] <= 400
            assert (pairs.lengths[indices] <= plan.buckets[bucket]).all()
        orders.append(batches)
    assert [bucket for bucket, _ in orders[0]] != [bucket for bucket, _ in orders[1]]
    together = [{frozenset(indices.tolist()) for _, indices in batches} for batches in orders]
    assert not together[0] & together[1], "other pairs share a batch"
    again = plan_of(pairs)
    assert [again.batch(i)[1].tolist() for i in range(5)] == [plan.batch(i)[1].tolist() for i in range(5)]
    assert plan_of(pairs, seed=1).batch(0)[1].tolist() != plan.batch(0)[1].tolist()


def test_evaluation_has_every_pair_once(pairs):
    loader = TokenLoader(pairs, plan_of(pairs))
    batches = list(loader.evaluation())
    index = np.concatenate([batch["index"][batch["weight"] > 0] for batch in batches])
    assert sorted(index) == list(range(len(pairs)))
    assert sum(int((batch["target"] != PAD).sum()) for batch in batches) == sum(
        len(pairs.side(i, 1)) for i in range(len(pairs))
    )
    for batch in batches:
        for row, i in enumerate(batch["index"]):
            if i >= 0:
                source = batch["source"][row]
                assert source[source != PAD].tolist() == pairs.side(i, 0).tolist() and EOS in source
            else:
                assert batch["source"][row].tolist() == [EOS] + [PAD] * (batch["source"].shape[1] - 1)
                assert batch["weight"][row] == 0 and not batch["target"][row].any()
    assert any((batch["index"] < 0).any() for batch in batches)


def test_a_last_batch_of_one_pair_is_evaluated():
    plan = BucketPlan(np.full(17, 4), (4,), 64, 2, 0)
    assert [len(indices) for _, indices in plan.every()] == [16, 1]


def test_the_index_is_that_of_the_source_though_pairs_were_left_out():
    sides = [([5] * 9, [6]), ([7], [8]), ([9] * 9, [6]), ([10, 10], [11])]
    pairs, _ = TokenPairs.of(iter(sides), 5, "drop")
    (batch,) = TokenLoader(pairs, BucketPlan(pairs.lengths, (4,), 8, 2, 0)).evaluation()
    assert batch["index"].tolist() == [1, 3] and batch["source"][:, 0].tolist() == [7, 10]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_rows_of_the_same_batches(pairs, processes):
    full = TokenLoader(pairs, plan_of(pairs))
    parts = [TokenLoader(pairs, plan_of(pairs), process=(i, processes)) for i in range(processes)]
    for step in (0, 3, 20):
        expected, shares = full.training_batch(step), [part.training_batch(step) for part in parts]
        for name, values in expected.items():
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), values)


def test_a_process_may_have_several_parts_of_a_batch(pairs):
    full, two_of_four = (TokenLoader(pairs, plan_of(pairs), process=share) for share in ((0, 1), ((0, 3), 4)))
    for name, values in two_of_four.training_batch(3).items():
        quarters = np.split(full.training_batch(3)[name], 4)
        np.testing.assert_array_equal(values, np.concatenate([quarters[0], quarters[3]]))


def test_a_bucket_with_few_pairs_has_a_padded_batch():
    plan = BucketPlan(np.array([3, 3, 9]), (4, 16), 64, 2, 0)
    assert plan.steps_per_epoch == 2
    filled = {bucket: indices.tolist() for bucket, indices in (plan.batch(i) for i in range(2))}
    assert sorted(filled[0]) == [0, 1] and filled[1] == [2] and plan.rows(0) == 16 and plan.rows(1) == 4


def test_buckets_pad_least():
    lengths = np.array([4] * 50 + [8] * 3 + [20] * 40 + [24])
    assert choose_buckets(lengths, 2, 1) == (4, 24) and choose_buckets(lengths, 9, 1) == (4, 8, 20, 24)
    best = min(
        ((a, b, 24) for a in (4, 8) for b in (8, 20) if a < b),
        key=lambda cut: sum(min(c for c in cut if c >= length) for length in lengths),
    )
    assert choose_buckets(lengths, 3, 1) == best
    lengths = np.random.default_rng(0).integers(1, 13, 40) ** 2
    shapes = sorted(set((-(-lengths // 4) * 4).tolist()))

    def positions(cut: tuple[int, ...]) -> int:
        return sum(min(c for c in cut if c >= length) for length in lengths)

    cuts = [(*cut, shapes[-1]) for cut in itertools.combinations(shapes[:-1], 3)]
    assert positions(choose_buckets(lengths, 4)) == min(map(positions, cuts))


def test_long_pairs_are_dropped_or_cut():
    sides = [([5] * 3, [6] * 3), ([5] * 5, [6] * 2), ([5] * 4, [6] * 4)]  # of 5 with the end symbol 6
    kept, counts = TokenPairs.of(iter(sides), 5, "drop")
    assert counts[LONG] == 1 and kept.kept.tolist() == [0, 2] and kept.side(1, 0).tolist() == [5, 5, 5, 5, EOS]
    cut, counts = TokenPairs.of(iter(sides), 5, "truncate")
    assert (
        counts[LONG] == 1
        and len(cut) == 3
        and cut.side(1, 0).tolist() == [5, 5, 5, 5, EOS]
        and cut.side(1, 1).tolist() == [6, 6, EOS]
    )


def test_uneven_and_repeated_pairs_are_left_out_and_counted():
    words = train_tokenizer("words", ["a b c d"], None, "", {})
    texts = [("a b", "c"), ("a b c", "c"), ("a", "b"), ("a b", "c"), ("a", "b c d"), ("a", "b")]
    for drop, kept, counts in ((True, [0, 2], (0, 2, 2)), (False, [0, 2, 3, 5], (0, 2, 0))):
        pairs, found = TokenPairs.of(encode_pairs(texts, Tokenizers(words, words), drop), 9, "drop", max_ratio=2.0)
        assert pairs.kept.tolist() == kept and (found[LONG], found[UNEVEN], found[DUPLICATE]) == counts
    assert TokenPairs.of(encode_pairs(texts, Tokenizers(words, words), False), 9, "drop")[0].kept.tolist() == [0, 1, 2, 3, 4, 5]


def test_mistakes_with_batches():
    with pytest.raises(UserError, match="no sentence pair is left"):
        BucketPlan(np.array([], int), (4,), 64, 1, 0)
    with pytest.raises(UserError, match="a pair has 9 tokens"):
        BucketPlan(np.array([3, 9]), (4, 8), 64, 1, 0)


def test_rows_without_a_sentence_have_an_end_symbol():
    assert pad_rows([[7, EOS]], 2, 3).tolist() == [[7, EOS, PAD], [EOS, PAD, PAD]]


# TensorFlow Datasets


def test_wmt14_by_way_of_tfds(tmp_path):
    """The config as it is, with random records in place of prepared files."""
    testing = pytest.importorskip("tensorflow_datasets").testing
    from attention_jax.config import load_config, override
    from attention_jax.tasks import translation

    config = load_config("configs/wmt14_transformer.py")
    fields = {"data.args.data_dir": str(tmp_path), "data.vocab_size": 60, "batch_size": 512, "data.bucket_lengths": 2}
    config = override(config, {**fields, "data.tokenizer_options.model_type": "char"})
    with testing.mock_data(num_examples=40):
        config = translation.resolve(config)
        assert config.model.vocab_size <= 60 and config.data.num_examples == 40
        batch = translation.loader(config, "train", (0, 1), training=True).training_batch(0)
        assert batch["source"].shape == batch["target"].shape and (batch["source"] != batch["target"]).any()
        evaluated = list(translation.loader(config, "validation", (0, 1), training=False).evaluation())
        assert sum(batch["weight"].sum() for batch in evaluated) == 40
        languages = {"name": "wmt14_translate/de-en", "source": "en", "target": "de"}
        found = open_pairs("tfds", "train", languages, "stop")
        english, german = found[0]
        record = found._records[0]
        assert (english, german) == (record["en"], record["de"])
        turned = open_pairs("tfds", "train", {**languages, "source": "de", "target": "en"}, "stop")
        assert turned[0] == (german, english)
        with pytest.raises(UserError, match="has the languages de, en"):
            open_pairs("tfds", "train", {"name": "wmt14_translate/de-en", "source": "en", "target": "fr"}, "stop")


def test_symbols_in_text_are_unknown_words():
    words = train_tokenizer("words", ["a b c"], None, "", {})
    assert words.encode("a <pad> b </s> c <s>") == [4, 3, 5, 3, 6, 3]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b'{"joiner": "", "words": [".", "a", "b", "c", "d"]}',
            "the first four of them <pad>, <s>, </s>, <unk>; it",
        ),
        (b'{"joiner": "", "words": ["<pad>", "<s>", "</s>", "<unk>", "a", "a"]}', "give words that differ"),
        (b'{"joiner": "", "words": [1, 2]}', "words.json cannot be read (TypeError"),
        (b'{"words": ["<pad>"]}', "words.json cannot be read (KeyError"),
        (b'{"joi', "words.json cannot be read (JSONDecodeError"),
        (b"[]", "words.json cannot be read (TypeError"),
    ],
)
def test_words_that_are_no_vocabulary(content, said):
    with pytest.raises(UserError) as raised:
        load_tokenizer({"words.json": content})
    assert said in str(raised.value)
