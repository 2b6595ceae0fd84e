"""Files at addresses, gs://bucket/run and whatever else fsspec knows: whole objects, never appended to, never a silent wait.

An address is asked for a sign of life first, for at most `SECONDS`: without a network or without rights the libraries
beneath try for many minutes and say nothing.
"""

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from attention_jax.errors import UserError, one_sentence, require_package

T = TypeVar("T")
log = logging.getLogger(__name__)
SECONDS = 30.0  # for an address to answer at all
PAUSES = (1, 2, 4, 8, 16, 32, 64)  # seconds between attempts to write or read, when an address has answered before
_PACKAGES = {"gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}  # protocol: (module, our extra)
_HOPELESS = (FileNotFoundError, PermissionError, NotImplementedError, ValueError)  # trying again would not help


def is_remote(path: object) -> bool:
    """Whether a path is an address, as gs://bucket/run is one."""
    return "://" in str(path)


def run_with_timeout(seconds: float, what: str, do: Callable[[], T]) -> T:
    """What `do` returns. Raises UserError that begins with `what` when it fails or does not return in time."""
    ended: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            ended.append((do(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True)  # one that hangs does not keep the process
    thread.start()
    thread.join(seconds)
    if not ended:
        raise UserError(
            f"{what}: no answer within {seconds:g} s: see that this machine has a network and may use the address (for gs://: "
            "gcloud auth application-default login)."
        )
    value, error = ended[0]
    if isinstance(error, UserError):
        raise error
    if error is not None:
        raise UserError(f"{what}: {one_sentence(error)}: see that the address is right and may be used.") from error
    return value


def _open(address: str) -> tuple[Any, str]:
    """(file system, path in it) of an address."""
    import fsspec

    protocol = address.split("://")[0]
    if protocol in _PACKAGES:
        require_package(*_PACKAGES[protocol], address)
    try:
        return fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        raise UserError(f"{address}: {one_sentence(error)}.") from error
    except ValueError as error:  # a protocol that it does not know
        raise UserError(
            f"{address}: {one_sentence(error)}: give an address that fsspec knows, as gs://bucket/folder."
        ) from error


def read_remote_file(address: str, what: str = "") -> bytes:
    """The content of a file. Raises UserError in one sentence, within half a minute when nothing answers at all."""
    what = what or address
    fs, path = run_with_timeout(SECONDS, what, lambda: _open(address))
    run_with_timeout(SECONDS, what, lambda: fs.info(path))
    return fs.cat_file(path)


class RemoteFolder:
    """A folder at an address.

    Args:
        address: of the folder; it need not be there.
        write: whether it will be written to, which is then tried at once.

    Raises:
        UserError: it does not answer, or may not be used.
    """

    def __init__(self, address: str, write: bool = False):
        self.address = address.rstrip("/")
        self._fs, self._root = run_with_timeout(SECONDS, self.address, lambda: _open(self.address))
        run_with_timeout(SECONDS, self.address, self._try_to_write if write else lambda: self._fs.exists(self._root))

    def _try_to_write(self) -> None:
        probe = f".probe-{uuid.uuid4().hex}"
        self._write(probe, b"1")
        self._fs.rm_file(self._path(probe))

    def read(self, name: str) -> bytes | None:
        """A file's content; None when it is not there."""
        try:
            return self._again(name, lambda: self._fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> Any:
        """A file's content; None when it is not there or is not whole."""
        try:
            return json.loads(self.read(name) or b"null")
        except ValueError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """A file, at once; it takes the place of what has its name."""
        self._again(name, lambda: self._write(name, content))

    def remove(self, name: str) -> None:
        """Removes a file or a folder, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._again(name, lambda: self._fs.rm(self._path(name), recursive=True))

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder."""

        def find() -> list[str]:
            self._fs.invalidate_cache()
            return [str(path) for path in self._fs.ls(self._path(folder), detail=False)]

        try:
            return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in self._again(folder, find))
        except FileNotFoundError:
            return []

    def find(self) -> list[str]:
        """Names of all files, at any depth, relative to the folder and sorted."""
        start = self._root.rstrip("/") + "/"
        paths = self._again("", lambda: self._fs.find(self._root))
        return sorted(path[len(start) :] for path in map(str, paths) if path.startswith(start))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)  # object stores have no folders and do nothing
        self._fs.pipe_file(path, content)

    def _again(self, name: str, do: Callable[[], T]) -> T:
        """What `do` returns, tried for two minutes: networks fail for a while. Raises UserError when they fail longer."""
        for pause in (*PAUSES, None):
            try:
                return do()
            except _HOPELESS:
                raise
            except Exception as error:
                if pause is None:
                    raise UserError(
                        f"{self.address}/{name}: {one_sentence(error)}, however often it was tried: see that the network works "
                        "and start the same command again."
                    ) from error
                log.warning("%s/%s: %s; trying again in %d s", self.address, name, one_sentence(error), pause)
                time.sleep(pause)
        raise AssertionError


def name_of(address: str) -> str:
    """The last part of an address."""
    return Path(address.rstrip("/")).name
