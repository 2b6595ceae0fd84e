"""A run's folder: one config, one writer."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from attention_jax import config as configs
from attention_jax import parallel
from attention_jax.errors import UserError

CONFIG, LOCK = "config.json", ".lock"


@contextlib.contextmanager
def claimed(path: str | Path, config: ConfigDict) -> Iterator[Path]:
    """The absolute path of a workdir that belongs to this config and, until the end, to this process.

    Raises:
        UserError: it is a file, cannot be written to, is in use, or was made by another config (the difference is shown).
    """
    if "://" in str(path):
        raise UserError(f"workdir={path}: give a folder of a mounted file system; addresses are not supported.")
    workdir = Path(path).expanduser().resolve()
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir={path} is a file: give a folder.")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("w") if parallel.is_main() else None
    except OSError as error:
        raise UserError(f"workdir={path} cannot be written to ({os.strerror(error.errno)}): give a folder that can.") from error
    with contextlib.ExitStack() as stack:
        if lock:
            stack.enter_context(lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"workdir={path} is in use by another process: wait for it or give another folder.") from error
        saved = read_config(workdir)
        if saved is not None:
            lines = configs.difference(saved, config)
            if lines:
                raise UserError(
                    f"workdir={path} belongs to another config ({'; '.join(lines)}): give another workdir or the old config."
                )
        elif parallel.is_main():
            configs.save_json(workdir / CONFIG, config)
        yield workdir


def read_config(workdir: Path) -> ConfigDict | None:
    """The config that a workdir was made with, or None when it has none."""
    path = workdir / CONFIG
    return configs.from_json(path.read_text()) if path.exists() else None
