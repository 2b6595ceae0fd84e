"""The embedded English and Korean pairs: splits, answers, what the two sides say, and the script that makes them."""

import re
import unicodedata
from collections import Counter
from importlib import resources

import pytest

from attention_jax.config.plugins import load_file
from attention_jax.data.embedded import read_cldr
from attention_jax.errors import UserError
from experiments.studies.date_alignment import find_date_parts

SPLITS = ("train", "dev", "test")
WHOLE_DATES = ("date_full", "date_long", "date_medium", "date_short", "date_numeric", "date_weekday")


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[tuple[str, str, str]]]:
    """Split -> (English, Korean, kind)."""
    return {split: list(zip(*read_cldr(split))) for split in SPLITS}


@pytest.fixture(scope="module")
def script(root):
    pytest.importorskip("babel", reason="the extra 'dev' is not installed")
    pytest.importorskip("num2words", reason="the extra 'dev' is not installed")
    return load_file(root / "experiments" / "data" / "make_cldr.py")


# The pairs


@pytest.mark.slow
def test_the_script_makes_the_committed_file(script):
    if others := script.other_versions():
        pytest.skip(others)
    import lzma

    assert lzma.decompress(script.FILE.read_bytes()).decode() == script.table()


def test_counts_of_every_kind(pairs, script):
    for place, split in enumerate(SPLITS):
        expected = Counter({kind: counts[place] for kind, counts in script.PAIRS.items()})
        if split == "train":
            expected["everyday"] = 212
        assert Counter(kind for _, _, kind in pairs[split]) == expected


def test_no_text_of_a_split_is_in_another(pairs):
    for language in (0, 1):
        train, dev, test = ({row[language] for row in pairs[split]} for split in SPLITS)
        assert not train & dev and not train & test and not dev & test


def test_an_english_text_has_one_answer_and_is_there_once(pairs):
    english = [row[0] for split in SPLITS for row in pairs[split]]
    assert len(english) == len(set(english))


def test_texts_are_normalised(pairs):
    for english, korean, _ in (row for split in SPLITS for row in pairs[split]):
        for text in (english, korean):
            assert text and text == " ".join(text.split()), text
            assert unicodedata.is_normalized("NFC", text) and unicodedata.is_normalized("NFKC", text), text


def test_what_is_tested_is_made_of_what_was_trained(pairs):
    """Every character, and every word that has no digit, of dev and test is in training: only their combination is new."""
    for language in (0, 1):
        characters = set("".join(row[language] for row in pairs["train"]))
        # Words of Korean numbers are written together: there the characters must do.
        words = {word for row in pairs["train"] for word in re.findall(r"[^\W\d]+", row[language])}
        for row in (*pairs["dev"], *pairs["test"]):
            assert set(row[language]) <= characters, row
            if not row[2].endswith("_words"):
                assert set(re.findall(r"[^\W\d]+", row[language])) <= words, row


def test_a_date_is_in_one_split_in_every_style(pairs):
    def said(row: tuple[str, str, str]) -> tuple[int, ...]:
        year, month, day = (row[1][slice(*find_date_parts(*row[:2])[part][1])] for part in ("year", "month", "day"))
        century = 0 if len(year) == 4 else 1900 if int(year) >= 50 else 2000  # short dates are of 1950 to 2049
        return century + int(year), int(month), int(day)

    train, dev, test = ({said(row) for row in pairs[split] if row[2] in WHOLE_DATES} for split in SPLITS)
    assert not train & dev and not train & test and not dev & test
    for place in range(3):  # every year, month and day of the tested dates was trained
        assert {date[place] for date in dev | test} <= {date[place] for date in train}


ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
ENGLISH_ONES = {word: value for value, word in enumerate([*ONES.split(), "eighteen", "nineteen"])}
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ENGLISH_TENS = {word: 10 * value for value, word in enumerate(TENS.split(), start=2)}


def read_english(text: str) -> int:
    total = group = 0
    for word in re.findall("[a-z]+", text):
        if word == "thousand":
            total, group = 1000 * group, 0
        elif word == "hundred":
            group *= 100
        elif word != "and":
            group += {**ENGLISH_ONES, **ENGLISH_TENS}[word]
    return total + group


def read_korean(text: str) -> int:
    total = group = digit = 0
    for letter in text.replace(" ", ""):
        if letter in "영일이삼사오육칠팔구":
            digit = "영일이삼사오육칠팔구".index(letter)
        elif letter == "만":
            total, group, digit = 10000 * max(group + digit, 1), 0, 0
        else:
            group += max(digit, 1) * {"십": 10, "백": 100, "천": 1000}[letter]
            digit = 0
    return total + group + digit


def test_number_words_say_the_same_in_both_languages(pairs):
    rows = [row for split in SPLITS for row in pairs[split] if row[2] == "number_words"]
    for english, korean, _ in rows:
        assert read_english(english) == read_korean(korean), (english, korean)
    assert max(read_english(row[0]) for row in rows) > 900_000


def test_digits_are_the_same_in_both_languages(pairs):
    for english, korean, kind in (row for split in SPLITS for row in pairs[split]):
        if kind in ("relative", "unit", "currency"):
            assert re.findall(r"\d+", english) == re.findall(r"\d+", korean)


def test_known_answers():
    answers = {}
    for split in SPLITS:
        answers |= dict(zip(*read_cldr(split)[:2]))
    assert answers["I am a student"] == "나는 학생입니다"
    assert answers["I love you"] == "나는 당신을 사랑합니다"
    assert answers["twentieth"] == "스무 번째" and answers["first"] == "첫 번째"
    assert answers["in 1 day"] == "1일 후" and answers["1 day ago"] == "1일 전"
    assert answers["12 AM"] == "오전 12시" and answers["12 PM"] == "오후 12시"


def test_one_kind():
    english, korean, kinds = read_cldr("test", "unit")
    assert len(english) == len(korean) == len(kinds) == 110 and set(kinds) == {"unit"}


def test_what_is_not_there():
    with pytest.raises(UserError, match="no split 'validation'; it has 'train', 'dev' and 'test'"):
        read_cldr("validation")
    with pytest.raises(UserError, match=r"split 'test' has no kind 'everyday'; it has date_full, .*, ordinal_words"):
        read_cldr("test", "everyday")


def test_the_licence_lies_beside_the_data():
    note = resources.files("attention_jax.data").joinpath("cldr_en_ko.LICENSE.txt").read_text(encoding="utf-8")
    babel = pytest.importorskip("babel", reason="the extra 'dev' is not installed")
    text = resources.files(babel).joinpath("locale-data", "LICENSE.unicode").read_text(encoding="utf-8")
    assert note.endswith(text) and "cldr_en_ko.tsv.xz" in note and "num2words" in note


# Where the parts of a date stand


@pytest.mark.parametrize(
    ("english", "korean", "parts"),
    [
        (
            "Tuesday, March 5, 2024",
            "2024년 3월 5일 화요일",
            {"weekday": ("Tuesday", "화"), "month": ("March", "3"), "day": ("5", "5"), "year": ("2024", "2024")},
        ),
        ("March 5, 2024", "2024년 3월 5일", {"month": ("March", "3"), "day": ("5", "5"), "year": ("2024", "2024")}),
        ("Sep 11, 2011", "2011. 9. 11.", {"month": ("Sep", "9"), "day": ("11", "11"), "year": ("2011", "2011")}),
        ("12/12/12", "12. 12. 12.", {"month": ("12", "12"), "day": ("12", "12"), "year": ("12", "12")}),
        ("3/5/2024", "2024. 3. 5.", {"month": ("3", "3"), "day": ("5", "5"), "year": ("2024", "2024")}),
        ("Sun, 5/3", "5. 3. (일)", {"weekday": ("Sun", "일"), "month": ("5", "5"), "day": ("3", "3")}),
        ("May 20", "5월 20일", {"month": ("May", "5"), "day": ("20", "20")}),
        ("May 2020", "2020년 5월", {"month": ("May", "5"), "year": ("2020", "2020")}),
        ("3/2024", "2024. 3.", {"month": ("3", "3"), "year": ("2024", "2024")}),
        ("3/24", "3. 24.", {"month": ("3", "3"), "day": ("24", "24")}),
    ],
)
def test_parts_of_a_date(english, korean, parts):
    found = find_date_parts(english, korean)
    assert list(found) == list(parts)
    assert {part: (english[slice(*one)], korean[slice(*other)]) for part, (one, other) in found.items()} == parts
    # "12. 12. 12." is year, month, day: the places and not only the texts are right.
    order = [found[part][1] for part in ("year", "month", "day", "weekday") if part in found]
    assert order == sorted(order) and len({*order}) == len(order)


def test_every_date_of_the_data_has_its_parts(pairs):
    rows = [row for split in SPLITS for row in pairs[split]]
    for english, korean, kind in rows:
        if kind.startswith(("date_", "month_", "year_")):
            expected = {"year", "month", "day"} if kind in WHOLE_DATES else set(re.findall("year|month|day", kind))
            assert expected <= find_date_parts(english, korean).keys()
        else:
            with pytest.raises(UserError, match="are not a date and its translation"):
                find_date_parts(english, korean)


@pytest.mark.parametrize(
    ("english", "korean", "sentence"),
    [
        ("March 5, 2024", "2024년 4월 5일", "not the same date: month 'March' and '4'"),
        ("March 5, 2024", "2024년 3월", "are not a date and its translation"),
        ("I am a student", "나는 학생입니다", "are not a date and its translation"),
    ],
)
def test_what_is_not_a_date(english, korean, sentence):
    with pytest.raises(UserError, match=sentence):
        find_date_parts(english, korean)
