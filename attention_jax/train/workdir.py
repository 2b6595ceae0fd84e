"""A run's workdir: one config, one writer. A remote workdir has a local staging folder during training."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from attention_jax.config.accepted import UNITS
from attention_jax.config.code import CODE, RunCode, bind_code, compare_code, read_code, warn_of_packages
from attention_jax.config.config import config_from_json, config_to_json, list_differences
from attention_jax.data.fingerprint import DATA, compare_data
from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError
from attention_jax.models.registry import list_origins
from attention_jax.storage import RemoteFolder, is_remote
from attention_jax.tasks.base import Task, pack_fingerprints
from attention_jax.train import restore
from attention_jax.train.metrics import METRICS, TIMING, warn_once

log = logging.getLogger(__name__)
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EINVAL)
CONFIG, LOCK = "config.json", ".lock"
FAILURE = "failure.txt"  # holds the reason why the last attempt of a table failed
EVALUATION = "evaluation.npz"  # outputs of the newest evaluation, example by example


def _list_damage(found: ConfigDict, kept: ConfigDict) -> list[str]:
    return [line for line in list_differences(found, kept) if not line.startswith("total_")]  # --extend changes these


# {name of a file that checkpoints have too: (function that parses it, function that lists differences of two)}
_SAVED: dict[str, tuple[Callable[[bytes], Any], Callable[[Any, Any], Any]]] = {
    CONFIG: (lambda content: config_from_json(content.decode()), _list_damage),
    CODE: (read_code, compare_code),
}


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A run's local folder, its remote workdir (if the folder is only the staging folder), and its code.

    `lock` is the open lock file; None in a process without one.
    """

    folder: Path
    remote: RemoteFolder | None = None
    code: RunCode = dataclasses.field(default_factory=RunCode)
    lock: TextIO | None = None

    def is_there(self) -> bool:
        """True if the folder still belongs to this process: it was not removed, renamed, or replaced by another one."""
        try:
            return self.lock is None or os.path.samestat(os.fstat(self.lock.fileno()), os.stat(self.folder / LOCK))
        except OSError:
            return (self.folder / METRICS).exists()  # only the lock was removed

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file; a reader sees the complete old or new content."""
        (partial := self.folder / f"{name}.partial").write_bytes(content)
        partial.replace(self.folder / name)
        if self.remote:
            self.remote.write(name, content)


@contextlib.contextmanager
def lock_workdir(path: str | Path, config: ConfigDict, code: RunCode | None = None, extend: bool = False) -> Iterator[Workdir]:
    """Yields a workdir that belongs to this config and code and, until the context ends, to this process.

    Args:
        extend: True also accepts a workdir with a shorter run, which then belongs to this config.

    Raises:
        UserError: it is a file, cannot be written to, is in use, or was made by another config or code (which is shown).
    """
    if is_remote(path):
        refuse_checkpoints_at(str(path))
    remote = RemoteFolder(str(path), write=is_main_process()) if is_remote(path) else None
    folder = get_staging_folder(str(path)) if remote else Path(path).expanduser().resolve()
    with lock_folder(folder, path, active=bool(remote) or is_main_process()) as lock:
        if remote:
            _clear_staging_folder(folder, remote)
        code = code or RunCode()
        saved = old_code = None
        new: dict[str, bytes | None] = {}
        if _has_results(folder, remote):
            (saved, new[CONFIG]), (old_code, new[CODE]) = (_read_saved(remote or folder, name) for name in (CONFIG, CODE))
        elif is_main_process():  # a command failed before its first step, and its corrected form may follow
            with _explain_writing(path):
                remote.remove(CODE) if remote else (folder / CODE).unlink(missing_ok=True)
        restored = [name for name, content in new.items() if content]
        lines = list_differences(saved, config) if saved is not None else []
        difference = compare_code(old_code, code) if old_code else ""
        if extend and saved is None:
            raise UserError(f"--extend: workdir={path} has no run: leave --extend out.")
        if extend and lines and saved is not None:
            _check_extension(path, saved, config, lines)
            saved, lines = None, []
        if lines:
            give = "--extend, another" if all(line.startswith("total_") for line in lines) else "another"
            raise UserError(
                f"workdir={path} belongs to another config ({'; '.join(lines)}): give {give} workdir or the old config."
            )
        if difference:
            raise UserError(
                f"workdir={path} belongs to other code: give --saved-code to go on with the run's own, or another workdir; "
                f"what has changed:\n{difference}"
            )
        warn_of_packages(old_code or RunCode())
        new |= {} if old_code else code.to_assets()
        if code.folders and not old_code and saved is not None:
            log.warning("workdir=%s has no copy of its code: the files are used as they are now, and kept from now on.", path)
        new |= {} if saved is not None else {CONFIG: config_to_json(config).encode()}
        workdir = Workdir(folder, remote, code, lock)
        with _explain_writing(path):
            for name in restored if is_main_process() else ():
                log.warning("workdir=%s: %s is damaged or missing: it is restored from the newest checkpoint.", path, name)
                if damaged := restore.read_content(remote or folder, name):
                    workdir.write(f"{name}.damaged", damaged)
            for name, content in new.items() if is_main_process() else ():  # the config comes last and completes the workdir
                if content:
                    workdir.write(name, content)
        yield workdir


def identify_data(workdir: Workdir, task: Task, config: ConfigDict, restored: Mapping[str, bytes] | None) -> dict[str, bytes]:
    """Returns {"data.json": content} and writes it to the workdir; {} for an older run without one; collective.

    `restored` are the assets of the checkpoint from which the run continues, None for a new run. Raises UserError if the run
    was
    made with other data.
    """
    begin, saved = time.perf_counter(), restored.get(DATA) if restored else None

    def identify() -> bytes | None:
        data = pack_fingerprints(task, config)
        if change := compare_data(saved, data):
            raise UserError(
                f"{workdir.folder}: the data are not those that this run began with ({change}): give the old data, or another "
                "workdir."
            )
        log.info("data: the fingerprints of both splits took %.2f s.", time.perf_counter() - begin)
        return data if restored is None else saved

    if content := restore.call_together(lambda: identify() if is_main_process() else None):
        workdir.write(DATA, content)
    return {DATA: content} if content else {}


def _check_extension(path: str | Path, saved: ConfigDict, config: ConfigDict, lines: Sequence[str]) -> None:
    """Logs the change by --extend. Raises UserError unless the change is a larger total only."""
    (old,), (new,) = ([each[f"total_{unit}"] for unit in UNITS if f"total_{unit}" in each] for each in (saved, config))
    if len(lines) != 1 or not lines[0].startswith("total_") or new < old:
        raise UserError(
            f"--extend: workdir={path} can be given a larger total, in the unit that it has, and nothing else; this changes "
            f"{'; '.join(lines)}."
        )
    if is_main_process():
        log.warning("workdir=%s is extended: %s; from now on the learning rate is that of the new length.", path, lines[0])


def _read_saved(place: Path | RemoteFolder, name: str) -> tuple[Any, bytes | None]:
    """Returns (a workdir's config or code, None without any; the copy in its newest checkpoint if the file differs from it).

    The copy counts, because it has a checksum. Raises UserError for a damaged file without a copy.
    """
    parse, compare = _SAVED[name]
    content, about = restore.read_content(place, name), restore.read_description(place)
    copy = None if about is None else about["config"].encode() if name == CONFIG else about["assets"].get(name)
    kept = parse(copy) if copy else None
    try:
        found = None if content is None else parse(content or b"?")
        if kept is None or (found is not None and not compare(found, kept)):
            return found, None
    except (UserError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if kept is None:
            reason = f"{getattr(place, 'uri', place)}/{name} is damaged, and no checkpoint has a copy: give another workdir."
            raise error if isinstance(error, UserError) else UserError(reason) from error
    return kept, copy


def _has_results(folder: Path, remote: RemoteFolder | None) -> bool:
    """True if a run has logged or saved anything."""
    if remote:
        return bool(restore.list_names(remote) or remote.names("log"))
    log = folder / METRICS
    return any((folder / "checkpoints").glob("*")) or (log.exists() and log.stat().st_size > 0)


def refuse_checkpoints_at(uri: str) -> None:
    """Raises UserError for a URI at which no checkpoint can be written."""
    if not uri.startswith("gs://"):
        raise UserError(f"workdir={uri}: checkpoints are written to a folder or to gs://bucket/run; other URIs are for data.")


def get_staging_folder(uri: str) -> Path:
    """Returns the local folder of a remote workdir in this process: below AJ_STAGING, by default in the user's cache."""
    base = os.environ.get("AJ_STAGING") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "attention_jax", "far")
    uri = uri.rstrip("/")
    name = f"{Path(uri).name}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"
    return Path(base).expanduser().resolve() / name / str(jax.process_index())


def read_config(workdir: Path) -> ConfigDict | None:
    """Reads the config that a workdir was made with; None if it has none."""
    return _read_with_warning(workdir, CONFIG)


def read_workdir_code(workdir: str | Path) -> RunCode | None:
    """Reads the code of a local or remote workdir; None if it has none."""
    return _read_with_warning(RemoteFolder(str(workdir)) if is_remote(workdir) else Path(workdir).expanduser(), CODE)


def _read_with_warning(place: Path | RemoteFolder, name: str) -> Any:
    value, copy = _read_saved(place, name)
    if copy:
        warn_once("%s/%s is damaged or missing: the newest checkpoint's copy is read.", getattr(place, "uri", place), name)
    return value


def use_saved_code(config: ConfigDict, path: str | Path, trust_code: bool = False) -> ConfigDict:
    """Returns a config that takes the user's code from a workdir. Raises UserError if that has none, or no trusted code."""
    if (code := read_workdir_code(path)) is None:
        raise UserError(f"--saved-code: workdir={path} has no copy of its code: leave this option out.")
    config, untrusted = bind_code(config, code, list_origins(), trust_code)
    if untrusted:
        raise UserError(
            f"--saved-code: {', '.join(untrusted)}: you have not trained with this code: read it, then give --trust-code."
        )
    return config


def _clear_staging_folder(folder: Path, remote: RemoteFolder) -> None:
    """Removes the files of a killed call, since only the remote ones count, and downloads the times, which will be extended."""
    for old in folder.iterdir():
        if old.name not in (LOCK, TIMING):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    if not (folder / TIMING).exists():
        (folder / TIMING).write_bytes(remote.read(TIMING) or b"")


@contextlib.contextmanager
def _explain_writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"workdir={path} cannot be written to ({error.strerror}): give a folder that can.") from error


@contextlib.contextmanager
def lock_folder(workdir: Path, path: str | Path, active: bool) -> Iterator[TextIO | None]:
    """Makes a folder; if active, locks it until the context ends, and yields the lock. Raises UserError if it is in use."""
    restore.refuse_undecodable(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir={path} is a file: give a folder.")
    with _explain_writing(path):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("w") if active else None
    with lock or contextlib.nullcontext():
        if lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"workdir={path} is in use by another process: wait for it or give another folder.") from error
        yield lock


@contextlib.contextmanager
def explain_disk_errors(workdir: Workdir) -> Iterator[None]:
    """Turns the error of a full or read-only disk, or of a missing workdir, into one sentence."""
    folder = workdir.folder
    try:
        yield
    except (OSError, UserError) as error:
        if not workdir.is_there():
            _remove_remade_folder(folder)
            raise UserError(
                f"{folder} was removed, renamed or replaced: training has stopped and wrote nothing there since: start the "
                "same command again with the workdir where it is now."
            ) from error
        if isinstance(error, UserError):
            raise
        path = str(error.filename or "")
        if error.errno not in _OF_DISKS and not path.startswith(f"{folder}/"):
            raise
        raise UserError(
            f"{folder}: {os.path.basename(path) or 'the log'} could not be written ({error.strerror}): the last good "
            "checkpoint is kept; fix this and start the same command again."
        ) from error


def _remove_remade_folder(folder: Path) -> None:
    """Removes the folder that a background save has made again, if it has nothing but an unfinished checkpoint."""
    quiet = 0
    while quiet < 5:  # after a failed save, writes that TensorStore has begun go on
        names = {path.relative_to(folder).parts[:2] for path in folder.rglob("*")}
        unfinished = (top == restore.FOLDER and all("tmp" in name for name in below) for top, *below in names)
        is_ours = folder.exists() and all(unfinished)
        quiet = 0 if is_ours else quiet + 1
        if is_ours:
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
