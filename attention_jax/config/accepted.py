"""The values that a field of a config accepts, in code and in words."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

UNITS = ("steps", "epochs", "examples")
OPEN = object()  # as a default: a section that takes any key
REQUIRED = object()  # as a default: every config must give a value
SEQUENCE = (tuple, list)
NUMBER = (int, float)
SHARDINGS = "'fsdp', 'replicated' or a tuple with None, 'fsdp' or 'model' for each dimension"


def is_rules(value: Any, ok: Callable[[Any], bool]) -> bool:
    """True for a sequence of (regular expression, value) in which `ok` holds for every value."""
    try:
        return all(len(rule) == 2 and ok(rule[1]) and re.compile(rule[0]) for rule in value)
    except (re.error, TypeError):
        return False


def is_sharding(value: Any) -> bool:
    """True for one of the `SHARDINGS`."""
    if isinstance(value, str):
        return value in ("fsdp", "replicated")
    axes = [axis for axis in value if axis is not None]
    return set(axes) <= {"fsdp", "model"} and len(axes) == len(set(axes))


@dataclasses.dataclass(frozen=True)
class Field:
    """A field accepts values of `types` for which `ok` is true.

    Attributes:
        default: the value in `config/defaults.py`; `REQUIRED` if there is none.
        types: types of a value; a whole number becomes a float if both are accepted.
        accepts: the accepted values in words, for errors and help.
        meaning: the meaning in one line.
        ok: function that is True for an accepted value of these types.
        unit: unit of a number, such as "pixels".
        spelled_in: unit of a duration's default, one of `UNITS`; configs give name_steps, name_epochs or name_examples.
    """

    default: Any
    types: type | tuple[type, ...]
    accepts: str
    meaning: str
    ok: Callable[[Any], Any] = lambda value: True
    unit: str = ""
    spelled_in: str = ""

    def error(self, value: Any) -> str | None:
        """Returns None for an accepted value, else the accepted values in words."""
        is_type = isinstance(value, self.types) and (self.types is bool or not isinstance(value, bool))
        return None if is_type and self.ok(value) else self.accepts

    def names(self, name: str) -> tuple[str, ...]:
        """Returns the names under which a config may give this field; it must use exactly one of them."""
        return tuple(f"{name}_{unit}" for unit in UNITS) if self.spelled_in else (name,)

    @staticmethod
    def choice(default: Any, meaning: str, *names: str) -> "Field":
        """Returns a field that takes one of some names."""
        return Field(default, str, "one of " + ", ".join(map(repr, names)), meaning, lambda value: value in names)

    @staticmethod
    def named(default: Any, meaning: str, *names: str) -> "Field":
        """Returns a field that takes a built-in name, or the name of something in the user's code."""
        accepts = f"one of {', '.join(map(repr, names))}, a dotted path, or path/to/file.py:Name"
        return Field(default, str, accepts, meaning, lambda value: value in names or re.fullmatch(r".+(\.py)?[:.]\w+", value))

    @staticmethod
    def name(default: Any, meaning: str) -> "Field":
        """Returns a field that takes a text that is not empty."""
        return Field(default, str, "a name", meaning, bool)

    @staticmethod
    def flag(default: bool, meaning: str) -> "Field":
        """Returns a field that takes True or False."""
        return Field(default, bool, "True or False", meaning)

    @staticmethod
    def integer(default: Any, unit: str, meaning: str, low: int = 1) -> "Field":
        """Returns a field that takes a whole number with a unit."""
        return Field(default, int, f"a whole number of {unit} from {low}", meaning, lambda value: value >= low, unit)

    @staticmethod
    def integer_or_none(default: Any, unit: str, none: str, meaning: str, low: int = 1) -> "Field":
        """Returns a field that takes a whole number with a unit, or None."""
        accepts = f"a whole number of {unit} from {low}, or None {none}"
        return Field(default, (int, type(None)), accepts, meaning, lambda value: value is None or value >= low, unit)

    @staticmethod
    def not_negative(default: Any, what: str, meaning: str, unit: str = "") -> "Field":
        """Returns a field that takes a number from 0."""
        return Field(default, NUMBER, f"{what}, 0 or more", meaning, lambda value: 0 <= value < math.inf, unit)

    @staticmethod
    def probability(default: float, meaning: str) -> "Field":
        """Returns a field that takes a number from 0 to 1."""
        return Field(default, NUMBER, "a number from 0 to 1", meaning, lambda value: 0 <= value <= 1)

    @staticmethod
    def share(default: float, meaning: str) -> "Field":
        """Returns a field that takes a number from 0 up to, but not including, 1."""
        return Field(default, NUMBER, "a number from 0 up to, but not including, 1", meaning, lambda value: 0 <= value < 1)

    @staticmethod
    def duration(default: Any, unit: str, meaning: str, low: float = math.nextafter(0, 1)) -> "Field":
        """Returns a field that takes a duration, in a unit that the config chooses."""
        accepts = "a positive number" if low else "a number, 0 or more"
        return Field(default, NUMBER, accepts, meaning, lambda value: low <= value < math.inf, spelled_in=unit)

    @staticmethod
    def open(meaning: str) -> "Field":
        """Returns a section that takes any key."""
        return Field(OPEN, dict, "a section of fields", meaning)

    @staticmethod
    def sequence(default: Any, accepts: str, meaning: str, ok: Callable[[Any], Any]) -> "Field":
        """Returns a field that takes a tuple or list of values for which `ok` is true."""
        return Field(default, SEQUENCE, accepts, meaning, ok)
