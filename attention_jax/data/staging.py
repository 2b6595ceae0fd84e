"""Copies of remote files on this host: `data.cache_dir` is filled on first use and shared by the processes of the host.

fsspec moves the bytes, of several files at once. Its own file caches know neither the room that is left nor other processes,
and do not see damage; experiments/results/data_speed.md has their rates.
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
import shutil
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from attention_jax import storage
from attention_jax.errors import UserError, one_sentence

log = logging.getLogger(__name__)
FILES = 16  # fetched at once
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
        self._lock, self._wanted, self._failed = threading.Lock(), set[str](), dict[str, str]()
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
        """Fetches missing files in the background. Raises UserError if the store does not answer, or if there is no room."""
        with self._lock:
            new = [name for name in dict.fromkeys(names) if name not in self._wanted and not self.is_here(name)]
            if new and self._remote is None:
                raise UserError(f"{self.uri} does not answer, and {self.path(new[0])} is no complete copy: check the network.")
            if new:
                self.check_room((*self._wanted, *new))
            self._wanted.update(new)
        if new:
            threading.Thread(target=self._stage, args=(new,), daemon=True).start()

    def check_room(self, names: Iterable[str]) -> None:
        """Raises UserError if missing files do not fit."""
        needed = 0
        for name in names:
            needed += self.files[name].size
            with contextlib.suppress(OSError):
                needed -= self._partial(name).stat().st_blocks * 512
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

    def wait_for(self, name: str) -> None:
        """Returns when the copy of a file is complete. Raises UserError if the file could not be staged."""
        while not self.is_here(name):
            if reason := self._failed.get(name):
                raise UserError(f"{self.uri}/{name} could not be staged ({reason}): start the same command again.")
            time.sleep(0.05)

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

    def _partial(self, name: str) -> Path:
        return self.root / f"{name}.partial"

    def _stage(self, names: Sequence[str]) -> None:
        """Fetches files in this order, some at once; of the host's processes one at a time does."""
        left = deque(names)

        def fetch_next() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    self._fetch(left.popleft())

        with (self.root.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            threads = [threading.Thread(target=fetch_next, daemon=True) for _ in names[:FILES]]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _fetch(self, name: str) -> None:
        """Copies a file, unless another process was faster, compares its checksum with the store's and makes it known."""
        partial, (size, version, crc32c) = self._partial(name), self.files[name]
        try:
            if not self.is_here(name):
                assert self._remote
                partial.parent.mkdir(parents=True, exist_ok=True)
                self._remote.fetch(name, partial)
                checksum, found = _checksum(partial, bool(crc32c))
                if partial.stat().st_size != size or found != crc32c:
                    raise OSError(
                        f"its CRC-32C is {found}, and the store says {crc32c}" if crc32c else "its size is another one"
                    )
                partial.replace(self.path(name))
                self._write(self._note(name), json.dumps([size, version, checksum]).encode())
        except Exception as error:
            partial.unlink(missing_ok=True)
            self._failed[name] = one_sentence(error).rstrip(".")
            log.warning("data: %s/%s is not staged (%s).", self.uri, name, self._failed[name])
        self._wanted.discard(name)


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
