"""Command lines of the launchers, running other programs, and the commit whose files are sent to other machines."""

from __future__ import annotations  # for Python 3.9

import argparse
import itertools
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from attention_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # the checkout
LAUNCH = ROOT / "launch.sh"
COMMANDS = ("train", "evaluate", "translate", "table", "quickstart", "prepare", "python")


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError and accepts no abbreviated options."""

    def __init__(self, name: str, **options: Any):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"./launch.sh {name}", allow_abbrev=False, formatter_class=formatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message."""
        raise UserError(f"{message}.")


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the launcher's own arguments, and the command after ' -- '."""
    own = list(itertools.takewhile(lambda word: word != "--", arguments))
    return own, list(arguments[len(own) + 1 :])


def check_command(command: Sequence[str], known: Sequence[str] = COMMANDS) -> None:
    """Raises UserError unless there is a command and its first word is one of `known` (any word if that is empty)."""
    if not command:
        raise UserError("the command is missing: give it after ' -- ', as in -- train --config=FILE --workdir=DIR.")
    if command[0] == "preflight":
        raise UserError(
            "preflight describes a slice that need not exist, on this machine: give ./launch.sh preflight --config=FILE "
            "--topology=TYPE, without this launcher."
        )
    if known and command[0] not in known:
        raise UserError(f"'{command[0]}' cannot run elsewhere: give one of {', '.join(known)} after ' -- '.")


def find_option(words: Sequence[str], name: str) -> str | None:
    """Returns the value of the last `--name=value` or `--name value` among the words."""
    parser = Parser("", add_help=False)
    parser.add_argument(f"--{name}")
    return getattr(parser.parse_known_args(words)[0], name)


def quote_words(words: Sequence[object]) -> str:
    """Returns the command line that a shell splits into these words."""
    return shlex.join(map(str, words))


def run_program(words: Sequence[object], text: str | None = None) -> str:
    """Runs a program on `text`, and returns its standard output; its standard error passes through.

    Raises UserError if it is not installed or fails.
    """
    try:
        done = subprocess.run([str(word) for word in words], input=text, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{words[0]} is not installed here, or not in PATH.") from None
    if done.returncode:
        raise UserError(f"{quote_words(words)[:200]} ended with exit code {done.returncode}; see its messages above.")
    return done.stdout


def find_commit(revision: str | None, command: Sequence[str]) -> str:
    """Returns the full name of the commit to send: `revision`, by default HEAD of a checkout without changes.

    Uncommitted changes are an error unless a revision is given: they are not sent, and the code of a run must be
    findable later. Raises UserError also if the config or table file of `command` is not in the commit.
    """
    if revision is None:
        changed = [line[3:] for line in _git("status", "--porcelain").splitlines()]
        if changed:
            names = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
            raise UserError(f"the checkout has uncommitted changes ({names}): commit them, or send none with --commit=HEAD.")
    name = _git("rev-parse", "--verify", "--quiet", f"{revision or 'HEAD'}^{{commit}}").strip()
    if not name:
        raise UserError(f"--commit={revision}: there is no such commit.")
    config = find_option(command, "config")
    files = [config.split(".py:")[0] + ".py" if ".py:" in config else config] if config else []
    files += command[1:2] if command[0] == "table" else []
    for file in files:
        if not Path(file).is_absolute() and not _git("ls-tree", "--name-only", name, "--", file).strip():
            raise UserError(f"{file} is not in commit {name[:12]}: commit it, and give its path from the checkout's folder.")
    return name


def archive_command(commit: str, file: Path) -> list[str]:
    """Returns the command that writes a commit's files into an archive."""
    return ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={file}", commit]


def describe_checkout() -> str:
    """Returns the name of the checked-out commit for a log, with "-dirty" if files were changed."""
    try:
        return f"commit {_git('describe', '--always', '--dirty', '--abbrev=12').strip() or 'unknown'} when submitted"
    except UserError:
        return "commit unknown"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed here, and the code is sent as an archive of a commit.") from None
    if done.returncode and "not a git repository" in done.stderr:
        raise UserError(f"{ROOT} is not a git checkout, and the code is sent as an archive of a commit.")
    return done.stdout
