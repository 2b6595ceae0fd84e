"""Mistakes that a user can mend, said in one sentence."""

import difflib
import importlib.util
import os
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where, and what would be right; the command line prints it without a traceback and exits with 2."""


def get_stopped_exit_code() -> int:
    """Exit code of what a signal has stopped after saving: AJ_STOPPED_CODE, for launchers that start only failures again."""
    return int(os.environ.get("AJ_STOPPED_CODE", "0"))


def suggest_name(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name nearest to `name`, or `""`."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def require_package(module: str, extra: str, purpose: str) -> None:
    """Raises UserError that names the extra to install when `module` is absent."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{purpose} needs the package {module!r}: install it with pip install 'attention_jax[{extra}]'.")


def one_sentence(error: BaseException, length: int = 200) -> str:
    """The first line of an exception's text, cut to `length` characters, or its type when it has none."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= length else line[: length - 1] + "…"
