"""Removes damaged entries of JAX's persistent compilation cache.

JAX writes an entry in place and never over an existing one, so that a process killed while it wrote leaves a piece of an
entry that is warned about at every start and never mended. Without the piece, the program is compiled once more.
"""

import contextlib
import logging
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

STAMP = ".attention_jax-verified"  # its time: entries older than this were whole when they were looked at
_SLACK = 2.0  # seconds; the coarsest file times are this far apart
_SETTLE = 0.5  # seconds for which an entry must not change before it counts as left behind and not as being written
_CHUNK = 1 << 20
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def repair(folder: str | os.PathLike | None = None) -> list[Path]:
    """Removes the entries that were cut off, and returns them; to be called before JAX compiles anything.

    Costs a listing of the folder when nothing is new. Never raises: a cache that cannot be mended still serves.

    Args:
        folder: the cache; default JAX_COMPILATION_CACHE_DIR. Nothing happens without one, or when it is far away.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") if folder is None else os.fspath(folder)
    if not folder or "://" in folder or not os.path.isdir(folder):
        return []
    begin = time.time()
    damaged: list[tuple[Path, tuple[int, int]]] = []
    with contextlib.suppress(OSError):
        damaged = [(path, seen) for path, seen in _unverified(Path(folder)) if not _is_whole(path)]
    removed = _remove_settled(damaged)
    if removed:
        log.warning("compilation cache %s: removed %d unreadable entries; they will be compiled anew.", folder, len(removed))
    with contextlib.suppress(OSError):
        stamp = Path(folder, STAMP)
        stamp.touch()
        os.utime(stamp, (begin, begin))
    return removed


def _unverified(folder: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Entries written since the last look, each with its size and time."""
    try:
        verified = (folder / STAMP).stat().st_mtime - _SLACK
    except FileNotFoundError:
        verified = float("-inf")
    for entry in os.scandir(folder):
        if entry.name.endswith("-cache"):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                status = entry.stat()
                if status.st_mtime >= verified:
                    yield Path(entry.path), (status.st_size, status.st_mtime_ns)


def _remove_settled(damaged: list[tuple[Path, tuple[int, int]]]) -> list[Path]:
    """Removes those that have not changed for a while.

    A process that writes one of them after all keeps its open file and loses nothing but the entry.
    """
    removed = []
    if damaged:
        time.sleep(_SETTLE)
    for path, seen in damaged:
        with contextlib.suppress(OSError):
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == seen:
                path.unlink()
                removed.append(path)
    return removed


def _is_whole(path: Path) -> bool:
    """Whether an entry is one complete compressed stream. What cannot be judged counts as whole."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic == _ZSTD_MAGIC:
                return _decompresses(file, _zstd_decompressor())
            return _decompresses(file, zlib.decompressobj())
    except (OSError, ImportError):
        return True


def _zstd_decompressor():
    """What JAX takes: the standard library's from Python 3.14 on, else the package zstandard, which may be absent."""
    try:
        from compression import zstd
    except ImportError:
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj()
    return zstd.ZstdDecompressor()


def _decompresses(file, stream) -> bool:
    while not stream.eof:
        chunk = file.read(_CHUNK)
        if not chunk:
            return False
        try:
            stream.decompress(chunk)
        except Exception:  # zlib.error, ZstdError, …: corrupt
            return False
    return True
