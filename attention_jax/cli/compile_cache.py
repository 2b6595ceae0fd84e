"""Removes damaged entries of JAX's persistent compilation cache.

JAX writes an entry in place and never overwrites one: a process that is killed while it writes leaves a truncated entry, which
JAX warns about at every start. Once the entry is removed, JAX compiles the program again and stores it.
"""

import contextlib
import logging
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from attention_jax.errors import is_own_folder

log = logging.getLogger(__name__)

STAMP = ".attention_jax-verified"  # entries older than this file were complete when they were checked
_SLACK = 2.0  # seconds; the coarsest file times are this far apart
_SETTLE = 0.5  # seconds for which a truncated entry must not change: otherwise a process is still writing it
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def _leave_cache() -> None:
    import jax

    jax.config.update("jax_enable_compilation_cache", False)


def remove_damaged_entries(folder: str | os.PathLike | None = None) -> list[Path]:
    """Removes damaged entries and returns them; call it before JAX compiles anything.

    It reads only entries that are new since the last call, and never raises: a cache with damaged entries still works.

    Args:
        folder: the cache; default JAX_COMPILATION_CACHE_DIR. Nothing happens without one, or if it is remote.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") if folder is None else os.fspath(folder)
    if not folder or "://" in folder or not os.path.isdir(folder):
        return []
    if not is_own_folder(folder):
        log.warning("%s holds compiled programs and others may write to it: it is not used; chmod go-w %s.", folder, folder)
        _leave_cache()
        return []
    begin, removed, stamp = time.time(), [], Path(folder, STAMP)
    with contextlib.suppress(OSError):
        damaged = [(path, before) for path, before in _find_new_entries(stamp) if not _is_complete(path)]
        if damaged:
            time.sleep(_SETTLE)
        for path, before in damaged:
            with contextlib.suppress(OSError):
                # If it has not changed, remove it. A process that writes on afterwards loses nothing but the entry.
                if _state(path.stat()) == before:
                    path.unlink()
                    removed.append(path)
    if removed:
        log.warning("compilation cache %s: removed %d unreadable entries; they will be compiled anew.", folder, len(removed))
    with contextlib.suppress(OSError):
        stamp.touch()
        os.utime(stamp, (begin, begin))
    return removed


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _find_new_entries(stamp: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Yields the entries written since the last check, each with its size and time."""
    verified = stamp.stat().st_mtime - _SLACK if stamp.exists() else float("-inf")
    for entry in os.scandir(stamp.parent):
        if entry.name.endswith("-cache"):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                if entry.stat().st_mtime >= verified:
                    yield Path(entry.path), _state(entry.stat())


def _is_complete(path: Path) -> bool:
    """Returns True if an entry decompresses, or if that cannot be found out."""
    try:
        data = path.read_bytes()
        decompress = _zstd_decompress if data.startswith(_ZSTD_MAGIC) else zlib.decompress
        decompress(data)
    except (OSError, ImportError):
        return True
    except Exception:  # zlib.error, ZstdError, …: corrupt
        return False
    return True


def _zstd_decompress(data: bytes) -> None:
    """Uses the library that JAX uses: the standard library's from Python 3.14 on, else the optional package zstandard."""
    try:
        from compression import zstd
    except ImportError:
        import zstandard as zstd
    zstd.decompress(data)
