"""The code that travels: an archive of one commit, with tracked files and nothing else."""

from __future__ import annotations  # for Python 3.9

import subprocess
from collections.abc import Sequence
from pathlib import Path

from attention_jax.launch.shared import ROOT, DoorError, option


def commit(asked: str | None, verb: Sequence[str]) -> str:
    """The full name of the commit to send: `asked`, else the newest, of a tree without other changes.

    What is not committed does not travel, and a run must be of code that can be found again; so changes are an error
    until a commit is named. Raises DoorError also when the config or table file of `verb` is not in that commit.
    """
    if asked is None:
        changed = _git("status", "--porcelain").splitlines()
        if changed:
            names = ", ".join(line[3:] for line in changed[:3]) + (", …" if len(changed) > 3 else "")
            raise DoorError(
                f"the checkout has changes that are not committed ({names}): commit them, or leave them out with --commit=HEAD."
            )
    name = _git("rev-parse", "--verify", "--quiet", f"{asked or 'HEAD'}^{{commit}}").strip()
    if not name:
        raise DoorError(f"--commit={asked}: there is no such commit.")
    config = option(verb, "config")
    files = [config.split(".py:")[0] + ".py" if ".py:" in config else config] if config else []
    files += [word for word in verb[1:2] if verb[0] == "table"]
    for file in files:
        if not Path(file).is_absolute() and not _git("ls-tree", "--name-only", name, "--", file).strip():
            raise DoorError(f"{file} is not in commit {name[:12]}: commit it, and give its path from the checkout's folder.")
    return name


def archive(name: str, file: Path) -> list[str]:
    """The command that writes the archive."""
    return ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={file}", name]


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DoorError("git is not installed here, and the code travels as an archive of a commit.") from None
    if done.returncode and "not a git repository" in done.stderr:
        raise DoorError(f"{ROOT} is no git checkout, and the code travels as an archive of a commit.")
    return done.stdout
