"""A run's folder: one config, one writer. One at an address has a local folder that stands for it while training runs."""

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

from attention_jax import storage
from attention_jax.config.config import config_from_json, list_differences, save_config
from attention_jax.distributed.mesh import is_main_process
from attention_jax.errors import UserError
from attention_jax.train.metrics import TIMING

CONFIG, LOCK = "config.json", ".lock"
EVALUATION = "evaluation.npz"  # outputs of the newest evaluation, example by example


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run writes: a local folder, and the one at an address that it stands for, if any."""

    folder: Path
    far: storage.RemoteFolder | None = None


@contextlib.contextmanager
def lock_workdir(path: str | Path, config: ConfigDict) -> Iterator[Place]:
    """A workdir that belongs to this config and, until the end, to this process.

    Raises:
        UserError: it is a file, cannot be written to, is in use, or was made by another config (the difference is shown).
    """
    if storage.is_remote(path):
        far = storage.RemoteFolder(str(path), write=is_main_process())
        with _locked(get_staging_folder(str(path)), path, True) as folder:
            for left in folder.iterdir():  # of a call that was killed: what counts is at the address
                if left.name not in (LOCK, TIMING):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            if not (folder / TIMING).exists():
                (folder / TIMING).write_bytes(far.read(TIMING) or b"")
            saved = far.read(CONFIG)
            _check(path, config_from_json(saved.decode()) if saved else None, config)
            if saved is None and is_main_process():
                save_config(folder / CONFIG, config)
                far.write(CONFIG, (folder / CONFIG).read_bytes())
            yield Place(folder, far)
        return
    with _locked(Path(path).expanduser().resolve(), path, is_main_process()) as workdir:
        saved = read_config(workdir)
        _check(path, saved, config)
        if saved is None and is_main_process():
            save_config(workdir / CONFIG, config)
        yield Place(workdir)


def get_staging_folder(address: str) -> Path:
    """The local folder that stands for an address in this process: in AJ_STAGING, by default in the user's cache."""
    base = os.environ.get("AJ_STAGING") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "attention_jax", "far")
    address = address.rstrip("/")
    name = f"{storage.name_of(address)}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    return Path(base).expanduser().resolve() / name / str(jax.process_index())


@contextlib.contextmanager
def _locked(workdir: Path, path: str | Path, lock_it: bool) -> Iterator[Path]:
    """Makes a folder, which is this process's until the end."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir={path} is a file: give a folder.")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("w") if lock_it else None
    except OSError as error:
        raise UserError(f"workdir={path} cannot be written to ({os.strerror(error.errno)}): give a folder that can.") from error
    with lock or contextlib.nullcontext():
        if lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"workdir={path} is in use by another process: wait for it or give another folder.") from error
        yield workdir


def _check(path: str | Path, saved: ConfigDict | None, config: ConfigDict) -> None:
    lines = list_differences(saved, config) if saved is not None else []
    if lines:
        raise UserError(
            f"workdir={path} belongs to another config ({'; '.join(lines)}): give another workdir or the old config."
        )


def read_config(workdir: Path) -> ConfigDict | None:
    """The config that a workdir was made with, or None when it has none."""
    path = workdir / CONFIG
    return config_from_json(path.read_text()) if path.exists() else None
