"""Copies of remote files on this host: `data.cache_dir` is filled on first use and shared by the processes of the host.

fsspec moves the bytes, in parts that many requests fetch at once, so that latency does not bound the rate. Its own file
caches read a file only when it has come completely, know neither the room that is left nor other processes, and do not see
damage; experiments/results/data_speed.md has their rates.
"""

import base64
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import logging
import os
import queue
import shutil
import threading
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from attention_jax import storage
from attention_jax.errors import UserError, one_sentence

log = logging.getLogger(__name__)
PART, REQUESTS = 8 * 2**20, 32  # bytes of a request, and requests at once
_VERSIONS = ("generation", "md5Hash", "ETag", "etag", "mtime", "LastModified", "created")  # as stores name what they know


class RemoteFile(NamedTuple):
    """A file as the store describes it: bytes, a text that changes with it, and its CRC-32C in base64 or ""."""

    size: int
    version: str
    crc32c: str


class StagedFolder:
    """A remote folder and its copy, which need not be complete.

    Attributes:
        root: the copy, with the files under their names.
        files: those of the remote folder by name.

    Raises:
        UserError: the store does not answer and has never been listed here, or `cache_dir` cannot be written to.
    """

    def __init__(self, uri: str, cache_dir: str):
        self.uri, self._dir = uri.rstrip("/"), Path(cache_dir).expanduser().absolute()
        self.root = self._dir / hashlib.sha256(self.uri.encode()).hexdigest()[:12] / self.uri.rsplit("/", 1)[-1]
        self._lock, self._wanted, self._failed = threading.Lock(), dict[str, None](), dict[str, str]()
        self._remote: storage.RemoteFolder | None = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache_dir={cache_dir}: {error.strerror}: give a folder that can be written to.") from error
        listing = self.root.parent / "files.json"
        try:
            self._remote = storage.RemoteFolder(self.uri)
            self.files = {name: _describe(info) for name, info in self._remote.find_details().items()}
        except UserError as error:
            if not listing.exists():
                raise
            log.warning("data: %s The copy in %s is used as it is.", error, self.root)
            self.files = {name: RemoteFile(*about) for name, about in json.loads(listing.read_text()).items()}
        else:
            self._write(listing, json.dumps(self.files).encode())

    def path(self, name: str) -> Path:
        """Returns where a file's copy is, or will be."""
        return self.root / name

    def partial_path(self, name: str) -> Path:
        """Returns where a copy grows; the part of it that has not come is zeros."""
        version = hashlib.sha256(self.files[name].version.encode()).hexdigest()[:8]
        return self.root / f"{name}.{version}.partial"

    def is_here(self, name: str) -> bool:
        """True if the copy is complete, of the store's version, and as long as it was when it came."""
        size, version, _ = self.files[name]
        with contextlib.suppress(OSError, ValueError):
            size_then, version_then, _ = json.loads(self._note(name).read_text())
            return (size_then, version_then) == (size, version) and os.stat(self.path(name)).st_size == size
        return False

    def is_intact(self, name: str) -> bool:
        """True if the copy still has the checksum that it came with."""
        with contextlib.suppress(OSError, ValueError):
            return _checksum(self.path(name))[0] == json.loads(self._note(name).read_text())[2]
        return False

    def stage(self, names: Sequence[str]) -> None:
        """Fetches missing files in the background. Raises UserError if there is no room for them."""
        with self._lock:
            new = [name for name in dict.fromkeys(names) if name not in self._wanted and not self.is_here(name)]
            if new:
                self.check_room((*self._wanted, *new))
            self._wanted.update(dict.fromkeys(new))
        if new:
            threading.Thread(target=self._stage, args=(new,), daemon=True).start()

    def check_room(self, names: Iterable[str]) -> None:
        """Raises UserError if missing files do not fit."""
        needed = 0
        for name in names:
            needed += self.files[name].size
            with contextlib.suppress(OSError):
                needed -= self.partial_path(name).stat().st_blocks * 512
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise UserError(
                f"data.cache_dir={self._dir}: {self.uri} needs {needed / 2**30:.3g} GiB more, and {self._dir} has "
                f"{free / 2**30:.3g} GiB left: make room, give another folder, or None to read over the network each time."
            )

    def replace(self, name: str) -> None:
        """Fetches a file again whose copy is damaged."""
        log.warning("data: the copy %s is damaged and is fetched again.", self.path(name))
        self._note(name).unlink(missing_ok=True)
        self.stage([name])

    def refuse_failed(self, name: str) -> None:
        """Raises UserError if a file could not be staged."""
        if reason := self._failed.get(name):
            raise UserError(f"{self.uri}/{name} could not be staged ({reason}): start the same command again.")

    def fill(self, name: str, start: int, end: int) -> bytes:
        """Returns a part of a remote file, which is also put into the copy that grows."""
        if self._remote is None:
            raise UserError(f"{self.uri} does not answer, and {self.path(name)} is no complete copy: check the network.")
        content = self._remote.read_part(name, start, end)
        if len(content) != end - start:
            raise UserError(f"{self.uri}/{name} has changed while it was read: start the same command again.")
        try:
            self.partial_path(name).parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.partial_path(name), os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.truncate(file, self.files[name].size)
                os.pwrite(file, content, start)
            finally:
                os.close(file)
        except OSError as error:
            raise UserError(f"data.cache_dir={self._dir}: {error.strerror}: make room, or give another folder.") from error
        if self.is_here(name):  # it was completed meanwhile, and has another place
            self.partial_path(name).unlink(missing_ok=True)
        return content

    def copy_small(self, name: str) -> None:
        """Copies a file at once; keeps the present copy if the store does not answer."""
        if self._remote and (content := self._remote.read(name)) is not None:
            self._write(self.path(name), content)

    def read_small(self, name: str) -> bytes | None:
        """Returns a file's content, from its copy or else from the store, which makes the copy; None if the store has none.

        A copy ends in the checksum of the content and the store's version, so that a damaged or old one is fetched again.
        """
        size, version, _ = self.files[name]
        with contextlib.suppress(OSError):
            content, end = (copy := self.path(name).read_bytes())[:-4], copy[-4:]
            if zlib.crc32(content, zlib.crc32(version.encode())).to_bytes(4, "little") == end:
                return content
        if self._remote is None:
            raise UserError(f"{self.uri} does not answer, and {self.path(name)} is no copy of it: check the network.")
        found = self._remote.read(name)
        if found is not None:
            end = zlib.crc32(found, zlib.crc32(version.encode())).to_bytes(4, "little")
            try:
                self._write(self.path(name), found + end)
            except OSError as error:
                raise UserError(f"data.cache_dir={self._dir}: {error.strerror}: make room, or give another folder.") from error
        return found

    def _note(self, name: str) -> Path:
        return self.root / f"{name}.staged"

    def _write(self, path: Path, content: bytes) -> None:
        """Replaces a file; another process sees all of it or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        (partial := path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")).write_bytes(content)
        partial.replace(path)

    def _stage(self, names: Sequence[str]) -> None:
        """Fetches files one after another, their parts at once; of the host's processes one at a time."""
        with (self.root.parent / "lock").open("w") as lock, _Threads(REQUESTS) as fetchers, _Threads(4) as checkers:
            fcntl.flock(lock, fcntl.LOCK_EX)
            going = deque[tuple[int, Future[None]]]()
            for name in names:
                if self.is_here(name):  # another process was faster
                    self.partial_path(name).unlink(missing_ok=True)
                    self._wanted.pop(name, None)
                    continue
                size = self.files[name].size
                ranges = [(start, min(start + PART, size)) for start in range(0, size, PART)]
                parts = [fetchers.submit(self.fill, name, *part) for part in ranges]
                going.append((len(parts), checkers.submit(self._finish, name, parts)))
                while sum(number for number, _ in going) > 4 * REQUESTS:
                    going.popleft()[1].result()
            for _, finished in going:
                finished.result()

    def _finish(self, name: str, parts: Sequence[Future[bytes]]) -> None:
        """Waits for a file's parts, compares its checksum with the store's and makes it known."""
        partial, (size, version, crc32c) = self.partial_path(name), self.files[name]
        try:
            for part in parts:
                part.result()
            checksum, found = _checksum(partial, bool(crc32c))
            if found != crc32c:
                raise OSError(f"its CRC-32C is {found}, and the store says {crc32c}")
            partial.replace(self.path(name))
            self._write(self._note(name), json.dumps([size, version, checksum]).encode())
            for old in self.path(name).parent.glob(f"{self.path(name).name}.*.partial"):
                old.unlink(missing_ok=True)
        except Exception as error:
            for part in parts:
                part.cancel()
            partial.unlink(missing_ok=True)
            self._failed[name] = one_sentence(error).rstrip(".")
            log.warning("data: %s/%s is not staged, and read over the network (%s).", self.uri, name, self._failed[name])
        self._wanted.pop(name, None)


class _Threads:
    """Threads that a process does not wait for when it ends, as it would for those of an executor."""

    def __init__(self, number: int):
        self._number, self._queue = number, queue.SimpleQueue[tuple[Future, Callable[..., Any], Sequence[Any]] | None]()

    def __enter__(self) -> "_Threads":
        for _ in range(self._number):
            threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for _ in range(self._number):
            self._queue.put(None)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        future: Future = Future()
        self._queue.put((future, function, arguments))
        return future

    def _run(self) -> None:
        while item := self._queue.get():
            future, function, arguments = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*arguments))
                except Exception as error:
                    future.set_exception(error)


@functools.lru_cache(maxsize=16)
def open_staged_folder(uri: str, cache_dir: str) -> StagedFolder:
    """Opens a remote folder, which a process lists once however often its data are opened."""
    return StagedFolder(uri, cache_dir)


def _describe(info: dict) -> RemoteFile:
    """Returns a store's file from the description that fsspec gives."""
    crc32c = info.get("crc32c", "") if importlib.util.find_spec("google_crc32c") else ""  # gcsfs brings it; MD5 costs ten times
    return RemoteFile(int(info["size"]), next((str(info[key]) for key in _VERSIONS if info.get(key)), ""), crc32c)


def _checksum(path: Path, with_crc32c: bool = False) -> tuple[int, str]:
    """Returns the CRC-32 of a file, and its CRC-32C in base64 or ""."""
    checksum = crc32c = 0
    if with_crc32c:
        import google_crc32c
    with path.open("rb") as file:
        while content := file.read(2**20):
            checksum = zlib.crc32(content, checksum)
            crc32c = google_crc32c.extend(crc32c, content) if with_crc32c else 0
    return checksum, base64.b64encode(crc32c.to_bytes(4, "big")).decode() if with_crc32c else ""
