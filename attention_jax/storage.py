"""Remote files (gs://bucket/run and any other URI that fsspec knows): complete objects, never appended to, no silent waits.

A remote file system must first answer within `SECONDS`: without a network or without rights the libraries beneath try for
many minutes and say nothing.
"""

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from attention_jax.errors import UserError, one_sentence, require_package

T = TypeVar("T")
log = logging.getLogger(__name__)
SECONDS = 30.0  # a remote file system must answer within this time
PAUSES = (1, 2, 4, 8, 16, 32, 64)  # seconds between attempts to write or read, after it has answered once
_HOPELESS = (FileNotFoundError, PermissionError, NotImplementedError, ValueError)  # trying again does not help


def is_remote(path: object) -> bool:
    """True if a path is a URI, such as gs://bucket/run."""
    return "://" in str(path)


def run_with_timeout(seconds: float, name: str, function: Callable[[], T]) -> T:
    """Returns `function()`. Raises UserError that begins with `name` if it fails or does not return in time."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a thread that hangs does not keep the process alive
    if not wait([future], seconds).done:
        raise UserError(
            f"{name}: no answer within {seconds:g} s: check that this machine has a network and the right to use this URI "
            "(for gs://: gcloud auth application-default login)."
        )
    try:
        return future.result()
    except UserError:
        raise
    except BaseException as error:
        raise UserError(f"{name}: {one_sentence(error)}: check the URI and the right to use it.") from error


def _open(uri: str, name: str) -> tuple[Any, str]:
    """Returns (file system, path in it); importing its library does not count for the time limit."""
    import fsspec

    if uri.startswith(("gs://", "gcs://")):
        require_package("gcsfs", "gcs", uri)
        # gcsfs asks for up to a minute which kind of bucket it is before its first answer; the usual kind needs none of that.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        os.environ.setdefault("EPATH_USE_TF", "false")  # Orbax would import TensorFlow where it is installed
    try:
        fsspec.get_filesystem_class(fsspec.utils.get_protocol(uri))
    except (ImportError, ValueError) as error:
        unknown = ": give a URI that fsspec knows, such as gs://bucket/folder" if isinstance(error, ValueError) else ""
        raise UserError(f"{uri}: {one_sentence(error)}{unknown}.") from error
    return run_with_timeout(SECONDS, name, lambda: fsspec.core.url_to_fs(uri, use_listings_cache=False))


def read_remote_file(uri: str, name: str = "") -> bytes:
    """Returns a file's content. Raises UserError that begins with `name`, after half a minute if nothing answers."""
    name = name or uri
    fs, path = _open(uri, name)
    run_with_timeout(SECONDS, name, lambda: fs.info(path))
    return fs.cat_file(path)


class RemoteFolder:
    """A remote folder, which need not exist.

    Args:
        write: True tests at once whether the folder can be written to.

    Raises:
        UserError: it does not answer, or access is refused.
    """

    def __init__(self, uri: str, write: bool = False):
        self.uri = uri.rstrip("/")
        self._fs, self._root = _open(self.uri, self.uri)
        run_with_timeout(SECONDS, self.uri, self._try_to_write if write else lambda: self._fs.exists(self._root))

    def _try_to_write(self) -> None:
        probe = f".probe-{uuid.uuid4().hex}"
        self._write(probe, b"1")
        self._fs.rm_file(self._path(probe))

    def read(self, name: str) -> bytes | None:
        """Returns a file's content; None if there is no such file."""
        try:
            return self._retry(name, lambda: self._fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> Any:
        """Returns a file's parsed content; None if there is no such file, or it is incomplete."""
        content = self.read(name)  # outside: a ValueError of the file system tells nothing about the content
        try:
            return json.loads(content or b"null")
        except ValueError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file at once, replacing one of the same name."""
        self._retry(name, lambda: self._write(name, content))

    def remove(self, name: str) -> None:
        """Removes a file or a folder, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._retry(name, lambda: self._fs.rm(self._path(name), recursive=True))

    def names(self, folder: str) -> list[str]:
        """Returns the names of the files directly in a folder."""

        def find() -> list[str]:
            self._fs.invalidate_cache()
            return [str(path) for path in self._fs.ls(self._path(folder), detail=False)]

        try:
            return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in self._retry(folder, find))
        except FileNotFoundError:
            return []

    def find(self, folder: str = "") -> list[str]:
        """Returns the sorted names of all files at any depth, below a folder, relative to this one."""
        start = self._root.rstrip("/") + "/"
        paths = self._retry(folder, lambda: self._fs.find(f"{start}{folder}" if folder else self._root))
        return sorted(path[len(start) :] for path in map(str, paths) if path.startswith(start))

    def find_details(self) -> dict[str, dict[str, Any]]:
        """Returns the store's description of all files at any depth, by their sorted names."""
        start = self._root.rstrip("/") + "/"
        found = self._retry("", lambda: self._fs.find(self._root, detail=True))
        paths = sorted(path for path in found if path.startswith(start))
        with ThreadPoolExecutor(32) as pool:  # over HTTP a listing has no sizes
            infos = pool.map(lambda path: found[path] if found[path].get("size") is not None else self._fs.info(path), paths)
            return {path[len(start) :]: info for path, info in zip(paths, infos)}

    def fetch(self, name: str, path: os.PathLike) -> None:
        """Copies a file to `path`."""
        self._retry(name, lambda: self._fs.get_file(self._path(name), os.fspath(path)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)  # object stores have no folders and do nothing
        self._fs.pipe_file(path, content)

    def _retry(self, name: str, function: Callable[[], T]) -> T:
        """Returns `function()`, repeated for two minutes. Raises UserError if the network fails for longer."""
        pauses = iter(PAUSES)
        while True:
            try:
                return function()
            except _HOPELESS:
                raise
            except Exception as error:
                if (pause := next(pauses, None)) is None:
                    raise UserError(
                        f"{self.uri}/{name}: {one_sentence(error)}, after {len(PAUSES) + 1} attempts: check the network "
                        "and start the same command again."
                    ) from error
                log.warning("%s/%s: %s; trying again in %d s", self.uri, name, one_sentence(error), pause)
                time.sleep(pause)
