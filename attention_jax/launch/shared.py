"""Command lines of the launchers, running other programs, and the commit whose files are sent to other machines."""

from __future__ import annotations  # for Python 3.9

import argparse
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from attention_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # the checkout
LAUNCH = ROOT / "launch.sh"
COMMANDS = ("train", "evaluate", "translate", "table", "compare", "quickstart", "prepare", "python")
# Kinds of file systems that several machines share, as /proc/mounts names them.
SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "glusterfs", "fuse", "panfs", "wekafs", "pvfs", "9p", "afs")


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError and accepts no abbreviated options."""

    def __init__(self, name: str, **options: Any):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=f"./launch.sh {name}", allow_abbrev=False, formatter_class=formatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message."""
        raise UserError(f"{message}.")


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the launcher's own arguments, and the command that follows ' -- '."""
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
    files += command[1:2] if command[0] == "table" and command[1:2] != ["all"] else []
    named = [word.partition("=")[2] for word in command if word.startswith(("--gate=", "--recipe=", "--base="))]
    files += [f"{name.split('.py')[0]}.py" for name in named if ".py" in name and command[0] == "compare"]
    for file in files:
        if not Path(file).is_absolute() and not _git("ls-tree", "--name-only", name, "--", file).strip():
            raise UserError(f"{file} is not in commit {name[:12]}: commit it, and give its path from the checkout's folder.")
    return name


def add_check_option(parser: argparse._ActionsContainer) -> None:
    """Adds --no-check, which leaves `check_inputs` out."""
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not check config, table and files first")


def list_check(command: Sequence[str]) -> list[str]:
    """Returns the command of launch.sh that checks a training, a table or a comparison; [] for other commands."""
    if command[:1] == ["table"] and command[1:2] != ["all"]:
        return [*command, "--dry-run", "--files"]
    if command[:1] in (["table"], ["compare"]):
        return [*command, "--dry-run"]
    if command[:1] != ["train"]:
        return []
    parser = Parser("train", add_help=False)
    for name in ("config", "workdir"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("saved-code", "trust-code", "extend"):
        parser.add_argument(f"--{name}", action="store_true")
    options, fields = parser.parse_known_args(command[1:])
    return ["config", options.config, *fields, "--check", "--files"]


def check_inputs(command: Sequence[str], commit: str | None = None) -> list[tuple[str, str]]:
    """Checks a command's config or table in the project's environment, before anything is requested or paid.

    Returns (field, URI) of the remote data that it names, which `data_address` checks.

    Args:
        commit: the commit that the job gets; None for a job that runs in this folder, on a shared file system.

    Raises:
        UserError: the message of the check, or a file that is missing or that the job would not see.
    """
    words = list_check(command)
    remote: list[tuple[str, str]] = []
    if not words:
        return remote
    require_environment()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path.cwd()
        if commit:
            (folder := Path(scratch).resolve() / "commit").mkdir()
            run_program(archive_command(commit, folder.with_suffix(".tgz")))
            run_program(["tar", "-xf", folder.with_suffix(".tgz"), "-C", folder])
            # Its workdir, and data at other places, belong to the workers.
            words += [f"--{name}={scratch}/run" for name in ("workdir", "output") if words[0] in ("table", "compare")]
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run([str(LAUNCH), *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
        errors = [line[len("error: ") :] for line in done.stderr.splitlines() if line.startswith("error: ")]
        if done.returncode:
            if not errors:
                print(done.stdout + done.stderr, end="", file=sys.stderr)
            where = f"at commit {commit[:12]}: " if commit else ""
            reason = errors[-1] if errors else f"{words[1]} would fail, as said above."
            raise UserError(f"{where}{reason} Nothing was requested; --no-check leaves this check out.")
        for line in done.stdout.splitlines():
            what, is_file, path = line.partition("\t")
            if "://" in path:
                remote.append((what, path))
            elif is_file:
                _check_file(what, folder / path, folder if commit else None)
    return remote


def require_environment() -> None:
    """Offers to make the project's environment if there is none."""
    stamp = ROOT / ".venv" / "launch.stamp"
    if os.environ.get("ATTENTION_JAX_PYTHON") or (stamp.exists() and not stamp.read_text().startswith("incomplete")):
        return
    text = "the command is checked first in the project's environment, which is not made yet"
    if not sys.stdin.isatty():
        raise UserError(f"{text}: make it with ./launch.sh setup, or leave the check out with --no-check.")
    if input(f"{text}: make it now, in some minutes? [Y/n] ").strip().lower() not in ("", "y", "yes"):
        raise UserError("nothing was requested: leave the check out with --no-check.")
    run_program([LAUNCH, "setup"])


def _check_file(what: str, path: Path, sent: Path | None) -> None:
    """Raises UserError for a file that a job will not see; prints a line if only the job's machines can know.

    Args:
        what: "code", or the field that names the file.
        sent: the folder of the sent files; None if the job shares this machine's files.
    """
    if sent and sent not in path.parents:
        if what == "code":
            raise UserError(f"{path} is outside of the checkout and is not sent: commit it there and give its path from there.")
        print(f"{what}={path}: not checked: it must be there on every worker, or be a URI.", file=sys.stderr)
    elif not path.exists():
        missing = f"{path.relative_to(sent)} is not in the commit, whose files are sent" if sent else f"{path} does not exist"
        raise UserError(f"{what}: {missing}: give a path that the job sees, or leave the check out with --no-check.")
    elif not sent and not _is_shared(path):
        text = f"{path} is on a disk of this machine, and not on the file system of the checkout, which all nodes share"
        if what == "code":
            raise UserError(f"{text}: put it there.")
        print(f"{what}: {text}: it must be there on every node.", file=sys.stderr)


def _is_shared(path: Path) -> bool:
    """True for a file on the file system of the checkout, or on one of a kind that machines share."""
    if path.stat().st_dev == ROOT.stat().st_dev:
        return True
    above = [str(place) for place in (path.resolve(), *path.resolve().parents)]
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((len(place), kind) for place, kind in mounts if place in above)[1].startswith(SHARED)


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
