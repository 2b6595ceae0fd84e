"""Where year, month and day stand in a date and in its translation, for what cross-attention should align."""

import re

from attention_jax.errors import UserError

Span = tuple[int, int]  # first character, one past the last

MONTHS = "January February March April May June July August September October November December"
WEEKDAYS = {
    "월": "Monday",
    "화": "Tuesday",
    "수": "Wednesday",
    "목": "Thursday",
    "금": "Friday",
    "토": "Saturday",
    "일": "Sunday",
}
_MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS.split())
_WEEKDAY = f"(?:(?P<weekday>{'|'.join(f'{name}|{name[:3]}' for name in WEEKDAYS.values())}), )?"
# Months and days have one or two digits, years four or, in the short style, two: 3/2024 is a month, 3/24 is a day.
ENGLISH = (
    rf"{_WEEKDAY}(?P<month>{_MONTH}) (?P<day>\d\d?)(?:, (?P<year>\d{{4}}))?",
    rf"(?P<month>{_MONTH}) (?P<year>\d{{4}})",
    rf"{_WEEKDAY}(?P<month>\d\d?)/(?P<day>\d\d?)(?:/(?P<year>\d\d|\d{{4}}))?",
    r"(?P<month>\d\d?)/(?P<year>\d{4})",
)
_WEEKDAY = r"(?: \(?(?P<weekday>[월화수목금토일])(?:요일|\)))?"  # 화요일 or (화)
KOREAN = (
    rf"(?:(?P<year>\d{{4}})년 )?(?P<month>\d\d?)월 (?P<day>\d\d?)일{_WEEKDAY}",
    r"(?P<year>\d{4})년 (?P<month>\d\d?)월",
    rf"(?:(?P<year>\d\d|\d{{4}})\. )?(?P<month>\d\d?)\. (?P<day>\d\d?)\.{_WEEKDAY}",
    r"(?P<year>\d{4})\. (?P<month>\d\d?)\.",
)


def _parts(text: str, patterns: tuple[str, ...]) -> dict[str, Span]:
    for pattern in patterns:
        if match := re.fullmatch(pattern, text):
            return {part: match.span(part) for part, found in match.groupdict().items() if found is not None}
    return {}


def _value(part: str, text: str) -> str:
    """The same for both languages: digits, or the first three letters of an English name."""
    if part == "weekday":
        return WEEKDAYS.get(text, text)[:3]
    if part == "month" and text.isdigit():
        return MONTHS.split()[int(text) - 1][:3] if 1 <= int(text) <= 12 else ""
    return text[:3] if part == "month" else text


def date_parts(english: str, korean: str) -> dict[str, tuple[Span, Span]]:
    """A date of `data.embedded.cldr` and its translation -> {"year": ((start, end), (start, end)), "month": …}.

    The spans are characters of the English and of the Korean text: "2024" of "2024년", without what follows the number.
    The parts are those of "year", "month", "day" and "weekday" that the date has, in the order of the English text.

    Raises:
        UserError: not a date in a style of CLDR, or the two sides do not say the same.
    """
    here, there = _parts(english, ENGLISH), _parts(korean, KOREAN)
    if not here or here.keys() != there.keys():
        raise UserError(f"{english!r} and {korean!r} are not a date and its translation, as data.embedded.cldr has them.")
    for part, span in here.items():
        one, other = english[slice(*span)], korean[slice(*there[part])]
        if _value(part, one) != _value(part, other):
            raise UserError(f"{english!r} and {korean!r} are not the same date: {part} {one!r} and {other!r}.")
    return {part: (span, there[part]) for part, span in sorted(here.items(), key=lambda item: item[1])}
