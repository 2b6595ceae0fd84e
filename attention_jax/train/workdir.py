"""A run's workdir: one config, one writer. A remote one has a local staging folder while training runs."""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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
from attention_jax.train.metrics import METRICS, TIMING
from attention_jax.train.restore import call_together

log = logging.getLogger(__name__)
CONFIG, LOCK = "config.json", ".lock"
EVALUATION = "evaluation.npz"  # outputs of the newest evaluation, example by example


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The local folder that a run writes to, the remote workdir, if any, whose staging folder it is, and the run's code."""

    folder: Path
    remote: RemoteFolder | None = None
    code: RunCode = dataclasses.field(default_factory=RunCode)

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file; a reader sees all of it or nothing."""
        (partial := self.folder / f"{name}.partial").write_bytes(content)
        partial.replace(self.folder / name)
        if self.remote:
            self.remote.write(name, content)


@contextlib.contextmanager
def lock_workdir(path: str | Path, config: ConfigDict, code: RunCode | None = None, extend: bool = False) -> Iterator[Workdir]:
    """Yields a workdir that belongs to this config and code and, until the context ends, to this process.

    Args:
        extend: its run may be shorter than this config's, which it then belongs to.

    Raises:
        UserError: it is a file, cannot be written to, is in use, or was made by another config or code (which is shown).
    """
    remote = RemoteFolder(str(path), write=is_main_process()) if is_remote(path) else None
    folder = get_staging_folder(str(path)) if remote else Path(path).expanduser().resolve()
    with lock_folder(folder, path, active=bool(remote) or is_main_process()):
        if remote:
            _clear_staging_folder(folder, remote)
        saved_config, old_code = (
            (remote.read if remote else functools.partial(read_workdir_file, folder))(name) for name in (CONFIG, CODE)
        )
        saved = config_from_json(saved_config.decode()) if saved_config else None
        if extend and saved is None:
            raise UserError(f"--extend: workdir={path} has no run: leave --extend out.")
        code = code or RunCode()
        lines = list_differences(saved, config) if saved is not None else []
        difference = compare_code(read_code(old_code), code) if old_code else ""
        if (lines or difference) and not _has_results(folder, remote):
            # A command that failed before its first step: the corrected one may follow.
            saved, old_code, lines, difference = None, None, [], ""
            if is_main_process():
                remote.remove(CODE) if remote else (folder / CODE).unlink(missing_ok=True)
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
        warn_of_packages(read_code(old_code))
        new = {} if old_code else code.to_assets()
        if code.folders and new and saved is not None:
            log.warning("workdir=%s has no copy of its code: the files are used as they are now, and kept from now on.", path)
        new |= {} if saved is not None else {CONFIG: config_to_json(config).encode()}
        workdir = Workdir(folder, remote, code)
        for name, content in new.items() if is_main_process() else ():  # the config last: with it the workdir is made
            workdir.write(name, content)
        yield workdir


def identify_data(workdir: Workdir, task: Task, config: ConfigDict, restored: Mapping[str, bytes] | None) -> dict[str, bytes]:
    """Returns {"data.json": content}, which the workdir gets too; {} for an older run that has none (collective).

    `restored` are the assets of the checkpoint from which the run goes on, None for one that begins. Raises UserError if its
    data were others.
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

    if content := call_together(lambda: identify() if is_main_process() else None):
        workdir.write(DATA, content)
    return {DATA: content} if content else {}


def _check_extension(path: str | Path, saved: ConfigDict, config: ConfigDict, lines: Sequence[str]) -> None:
    """Says what --extend changes. Raises UserError if that is not a larger total alone."""
    (old,), (new,) = ([each[f"total_{unit}"] for unit in UNITS if f"total_{unit}" in each] for each in (saved, config))
    if len(lines) != 1 or not lines[0].startswith("total_") or new < old:
        raise UserError(
            f"--extend: workdir={path} can be given a larger total, in the unit that it has, and nothing else; this changes "
            f"{'; '.join(lines)}."
        )
    if is_main_process():
        log.warning("workdir=%s is extended: %s; from now on the learning rate is that of the new length.", path, lines[0])


def _has_results(folder: Path, remote: RemoteFolder | None) -> bool:
    """True if a run has logged or saved anything."""
    if remote:
        return bool(remote.names("checkpoints") or remote.names("log"))
    log = folder / METRICS
    return any((folder / "checkpoints").glob("*")) or (log.exists() and log.stat().st_size > 0)


def get_staging_folder(uri: str) -> Path:
    """Returns the local folder of a remote workdir in this process: below AJ_STAGING, by default in the user's cache."""
    base = os.environ.get("AJ_STAGING") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "attention_jax", "far")
    uri = uri.rstrip("/")
    name = f"{Path(uri).name}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"
    return Path(base).expanduser().resolve() / name / str(jax.process_index())


def read_config(workdir: Path) -> ConfigDict | None:
    """Reads the config that a workdir was made with; None when it has none."""
    content = read_workdir_file(workdir, CONFIG)
    return config_from_json(content.decode()) if content else None


def read_workdir_code(workdir: str | Path) -> RunCode | None:
    """Reads the code of a workdir, also of a remote one; None when it has none."""
    content = (
        RemoteFolder(str(workdir)).read(CODE) if is_remote(workdir) else read_workdir_file(Path(workdir).expanduser(), CODE)
    )
    return read_code(content) if content else None


def read_workdir_file(folder: Path, name: str) -> bytes | None:
    """Reads a file of a local workdir; None when it has none of this name."""
    return (folder / name).read_bytes() if (folder / name).exists() else None


def use_saved_code(config: ConfigDict, path: str | Path, trust_code: bool = False) -> ConfigDict:
    """Returns a config that takes the user's code from a workdir. Raises UserError if that has none, or none to be trusted."""
    if (code := read_workdir_code(path)) is None:
        raise UserError(f"--saved-code: workdir={path} has no copy of its code: leave this option out.")
    config, untrusted = bind_code(config, code, list_origins(), trust_code)
    if untrusted:
        raise UserError(
            f"--saved-code: {', '.join(untrusted)}: you have not trained with this code: read it, then give --trust-code."
        )
    return config


def _clear_staging_folder(folder: Path, remote: RemoteFolder) -> None:
    """Removes the files of a killed call, as the remote ones alone count, and fetches the times that will be appended to."""
    for old in folder.iterdir():
        if old.name not in (LOCK, TIMING):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    if not (folder / TIMING).exists():
        (folder / TIMING).write_bytes(remote.read(TIMING) or b"")


@contextlib.contextmanager
def lock_folder(workdir: Path, path: str | Path, active: bool) -> Iterator[None]:
    """Makes a folder and, if active, locks it until the context ends. Raises UserError if it is locked already."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir={path} is a file: give a folder.")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("w") if active else None
    except OSError as error:
        raise UserError(f"workdir={path} cannot be written to ({error.strerror}): give a folder that can.") from error
    with lock or contextlib.nullcontext():
        if lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"workdir={path} is in use by another process: wait for it or give another folder.") from error
        yield
