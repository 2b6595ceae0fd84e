"""What the doors share: their command lines, and commands that are run or only shown."""

from __future__ import annotations  # for Python 3.9

import argparse
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]  # the checkout
LAUNCH = ROOT / "launch.sh"
VERBS = ("train", "evaluate", "translate", "table", "quickstart", "prepare", "python")


class DoorError(Exception):
    """Something that the user can mend, said in one sentence."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence, and whose options cannot be abbreviated."""

    def __init__(self, **options: object):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise DoorError(f"{message}.")


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is the door's and what comes after ' -- '."""
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def check_verb(verb: Sequence[str]) -> None:
    """Raises DoorError unless these words begin with a verb that launch.sh runs."""
    if not verb:
        raise DoorError("what to run is missing: give it after ' -- ', as in -- train --config=FILE --workdir=DIR.")
    if verb[0] == "preflight":
        raise DoorError(
            "preflight describes a slice that need not be there, on the machine you sit at: give ./launch.sh preflight "
            "--config=FILE --topology=TYPE, without this door."
        )
    if verb[0] not in VERBS:
        raise DoorError(f"'{verb[0]}' is nothing to run elsewhere: give one of {', '.join(VERBS)} after ' -- '.")


def option(words: Sequence[str], name: str) -> str | None:
    """The value of `--name=value` or `--name value` among the words, the last one where there are several."""
    found = None
    for place, word in enumerate(words):
        if word.startswith(f"--{name}="):
            found = word.split("=", 1)[1]
        elif word == f"--{name}" and place + 1 < len(words):
            found = words[place + 1]
    return found


def quoted(words: Sequence[object]) -> str:
    """As a shell takes them; `shlex.join` of any words."""
    return " ".join(shlex.quote(str(word)) for word in words)


def call(words: Sequence[object], text: str | None = None) -> str:
    """Standard output of a command that must succeed; what it says on standard error goes through."""
    try:
        done = subprocess.run([str(word) for word in words], input=text, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError:
        raise DoorError(f"{words[0]} is not installed here, or not in PATH.") from None
    if done.returncode:
        raise DoorError(f"{quoted(words)[:200]} ended with exit code {done.returncode}, as said above.")
    return done.stdout
