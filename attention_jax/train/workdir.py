"""A run's workdir: one config, one writer. A remote one has a local staging folder while training runs."""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from attention_jax.config.config import config_from_json, list_differences, save_config
from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError
from attention_jax.storage import RemoteFolder, is_remote
from attention_jax.train.metrics import METRICS, TIMING

CONFIG, LOCK = "config.json", ".lock"
EVALUATION = "evaluation.npz"  # outputs of the newest evaluation, example by example


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The local folder that a run writes to, and the remote workdir, if any, whose staging folder it is."""

    folder: Path
    remote: RemoteFolder | None = None


@contextlib.contextmanager
def lock_workdir(path: str | Path, config: ConfigDict) -> Iterator[Workdir]:
    """Yields a workdir that belongs to this config and, until the context ends, to this process.

    Raises:
        UserError: it is a file, cannot be written to, is in use, or was made by another config (the difference is shown).
    """
    remote = RemoteFolder(str(path), write=is_main_process()) if is_remote(path) else None
    folder = get_staging_folder(str(path)) if remote else Path(path).expanduser().resolve()
    with _lock(folder, path, active=bool(remote) or is_main_process()):
        if remote:
            _clear_staging_folder(folder, remote)
            content = remote.read(CONFIG)
            saved = config_from_json(content.decode()) if content else None
        else:
            saved = read_config(folder)
        if saved is not None and (lines := list_differences(saved, config)) and not _has_results(folder, remote):
            saved, lines = None, []  # a command that failed before its first step: the corrected one may follow
        if saved is not None and lines:
            raise UserError(
                f"workdir={path} belongs to another config ({'; '.join(lines)}): give another workdir or the old config."
            )
        if saved is None and is_main_process():
            save_config(folder / CONFIG, config)
            if remote:
                remote.write(CONFIG, (folder / CONFIG).read_bytes())
        yield Workdir(folder, remote)


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
    path = workdir / CONFIG
    return config_from_json(path.read_text()) if path.exists() else None


def _clear_staging_folder(folder: Path, remote: RemoteFolder) -> None:
    """Removes the files of a killed call, as the remote ones alone count, and fetches the times that will be appended to."""
    for old in folder.iterdir():
        if old.name not in (LOCK, TIMING):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    if not (folder / TIMING).exists():
        (folder / TIMING).write_bytes(remote.read(TIMING) or b"")


@contextlib.contextmanager
def _lock(workdir: Path, path: str | Path, active: bool) -> Iterator[None]:
    """Makes a folder and, if active, locks it until the context ends."""
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
