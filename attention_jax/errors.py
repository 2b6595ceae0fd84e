"""User errors: one sentence each, printed without a traceback."""

import difflib
import importlib.util
import os
from collections.abc import Iterable


class UserError(Exception):
    """A message that says what is wrong, where, and what would be right; the command line prints it and exits with 2."""


class NoSplit(UserError):
    """A source has no split of this name; no error if a search for "validation" meets it (see `data/splits.py`)."""


def get_stopped_exit_code() -> int:
    """Returns the exit code of a command that a signal stopped after it had saved: AJ_STOPPED_CODE, by default 0."""
    return int(os.environ.get("AJ_STOPPED_CODE", "0"))


def is_own_folder(folder: "str | os.PathLike") -> bool:
    """True if a folder belongs to this user and nobody else can write to it; code is loaded only from such folders."""
    status = os.stat(folder)
    others = 0o002 if status.st_gid == status.st_uid else 0o022  # many systems give every user a group with the user's number
    return status.st_uid == os.geteuid() and not status.st_mode & others


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the known name closest to `name`, or `""`."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def require_package(module: str, extra: str, purpose: str) -> None:
    """Raises UserError with the extra to install if `module` is absent."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{purpose} needs the package {module!r}: install it with pip install 'attention_jax[{extra}]'.")


def one_sentence(error: BaseException, length: int = 200) -> str:
    """Returns the first line of an exception's text, cut to `length` characters, or its type if the text is empty."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= length else line[: length - 1] + "…"
