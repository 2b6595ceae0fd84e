"""Makes attention_jax/data/cldr_en_ko.tsv.xz, English and Korean out of Unicode CLDR:  python experiments/data/make_cldr.py

Babel writes a date, a time, a quantity or an amount of money in the locales "en" and "ko"; num2words writes numbers as
words. With the versions in .ci/constraints-newest.txt the committed file comes out again byte for byte, which a test repeats.

No pair is drawn from a random generator: candidates are ordered by the SHA-256 of their names, so that neither the version
of Python nor the order of this file matters.

Splits are by *fact* (a calendar date, a time of day, 37.5 kilometres, the number 20,417), never by text: what is tested
in one style was trained in none. Every year, month, day, unit, currency and digit is in training; their combination is not.

One English text has one Korean answer, hence:
  short dates, whose years have two digits, are of 1950 to 2049;
  the medium style ("May 5, 2024") is left out for May, which the long style abbreviates to the same text;
  units come in the long and the short style, not in the narrow one, where "5m" is five metres and five minutes.
Texts that NFKC would change (m², km²) are left out: SentencePiece trains on the changed ones and could never write them.
"""

import datetime
import hashlib
import importlib.metadata
import lzma
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import num2words
from babel import Locale, dates, numbers, units

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "attention_jax" / "data" / "cldr_en_ko.tsv.xz"
VERSIONS = {"babel": "2.18.0", "num2words": "0.5.14"}  # as in .ci/constraints-newest.txt; this Babel has CLDR 47
SPLITS = ("train", "dev", "test")

# kind: pairs of train, dev and test
PAIRS = {
    "date_full": (1800, 40, 80),  # Tuesday, March 5, 2024 -> 2024년 3월 5일 화요일
    "date_long": (1800, 40, 80),  # March 5, 2024 -> 2024년 3월 5일
    "date_medium": (1400, 30, 60),  # Mar 5, 2024 -> 2024. 3. 5.
    "date_short": (1000, 30, 60),  # 3/5/24 -> 24. 3. 5.
    "date_numeric": (1000, 30, 60),  # 3/5/2024 -> 2024. 3. 5.
    "date_weekday": (1400, 30, 60),  # Tue, Mar 5, 2024 -> 2024년 3월 5일 (화)
    "month_day": (800, 20, 40),  # March 5, Mar 5 -> 3월 5일; 3/5 -> 3. 5.
    "month_day_weekday": (1000, 20, 40),  # Tue, Mar 5 -> 3월 5일 (화)
    "year_month": (1000, 20, 50),  # March 2024, Mar 2024 -> 2024년 3월; 3/2024 -> 2024. 3.
    "quarter": (400, 10, 20),  # 1st quarter 2024 -> 2024년 제 1/4분기; Q1 2024 -> 2024년 1분기
    "time": (2000, 40, 80),  # 3:07 PM -> 오후 3:07; 15:07:09 -> 15시 7분 9초
    "relative": (2000, 40, 80),  # in 3 days, 3 days ago, in 3 mo.
    "unit": (3000, 50, 110),  # 1,234.5 kilometers -> 1,234.5킬로미터; 5 km -> 5km
    "currency": (2200, 40, 80),  # 1,234.50 US dollars -> 1,234.50 미국 달러; $1,234.50 -> US$1,234.50
    "number_words": (3500, 50, 110),  # twenty thousand, four hundred and seventeen -> 이만 사백십칠
    "ordinal_words": (80, 2, 8),  # twenty-first -> 스물한 번째
}
FIRST_YEAR, LAST_YEAR = 1900, 2099
SHORT_YEARS = range(1950, 2050)
UNITS = {
    "angle": ("degree",),
    "area": ("hectare", "square-foot", "square-kilometer", "square-meter"),
    "concentr": ("percent",),
    "digital": ("gigabyte", "kilobyte", "megabyte", "terabyte"),
    "duration": ("day", "hour", "minute", "month", "second", "week", "year"),
    "energy": ("kilocalorie",),
    "frequency": ("megahertz",),
    "length": ("centimeter", "foot", "inch", "kilometer", "meter", "mile", "millimeter"),
    "mass": ("gram", "kilogram", "milligram", "ounce", "pound"),
    "power": ("horsepower", "kilowatt", "watt"),
    "speed": ("kilometer-per-hour", "meter-per-second", "mile-per-hour"),
    "temperature": ("celsius", "fahrenheit"),
    "volume": ("cubic-meter", "gallon", "liter", "milliliter"),
}
DOLLARS = ("USD", "CAD", "AUD", "SGD", "HKD", "TWD", "NZD")
CURRENCIES = (*DOLLARS, "EUR", "JPY", "GBP", "CNY", "KRW", "INR", "CHF", "SEK", "MXN", "BRL", "THB", "VND", "PHP", "PLN", "ILS")


class Fact(NamedTuple):
    """What a pair says, how to write it in a locale, and whether it may be held out of training."""

    kind: str
    fact: str
    style: str
    write: Callable[[str], str]
    may_hold_out: bool = True


def draw(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def split_of(fact: str) -> str:
    """5 % of all facts are of dev, 15 % of test, whatever style writes them."""
    bucket = draw(f"split {fact}") % 100
    return "dev" if bucket < 5 else "test" if bucket < 20 else "train"


def skeleton(name: str, day: datetime.date) -> Callable[[str], str]:
    return lambda locale: dates.format_skeleton(name, day, locale=locale, fuzzy=False)


def every_date() -> Iterator[datetime.date]:
    first, last = datetime.date(FIRST_YEAR, 1, 1), datetime.date(LAST_YEAR, 12, 31)
    yield from map(datetime.date.fromordinal, range(first.toordinal(), last.toordinal() + 1))


def complete_dates() -> Iterator[Fact]:
    def style(name: str, day: datetime.date) -> Callable[[str], str]:
        return lambda locale: dates.format_date(day, name, locale=locale)

    for day in sorted(every_date(), key=lambda day: draw(f"date {day}"))[:15000]:
        fact = day.isoformat()
        yield Fact("date_full", fact, "full", style("full", day))
        yield Fact("date_long", fact, "long", style("long", day))
        if day.month != 5:
            yield Fact("date_medium", fact, "medium", style("medium", day))
        if day.year in SHORT_YEARS:
            yield Fact("date_short", fact, "short", style("short", day))
        yield Fact("date_numeric", fact, "yMd", skeleton("yMd", day))
        for name in ("yMMMEd", "yMEd"):
            yield Fact("date_weekday", fact, name, skeleton(name, day))


def parts_of_dates() -> Iterator[Fact]:
    for day in every_date():
        if day.year == 2000:  # a leap year
            for name in ("MMMMd", "MMMd", "Md"):
                yield Fact("month_day", f"{day:%m-%d}", name, skeleton(name, day))
        if 2000 <= day.year < 2028:  # every weekday of every day of the year, 29 February among them
            for name in ("MMMEd", "MEd"):
                yield Fact("month_day_weekday", f"{day:%m-%d %w}", name, skeleton(name, day))
        if day.day == 1:
            for name in ("yMMMM", "yMMM", "yM"):
                yield Fact("year_month", f"{day:%Y-%m}", name, skeleton(name, day))
        if day.day == 1 and day.month % 3 == 1:
            for name in ("yQQQQ", "yQQQ"):
                yield Fact("quarter", f"{day:%Y} {day.month}", name, skeleton(name, day))


def times() -> Iterator[Fact]:
    def clock(name: str, time: datetime.time) -> Callable[[str], str]:
        def write(locale: str) -> str:
            # Korean patterns have the abbreviated day period, which CLDR gives as AM and PM; the wide one is 오전 and 오후.
            pattern = Locale(locale).datetime_skeletons[name].pattern
            return dates.format_time(time, pattern.replace("a", "aaaa") if locale == "ko" else pattern, locale=locale)

        return write

    for second in range(86400):
        time = datetime.time(second // 3600, second // 60 % 60, second % 60)
        styles = ["h"] if second % 3600 == 0 else []
        styles += ["hm"] if second % 60 == 0 else []
        styles += ["hms", "Hms"] if draw(f"seconds {second}") % 50 == 0 else []  # about as many as there are minutes
        for name in styles:
            yield Fact("time", time.isoformat(), name, clock(name, time), second % 3600 != 0)


def relative_times() -> Iterator[Fact]:
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "month": 2592000, "year": 31536000}
    counts = sorted({*range(1, 100), *(1 + draw(f"counts {i}") % 999 for i in range(150))})
    for unit, length in seconds.items():
        for number in (sign * count for count in counts for sign in (1, -1)):
            for style in ("long", "short"):

                def write(locale: str, unit=unit, delta=datetime.timedelta(seconds=length * number), style=style) -> str:
                    # An endless threshold: the unit is `unit`, however many there are of it.
                    return dates.format_timedelta(delta, unit, float("inf"), True, style, locale)

                yield Fact("relative", f"{unit} {number}", style, write, abs(number) > 1)


def quantities() -> Iterator[Fact]:
    values = [*range(1, 200), *(draw(f"hundreds {i}") % 1000 for i in range(100))]
    values += [draw(f"thousands {i}") % 10 ** (4 + i % 3) for i in range(150)]
    values += [Decimal(draw(f"tenths {i}") % 10 ** (2 + i % 4)) / 10 for i in range(150)]
    for unit in (f"{group}-{name}" for group, names in UNITS.items() for name in names):
        for value in sorted({value for value in values if value > 0}):
            for style in ("long", "short"):

                def write(locale: str, unit=unit, value=value, style=style) -> str:
                    text = units.format_unit(value, unit, style, locale=locale)
                    # Where a locale has one word for both styles, CLDR's long one refers to the short one; Babel does not
                    # follow it and writes the identifier.
                    return units.format_unit(value, unit, "short", locale=locale) if unit in text else text

                yield Fact("unit", f"{value} {unit}", style, write, value != 1)


def amounts() -> Iterator[Fact]:
    for currency in CURRENCIES:
        digits = numbers.get_currency_precision(currency)
        for i in range(400):
            value = Decimal(1 + draw(f"{currency} {i}") % 10 ** (digits + 1 + i % 6)).scaleb(-digits)
            for style in ("name", "standard"):

                def write(locale: str, currency=currency, value=value, style=style) -> str:
                    return numbers.format_currency(value, currency, locale=locale, format_type=style)

                yield Fact("currency", f"{value} {currency}", style, write)


def words() -> Iterator[Fact]:
    # All up to 999, then as many of each length.
    large = {10 ** (3 + i % 3) + draw(f"words {i}") % (9 * 10 ** (3 + i % 3)) for i in range(4000)}
    large |= {number * 10**power for number in range(1, 10) for power in range(3, 6)}
    for number in [*range(1000), *sorted(large)]:

        def write(locale: str, number=number) -> str:
            return num2words.num2words(number, lang=locale)

        yield Fact("number_words", f"words {number}", "", write, number > 100)
    for number in range(1, 100):

        def write(locale: str, number=number) -> str:
            # num2words has 스물 here, which is the word that goes before a unit (스물한), not before 번째.
            twentieth = locale == "ko" and number == 20
            return "스무 번째" if twentieth else num2words.num2words(number, lang=locale, to="ordinal")

        yield Fact("ordinal_words", f"ordinal {number}", "", write, number > 20 and number % 10 != 0)


SOURCES = (complete_dates, parts_of_dates, times, relative_times, quantities, amounts, words)


def tidy(text: str) -> str:
    """With the spaces that people type: CLDR has a narrow one that does not break before AM and PM."""
    return text.replace("\u202f", " ").replace("\xa0", " ")


def choose(facts: Iterable[Fact]) -> list[tuple[str, str, str, str]]:
    """(split, kind, English, Korean), in the order of the splits and of the kinds.

    Raises:
        SystemExit: an English text with two answers, a Korean text in two splits, or too few facts of a kind.
    """
    by_kind: dict[str, list[Fact]] = {kind: [] for kind in PAIRS}
    for fact in facts:
        by_kind[fact.kind].append(fact)
    rows = []
    for kind, candidates in by_kind.items():
        candidates.sort(key=lambda fact: draw(f"{fact.kind} {fact.fact} {fact.style}"))
        chosen: dict[str, list[tuple[str, str, str, str]]] = {split: [] for split in SPLITS}
        seen = set()
        # What must be in training comes first there: it may be all that shows the form of a "one" or of a "twelfth".
        for fact in sorted(candidates, key=lambda fact: fact.may_hold_out):
            split = split_of(fact.fact) if fact.may_hold_out else "train"
            if len(chosen[split]) < PAIRS[kind][SPLITS.index(split)]:
                english, korean = tidy(fact.write("en")), tidy(fact.write("ko"))
                stable = all(unicodedata.is_normalized("NFKC", text) for text in (english, korean))
                if stable and english not in seen:  # "May 5" is written so in two styles
                    chosen[split].append((split, kind, english, korean))
                seen.add(english)
        if (found := tuple(map(len, chosen.values()))) != PAIRS[kind]:
            sys.exit(f"{kind}: {found} pairs instead of {PAIRS[kind]}")
        rows += [row for split in SPLITS for row in chosen[split]]
    rows.sort(key=lambda row: SPLITS.index(row[0]))
    answers: dict[str, str] = {}
    places: dict[str, str] = {}
    for split, kind, english, korean in rows:
        if answers.setdefault(english, korean) != korean or places.setdefault(korean, split) != split:
            sys.exit(f"{kind}: {english!r} -> {korean!r} exists already with another answer or in another split")
    return rows


def table() -> str:
    """The file's text: a header, then one pair a line."""
    rows = [("split", "kind", "english", "korean"), *choose(fact for source in SOURCES for fact in source())]
    return "".join("\t".join(row) + "\n" for row in rows)


def other_versions() -> str:
    """What is installed instead of VERSIONS, empty if nothing is."""
    found = {name: importlib.metadata.version(name) for name in VERSIONS}
    return ", ".join(f"{name} {found[name]} instead of {VERSIONS[name]}" for name in VERSIONS if found[name] != VERSIONS[name])


if __name__ == "__main__":
    if others := other_versions():
        sys.exit(f"{others}: these may write other pairs; pip install -c .ci/constraints-newest.txt babel num2words")
    FILE.write_bytes(lzma.compress(table().encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size:,} bytes")
