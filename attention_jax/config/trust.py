"""The user's trust file: the code that `train` and `table` were given, by its text and the names in it.

A trusted file that imports `shutil.rmtree` does not make `rmtree` a data source.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from attention_jax.errors import is_own_folder

log = logging.getLogger(__name__)
# {trust file: entries} of this process: only one of several processes writes the file, and a home may be read-only.
_recorded: dict[Path, set[str]] = {}


def get_trust_file() -> Path:
    """Returns the path of the trust file, below XDG_STATE_HOME or ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(base) / "attention_jax" / "trusted_code.json"


def make_entry(text: str, name: str = "") -> str:
    """Returns the entry for a file's text or one name in it; a package's function is entered by its dotted name."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}:{name}"


def record_trust(entries: Iterable[str], write: bool) -> None:
    """Trusts entries in this process and, with `write`, from now on; logs a warning if the home cannot be written to."""
    path = get_trust_file()
    recorded = _recorded.setdefault(path, set())
    recorded.update(entries)
    if not write or recorded <= _read(path):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two runs may begin together
            number, partial = tempfile.mkstemp(dir=path.parent)  # mode 0600
            with os.fdopen(number, "w") as file:
                json.dump(sorted(_read(path) | recorded), file, indent=0)
            os.replace(partial, path)
    except OSError as error:
        log.warning("%s cannot be written (%s): later, this code needs trust_code=True or --trust-code.", path, error.strerror)


def are_trusted(entries: Iterable[str]) -> bool:
    """True if all entries were recorded, in this process or in a file that only this user can write."""
    path = get_trust_file()
    return {*entries} <= _recorded.get(path, set()) | _read(path)


def _read(path: Path) -> set[str]:
    """Returns the entries of a trust file; none if another user owns it or may write to it."""
    with contextlib.suppress(OSError, ValueError):
        if is_own_folder(path.parent) and is_own_folder(path):
            return set(json.loads(path.read_text()))
        log.warning("%s is not read: another user owns it or may write to it.", path)
    return set()
